"""Arrays of images: every layout gives the same images, and the parts of a set share none."""

import io
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import newest, refused, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmconv.data import array_files, folders
from lmconv.data.array_files import map_member, map_npy
from lmconv.data.arrays import array_shape, open_array, read_array_labels
from lmconv.data.datasets import DataConfig, load_test, load_train, read_labels
from lmconv.data.image_files import fit
from lmconv.data.sources import DataError
from lmconv.distributed import Processes
from lmconv.pixel_values import Preparation

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (30, 3, 8, 9), dtype=np.uint8)


def all_of(source, random=None):
    """The images of a source by their indices, and the indices in the order they came in."""
    batches = [(indices, images[:]) for indices, images in source.batches(7, random)]
    indices = np.concatenate([each for each, _ in batches])
    images = np.concatenate([each for _, each in batches])
    return images[np.argsort(indices)], indices.tolist()


@settings(max_examples=25, deadline=None)
@given(
    number=st.integers(1, 12),
    height=st.integers(4, 9),
    width=st.integers(4, 9),
    layout=st.sampled_from(["NHW", "NHW1", "N1HW", "NHW3", "N3HW"]),
    fortran=st.booleans(),
    kind=st.sampled_from(["npy", "npz", "compressed"]),
    named=st.booleans(),
)
def test_every_layout_in_every_file_gives_the_same_images(
    tmp_path_factory, number, height, width, layout, fortran, kind, named
):
    folder = tmp_path_factory.mktemp("arrays")
    channels = 3 if "3" in layout else 1
    images = RANDOM.integers(0, 256, (number, channels, height, width), dtype=np.uint8)
    stored = images if layout[1] in "13" else images.transpose(0, 2, 3, 1)
    stored = images[:, 0] if layout == "NHW" else stored
    stored = np.asfortranarray(stored) if fortran else np.ascontiguousarray(stored)
    path = folder / f"some.{'npy' if kind == 'npy' else 'npz'}"
    if kind == "npy":
        np.save(path, stored)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, stored)
    where = path if named else folder
    assert array_shape(where) == images.shape[1:]
    read, order = all_of(open_array(where, "all", images.shape[1:], 0))
    np.testing.assert_array_equal(read, images)
    assert order == list(range(number))


