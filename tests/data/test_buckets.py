"""Buckets: which size a picture is brought to, and batches that have one size each."""

import itertools
import logging
import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmconv.data import folders
from lmconv.data.buckets import nearest_size
from lmconv.data.datasets import (
    DataConfig,
    DataError,
    class_names,
    image_shapes,
    load_files,
    load_test,
    load_train,
)
from lmconv.data.image_files import fit, read_image
from lmconv.distributed import Processes
from lmconv.pixel_values import Preparation

BUCKETS = ((4, 6), (6, 4), (5, 5), (3, 30))
# Height and width of the pictures, and the bucket of each.
SIZES = [(20, 30)] * 5 + [(33, 22)] * 4 + [(5, 5), (12, 13)] * 2 + [(2, 3), (50, 10)]
CHOSEN = [(4, 6)] * 5 + [(6, 4)] * 4 + [(5, 5)] * 4 + [(4, 6), (6, 4)]
COUNTS = Counter(CHOSEN)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """A folder of pictures whose pixels are numbers of their own, in two classes."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, size in enumerate(SIZES):
            folder = tmp_path / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return DataConfig("folder", str(tmp_path), batch_size=3, buckets=BUCKETS)


def stored(batch) -> list[bytes]:
    """The images of a batch as bytes with their shape, to compare and count."""
    return [str(image.shape).encode() + np.rint((image + 1) * 127.5).tobytes() for image in batch]


def expected(config: DataConfig, part: str) -> Counter[bytes]:
    """The images of a part, each brought to its bucket by itself."""
    images = Counter[bytes]()
    for path in sorted(Path(config.data_dir, part).rglob("*.png")):
        pixels = fit(read_image(path, 3), *CHOSEN[int(path.stem)])
        images[str(pixels.shape).encode() + pixels.astype(np.float32).tobytes()] += 1
    return images


def batches(config: DataConfig, epoch: int = 0, first: int = 0, processes=None) -> list[np.ndarray]:
    return [batch.numpy() for batch in load_train(config, processes).epoch(epoch, first)]


# Which size


@pytest.mark.parametrize(
    ("size", "sizes", "chosen"),
    [
        ((100, 150), [(48, 32), (32, 48)], (32, 48)),
        ((40, 40), [(32, 48), (48, 32)], (32, 48)),  # both are as near: the first
        ((40, 40), [(48, 32), (32, 48)], (48, 32)),
        ((40, 40), [(32, 48), (48, 32), (2, 2)], (2, 2)),
        ((60, 60), [(32, 32), (64, 64), (16, 16), (32, 33)], (32, 32)),
        ((64, 65), [(32, 32), (64, 64), (16, 16)], (64, 64)),
        ((63, 99), [(32, 32), (64, 64), (16, 16)], (32, 32)),
        ((8, 9), [(32, 32), (64, 64), (16, 16)], (16, 16)),  # all enlarge it: the smallest
        ((40, 40), [(10, 20), (20, 10), (20, 40)], (20, 40)),
        ((1, 1000), [(8, 8), (8, 16)], (8, 16)),
    ],
)
def test_a_picture_goes_to_the_size_with_the_nearest_proportions(size, sizes, chosen):
    assert nearest_size(size, sizes) == chosen


sides = st.tuples(st.integers(1, 60), st.integers(1, 60))


@given(size=sides, sizes=st.lists(sides, min_size=1, max_size=6, unique=True))
def test_no_other_size_is_nearer_or_would_do_better(size, sizes):
    chosen = nearest_size(size, sizes)

    def distance(other):
        return abs(math.log(size[0] / size[1]) - math.log(other[0] / other[1]))

    assert chosen in sizes
    assert distance(chosen) <= min(map(distance, sizes)) + 1e-9
    is_reduced = chosen[0] <= size[0] and chosen[1] <= size[1]
    for other in sizes:
        if other[0] * chosen[1] != other[1] * chosen[0]:
            continue
        if is_reduced:  # a larger one would enlarge the picture
            assert other <= chosen or other[0] > size[0] or other[1] > size[1]
        else:
            assert other >= chosen


# Training


def test_every_image_is_in_one_batch_of_its_size_in_an_epoch(config):
    assert image_shapes(config) == [(3, *size) for size in BUCKETS]
    data = load_train(config)
    assert data.num_images == len(SIZES) and data.num_batches == 2 + 2 + 2 + 0
    orders = set()
    for epoch in range(12):
        found = batches(config, epoch)
        assert len(found) == data.num_batches
        assert Counter(image for batch in found for image in stored(batch)) == (
            expected(config, "train")
        )
        of_sizes = {size: [len(b) for b in found if b.shape[2:] == size] for size in COUNTS}
        assert of_sizes == {(4, 6): [3, 3], (6, 4): [3, 2], (5, 5): [3, 1]}
        orders.add(tuple(batch.shape[2:] for batch in found))
    assert len(orders) > 6  # the batches of all buckets are shuffled


def test_seed_and_epoch_alone_decide_about_the_batches(config):
    def same(first, second):
        return [list(map(stored, each)) for each in (first, second)]

    first, second = same(batches(config), batches(config))
    assert first == second
    for other in (batches(config, epoch=1), batches(replace(config, seed=2))):
        assert first != [stored(batch) for batch in other]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_processes_share_the_batches_of_one(config, number):
    settings = replace(config, flip=True, random_crop=True)
    whole = batches(replace(settings, batch_size=number))
    shares = [
        batches(replace(settings, batch_size=1), processes=Processes(rank, number))
        for rank in range(number)
    ]
    assert any(len(each) == 0 for share in shares for each in share)  # of small last batches
    for batch, *parts in zip(whole, *shares, strict=True):
        np.testing.assert_array_equal(batch, np.concatenate(parts))


@pytest.mark.parametrize("first", range(7))
def test_going_on_within_an_epoch_reads_nothing_of_what_is_behind(config, first, monkeypatch):
    settings = replace(config, flip=True, random_crop=True)
    expected_batches = batches(settings, epoch=3)[first:]
    data, read = load_train(settings), Counter()

    def counted(path, *arguments):
        read[path.stem] += 1
        return read_image(path, *arguments)

    monkeypatch.setattr(folders, "read_image", counted)
    found = [batch.numpy() for batch in data.epoch(3, first)]
    assert len(found) == 6 - first == len(expected_batches)
    for batch, other in zip(found, expected_batches, strict=True):
        np.testing.assert_array_equal(batch, other)
    assert read.total() == len(read) == sum(map(len, found))


def test_crops_and_mirrored_images_of_both_buckets_are_drawn(tmp_path):
    """The longer side is numbered, so that an image tells its place, and often its direction."""
    (tmp_path / "train").mkdir()
    for number in range(16):
        pixels = np.tile(np.arange(0, 200, 10, dtype=np.uint8), (4, 1))
        pixels[0] = number  # no two files are the same, and tall ones have a left side
        picture = pixels if number % 2 else pixels.T
        Image.fromarray(picture).save(tmp_path / "train" / f"{number:02d}.png")
    config = DataConfig(
        "folder", str(tmp_path), channels=1, buckets=((4, 8), (8, 4)), random_crop=True, flip=True
    )
    places = defaultdict(set)
    for epoch in range(6):
        for image in itertools.chain.from_iterable(batches(config, epoch)):
            pixels = np.rint((image[0] + 1) * 127.5).astype(int)
            if pixels.shape == (4, 8):
                along, is_mirrored = pixels[1], pixels[1, 0] > pixels[1, 1]
                assert (np.diff(along) == (-10 if is_mirrored else 10)).all()
            else:
                along, is_mirrored = pixels[:, 1], pixels[0, 0] != pixels[1, 0]
                assert (np.diff(along) == 10).all()
            places[pixels.shape, bool(is_mirrored)].add(along.min() // 10)
    assert len(places) == 4 and all(len(each) > 8 for each in places.values())


def test_kept_images_of_all_buckets_together_stay_within_the_limit(config, monkeypatch):
    sizes = [math.prod(size) * 3 for size in CHOSEN]
    for limit, kept in ((sum(sizes), len(sizes)), (sum(sizes) // 2, len(sizes) // 2)):
        monkeypatch.setattr(folders, "_KEPT_BYTES", limit)
        data = load_train(config)
        list(data.epoch(0))
        images = [
            image for source in data._source._buckets.values() for image in source._kept.values()
        ]
        assert sum(image.nbytes for image in images) <= limit
        assert kept - 3 <= len(images) <= kept


def test_labels_channels_bits_and_a_limit_apply_as_to_one_size(config):
    small = replace(
        config,
        channels=1,
        preparation=Preparation(n_bits=3),
        max_train_images=9,
        classes=class_names(config),
    )
    data, of_file = load_train(small), {}
    for path in Path(config.data_dir, "train").rglob("*.png"):
        pixels = fit(read_image(path, 1), *CHOSEN[int(path.stem)]) >> 5
        of_file[pixels.tobytes()] = path
    seen = []
    for images, labels in data.labelled_epoch(0):
        for image, label in zip(images.numpy(), labels.tolist(), strict=True):
            levels = np.rint((image + 1) * 3.5).astype(np.uint8)
            seen.append(of_file[levels.tobytes()])
            assert label in (("a", "b").index(seen[-1].parent.name), 2)  # or unknown
    assert len(seen) == len(set(seen)) == 9


# Testing


def test_test_images_come_bucket_by_bucket_in_the_order_of_their_names(config):
    data = load_test(config)
    names = [Path(data.name(index)).stem for index in range(data.num_images)]
    files = sorted(Path(config.data_dir, "test").rglob("*.png"))
    in_order = [p.stem for size in BUCKETS for p in files if CHOSEN[int(p.stem)] == size]
    assert names == in_order and len(names) == len(SIZES)
    assert data.own_shapes == [(3, *CHOSEN[int(name)]) for name in names]
    found = [batch.numpy() for batch in data.batches(None)]
    assert Counter(image for batch in found for image in stored(batch)) == expected(config, "test")
    assert [len(batch) for batch in found] == [3, 3, 3, 2, 3, 1]
    shapes = [(3, *size) for size in BUCKETS]
    for first in range(len(SIZES) + 1):
        left = list(data.shared_batches(None, Processes(), first))
        assert data.num_batches(first) == len(left)
        assert sum(len(batch) for _, batch in left) == len(SIZES) - first
    assert data.used(shapes) == shapes[:3]
    assert [data.bounds(shape) for shape in shapes] == [(0, 6), (6, 11), (11, 15), (15, 15)]
    for shape in shapes:
        own = list(data.shared_batches(shape, Processes(), *data.bounds(shape)))
        assert sum(len(batch) for _, batch in own) == data.own_shapes.count(shape)
        assert all(batch.shape[1:] == shape for _, batch in own)


@pytest.mark.parametrize("number", [2, 3])
def test_processes_take_turns_with_test_batches(config, number):
    whole = list(load_test(config).shared_batches(None, Processes()))
    shares = [
        list(load_test(config).shared_batches(None, Processes(rank, number)))
        for rank in range(number)
    ]
    for place, (first, batch) in enumerate(whole):
        own_first, own = shares[place % number][place // number]
        assert own_first == first and (own == batch).all()


def test_a_line_says_how_many_pictures_go_to_each_bucket(config, caplog):
    damaged = Path(config.data_dir, "train", "a", "00.png")
    damaged.write_bytes(damaged.read_bytes()[:60])
    with caplog.at_level(logging.INFO):
        load_train(config)
    assert "14 images of" in caplog.text and "left out: 1 damaged" in caplog.text
    assert "images in buckets: 5 at 4x6, 5 at 6x4, 4 at 5x5, none at 3x30" in caplog.text


def test_files_that_are_named_keep_their_order(config):
    paths = [Path(config.data_dir, "test", "ab"[i % 2], f"{i:02d}.png") for i in (9, 0, 5, 1, 10)]
    data = load_files(config, paths, resize=True)
    assert data.own_shapes == [(3, *CHOSEN[int(path.stem)]) for path in paths]
    found = [image for batch in data.batches(None) for image in batch.numpy()]
    for path, image in zip(paths, found, strict=True):
        pixels = fit(read_image(path, 3), *CHOSEN[int(path.stem)])
        np.testing.assert_array_equal(np.rint((image + 1) * 127.5), pixels)
    with pytest.raises(DataError, match="20x30, but the model's images are 4x6 or 6x4 or 5x5"):
        load_files(config, paths, resize=False)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (4, 4)}, "`crop` and several sizes in `image_size` contradict"),
        ({"resize_sizes": (4,)}, "`resize_sizes` and several sizes in `image_size` contradict"),
        ({"buckets": ((4, 6), (4, 6))}, "`image_size` has 4x6 more than once"),
        ({"dataset": "parquet"}, "-d parquet takes one `image_size`, not several"),
        ({"dataset": "mnist"}, "-d mnist takes one `image_size`, not several"),
        ({"channels": 5}, "`channels` must be 1 to 4"),
        ({"preparation": Preparation(binarize=True)}, "one-channel images"),
    ],
)
def test_settings_that_contradict_several_sizes_are_refused(config, settings, message):
    with pytest.raises(DataError, match=message):
        load_train(replace(config, **settings))
