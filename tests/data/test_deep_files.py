"""Picture files of 16 bits and with an alpha channel: every value comes back."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lmconv.data.deep_files import encode_deep_png, with_channels
from lmconv.data.image_files import (
    ImageFileError,
    fit,
    read_image,
    stored_bits,
    suffix_for,
    unseen,
    write_pixels,
)

RANDOM = np.random.default_rng(0)


def smooth(channels, height=9, width=14):
    """Slopes with a little noise, so that all filters of PNG are of use: uint16."""
    rows, columns = np.mgrid[:height, :width]
    slopes = np.stack([3000 * rows * (c + 1) % 50000 + 700 * columns for c in range(channels)])
    return (slopes + RANDOM.integers(0, 90, slopes.shape)).astype(np.uint16)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_deep_png_files_hold_every_value(tmp_path_factory, channels, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 2**16, (channels, height, width), np.uint16)
    path = tmp_path_factory.mktemp("deep") / "image.png"
    write_pixels(pixels, path)
    again = read_image(path, channels, np.uint16)
    assert again.dtype == np.uint16 and np.array_equal(again, pixels)
    assert stored_bits(path) == 16
    assert unseen(path, pixels) == []


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_png_files_are_as_small_as_those_of_other_programs(channels):
    pixels = smooth(channels, 40, 40)
    data = encode_deep_png(pixels)
    assert len(data) < pixels.nbytes
    if channels == 1:
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, "PNG", optimize=True)
        assert len(data) <= file.tell()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels[0])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
def test_grey_of_16_bits_is_read_as_it_is_or_scaled(tmp_path, suffix):
    pixels = smooth(1)
    path = tmp_path / f"image{suffix}"
    Image.fromarray(pixels[0]).save(path)
    assert np.array_equal(read_image(path, 1, np.uint16), pixels)
    assert np.array_equal(read_image(path, 3, np.uint16), pixels.repeat(3, axis=0))
    scaled = np.rint(pixels / 257).astype(np.uint8)
    assert np.array_equal(read_image(path, 1), scaled)
    assert np.array_equal(read_image(path, 2), np.concatenate([scaled, scaled * 0 + 255]))
    assert unseen(path, scaled) == ["more than 8 bits"]
    assert stored_bits(path) == 16


def test_values_of_8_bits_fill_the_range_of_16(tmp_path):
    pixels = RANDOM.integers(0, 256, (3, 5, 4), dtype=np.uint8)
    for suffix in (".png", ".tiff"):
        write_pixels(pixels, tmp_path / "image.png")
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"image{suffix}")
        deep = read_image(tmp_path / f"image{suffix}", 3, np.uint16)
        assert np.array_equal(deep, pixels.astype(np.uint16) * 257)
        assert stored_bits(tmp_path / f"image{suffix}") == 8


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_channels_are_kept_if_wanted(tmp_path, channels):
    pixels = RANDOM.integers(0, 256, (channels, 5, 4), dtype=np.uint8)
    path = tmp_path / "image.png"
    write_pixels(pixels, path)
    with Image.open(path) as picture:
        assert picture.mode == ("LA" if channels == 2 else "RGBA")
    assert np.array_equal(read_image(path, channels), pixels)
    assert unseen(path, pixels) == []
    assert "transparency" in unseen(path, read_image(path, channels - 1))
    over_white = read_image(path, channels - 1).astype(int)
    alpha = pixels[-1] / 255
    assert np.abs(over_white - (pixels[:-1] * alpha + 255 * (1 - alpha))).max() <= 1


def test_eight_bits_and_sixteen_have_the_same_colours():
    """Grey, white behind transparent pixels, and alpha are those of Pillow."""
    colours = RANDOM.integers(0, 256, (4, 30, 20), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(colours[:3].transpose(1, 2, 0)).convert("L"))
    assert np.array_equal(with_channels(colours[:3], 1)[0], grey)
    deep = with_channels(colours.astype(np.uint16) * 257, 3) / 257
    assert np.abs(deep - with_channels(colours, 3)).max() <= 0.51
    opaque = with_channels(colours[:3], 4)
    assert np.array_equal(opaque[:3], colours[:3]) and (opaque[3] == 255).all()
    assert np.array_equal(with_channels(colours[:1], 2)[0], colours[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pictures_are_turned_as_shallow_ones(tmp_path, orientation):
    pixels = RANDOM.integers(0, 256, (4, 7), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    deep = read_image(tmp_path / "image.png", 1, np.uint16)
    assert np.array_equal(deep, read_image(tmp_path / "image.png", 1).astype(np.uint16) * 257)


@pytest.mark.parametrize("mode", ["1", "P", "L", "RGB", "CMYK", "YCbCr", "RGBA", "LA"])
def test_every_mode_is_read_with_every_number_of_channels(tmp_path, mode):
    picture = Image.fromarray(RANDOM.integers(0, 256, (6, 5, 4), dtype=np.uint8), "RGBA")
    suffix = ".jpg" if mode in ("CMYK", "YCbCr") else ".png"
    picture.convert("RGB").convert(mode).save(tmp_path / f"image{suffix}")
    for channels in (1, 2, 3, 4):
        shallow = read_image(tmp_path / f"image{suffix}", channels)
        deep = read_image(tmp_path / f"image{suffix}", channels, np.uint16)
        assert shallow.shape == deep.shape == (channels, 6, 5)
        assert np.abs(deep / 257 - shallow).max() <= 1


def test_fitting_deep_and_transparent_pictures_is_the_mean():
    for pixels in (smooth(1, 8, 12), smooth(4, 8, 12), (smooth(2, 8, 12) // 256).astype(np.uint8)):
        fitted = fit(pixels, 4, 6)
        means = pixels.reshape(len(pixels), 4, 2, 6, 2).mean(axis=(2, 4))
        assert fitted.dtype == pixels.dtype and np.abs(fitted - means).max() <= 0.51
        assert fit(pixels, 8, 12) is pixels


def test_more_channels_than_a_picture_has_are_an_array(tmp_path):
    pixels = RANDOM.integers(0, 2**16, (5, 3, 4), dtype=np.uint16)
    assert [suffix_for(channels) for channels in (1, 4, 5, 8)] == [".png", ".png", ".npy", ".npy"]
    write_pixels(pixels, tmp_path / "image.npy")
    assert np.array_equal(np.load(tmp_path / "image.npy", allow_pickle=False), pixels)


@pytest.mark.parametrize("cut", [30, 60, 200])
def test_damaged_deep_files_are_named(tmp_path, cut):
    path = tmp_path / "broken.png"
    path.write_bytes(encode_deep_png(RANDOM.integers(0, 2**16, (3, 20, 20), np.uint16))[:cut])
    with pytest.raises(ImageFileError, match=r"broken\.png cannot be read as an image") as error:
        read_image(path, 3, np.uint16)
    assert "\n" not in str(error.value)
    assert stored_bits(path) in (8, 16)


def test_values_that_are_not_read_are_refused(tmp_path):
    Image.fromarray(np.full((3, 4), 0.5, np.float32)).save(tmp_path / "floats.tif")
    Image.fromarray(np.full((3, 4), 70000, np.int32)).save(tmp_path / "long.tif")
    for name in ("floats", "long"):
        for kind in (np.uint8, np.uint16):
            with pytest.raises(
                ImageFileError, match=rf"{name}\.tif .*whole numbers from 0 of 8 or"
            ):
                read_image(tmp_path / f"{name}.tif", 1, kind)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    write_pixels(smooth(3), path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageFileError, match="bomb"):
        read_image(path, 3, np.uint16)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write_pixels(smooth(3), tmp_path / "image.png")
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ImageFileError, match="16 bits need torchvision: pip install torchvision"):
        read_image(tmp_path / "image.png", 3, np.uint16)
    assert read_image(tmp_path / "image.png", 3).shape == (3, 9, 14)
