"""The format: what is written is read, and nothing else is taken for it."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconv.compression.environment import Environment
from lmconv.compression.fields import CompressedFileError
from lmconv.compression.file_format import CompressedFile, version_for
from lmconv.file_names import is_portable
from masking import ORDERS, generation_orders

SHAPE = (3, 4, 6)
ENVIRONMENT = Environment(((2, 14, 1), (2, 4, 6), (0, 5, 0)), "cpu", 2**32 - 1, 2)


def example(**changes):
    values = {
        "model": b"abcdefgh",
        "image_shape": SHAPE,
        "num_values": 256,
        "num_images": 3,
        "batch_size": 200,
        "images_per_check": 1,
        "kernel_size": 5,
        "max_dilation": 2,
        "orders": generation_orders(["s_curve"], SHAPE, all_variants=False),
        "environment": ENVIRONMENT,
        "names": [],
        "digest": b"12345678",
        "bits": bytes(range(16)),
    }
    return CompressedFile(**{**values, **changes})


def read(data):
    return CompressedFile.from_bytes(data)


def refused(data, message=None):
    with pytest.raises(CompressedFileError, match=message):
        read(data)


def sealed(data):
    """Bytes of a hostile hand, which knows the checksum."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def assert_same(one, other):
    for name in CompressedFile.__dataclass_fields__:
        if name == "orders":
            assert len(one.orders) == len(other.orders)
            assert all(map(np.array_equal, one.orders, other.orders))
        else:
            assert getattr(one, name) == getattr(other, name), name


@given(
    num_images=st.integers(1, 50),
    batch_size=st.integers(1, 2**16),
    num_values=st.integers(2, 256),
    bits=st.binary(min_size=104),
    threads=st.integers(1, 1024),
    device=st.sampled_from(["cpu", "cuda"]),
    named=st.booleans(),
)
@settings(deadline=None)
def test_what_is_written_is_read(num_images, batch_size, num_values, bits, threads, device, named):
    file = example(
        num_images=num_images,
        batch_size=batch_size,
        images_per_check=min(batch_size, 3),
        num_values=num_values,
        bits=bits,
        environment=Environment(ENVIRONMENT.versions, device, 7, threads),
        names=[f"Bild {index} ä" for index in range(num_images)] if named else [],
    )
    assert_same(read(file.to_bytes()), file)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6), (1, 1, 1)])
def test_every_order_is_read_as_it_was(shape):
    names = [name for name in ORDERS if name != "hilbert" or shape == (1, 8, 8)]
    orders = generation_orders(names, shape, all_variants=True, seed=3)
    orders = list({order.tobytes(): order for order in orders}.values())
    assert_same(
        read(example(image_shape=shape, orders=orders).to_bytes()),
        example(image_shape=shape, orders=orders),
    )


def test_orders_of_a_family_take_two_bytes():
    one, eight = (
        example(
            image_shape=(1, 28, 28),
            orders=generation_orders(["s_curve"], (1, 28, 28), all_variants=each),
        )
        for each in (False, True)
    )
    assert len(eight.to_bytes()) == len(one.to_bytes()) + 7 * 2
    assert len(one.to_bytes()) - len(one.bits) < 64


def test_files_of_others_are_refused():
    data = example().to_bytes()
    refused(b"", "not a file of compressed images")
    refused(b"\x89PNG\r\n", "not a file of compressed images")
    refused(sealed(data[:4] + b"\x06" + data[5:]), "version 6 .* does not read here")
    assert CompressedFile.from_bytes(sealed(data[:4] + b"\x01" + data[5:])).version == 1


def test_a_file_that_is_cut_off_or_goes_on_is_refused():
    data = example(names=["a", "b", "c"]).to_bytes()
    for length in range(len(data)):
        refused(data[:length], "damaged or cut off|not a file of")
    refused(data + b"\x00", "damaged or cut off")


def test_ten_thousand_damaged_files_are_refused():
    random = np.random.default_rng(0)
    data = example(names=["a", "b", "c"], orders=[random.permutation(_pixels())]).to_bytes()
    for _ in range(10_000):
        damaged = bytearray(data)
        for place in random.integers(len(data), size=random.integers(1, 5)):
            damaged[place] ^= 1 << random.integers(8)
        if damaged != data:
            refused(bytes(damaged))


def test_ten_thousand_hostile_files_are_refused_or_hold_what_they_can_hold():
    """Their checksums are right: every number in them has to be looked at."""
    random = np.random.default_rng(0)
    data = example(names=["a", "b", "c"], orders=[random.permutation(_pixels())]).to_bytes()
    kinds = {True: 0, False: 0}
    for _ in range(10_000):
        hostile = bytearray(data)
        place = random.integers(5, len(data) - 4)
        kind = random.integers(3)
        if kind == 0:
            hostile[place] = random.integers(256)
        elif kind == 1:
            del hostile[place : place + random.integers(1, 9)]
        else:
            hostile[place:place] = random.bytes(random.integers(1, 9))
        try:
            file = read(sealed(bytes(hostile)))
        except CompressedFileError:
            kinds[False] += 1
            continue
        kinds[True] += 1
        assert file.image_shape == SHAPE
        assert 1 <= file.num_images <= file.images_per_check * len(hostile)
        assert all(len(order) == 24 and is_order(order) for order in file.orders)
        assert len(file.names) in (0, file.num_images) and all(map(is_portable, file.names))
    assert min(kinds.values()) > 1000


