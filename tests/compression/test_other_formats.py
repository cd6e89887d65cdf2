"""Sizes in other formats are those of real files."""

import io

import numpy as np
import pytest
from PIL import Image

from lmconv.compression import other_formats as codec_comparison
from lmconv.compression.other_formats import other_formats

RANDOM = np.random.default_rng(0)


def png_size(pixels, mode):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG", optimize=True)
    return len(file.getvalue())


def test_files_are_added_up_and_a_sheet_holds_all_pictures(monkeypatch):
    colours = RANDOM.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    sizes = other_formats(colours)
    assert set(sizes) == {"PNG", "WebP", "JPEG XL"}
    each = [png_size(pixels.transpose(1, 2, 0), "RGB") for pixels in colours]
    assert sizes["PNG"]["files"] == sum(each)
    sheet = codec_comparison._sheet(colours)
    assert sheet.shape == (3, 2 * 4, 3 * 6)
    assert np.array_equal(sheet[:, 4:, 6:12], colours[4])
    assert (sheet[:, 4:, 12:] == 0).all()
    assert sizes["PNG"]["sheet"] == png_size(sheet.transpose(1, 2, 0), "RGB")
    monkeypatch.setattr(codec_comparison, "_LARGEST_SHEET", 8 * 18 * 3 - 1)
    assert {each["sheet"] for each in other_formats(colours).values()} == {None}
    monkeypatch.setattr(codec_comparison, "_LONGEST_SIDE", 5)
    assert {each["files"] for each in other_formats(colours).values()} == {None}


def test_black_and_white_is_given_to_png_with_one_bit():
    binary = RANDOM.integers(0, 2, (1, 1, 40, 40), dtype=np.uint8) * 255
    assert other_formats(binary)["PNG"]["files"] == png_size(binary[0, 0], "1")
    assert png_size(binary[0, 0], "1") < png_size(binary[0, 0], "L")


@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_is_lossless(channels):
    pixels = RANDOM.integers(0, 256, (channels, 9, 7), dtype=np.uint8)
    for options in codec_comparison._formats().values():
        file = io.BytesIO()
        codec_comparison.to_picture(pixels).save(file, **options)
        again = np.asarray(Image.open(file).convert("L" if channels == 1 else "RGB"))
        assert np.array_equal(again.reshape(9, 7, channels).transpose(2, 0, 1), pixels)


def test_a_missing_plugin_is_left_out(monkeypatch):
    monkeypatch.setattr(codec_comparison.importlib.util, "find_spec", lambda name: None)
    assert set(codec_comparison._formats()) == {"PNG", "WebP"}
