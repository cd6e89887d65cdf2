"""Images of any sizes in one file."""

import numpy as np
import pytest
import torch
from helpers.models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

import lmconv
from lmconv.compression.codec import encode
from lmconv.compression.collection import encode_all
from lmconv.compression.fields import CompressedFileError, block_field, number_field, sealed
from lmconv.compression.file_format import CompressedCollection
from lmconv.pixel_values import from_levels

torch.manual_seed(0)
MODEL = tiny_model((1, 4, 4), n_bits=3, num_mixtures=2)


def random_levels(sizes, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 8, (1, *size), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("views", [-1, 0, 8])
def test_views_that_a_size_does_not_have_are_refused_before_any_work(views):
    steps = []
    with pytest.raises(ValueError, match=f"got {views}"):
        sizes = [(4, 4), (3, 5)]
        encode_all(MODEL, random_levels(sizes), compress_views=views, on_step=steps.append)
    assert not steps


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([(4, 4), (1, 7), (3, 5)]), min_size=1, max_size=6),
    st.booleans(),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_images_come_back_in_their_order(sizes, choose_best, views, seed):
    levels = random_levels(sizes, seed)
    names = [f"name {number}" for number in range(len(sizes))]
    encoded = encode_all(MODEL, levels, names, choose_best, views)
    collection = CompressedCollection.from_bytes(encoded.data)
    assert collection.names == names and collection.num_images == len(sizes)
    assert len(collection.files) == len(set(sizes))
    found = lmconv.decompress(MODEL, encoded.data)
    assert isinstance(found, list) == (len(set(sizes)) > 1)
    for image, expected in zip(found, levels, strict=True):
        assert torch.equal(image, from_levels(torch.from_numpy(expected), 8))
    assert sum(encoded.images_of_orders) == len(sizes)


def test_images_of_one_size_take_the_format_of_one_size():
    levels = random_levels([(4, 4)] * 3)
    assert encode_all(MODEL, levels).data == encode(MODEL, np.stack(levels)).file.to_bytes()


def test_a_list_of_arrays_is_compressed():
    images = [
        MODEL.prepare(array[None] * np.uint8(36))[0] for array in random_levels([(4, 4), (2, 9)])
    ]
    data = lmconv.compress(MODEL, images)
    for image, found in zip(images, lmconv.decompress(MODEL, data), strict=True):
        assert torch.equal(image, found)
    with pytest.raises(ValueError, match="no images"):
        lmconv.compress(MODEL, [])


def collection_bytes(files, places, number=None, rest=b""):
    places = np.array(places, dtype="<u2")
    head = number_field(number or len(files)) + number_field(len(places))
    parts = [number_field(len(file)) + file for file in files]
    return sealed(3, head + block_field(places.tobytes()) + b"".join(parts) + rest)


def file_bytes(size, number, names=()):
    levels = np.stack(random_levels([size] * number))
    return encode(MODEL, levels, names).file.to_bytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: collection_bytes([file_bytes((4, 4), 2)], [0, 1]), "parts"),
        (lambda: collection_bytes([file_bytes((4, 4), 1), file_bytes((2, 2), 1)], [0, 0]), "parts"),
        (lambda: collection_bytes([file_bytes((4, 4), 1), file_bytes((4, 4), 1)], [0, 1]), "size"),
        (lambda: collection_bytes([file_bytes((4, 4), 1)], [0], rest=b"x"), "parts"),
        (lambda: collection_bytes([file_bytes((4, 4), 1)], [0], number=2), "ends too early"),
        (lambda: collection_bytes([b"nothing"], [0]), "not a file of compressed images"),
        (
            lambda: collection_bytes(
                [file_bytes((4, 4), 1, ["a"]), file_bytes((2, 2), 1, ["A"])], [0, 1]
            ),
            "different name",
        ),
        (
            lambda: collection_bytes([file_bytes((4, 4), 1, ["a"]), file_bytes((2, 2), 1)], [0, 1]),
            "different name",
        ),
        (
            lambda: collection_bytes(
                [collection_bytes([file_bytes((4, 4), 1), file_bytes((2, 2), 1)], [0, 1])], [0, 0]
            ),
            "version 3",
        ),
    ],
)
def test_impossible_contents_are_refused(data, words):
    with pytest.raises(CompressedFileError, match=words):
        CompressedCollection.from_bytes(data())


def test_damaged_files_are_refused():
    data = bytearray(encode_all(MODEL, random_levels([(4, 4), (2, 3)])).data)
    random = np.random.default_rng(0)
    for place in random.integers(0, len(data), 300).tolist():
        damaged = data.copy()
        damaged[place] ^= int(random.integers(1, 256))
        with pytest.raises(CompressedFileError):
            CompressedCollection.from_bytes(bytes(damaged))