@settings(max_examples=20, deadline=None)
@given(number=st.integers(2, 60), seed=st.integers(0, 9), limit=st.integers(1, 20))
def test_a_split_is_complete_without_repeats_and_the_same_each_time(
    tmp_path_factory, number, seed, limit
):
    path = tmp_path_factory.mktemp("split") / "images.npy"
    np.save(path, np.repeat(np.arange(number, dtype=np.uint8), 16).reshape(number, 4, 4))
    parts = [all_of(open_array(path, part, (1, 4, 4), seed))[0] for part in ("train", "test")]
    train, test = (images[:, 0, 0, 0].tolist() for images in parts)
    assert sorted(train + test) == list(range(number)) and len(test) == max(1, number // 10)
    again, _ = all_of(open_array(path, "train", (1, 4, 4), seed))
    np.testing.assert_array_equal(again, parts[0])
    some, _ = all_of(open_array(path, "train", (1, 4, 4), seed, limit))
    assert len(some) == min(limit, len(train)) and set(some[:, 0, 0, 0]) <= set(train)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train", "test"), ("y_train", "y_test")),
        (("x_train", "x_test"), ("y_train", "y_test")),
        (("train_images", "test_images"), ("train_labels", "test_labels")),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_parts_and_labels_are_known_by_the_names_of_arrays(tmp_path, names, labels, kind):
    stored = {names[0]: IMAGES[:20], names[1]: IMAGES[20:]}
    stored |= {labels[0]: np.arange(20) % 3 + 5, labels[1]: (np.arange(10) % 2 + 6)[:, None]}
    if kind == "npz":
        np.savez(tmp_path / "set.npz", **stored)
    else:
        for name, array in stored.items():
            np.save(tmp_path / f"{name}.npy", array)
    for part, expected in (("train", IMAGES[:20]), ("test", IMAGES[20:])):
        images, _ = all_of(open_array(tmp_path, part, (3, 8, 9), 0))
        np.testing.assert_array_equal(images, expected)
    found, known = read_array_labels(tmp_path, "train", 0)
    assert found.dtype == np.int64 and known == ("5", "6", "7")
    assert found.tolist() == (np.arange(20) % 3).tolist()
    with pytest.raises(DataError, match="`part` all needs arrays that are not split"):
        open_array(tmp_path, "all", (3, 8, 9), 0)


def test_labels_of_a_split_array_are_those_of_its_images(tmp_path):
    values = np.arange(40, dtype=np.uint8)
    path = tmp_path / "set.npz"
    np.savez(path, images=np.repeat(values, 16).reshape(40, 4, 4), labels=values)
    config = DataConfig("array", str(path), max_train_images=9, split_seed=3)
    for part in ("train", "test"):
        labels, names = read_labels(config, part)
        (images,) = load_test(config, part).batches((1, 4, 4))
        shown = np.rint((images[:, 0, 0, 0].numpy() + 1) * 127.5).astype(int)
        assert [int(names[label]) for label in labels] == shown.tolist()


def test_a_single_file_is_split_and_its_images_are_known_by_their_places(tmp_path):
    values = np.arange(40, dtype=np.uint8)
    np.save(tmp_path / "train.npy", np.repeat(values, 16).reshape(40, 4, 4))
    test = load_test(DataConfig("array", str(tmp_path / "train.npy")))
    (images,) = test.batches((1, 4, 4))
    shown = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert [int(test.name(index)) for index in range(4)] == shown


def test_images_of_another_size_are_fitted_as_pictures_are(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    config = DataConfig("array", str(tmp_path), image_size=(4, 4))
    (images,) = load_test(config, "all").batches((3, 4, 4))
    expected = np.stack([fit(image, 4, 4) for image in IMAGES])
    np.testing.assert_array_equal(np.rint((images.numpy() + 1) * 127.5), expected)


def test_arrays_are_mapped_and_never_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "_IN_MEMORY", 0)
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "b.npz", images=IMAGES)
    np.savez_compressed(tmp_path / "c.npz", images=IMAGES)
    before = sorted(path.name for path in tmp_path.iterdir())
    mapped = [map_npy(tmp_path / "a.npy")]
    mapped += [map_member(tmp_path / name, "images") for name in ("b.npz", "c.npz")]
    for array in mapped:
        assert isinstance(array, np.memmap) and not array.flags.writeable
        np.testing.assert_array_equal(array, IMAGES)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match=r"takes 6480 bytes unpacked, but .* has room for 10"):
        map_member(tmp_path / "c.npz", "images")


