"""A model as a codec: nothing is lost, little more is paid than promised, damage is noticed."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import tiny_model
from helpers.paths import REFERENCE
from hypothesis import given, settings
from hypothesis import strategies as st

import lmconv
from lmconv.compression.codec import decode, encode
from lmconv.compression.collection import read_levels
from lmconv.compression.file_format import CompressedFile
from lmconv.compression.views import view_of
from lmconv.pixel_values import from_levels, pixel_type, to_levels

KINDS = {
    "binary": {"binarize": True},
    "grey": {"num_mixtures": 2},
    "five_bits": {"n_bits": 5},
    "colour": {"image_shape": (3, 4, 5), "n_bits": 6, "num_mixtures": 2},
    "colourful": {"image_shape": (3, 4, 5), "local_prediction": True, "coefficient_bound": 3.0},
    "deep": {"image_shape": (2, 4, 5), "n_bits": 16, "local_prediction": True},
    "eight_channels": {"image_shape": (8, 4, 5), "n_bits": 3, "num_mixtures": 2},
}
THREE_ORDERS = lmconv.OrderConfig(all_variants=True, variants=(0, 3, 6))


def small_model(**settings):
    return tiny_model(**({"image_shape": (1, 4, 5), "orders": THREE_ORDERS} | settings))


def random_levels(model, number=5, size=(4, 5)):
    shape = (number, model.image_shape[0], *size)
    values = np.random.default_rng(2).integers(0, model.likelihood.num_values, shape)
    return values.astype(pixel_type(model.likelihood.num_values))


def random_images(model, number=5, size=(4, 5)):
    levels = torch.from_numpy(random_levels(model, number, size))
    return from_levels(levels, model.likelihood.num_values)


@pytest.mark.parametrize("compress_order", ["first", "best"])
@pytest.mark.parametrize("size", [(4, 5), (7, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_come_back_as_they_were(kind, size, compress_order):
    model = small_model(**KINDS[kind])
    images = random_images(model, size=size)
    data = lmconv.compress(model, images, compress_order)
    assert isinstance(data, bytes)
    returned = lmconv.decompress(model, data)
    assert returned.dtype == torch.float32 and torch.equal(returned, images)


def test_bytes_are_compressed_as_the_model_sees_them():
    model = small_model(binarize=True)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 4, 5), dtype=np.uint8)
    data = lmconv.compress(model, pixels)
    assert torch.equal(lmconv.decompress(model, data), model.prepare(pixels))
    assert data == lmconv.compress(model, model.prepare(pixels).double().numpy())


@pytest.mark.parametrize("name", ["pono_color", "pono_5bit_nobias_md1", "none_gray_mask_weight"])
def test_files_of_up_to_8_bits_are_those_of_version_2(name):
    """The stored ones were written when there were no others."""
    model = lmconv.load(REFERENCE / "models" / f"{name}.pth", device="cpu")
    channels = model.image_shape[0]
    pixels = np.random.default_rng(5).integers(0, 256, (3, channels, 8, 8), dtype=np.uint8)
    stored = (REFERENCE / "version_2" / f"{name}.lmc").read_bytes()
    assert torch.equal(lmconv.decompress(model, stored), model.prepare(pixels))
    before = CompressedFile.from_bytes(stored)
    now = CompressedFile.from_bytes(lmconv.compress(model, pixels, "best"))
    assert replace(now, environment=before.environment).to_bytes() == stored


def test_sixteen_bits_are_paid_as_promised_at_every_scale():
    model = small_model(image_shape=(2, 4, 5), n_bits=16, num_mixtures=2)
    for log_scale in (-11.0, -7.0, -3.0):
        with torch.no_grad():  # the log-scales of both channels
            model.network.nin_out.lin_a.bias.view(-1)[[4, 5, 8, 9]] = log_scale
        levels = np.stack(read_levels(model, [model.sample(4, shape=(2, 24, 24))]))
        encoding = encode(model, levels)
        assert encoding.file.version == 4
        checks = 16 * -(-4 // encoding.file.images_per_check)
        paid = 8 * len(encoding.file.bits) - checks
        assert paid <= 1.001 * encoding.promised_bits + 64  # a word or two to end with


def test_uint16_images_come_back(tmp_path):
    model = small_model(n_bits=12)
    pixels = np.random.default_rng(0).integers(0, 2**16, (3, 1, 4, 5), dtype=np.uint16)
    images = lmconv.decompress(model, lmconv.compress(model, pixels))
    levels = to_levels(images, 2**12).numpy()
    assert np.array_equal(levels, pixels >> 4)


def test_a_saved_model_decompresses_what_the_model_has_compressed(tmp_path):
    model = small_model(n_bits=5)
    images = random_images(model)
    data = lmconv.compress(model, images)
    model.save(tmp_path / "model.pth")
    loaded = lmconv.load(tmp_path / "model.pth", device="cpu")
    assert torch.equal(lmconv.decompress(loaded, data), images)


def test_little_more_is_paid_than_the_likelihood_promises():
    model = small_model(n_bits=5)
    levels = random_levels(model, 40)
    encoding = encode(model, levels)
    images = from_levels(torch.from_numpy(levels), 32)
    promised = -model.log_prob(images, order=0).sum().item() / np.log(2)
    assert encoding.promised_bits == pytest.approx(promised, rel=1e-6)
    header = (
        len(encode(model, levels[:1]).file.to_bytes()) - encode(model, levels[:1]).promised_bits / 8
    )
    assert promised / 8 < len(encoding.file.to_bytes()) < 1.005 * promised / 8 + header + 8
    assert encoding.images_of_orders == [40]


def test_each_image_is_coded_in_its_best_order():
    model = small_model(n_bits=5)
    levels = random_levels(model, 30)
    images = from_levels(torch.from_numpy(levels), 32)
    each = torch.stack([model.log_prob(images, order=index) for index in range(3)])
    encoding = encode(model, levels, choose_best=True)
    promised = -each.max(dim=0).values.sum().item() / np.log(2)
    assert encoding.promised_bits == pytest.approx(promised, rel=1e-6)
    assert encoding.images_of_orders == np.bincount(each.argmax(dim=0), minlength=3).tolist()
    assert encoding.promised_bits < encode(model, levels).promised_bits


@pytest.mark.parametrize("choose_best", [False, True])
@pytest.mark.parametrize(
    ("kind", "size", "views"),
    [("five_bits", (4, 5), 3), ("colour", (4, 5), 24), ("deep", (4, 4), 16)],
)
def test_each_image_is_coded_in_its_best_view(kind, size, views, choose_best):
    model = small_model(**KINDS[kind])
    levels = random_levels(model, 30, size)
    num_values, orders = model.likelihood.num_values, range(3 if choose_best else 1)
    viewed = [
        from_levels(torch.from_numpy(view_of(levels, v).copy()), num_values) for v in range(views)
    ]
    each = torch.stack([model.log_prob(images, order=o) for images in viewed for o in orders])
    encoding = encode(model, levels, choose_best=choose_best, compress_views=views, batch_size=7)
    promised = -each.max(dim=0).values.sum().item() / np.log(2)
    assert encoding.promised_bits == pytest.approx(promised, rel=1e-6)
    best = each.argmax(dim=0) // len(orders)
    assert encoding.images_of_views == np.bincount(best, minlength=views).tolist()
    assert encoding.promised_bits < encode(model, levels, choose_best=choose_best).promised_bits
    file = CompressedFile.from_bytes(encoding.file.to_bytes())
    assert (file.version, file.num_views) == (5, views)
    returned = np.zeros_like(levels)
    for members, part in decode(model, file):
        returned[members] = part
    assert np.array_equal(returned, levels)


def test_files_do_not_depend_on_how_many_images_are_scored_at_once():
    model = small_model(n_bits=5)
    levels = random_levels(model)
    pixels = []
    data = encode(model, levels, scored_at_once=2, on_step=pixels.append).file.to_bytes()
    assert data == encode(model, levels).file.to_bytes() and sum(pixels) == levels[:, 0].size
    smaller = encode(model, levels, batch_size=2).file.to_bytes()
    assert torch.equal(lmconv.decompress(model, smaller), lmconv.decompress(model, data))


def test_names_and_batches_come_back():
    model = small_model(n_bits=5)
    levels = random_levels(model)
    file = CompressedFile.from_bytes(
        encode(model, levels, names=list("vwxyz"), batch_size=2).file.to_bytes()
    )
    assert [file.name(index) for index in range(5)] == list("vwxyz")
    batches = [(members.tolist(), part) for members, part in decode(model, file)]
    assert [members for members, _ in batches] == [[0, 1], [2, 3], [4]]
    for members, part in batches:
        assert np.array_equal(part, levels[members])


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "model"),
        ({"nr_filters": 6}, "model"),
        ({"normalization": "none"}, "model"),
        ({"n_bits": 4}, "32.*16"),
        ({"binarize": True}, "32.*2"),
        ({"image_shape": (3, 4, 5)}, "channels.*1.*3"),
        ({"kernel_size": 5}, "kernel size.*3.*5"),
        ({"max_dilation": 1}, "dilation.*2.*1"),
        (
            {"architecture": "pixelcnnpp", "orders": lmconv.OrderConfig(("raster_scan",))},
            "model",
        ),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else None,
)
def test_data_of_another_model_are_refused(settings, word):
    good = {"n_bits": 5}
    model = small_model(**good)
    data = lmconv.compress(model, random_images(model, 1))
    with pytest.raises(lmconv.CompressedFileError, match=word):
        lmconv.decompress(small_model(**(good | settings)), data)


@pytest.fixture(scope="module")
def coded():
    torch.manual_seed(0)
    model = small_model(n_bits=5)
    return model, lmconv.compress(model, random_images(model, 3, (2, 3)), "best", 4)


def with_checksum(contents):
    return contents + zlib.crc32(contents).to_bytes(4, "little")


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_damage_is_noticed_wherever_it_is_even_under_a_right_checksum(data, coded):
    model, file = coded
    place = data.draw(st.integers(0, len(file) - 1))
    damaged = bytearray(file)
    damaged[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(lmconv.CompressedFileError):
        lmconv.decompress(model, bytes(damaged))
    forged = with_checksum(bytes(damaged[:-4]))
    if forged == file:
        return  # the damage was in the checksum
    try:
        returned = lmconv.decompress(model, forged)
    except lmconv.CompressedFileError as error:
        assert "\n" not in str(error)
    else:  # where the file says how it was made, or how many pictures share a check
        assert torch.equal(returned, lmconv.decompress(model, file))


@pytest.mark.parametrize("data", [b"", b"\x89LMC", b"no compressed images", b"\x89LMC\x02" * 9])
def test_what_is_no_file_of_images_is_refused(data, coded):
    with pytest.raises(lmconv.CompressedFileError):
        lmconv.decompress(coded[0], data)


def test_files_that_are_cut_off_or_go_on_are_refused(coded):
    model, file = coded
    for length in range(0, len(file), 3):
        with pytest.raises(lmconv.CompressedFileError):
            lmconv.decompress(model, file[:length])
    with pytest.raises(lmconv.CompressedFileError):
        lmconv.decompress(model, file + b"\0")
    with pytest.raises(lmconv.CompressedFileError):
        lmconv.decompress(model, with_checksum(file[:-5]))


def test_images_that_are_not_those_of_the_digest_are_refused(coded):
    model, file = coded
    lie = replace(CompressedFile.from_bytes(file), digest=bytes(8))
    with pytest.raises(lmconv.CompressedFileError):
        lmconv.decompress(model, lie.to_bytes())


def test_a_file_that_promises_more_images_than_it_has_is_refused(coded):
    model, file = coded
    lie = replace(
        CompressedFile.from_bytes(file), num_images=60_000, batch_size=64, images_per_check=64
    )
    with pytest.raises(lmconv.CompressedFileError):
        lmconv.decompress(model, lie.to_bytes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compress_order": "each"}, "first.*best"),
        ({"compress_views": 5}, "from 1 to 4, .* of 1x4x5, got 5"),
        ({"compress_views": 0}, "from 1 to 4, .* got 0"),
        ({"images": torch.zeros(0, 1, 4, 5)}, "no images"),
        ({"images": torch.zeros(1, 1, 4, 5)}, "32 values"),
        ({"images": torch.ones(1, 3, 4, 5)}, "B x 1 x H x W"),
    ],
)
def test_images_that_cannot_be_compressed_are_refused(arguments, message):
    model = small_model(n_bits=5)
    with pytest.raises(ValueError, match=message):
        lmconv.compress(model, **({"images": torch.ones(1, 1, 4, 5)} | arguments))


def test_the_baseline_compresses_nothing():
    orders = lmconv.OrderConfig(("raster_scan",))
    model = tiny_model((1, 4, 4), architecture="pixelcnnpp", orders=orders)
    with pytest.raises(ValueError, match="use lmconv"):
        lmconv.compress(model, torch.ones(1, 1, 4, 4))


def test_weights_that_give_no_probability_are_refused():
    model = small_model(n_bits=5)
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(lmconv.CheckpointError, match="probability"):
        lmconv.compress(model, torch.ones(1, 1, 4, 5))


def test_a_model_with_another_bound_of_coefficients_is_another_model():
    model = small_model(**KINDS["colourful"])
    other = small_model(**KINDS["colourful"] | {"coefficient_bound": 2.0})
    other.network.load_state_dict(model.network.state_dict())
    data = lmconv.compress(model, random_images(model))
    with pytest.raises(lmconv.CompressedFileError, match="made with another model"):
        lmconv.decompress(other, data)
