"""CelebA-HQ: images in the order of its TFRecords; missing and damaged records are named."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import CELEBA, images_of_test, pixels
from helpers.records import write_tfrecords

from lmconv.data.celebahq import import_tensorflow
from lmconv.data.datasets import DataConfig, DataError, load_test, load_train


@pytest.mark.parametrize("backwards", [False, True])
def test_celebahq_test_images_are_in_the_order_of_the_file_names(
    celeba: str, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    glob = Path.glob
    listed = lambda folder, pattern: sorted(glob(folder, pattern), reverse=backwards)  # noqa: E731
    monkeypatch.setattr(Path, "glob", listed)
    test_set = load_test(DataConfig("celebahq", celeba, batch_size=4))
    batches = list(test_set.batches((3, 256, 256)))
    assert [len(batch) for batch in batches] == [4, 2]
    assert test_set.num_images is None
    expected = CELEBA[6:].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(pixels(torch.cat(batches)), expected)


def test_absent_tfrecords_are_named_by_their_pattern(tmp_path: Path) -> None:
    config = DataConfig("celebahq", str(tmp_path))
    with pytest.raises(DataError, match=r"celeba-tfr/train/train-r08-s-\*-of-\*\.tfrecords"):
        load_train(config)
    with pytest.raises(DataError, match=r"validation/validation-r08-s-\*-of-\*\.tfrecords"):
        load_test(config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flipped", "is damaged"),
        ("truncated", "is damaged"),
        ("short", "has an image of 10 bytes instead of 256x256x3"),
        ("nameless", "is damaged"),
        ("empty", "has no images in its 1 files"),
    ],
)
def test_damaged_tfrecords_are_named(tmp_path: Path, damage: str, message: str) -> None:
    name = "validation-r08-s-0000-of-0001.tfrecords"
    path = tmp_path / "celeba-tfr" / "validation" / name
    image = CELEBA[0].tobytes()
    records = {"short": [{"data": image[:10]}], "nameless": [{"image": image}], "empty": []}
    write_tfrecords(path, records.get(damage, [{"data": image}]))
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[1000] ^= 255
    path.write_bytes(content[:-100] if damage == "truncated" else content)
    with pytest.raises(DataError, match=message) as error:
        images_of_test(DataConfig("celebahq", str(tmp_path)))
    assert "validation" in str(error.value) and "\n" not in str(error.value)


def records_file(folder: Path, *records: bytes) -> Path:
    """A file of validation records with these contents, and right checksums."""
    tf = import_tensorflow()
    path = folder / "celeba-tfr" / "validation" / "validation-r08-s-0000-of-0001.tfrecords"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def refused_records(folder: Path) -> str:
    """What is said of a file of validation records, in one short line; nothing if it is read."""
    try:
        images_of_test(DataConfig("celebahq", str(folder), celeba_size=8))
    except DataError as error:
        message = str(error)
        assert "validation-r08-s-0000-of-0001.tfrecords" in message
        assert "\n" not in message and len(message) < 500
        return message
    return ""


def example(**features: object) -> bytes:
    tf = import_tensorflow()
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_records_that_are_no_examples_are_refused_in_one_line(tmp_path: Path) -> None:
    tf = import_tensorflow()
    number = tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))
    two = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a", b"b"]))
    for record, expected in (
        (b"no example", "a record is not an Example"),
        (b"\xff" * 50, "a record is not an Example"),
        (np.random.default_rng(0).bytes(100), "a record is not an Example"),
        (b"", "a record has 0 values of 'data' in bytes"),
        (example(data=number), "a record has 0 values"),
        (example(data=two), "a record has 2 values"),
    ):
        records_file(tmp_path, record)
        assert expected in refused_records(tmp_path)
    for content in (b"hello world, there are no records here", b"\xff" * 100, bytes(100)):
        records_file(tmp_path).write_bytes(content)
        assert "damaged" in refused_records(tmp_path)


def test_a_record_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    """Its checksum may be right: TensorFlow would try to make room for it, and abort."""
    head = struct.pack("<Q", 2**40) + bytes.fromhex("aa3d6be4")
    records_file(tmp_path).write_bytes(head + b"abc")
    assert "a record of 1099511627776 bytes is too long" in refused_records(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_changed_records_are_refused_in_one_line_or_read(tmp_path: Path, whole: bool) -> None:
    """Bytes of the file, and bytes of a record whose checksum is right."""
    tf, random = import_tensorflow(), np.random.default_rng(0)
    image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[CELEBA[0].tobytes()]))
    record = example(data=image)
    path = records_file(tmp_path, record)
    content = path.read_bytes() if whole else record
    said = []
    for _ in range(60):
        changed = bytearray(content)
        changed[random.integers(min(40, len(content)))] = random.integers(256)
        if whole:
            path.write_bytes(changed)
        else:
            records_file(tmp_path, bytes(changed))
        said.append(refused_records(tmp_path))
    assert sum(map(bool, said)) > 20