def test_a_compressed_array_is_unpacked_once_by_what_uses_its_images(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "set.npz", images=IMAGES, labels=np.arange(30) % 3)
    unpacked, unpack = [], array_files._Header.unpacked
    monkeypatch.setattr(
        array_files._Header,
        "unpacked",
        lambda header, path, member: (
            unpacked.append(header.num_bytes) or unpack(header, path, member)
        ),
    )
    config = DataConfig("array", str(tmp_path), classes=("0", "1", "2"))
    train = load_train(config)
    assert unpacked.count(IMAGES.nbytes) == 1
    assert train.image_shapes == [(3, 8, 9)] and sum(map(len, train.epoch(0))) == 27
    labels, _ = read_labels(config, "test")
    assert unpacked.count(IMAGES.nbytes) == 1 and len(labels) == 3
    zeros = map_member(tmp_path / "set.npz", "images", unpack=False)
    assert zeros.shape == IMAGES.shape and zeros.dtype == IMAGES.dtype and not zeros.any()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_arrays_are_cut_into_pieces(tmp_path, kind):
    images = np.zeros((10, 11, 13, 2), kind)
    images[..., 0] = np.arange(10)[:, None, None] * 10 + 1
    images[..., 1] = np.arange(11)[:, None] * 16 + np.arange(13)
    np.save(tmp_path / "images.npy", images)
    bits = 8 * np.dtype(kind).itemsize
    config = DataConfig(
        "array", str(tmp_path), crop=(4, 5), batch_size=3, preparation=Preparation(n_bits=bits)
    )

    def corners(batches):
        """The image, first row and column of each piece, which must be one in itself."""
        for image in chain.from_iterable(batches):
            cut = ((image.double() + 1) * (2**bits - 1) / 2).round().long().numpy()
            place, (top, left) = (cut[0, 0, 0] - 1) // 10, divmod(int(cut[1, 0, 0]), 16)
            expected = images[place, top : top + 4, left : left + 5].transpose(2, 0, 1)
            np.testing.assert_array_equal(cut, expected)
            yield int(place), top, left

    in_order = list(corners(load_test(config, "all").batches((2, 4, 5))))
    assert in_order == [(n, 1 + 4 * (p // 2), 1 + 5 * (p % 2)) for n in range(10) for p in range(4)]
    assert load_test(config, "all").name(5) == "1_row1_column6"
    train = load_train(config)
    epochs = [list(corners(train.epoch(epoch))) for epoch in range(6)]
    places = [sorted(place for place, *_ in epoch) for epoch in epochs]
    tested = {place for place, *_ in corners(load_test(config).batches((2, 4, 5)))}
    kept = sorted(set(range(10)) - tested)
    assert len(tested) == 1 and all(each == np.repeat(kept, 4).tolist() for each in places)
    assert {top for epoch in epochs for _, top, _ in epoch} == set(range(8))
    assert list(corners(train.epoch(2, first_batch=4))) == epochs[2][12:]
    many = [load_train(config, Processes(rank, 3)) for rank in range(3)]
    shares = [[place for place, *_ in corners(each.epoch(0))] for each in many]
    assert sorted(chain.from_iterable(shares)) == places[0]
    assert sum(len(set(share)) for share in shares) <= len(kept) + 2
    assert load_train(replace(config, max_train_images=7)).num_images == 7
    np.save(tmp_path / "one.npy", images[:1])
    with pytest.raises(DataError, match="has a single image, which is for testing"):
        load_train(replace(config, data_dir=str(tmp_path / "one.npy")))
    with pytest.raises(DataError, match=r"no picture of .* is as large as a piece of 12x5"):
        load_test(replace(config, crop=(12, 5)))


def test_arrays_keep_their_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", IMAGES)
    config = DataConfig("array", "images.npy", image_size=(4, 4), own_sizes=True, batch_size=20)
    data = load_test(config, "all")
    assert data.own_shapes == [(3, 8, 9)] * 30
    batches = list(data.batches(None))
    assert list(map(len, batches)) == [20, 10]
    shown = np.rint((np.concatenate(batches) + 1) * 127.5)
    np.testing.assert_array_equal(shown, IMAGES)
    monkeypatch.setattr(folders, "_BATCH_PIXELS", 5 * 8 * 9)
    assert list(map(len, data.batches(None))) == [5] * 6
    run(
        f"-d array -i images.npy --crop 4x5 {SMALL} --run_dir run -x 1 --sample_interval 9 "
        "--nr_logistic_mix 2"
    )
    run("--mode score --run_dir run --image_size any --max_test_images 2")
    rows = newest("run/scores*.csv").read_text().splitlines()
    assert [row.split(",")[-2:] for row in rows[1:]] == [["8", "9"]] * 2
    run("--mode compress --run_dir run --image_size any --max_test_images 2 --output run/a.lmc")
    run("--mode decompress --run_dir run --input run/a.lmc --output out")
    shown = np.asarray(Image.open(newest("out/*.png"))).transpose(2, 0, 1)
    assert (shown == IMAGES).all((1, 2, 3)).any()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_processes_share_each_batch_and_an_epoch_goes_on_in_its_middle(tmp_path, number):
    values = np.arange(50, dtype=np.uint8)
    np.save(tmp_path / "train.npy", np.repeat(values, 16).reshape(50, 4, 4))
    config = DataConfig("array", str(tmp_path), batch_size=6 // number)

    def shown(first=0):
        sets = [load_train(config, Processes(rank, number)) for rank in range(number)]
        epochs = [list(each.epoch(2, first)) for each in sets]
        return [
            np.rint((np.concatenate(batch)[:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()
            for batch in zip(*epochs, strict=True)
        ]

    whole = shown()
    in_order = list(chain.from_iterable(whole))
    assert sorted(in_order) == values.tolist() and in_order != values.tolist()
    assert shown(first=4) == whole[4:]
    assert whole == whole_of_one_process(config)


def whole_of_one_process(config):
    batches = load_train(replace(config, batch_size=6)).epoch(2)
    return [((each[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for each in batches]


SMALL = "-q 1 -n 4 -k 3 --normalization pono -dp 0 -b 4 --disable_wandb"


class Malicious:
    def __reduce__(self):
        return print, ("code was run",)


def saved(array, **options):
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", b"", "damaged or has no array a"),
        ("a.npy", b"\x80\x04N.", "damaged"),
        ("a.npy", saved(IMAGES)[:-5], "it ends too early"),
        ("a.npy", saved(np.array([Malicious()])), "Python objects: refused"),
        ("a.npy", saved(IMAGES / 255), "are float64, not uint8 or uint16: scale them"),
        ("a.npy", saved(IMAGES.astype(np.int64)), "are int64, not uint8"),
        ("a.npy", saved(IMAGES[0, 0]), "is 8 x 9, not N x H x W"),
        ("a.npy", saved(np.zeros((2, 9, 9, 9), np.uint8)), "is 2 x 9 x 9 x 9, not N x H x W"),
        ("a.npy", saved(IMAGES[:0]), "is 0 x 3 x 8 x 9, not"),
        ("a.npy", saved(np.uint8(3)), "is a single number, not"),
        ("a.npz", b"PK\x03\x04", "a.npz is damaged"),
        ("a.txt", b"", "has no .npy or .npz file"),
    ],
)
def test_files_that_are_no_images_are_refused_in_one_line(
    tmp_path, monkeypatch, capsys, name, content, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(content)
    refused(f"{SMALL} -d array -i a", capsys, words)
    assert "code was run" not in capsys.readouterr().out


def test_arrays_that_are_missing_or_unclear_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(f"{SMALL} -d array -i nowhere", capsys, "nowhere does not exist: give an .npy")
    np.save("train.npy", IMAGES)
    refused(f"{SMALL} -d array -i .", capsys, "has no array for --part test: name one of train")
    refused(f"{SMALL} -d array -i . --channels 3", capsys, "--channels needs -d folder or parquet")
    refused(f"{SMALL} -d array -i . --binarize", capsys, "--binarize needs one-channel images")
    refused(f"{SMALL} -d digits --crop 4", capsys, "--crop needs -d folder, parquet or array")
    Path("train.npy").unlink()
    np.savez("set.npz", one=IMAGES, two=IMAGES)
    refused(
        f"{SMALL} -d array -i set.npz", capsys, "has the arrays one, two, none of which is called"
    )
    np.savez("other.npz", one=IMAGES)
    refused(f"{SMALL} -d array -i .", capsys, "has several .npz files")
    with pytest.raises(DataError, match="have 3 channels, not 1: convert them"):
        open_array(Path("other.npz"), "all", (1, 8, 9), 0)
    with pytest.raises(DataError, match="has no labels: add an array labels of 30 whole numbers"):
        read_array_labels(Path("other.npz"), "train", 0)
    np.savez("set.npz", images=IMAGES, labels=np.zeros(30))
    with pytest.raises(DataError, match=r"are float64 of shape .*, not 30 whole numbers"):
        read_array_labels(Path("set.npz"), "train", 0)


def test_training_goes_on_and_other_modes_work_on_arrays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", IMAGES)
    run(
        f"-d array -i images.npy {SMALL} --run_dir run -x 1 --sample_interval 9 --nr_logistic_mix 2"
    )
    run("-d array -i images.npy --run_dir run --load_last_params -x 2 --disable_wandb")
    run("--mode test --run_dir run")
    assert '"num_images": 3' in newest("run/test*.json").read_text()
    run("--mode score --run_dir run")
    assert len(newest("run/score*.csv").read_text().splitlines()) >= 31  # all 30 images
    Path("images.npy").unlink()
    run("--mode sample --num_samples 1 --run_dir run")
    refused("--mode test --run_dir run", capsys, "images.npy does not exist")


def test_values_of_16_bits_and_other_channels_are_read(tmp_path):
    deep = RANDOM.integers(0, 2**16, (30, 6, 8, 5), dtype=np.uint16)
    for name, array in (("first", deep), ("last", deep.transpose(0, 2, 3, 1))):
        np.save(tmp_path / f"{name}.npy", array)
    config = DataConfig("array", str(tmp_path / "first.npy"), preparation=Preparation(n_bits=16))
    (images,) = load_test(config).batches((6, 8, 5))
    assert images.shape == (3, 6, 8, 5)
    shown = ((images.double() + 1) * 32767.5).round().long().numpy()
    assert all((deep == each).all((1, 2, 3)).any() for each in shown)
    assert array_shape(tmp_path / "first.npy") == (6, 8, 5)
    # Both axes could be the channels here, and the usual number decides.
    np.save(tmp_path / "usual.npy", np.zeros((4, 8, 8, 3), np.uint8))
    assert array_shape(tmp_path / "usual.npy") == (3, 8, 8)
    with pytest.raises(DataError, match=r"`n_bits` 9 is too much .* uint8: give 1 to 8"):
        config = DataConfig("array", str(tmp_path / "usual.npy"), preparation=Preparation(n_bits=9))
        load_test(config)
