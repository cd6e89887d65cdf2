"""Parquet files as the Hugging Face hub stores them: every picture once, by row groups."""

import io
import json
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import newest, refused, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmconv.checkpoints import load_checkpoint, save_checkpoint
from lmconv.data import folders, parquet_files, pieces
from lmconv.data.datasets import DataConfig, load_test, load_train, read_labels
from lmconv.data.folders import FolderSource
from lmconv.data.image_files import fit
from lmconv.data.sources import DataError
from lmconv.distributed import Processes, Turns

RANDOM = np.random.default_rng(0)


def encoded(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def numbered(number):
    """A grey picture whose level is its number."""
    return encoded(np.full((4, 5), number, np.uint8))


def table_of(pictures, labels=None, names=(), column="image", is_struct=True, kind=None):
    """A table as the hub writes it: a struct of bytes and path, and what is told of labels."""
    values = pictures
    if is_struct:
        values = [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(pictures)]
    kind = kind or pa.binary()
    kind = pa.struct({"bytes": kind, "path": pa.string()}) if is_struct else kind
    columns = {column: pa.array(values, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    told = json.dumps({"info": {"features": features}})
    return pa.table(columns).replace_schema_metadata({"huggingface": told} if names else {})


def write(path, table, rows=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


def numbers_of(batch):
    """The levels of grey pictures, back from [-1, 1]."""
    return ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


CONFIG = DataConfig("parquet", channels=1, image_size=(4, 5), batch_size=7)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("is_struct", [True, False])
def test_pictures_are_read_as_those_of_a_folder(tmp_path, kind, is_struct):
    pictures = [RANDOM.integers(0, 256, (9, 6 + n, 3), dtype=np.uint8) for n in range(5)]
    contents = [encoded(each, kind) for each in pictures]
    large = pa.large_binary() if kind == "WEBP" else pa.binary()
    write(tmp_path / "set" / "0000.parquet", table_of(contents, is_struct=is_struct, kind=large), 2)
    files = [tmp_path / f"{n}.{kind.lower()}" for n in range(5)]
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(content)
    config = replace(CONFIG, data_dir=str(tmp_path / "set"), channels=3)
    (images,) = load_test(config, "all").batches((3, 4, 5))
    shown = ((images + 1) * 127.5).round().numpy()
    for _, expected in FolderSource(files, (3, 4, 5)).batches(7, None):
        np.testing.assert_array_equal(shown, expected[:])
    if kind == "PNG":
        np.testing.assert_array_equal(shown[0], fit(pictures[0].transpose(2, 0, 1), 4, 5))


def shards(folder, files, rows):
    """Files for training with so many pictures, and one for testing; their number of pictures."""
    start = 0
    for n, size in enumerate(files):
        pictures = [numbered(each) for each in range(start, start + size)]
        write(folder / f"train-{n:05d}-of-{len(files):05d}.parquet", table_of(pictures), rows)
        start += size
    write(folder / "test-00000-of-00001.parquet", table_of([numbered(200)]))
    return start


@pytest.fixture
def read_groups(monkeypatch):
    """The row groups whose pictures are read, as (name of the file, number)."""
    read, pictures_of = [], parquet_files._Table.pictures
    monkeypatch.setattr(
        parquet_files._Table,
        "pictures",
        lambda table, group: read.append((table.path.name, group)) or pictures_of(table, group),
    )
    return read


@settings(max_examples=20, deadline=None)
@given(
    files=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    rows=st.integers(1, 5),
    window=st.sampled_from([1, 300, 2**27]),
    number=st.integers(1, 3),
    first=st.integers(0, 5),
)
def test_an_epoch_has_every_picture_once_whatever_reads_it(
    tmp_path_factory, files, rows, window, number, first
):
    """Shuffled; by 1, 2 or 3 processes, in batches as large; and from its middle on."""
    folder = tmp_path_factory.mktemp("set")
    total = shards(folder, files, rows)
    config = replace(CONFIG, data_dir=str(folder), batch_size=6 // number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "_WINDOW", window)
        alone = [numbers_of(each) for each in load_train(replace(config, batch_size=6)).epoch(1)]
        sets = [load_train(config, Processes(rank, number)) for rank in range(number)]

        def batches(first=0):
            shares = zip(*(list(each.epoch(1, first)) for each in sets), strict=True)
            return [list(chain.from_iterable(map(numbers_of, batch))) for batch in shares]

        shared = batches()
        assert batches(first) == shared[first:]
        assert list(map(len, shared)) == list(map(len, alone))
        assert sorted(chain.from_iterable(shared)) == list(range(total))
        assert number > 1 or shared == alone
        assert {each.num_images for each in sets} == {total}
        epochs = [list(chain.from_iterable(map(numbers_of, sets[0].epoch(n)))) for n in range(3)]
        assert total < 9 or number > 1 or len({tuple(each) for each in epochs}) == 3
    assert [numbers_of(each) for each in load_test(config).batches((1, 4, 5))] == [[200]]


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_each_row_group_is_read_by_one_process_or_two_neighbours(tmp_path, read_groups, number):
    total = shards(tmp_path, [40, 37, 8, 61], rows=4)
    groups = 10 + 10 + 2 + 16
    config = replace(CONFIG, data_dir=str(tmp_path), batch_size=3)
    of_epochs = []
    for epoch in range(3):
        readers, seen = [], []
        for rank in range(number):
            for batch in load_train(config, Processes(rank, number)).epoch(epoch):
                seen += numbers_of(batch)
            assert len(set(read_groups)) == len(read_groups)  # once by each process
            readers.append(set(read_groups))
            read_groups.clear()
        assert sorted(seen) == list(range(total))
        assert len(set.union(*readers)) == groups
        assert sum(map(len, readers)) <= groups + number - 1
        of_epochs.append(tuple(map(frozenset, readers)))
    assert number == 1 or len(set(of_epochs)) == 3  # others in each epoch


def test_each_picture_is_decoded_by_one_of_the_processes_that_share_an_epoch(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", table_of([numbered(n) for n in range(40)]), 7)
    write(tmp_path / "test.parquet", table_of([numbered(0)]))
    decoded, read = [], folders.read_image

    def counting(image, *arguments):
        decoded.append(image.name)
        return read(image, *arguments)

    monkeypatch.setattr(folders, "read_image", counting)
    config = replace(CONFIG, data_dir=str(tmp_path), batch_size=3)
    for rank in range(3):
        list(load_train(config, Processes(rank, 3)).epoch(0))
    assert len(decoded) == len(set(decoded)) == 40


def taken_in_turn(turns, number):
    """What ``Processes.in_turn`` makes of the turns of several processes: their items in order."""
    at_once, lists = turns[0].at_once, [list(each) for each in turns]
    found = []
    while any(lists):
        for each in lists:
            found += each[:at_once]
            del each[:at_once]
    return found


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [0, 13])
def test_modes_that_share_batches_read_each_row_group_once_but_for_borders(
    tmp_path, read_groups, number, first
):
    pictures = [numbered(each) for each in range(240)]
    write(tmp_path / "a.parquet", table_of(pictures[:100]), 6)
    write(tmp_path / "b.parquet", table_of(pictures[100:]), 6)
    groups = 17 + 24 - first // 6
    config = replace(CONFIG, data_dir=str(tmp_path), batch_size=4)
    ranks, reads = [Processes(rank, number) for rank in range(number)], []
    turns = []
    for processes in ranks:
        own = load_test(config, "all").shared_batches((1, 4, 5), processes, first)
        turns.append(Turns(list(own), own.at_once))
        assert len(set(read_groups)) == len(read_groups)
        reads.append(len(read_groups))
        read_groups.clear()
    found = taken_in_turn(turns, number)
    expected = list(load_test(config, "all").shared_batches((1, 4, 5), Processes(), first))
    assert [place for place, _ in found] == [place for place, _ in expected]
    assert all((one[1] == other[1]).all() for one, other in zip(found, expected, strict=True))
    # Turns of four row groups: at most one in four is read twice.
    assert sum(reads) <= groups * 5 / 4 + 2
    assert number == 1 or max(reads) - min(reads) <= 7  # and all have work


def test_few_row_groups_are_in_memory_and_each_is_read_once(tmp_path, monkeypatch):
    pictures = [encoded(RANDOM.integers(0, 256, (30, 30), dtype=np.uint8)) for _ in range(200)]
    write(tmp_path / "a.parquet", table_of(pictures[:100]), 10)
    write(tmp_path / "b.parquet", table_of(pictures[100:]), 10)
    size = len(pictures[0]) * 10
    monkeypatch.setattr(parquet_files, "_WINDOW", 3 * size)
    read, held, pictures_of = [], [], parquet_files._Table.pictures
    monkeypatch.setattr(
        parquet_files._Table,
        "pictures",
        lambda table, group: read.append((table.path, group)) or pictures_of(table, group),
    )
    kept = parquet_files._Rows._pictures

    def watched(rows, number):
        found = kept(rows, number)
        held.append(len(rows._kept))
        return found

    monkeypatch.setattr(parquet_files._Rows, "_pictures", watched)
    config = replace(CONFIG, data_dir=str(tmp_path), image_size=(30, 30), batch_size=8)
    train = load_train(config)
    assert train.num_images == 180 and read == []
    assert sum(map(len, train.epoch(0))) == 180
    assert len(read) == len(set(read)) == 20 and max(held) <= 7
    read.clear()
    # Going on in the middle of an epoch reads nothing of what is behind it.
    assert sum(map(len, load_train(config).epoch(0, first_batch=20))) == 20
    assert len(set(read)) <= 8


def test_parts_are_told_by_the_names_of_files_and_folders(tmp_path, caplog):
    cases = {
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"): True,
        ("default/train/0000.parquet", "default/test/0000.parquet"): True,
        ("train.parquet", "validation-0.parquet"): True,
        ("train.parquet", "validation.parquet", "test.parquet"): True,
        ("train-a.parquet", "train-b.parquet"): False,
        ("latest.parquet", "trainer.parquet"): False,
        ("train.parquet", "other.parquet"): False,
    }
    for case, (names, has_both) in enumerate(cases.items()):
        folder = tmp_path / str(case)
        for n, name in enumerate(names):
            write(folder / name, table_of([numbered(20 * n + each) for each in range(20)]), 6)
        (folder / ".cache").mkdir()
        (folder / ".cache" / "train.parquet").write_bytes(b"")
        config = replace(CONFIG, data_dir=str(folder))
        train, test = load_train(config), load_test(config)
        seen = set(chain.from_iterable(map(numbers_of, train.epoch(0))))
        tested = list(chain.from_iterable(map(numbers_of, test.batches((1, 4, 5)))))
        if has_both:
            assert seen == set(range(20)) and tested[0] == 20 * (len(names) - 1)
        else:  # a tenth is drawn
            assert train.num_images == 36 and test.num_images == 4
            assert sorted([*seen, *tested]) == list(range(40))


def test_files_without_a_part_are_left_out_and_counted_if_others_have_one(tmp_path, caplog):
    for name, number in (("train", 1), ("test", 2), ("other", 3)):
        write(tmp_path / f"{name}.parquet", table_of([numbered(number)]))
    config = replace(CONFIG, data_dir=str(tmp_path))
    assert [numbers_of(each) for each in load_train(config).epoch(0)] == [[1]]
    assert [numbers_of(each) for each in load_test(config).batches((1, 4, 5))] == [[2]]
    assert "left out: 1 Parquet file whose names say no part, the first being" in caplog.text
    (tmp_path / "train.parquet").unlink()  # files for testing alone are not split
    assert [numbers_of(each) for each in load_test(config).batches((1, 4, 5))] == [[2]]


def test_labels_come_with_their_names_and_follow_the_draw(tmp_path):
    labels = [n % 3 for n in range(30)]
    table = table_of([numbered(n) for n in range(30)], labels, ("cat", "dog", "owl"))
    write(tmp_path / "all.parquet", table, 7)
    config = replace(CONFIG, data_dir=str(tmp_path), max_train_images=11, batch_size=100)
    for part in ("train", "test"):
        found, names = read_labels(config, part)
        assert names == ("cat", "dog", "owl") and found.dtype == np.int64
        (images,) = load_test(config, part).batches((1, 4, 5))
        assert found.tolist() == [n % 3 for n in numbers_of(images)]
    words = pa.array(["b", "a"] * 15)
    write(tmp_path / "all.parquet", table.set_column(1, "label", words), 7)
    found, names = read_labels(config, "all")
    assert names == ("a", "b") and found.tolist() == [1, 0] * 15
    write(tmp_path / "all.parquet", table.drop_columns(["label"]))
    with pytest.raises(DataError, match="has no column of labels"):
        read_labels(config, "train")
    for wrong in (pa.array([0.5] * 30), pa.array([None] * 30), pa.array([1, None] * 15)):
        write(tmp_path / "all.parquet", table.set_column(1, "label", wrong))
        with pytest.raises(DataError, match="neither whole numbers nor names, or none in some"):
            read_labels(config, "train")


def written(table):
    content = io.BytesIO()
    pq.write_table(table, content)
    return content.getvalue()


GOOD = written(table_of([numbered(n) for n in range(20)]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged or not a Parquet file"),
        (b"PAR1" * 10, "is damaged or not a Parquet file"),
        (GOOD[:-100], "is damaged or not a Parquet file"),
        (written(pa.table({"x": [1, 2]})), "has 0 columns of pictures"),
        (written(pa.table({"a": [b"x"], "b": [b"y"]})), "has 2 columns of pictures"),
        (written(table_of([])), "has no rows"),
        (written(table_of([b"GIF89a"] * 20)), "of set/a.parquet cannot be read as an image"),
        (written(table_of([None] * 20)), "of set/a.parquet has no bytes of a picture"),
    ],
)
def test_damaged_files_and_rows_are_named_in_one_line(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    Path("set/a.parquet").write_bytes(content)
    config = replace(CONFIG, data_dir="set", split_seed=0)
    with pytest.raises(DataError) as error:
        list(load_test(config).batches((1, 4, 5)))
    message = str(error.value)
    assert words in message and "\n" not in message and len(message) < 400


def test_changed_bytes_are_refused_or_read_but_never_crash(tmp_path):
    path, config = tmp_path / "a.parquet", replace(CONFIG, data_dir=str(tmp_path))
    refusals = 0
    for _ in range(60):
        content = bytearray(GOOD)
        content[RANDOM.integers(len(content))] = RANDOM.integers(256)
        path.write_bytes(content)
        try:
            list(load_test(config).batches((1, 4, 5)))
        except DataError as error:
            refusals += 1
            assert "\n" not in str(error) and "a.parquet" in str(error)
    assert refusals > 10


SMALL = "-q 1 -n 4 -k 3 --normalization pono -dp 0 -b 4 --nr_logistic_mix 2 --disable_wandb"


def test_what_is_missing_is_named_with_its_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(f"{SMALL} -d parquet --image_size 4 -i nowhere", capsys, "nowhere does not exist")
    refused(f"{SMALL} -d parquet --image_size 4 -i .", capsys, "has no files *.parquet")
    refused(f"{SMALL} -d parquet -i .", capsys, "-d parquet needs --image_size HxW")
    refused(f"{SMALL} -d parquet --crop 4 -i .", capsys, "has no files *.parquet")
    write(Path("test.parquet"), table_of([numbered(1)]))
    write(Path("validation.parquet"), table_of([numbered(1)]))
    refused(
        f"{SMALL} -d parquet --image_size 4 -i .",
        capsys,
        "has no files for --part train, only for test",
    )
    monkeypatch.setattr(parquet_files, "_LARGEST_GROUP", 10)
    refused(
        f"{SMALL} -d parquet --image_size 4 -i test.parquet",
        capsys,
        "row group of",
        "smaller ones",
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(f"{SMALL} -d parquet --image_size 4 -i test.parquet", capsys, "pip install pyarrow")


SIZES = [(9, 14), (4, 5), (4, 5), (13, 4), (8, 10), (4, 5), (8, 10)] * 4


def coordinates(number, size):
    """A picture whose pixels tell which picture, row and column they are of."""
    pixels = np.full((*size, 3), number, np.uint8)
    pixels[..., 1], pixels[..., 2] = np.arange(size[0])[:, None], np.arange(size[1])
    return pixels


def table_of_sizes(folder):
    pictures = [encoded(coordinates(number, size)) for number, size in enumerate(SIZES)]
    write(folder / "a.parquet", table_of(pictures[:12]), 3)
    write(folder / "b.parquet", table_of(pictures[12:]), 3)
    return replace(CONFIG, data_dir=str(folder), channels=3, batch_size=2, image_size=None)


def pixels_of(images):
    return ((images + 1) * 127.5).round().numpy().astype(np.uint8)


def test_pictures_keep_their_sizes(tmp_path, read_groups):
    config = replace(table_of_sizes(tmp_path), own_sizes=True, image_size=(4, 5), max_test_images=9)
    data = load_test(config, "all")
    assert data.own_shapes == [(3, *size) for size in SIZES]
    batches = list(data.batches(None))
    assert len(read_groups) == len(set(read_groups)) == 10
    assert {len(batch) for batch in batches} == {1, 2}
    images = [image for batch in batches for image in pixels_of(batch)]
    for number, (image, size) in enumerate(zip(images, SIZES, strict=True)):
        np.testing.assert_array_equal(image, coordinates(number, size).transpose(2, 0, 1))
    assert load_test(config).num_images == 2  # a tenth


@pytest.mark.parametrize("number", [1, 2, 3])
def test_pieces_are_cut_from_pictures_of_row_groups_of_its_own(
    tmp_path, monkeypatch, read_groups, number
):
    config = replace(table_of_sizes(tmp_path), crop=(4, 5), split_seed=3)
    monkeypatch.setattr(pieces, "_PIXELS_AT_ONCE", 300)
    # Here, each process would wait for the sizes that the others read.
    sizes_of = parquet_files._sizes
    monkeypatch.setattr(parquet_files, "_sizes", lambda rows, _: sizes_of(rows, Processes()))
    total = sum((height // 4) * (width // 5) for height, width in SIZES)
    test = load_test(config)
    assert load_train(config).num_images + test.num_images == total
    found, num_reads = [], 0
    for rank in range(number):
        train = load_train(config, Processes(rank, number))
        read_groups.clear()
        batches = list(train.epoch(1))
        assert len(set(read_groups)) == len(read_groups)
        num_reads += len(read_groups)
        assert [len(each) for each in batches[:-1]] == [2] * (len(batches) - 1)
        found += [image for batch in batches for image in pixels_of(batch)]
        rest = list(train.epoch(1, first_batch=3))
        assert all((one == other).all() for one, other in zip(rest, batches[3:], strict=True))
    assert len(found) == train.num_images and num_reads <= 10 + number - 1
    for image in found:  # one in itself, anywhere
        place, top, left = image[:, 0, 0].tolist()
        cut = coordinates(place, SIZES[place])[top : top + 4, left : left + 5]
        np.testing.assert_array_equal(image, cut.transpose(2, 0, 1))
    in_test = [place for each in test.batches((3, 4, 5)) for place in pixels_of(each)[:, 0, 0, 0]]
    counts = Counter([*(int(image[0, 0, 0]) for image in found), *map(int, in_test)])
    fitting = {place: (size[0] // 4) * (size[1] // 5) for place, size in enumerate(SIZES)}
    assert counts == {place: fits for place, fits in fitting.items() if fits}


def test_what_cannot_be_cut_or_sized_is_named(tmp_path):
    config = table_of_sizes(tmp_path)
    with pytest.raises(DataError, match=r"no picture of .* is as large as a piece of 90x90"):
        load_test(replace(config, crop=(90, 90)))
    write(tmp_path / "one" / "a.parquet", table_of([numbered(1)]))
    with pytest.raises(DataError, match="has a single picture, which is for testing"):
        load_train(replace(config, data_dir=str(tmp_path / "one"), crop=(1, 1)))
    labelled = replace(config, crop=(4, 5), classes=("cat", "dog"))
    with pytest.raises(DataError, match="`crop` cuts pieces of pictures, which have no class"):
        load_test(labelled)
    write(tmp_path / "b.parquet", table_of([encoded(coordinates(0, (4, 5))), b"GIF89a"]))
    for own in (replace(config, crop=(4, 5)), replace(config, own_sizes=True, image_size=(4, 5))):
        with pytest.raises(DataError, match=r"row 1 of .*b\.parquet cannot be read as an image"):
            load_test(own, "all")


def test_pieces_of_tables_are_trained_on_and_other_modes_take_pictures_at_their_sizes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    table_of_sizes(tmp_path / "set")
    run(
        f"-d parquet -i set --crop 4x5 --max_reduction 1.5 {SMALL} -x 1 --sample_interval 9 "
        "--run_dir run"
    )
    run("--mode score --run_dir run")  # the pieces
    contents = load_checkpoint(Path("run/0_ep0.pth"))
    # As if another process had shared the first batch of the next epoch.
    others = {"batches_done": 1, "random_states": 2 * contents["random_states"]}
    save_checkpoint(Path("shared.pth"), {**contents, **others})
    run("--mode train --load_params shared.pth -x 1 --disable_wandb --run_dir alone")
    assert "the epoch was begun with 2 processes, not 1, and each reads" in capsys.readouterr().out
    rows = newest("run/scores*.csv").read_text().splitlines()
    assert len(rows) - 1 == sum((height // 4) * (width // 5) for height, width in SIZES)
    assert "row 0 of set/a.parquet_row0_column2," in rows[1]
    run("--mode score --run_dir run --image_size any")
    rows = newest("run/scores*.csv").read_text().splitlines()
    assert [tuple(map(int, row.split(",")[-2:])) for row in rows[1:]] == SIZES
    run("--mode compress --run_dir run --image_size any --output run/set.lmc")
    run("--mode decompress --run_dir run --input run/set.lmc --output out")
    for place, path in enumerate(sorted(Path("out").glob("*.png"))):
        shown = np.asarray(Image.open(path))
        np.testing.assert_array_equal(shown, coordinates(place, SIZES[place]))
    box = "--sample_region top --sample_size_h 2 --sample_size_w 3"
    run(f"--mode sample --run_dir run --image_size any {box} --num_samples 2 --completions 1")
    refused(
        "--mode score --run_dir run -d digits --image_size any",
        capsys,
        "needs -d folder or parquet or array, or --images",
    )
    refused(
        "--mode score --run_dir run --crop 90",
        capsys,
        "no picture of set is as large as a piece of 90x90: give a smaller --crop",
        is_started=True,
    )


def test_training_goes_on_and_other_modes_work_on_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part, number in (("train", 12), ("test", 4)):
        pictures = [encoded(RANDOM.integers(0, 256, (9, 9, 3), np.uint8)) for _ in range(number)]
        write(Path("set") / "data" / f"{part}-00000-of-00001.parquet", table_of(pictures), 5)
    run(
        f"-d parquet -i set --image_size 8 --random_crop --flip {SMALL} -x 1 --sample_interval 9 "
        "--run_dir run"
    )
    run("--run_dir run --load_last_params -x 2 --disable_wandb")
    run("--mode test --run_dir run")
    assert '"num_images": 4' in newest("run/test*.json").read_text()
    run("--mode score --run_dir run")