def test_names_lead_nowhere_else():
    for name in ("a", "drei vier", "ä.b", "x" * 200):
        assert is_portable(name)
    for name in ("", ".a", "a/b", "a\\b", "c:", "a\nb", "\udcff", "x" * 201):
        assert not is_portable(name)


def is_order(order):
    return len({tuple(pixel) for pixel in order.tolist()}) == len(order)


def _pixels():
    return generation_orders(["raster_scan"], SHAPE, all_variants=False)[0]


def test_a_bomb_is_not_unpacked():
    names = ["x" * 200] * 3
    data = example(names=names).to_bytes()
    packed = zlib.compress("\n".join(names).encode(), 9)
    bomb = zlib.compress(bytes(10**8), 9)
    assert packed in data
    number = bytes([len(bomb) & 127 | 128, len(bomb) >> 7 & 127 | 128, len(bomb) >> 14])
    hostile = data.replace(bytes([len(packed)]) + packed, number + bomb)
    refused(sealed(hostile), "has more than 603 bytes")
    none = hostile.replace(bytes([3, 200 & 127 | 128, 1, 1]), bytes([0, 200 & 127 | 128, 1, 1]))
    assert none != hostile
    refused(sealed(none), "a number is 0")
    longer = bytes([len(packed) + 2]) + packed + b"!!"
    refused(sealed(data.replace(bytes([len(packed)]) + packed, longer)), "beyond its end")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_images": 0}, "a number is 0"),
        ({"images_per_check": 0}, "a number is 0"),
        ({"orders": []}, "a number is 0"),
        ({"images_per_check": 201}, "a number above 200"),
        ({"num_images": 10**6}, "too short for 1000000 images"),
        ({"num_images": 10**9}, "a number above 4194304"),
        ({"orders": generation_orders(["zipper"], SHAPE, all_variants=True)[:1] * 2}, "twice"),
        ({"batch_size": 2**17}, "a number above 65536"),
        ({"num_values": 300}, "a number above 255"),
        ({"orders": [np.zeros((24, 2), dtype=int)]}, "does not have every pixel once"),
        ({"orders": [np.zeros((5, 2), dtype=int)]}, "does not have every pixel once"),
        ({"names": ["a", "b"]}, "does not have a different name for each image"),
        ({"names": ["a", "b", "A"]}, "does not have a different name for each image"),
        ({"names": ["a", "../b", "c"]}, r"hostile: '\.\./b' is not allowed"),
        ({"names": ["a", "c:b", "c"]}, "hostile"),
        ({"names": ["a", ".b", "c"]}, "hostile"),
        ({"names": ["a", "", "c"]}, "hostile"),
        ({"names": ["a", "b\x00", "c"]}, "hostile"),
        ({"names": ["a", "b" * 201, "c"]}, "hostile|has more than"),
        ({"environment": Environment(ENVIRONMENT.versions, "cpu", 7, 0)}, "a number is 0"),
    ],
)
def test_impossible_contents_are_refused(changes, message):
    refused(example(**changes).to_bytes(), message)


def test_names_of_windows_devices_are_changed_when_they_are_read():
    names = ["con", "_con", "Aux.x"]
    assert read(example(names=names).to_bytes()).names == ["_con", "_con_2", "_Aux.x"]


def test_views_need_version_5():
    assert version_for(SHAPE, 256, 2) == version_for((1, 4, 6), 2, 4) == 5
    file = example(version=5, num_views=24)
    assert_same(read(file.to_bytes()), file)
    refused(replace(file, num_views=25).to_bytes(), "a number above 24")
    square = {"image_shape": (3, 4, 4), "num_views": 48}
    square["orders"] = generation_orders(["s_curve"], (3, 4, 4), all_variants=False)
    assert_same(read(replace(file, **square).to_bytes()), replace(file, **square))
    refused(replace(file, num_views=0).to_bytes(), "a number is 0")


def test_more_channels_and_values_need_version_4():
    assert version_for((8, 4, 6), 256) == version_for((1, 4, 6), 512) == 4
    assert version_for((3, 4, 6), 256) == version_for((1, 4, 6), 2) == 2
    file = example(image_shape=(8, 4, 6), num_values=65536, version=4)
    assert_same(read(file.to_bytes()), file)
    refused(replace(file, version=2).to_bytes(), "a number above 3")
    refused(replace(file, version=2, image_shape=SHAPE).to_bytes(), "a number above 255")
    refused(replace(file, image_shape=(9, 4, 6)).to_bytes(), "a number above 8")
    refused(replace(file, num_values=65537).to_bytes(), "a number above 65535")
