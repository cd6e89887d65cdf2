"""Pieces of pictures: what they are cut from, their order, and the limits of memory."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmconv.data import pieces
from lmconv.data.datasets import DataConfig, DataError, load_test, load_train
from lmconv.data.pieces import PieceSource
from lmconv.distributed import Processes

SIZES = [(9, 14), (4, 5), (13, 4), (8, 10)]


@pytest.fixture
def pictures(tmp_path: Path) -> dict[Path, np.ndarray]:
    """Pictures whose pixels tell which picture, row and column they are of."""
    made = {}
    for number, (height, width) in enumerate(SIZES):
        pixels = np.full((height, width, 3), number, np.uint8)
        pixels[..., 1] = np.arange(height)[:, None]
        pixels[..., 2] = np.arange(width)
        made[tmp_path / f"{number}.png"] = pixels
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return made


def open_source(pictures: dict[Path, np.ndarray], limit: int | None = None) -> PieceSource:
    sizes = {path: pixels.shape[:2] for path, pixels in pictures.items()}
    return PieceSource(list(sizes), list(sizes.values()), (3, 4, 5), limit, seed=7)


def cut(source: PieceSource, seed: int | None = None, batch: int = 3) -> tuple[list, np.ndarray]:
    random = None if seed is None else np.random.default_rng(seed)
    indices, images = zip(*source.batches(batch, random), strict=True)
    assert all(len(each) == batch for each in indices[:-1])
    return np.concatenate(indices).tolist(), np.concatenate([each[:] for each in images])


def corners(images: np.ndarray) -> list[tuple[int, int, int]]:
    """The number, first row and first column of each piece, which must be one in itself."""
    starts = images[:, :, 0, 0].astype(int)
    for image, (number, top, left) in zip(images, starts, strict=True):
        assert (image[0] == number).all()
        assert (image[1] == np.arange(top, top + 4)[:, None]).all()
        assert (image[2] == np.arange(left, left + 5)).all()
    return [tuple(start) for start in starts.tolist()]


def test_pieces_in_order_lie_side_by_side_around_the_middle(pictures):
    source = open_source(pictures)
    indices, images = cut(source)
    expected = [(0, top, left) for top in (0, 4) for left in (2, 7)]
    expected += [(1, 0, 0)] + [(3, top, left) for top in (0, 4) for left in (0, 5)]
    # The third picture is narrower than a piece, so there are none of it.
    assert corners(images) == expected
    assert indices == list(range(len(expected))) and source.num_images == len(expected)
    assert source.name(1) == str(next(iter(pictures)).with_name("0_row0_column7.png"))


def test_shuffled_pieces_are_anywhere_and_as_many_of_each_picture(pictures):
    source = open_source(pictures)
    found = [cut(source, seed) for seed in range(40)]
    assert all(sorted(indices) == list(range(9)) for indices, _ in found)
    of_pictures = [Counter(corner[0] for corner in corners(images)) for _, images in found]
    assert all(counts == {0: 4, 1: 1, 3: 4} for counts in of_pictures)
    places = {corner for _, images in found for corner in corners(images)}
    assert {top for number, top, _ in places if number == 0} == set(range(6))
    assert {left for number, _, left in places if number == 0} == set(range(10))
    assert len({tuple(corners(images)) for _, images in found}) > 1


@given(seed=st.integers(0, 100), batch=st.integers(1, 9), limit=st.none() | st.integers(1, 12))
def test_a_seed_decides_alone(tmp_path_factory, seed, batch, limit):
    path = tmp_path_factory.getbasetemp() / "one.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (12, 15, 3), np.uint8)).save(path)
    source = PieceSource([path], [(12, 15)], (3, 4, 5), limit)
    first, again = (
        np.concatenate([b[1][:] for b in source.batches(n, np.random.default_rng(seed))])
        for n in (batch, 4)
    )
    assert (first == again).all()
    assert len(first) == source.num_images == min(limit or 9, 9)


def test_a_limit_draws_the_same_pieces_for_testing_and_others_in_each_epoch(pictures):
    source = open_source(pictures, limit=5)
    all_of_them = corners(cut(open_source(pictures))[1])
    indices, images = cut(source)
    assert indices == list(range(5)) and source.num_images == 5
    assert corners(images) == corners(cut(open_source(pictures, limit=5))[1])
    assert set(corners(images)) < set(all_of_them)
    assert source.name(4).endswith("{}_row{}_column{}.png".format(*corners(images)[4]))
    numbers = {tuple(sorted(c[0] for c in corners(cut(source, seed)[1]))) for seed in range(20)}
    assert len(numbers) > 1


def test_pictures_that_do_not_fit_into_memory_come_after_each_other(pictures, monkeypatch):
    monkeypatch.setattr(pieces, "_PIXELS_AT_ONCE", 100)
    reads: list[Path] = []
    read_image = pieces.read_image

    def read(path: Path, channels: int, kind: type) -> np.ndarray:
        reads.append(path)
        return read_image(path, channels, kind)

    monkeypatch.setattr(pieces, "read_image", read)
    _, images = cut(open_source(pictures), seed=3)
    numbers = [corner[0] for corner in corners(images)]
    assert Counter(numbers) == {0: 4, 1: 1, 3: 4}
    assert len(reads) == len(set(reads))
    last = len(numbers) - 1 - numbers[::-1].index(0)
    assert last - numbers.index(0) == 3  # those of the largest one are alone in memory


@pytest.mark.parametrize("at_once", [100, 2**27])
def test_processes_decode_pictures_of_their_own(pictures, monkeypatch, at_once):
    monkeypatch.setattr(pieces, "_PIXELS_AT_ONCE", at_once)
    files, sizes = list(pictures) * 5, SIZES * 5
    found, decoded = [], []

    def noted(read, number):
        read.append(number)
        return pictures[files[number]].transpose(2, 0, 1)

    for rank in range(3):
        read = []
        source = PieceSource(
            range(20),
            sizes,
            (3, 4, 5),
            max_reduction=2.0,
            read=partial(noted, read),
            processes=Processes(rank, 3),
        )
        for indices, batch in source.batches(6, np.random.default_rng(2)):
            own = Processes(rank, 3).share(len(indices))
            assert batch[own].shape[1:] == (3, 4, 5)
            found += indices[own].tolist()
        assert len(read) == len(set(read))
        decoded += read
    assert sorted(found) == list(range(45))
    assert len(set(decoded)) == 15 and len(decoded) <= 15 + 2


def test_training_pieces_are_reduced_by_random_factors(tmp_path):
    # Columns of 0 and 200 in turn: their contrast falls where they are reduced.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    source = PieceSource([tmp_path / "a.png"], [(64, 64)], (3, 8, 8), max_reduction=4.0)
    _, images = cut(source, 0, batch=8)
    assert images.shape == (64, 3, 8, 8)
    contrasts = np.abs(np.diff(images.astype(int), axis=3)).mean(axis=(1, 2, 3))
    assert contrasts.min() < 30 and contrasts.max() > 150 and len(set(contrasts.tolist())) > 15
    assert not np.array_equal(cut(source, 1, batch=8)[1], images)
    _, images = cut(source, batch=8)  # for testing, nothing is resized
    assert np.isin(images, (0, 200)).all()


def test_a_piece_is_reduced_no_further_than_its_picture_allows(tmp_path):
    pixels = np.repeat(np.arange(64, dtype=np.uint8), 64 * 3).reshape(64, 64, 3) * 4
    Image.fromarray(pixels).save(tmp_path / "a.png")
    large = PieceSource([tmp_path / "a.png"], [(64, 64)], (3, 60, 64), max_reduction=9.0)
    assert np.isin(np.diff(cut(large, 0)[1][0, :, :, 0].astype(int)), (0, 4)).all()
    small = PieceSource([tmp_path / "a.png"], [(64, 64)], (3, 8, 8), max_reduction=100.0)
    whole = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1).round()
    assert any(np.array_equal(piece, whole) for piece in cut(small, 0)[1])


@pytest.mark.parametrize("side", [29, 58, 116])
def test_rounding_does_not_put_a_piece_outside_its_picture(side):
    pixels = np.zeros((3, side, side), np.uint8)  # (side / 28) * 28 > side for these
    source = PieceSource([0], [(side, side)], (3, 28, 28), max_reduction=9.0, read=lambda _: pixels)
    for seed in range(30):
        assert cut(source, seed)[1].shape[1:] == (3, 28, 28)


def config(folder: Path, **settings: object) -> DataConfig:
    return DataConfig("folder", str(folder), batch_size=2, crop=(4, 5), **settings)


def test_a_folder_is_cut_into_pieces(tmp_path, pictures, caplog):
    caplog.set_level("INFO")
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    for path, pixels in pictures.items():
        path.rename(tmp_path / "train" / path.name)
        Image.fromarray(pixels[::-1]).save(tmp_path / "test" / path.name)
    train, test = load_train(config(tmp_path)), load_test(config(tmp_path))
    assert train.num_images == test.num_images == 9
    assert train.num_batches == 5
    assert sum(map(len, train.epoch(0))) == 9
    shapes = {tuple(batch.shape[1:]) for batch in test.batches((3, 4, 5))}
    assert shapes == {(3, 4, 5)}
    assert "9 pieces of 4x5 from these pictures; 1 smaller picture left out" in caplog.text
    rest = [batch.tolist() for batch in train.epoch(1)]
    assert [batch.tolist() for batch in train.epoch(1, first_batch=2)] == rest[2:]
    assert load_test(config(tmp_path, max_test_images=4)).num_images == 4


def test_what_cannot_be_cut_is_an_error(tmp_path, pictures):
    with pytest.raises(DataError, match="as large as a piece of 90x90: give a smaller `crop`"):
        load_test(DataConfig("folder", str(tmp_path), crop=(90, 90)))
    with pytest.raises(DataError, match="`random_crop` has no meaning with `crop`"):
        load_train(config(tmp_path, random_crop=True))
    with pytest.raises(DataError, match=r"`max_reduction` must be at least 1, got 0\.5"):
        load_train(config(tmp_path, max_reduction=0.5))
    with pytest.raises(DataError, match="`max_reduction` needs `crop`"):
        load_train(DataConfig("mnist", max_reduction=2))
    with pytest.raises(DataError, match=r"`crop` .* contradicts `resize_sizes`"):
        load_train(config(tmp_path, resize_sizes=(4,)))
    with pytest.raises(DataError, match="`crop` needs -d folder"):
        load_test(DataConfig("digits", crop=(4, 5)))
    source = open_source(pictures)
    next(iter(pictures)).write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read as an image"):
        cut(source)
