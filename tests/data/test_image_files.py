"""Image files: every mode and orientation as it is meant to be seen, nothing stretched."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

from lmconv.data import image_files
from lmconv.data.image_files import (
    EncodedImage,
    ImageFileError,
    count_pixels,
    cover,
    fit,
    image_size,
    read_image,
    read_mask,
    reduced_part,
    unseen,
)

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)
WHITE = struct.pack(">2I", 31270, 32900)  # the white point of sRGB, as PNG files give it


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".PNG"])
def test_lossless_files_are_read_as_they_are(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(COLOUR).save(path, lossless=True)
    np.testing.assert_array_equal(read_image(path, 3), COLOUR.transpose(2, 0, 1))


def test_grey_and_colour_become_each_other(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 1), GREY[None])
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 3), [GREY] * 3)
    grey = read_image(tmp_path / "colour.png", 1)
    luma = COLOUR @ [0.299, 0.587, 0.114]
    assert grey.shape == (1, 5, 7)
    assert np.abs(grey[0] - luma).max() <= 1


def test_jpegs_are_close(tmp_path):
    smooth = np.linspace(0, 255, 32 * 48).reshape(32, 48).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "image.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "image.jpg", 1)[0].astype(int) - smooth).max() <= 4


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    picture, exif = Image.fromarray(COLOUR), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    picture.save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(
        read_image(tmp_path / "image.png", 3), np.rot90(COLOUR, -1).transpose(2, 0, 1)
    )


def test_transparent_pixels_are_laid_over_white(tmp_path):
    alpha = np.zeros((5, 7), np.uint8)
    alpha[:2] = 255
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "colour.png")
    Image.fromarray(np.dstack([GREY, alpha]), "LA").save(tmp_path / "grey.png")
    colour, grey = read_image(tmp_path / "colour.png", 3), read_image(tmp_path / "grey.png", 1)
    np.testing.assert_array_equal(colour[:, :2], COLOUR[:2].transpose(2, 0, 1))
    np.testing.assert_array_equal(grey[0, :2], GREY[:2])
    assert (colour[:, 2:] == 255).all() and (grey[:, 2:] == 255).all()


def test_transparent_pixels_of_a_mask_are_visible(tmp_path):
    drawn = np.zeros((5, 7, 4), np.uint8)
    drawn[1:3, 2:4] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), drawn[:, :, 3] == 255)


def test_palettes_are_looked_up(tmp_path):
    few = (COLOUR // 128) * 255
    picture = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    picture.save(tmp_path / "image.png")
    assert Image.open(tmp_path / "image.png").mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 3), few.transpose(2, 0, 1))


def test_one_bit_and_sixteen_bits_fill_the_range(tmp_path):
    Image.fromarray(GREY > 127).save(tmp_path / "one.png")
    values = RANDOM.integers(0, 65536, (5, 7)).astype(np.uint16)
    values[0, :2] = 0, 65535
    Image.fromarray(values).save(tmp_path / "sixteen.png")
    np.testing.assert_array_equal(read_image(tmp_path / "one.png", 1)[0], (GREY > 127) * 255)
    np.testing.assert_array_equal(
        read_image(tmp_path / "sixteen.png", 1)[0], np.rint(values / 257).astype(np.uint8)
    )


def test_four_printing_inks_become_three_colours(tmp_path):
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "image.jpg")
    red, green, blue = read_image(tmp_path / "image.jpg", 3)
    assert red.min() > 240 and green.max() < 15 and blue.max() < 15


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", "truncated"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content == "truncated":
        Image.fromarray(RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(ImageFileError, match=r"broken\.png cannot be read as an image") as error:
        read_image(path, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [lambda path: read_image(path, 1), read_mask])
def test_what_is_not_a_regular_file_is_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder"), ("zeros", "a device")):
        with pytest.raises(ImageFileError, match=rf"{name}\.png is {kind}, not a regular file"):
            read(tmp_path / f"{name}.png")


def test_a_file_too_large_to_be_a_picture_is_not_read(tmp_path):
    path = tmp_path / "image.webp"  # whose decoder reads the whole file
    Image.fromarray(GREY).save(path)
    os.truncate(path, 2**40)
    with pytest.raises(ImageFileError, match=r"image\.webp .*has more than 1073741824 b"):
        read_image(path, 1)


def test_an_image_too_large_to_be_true_is_refused(tmp_path, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageFileError, match="bomb"):
        read_image(tmp_path / "bomb.png", 1)


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 5),
    st.sampled_from([1, 3]),
)
def test_fitting_is_the_mean_over_the_middle_part(height, width, scale, margin, channels):
    size = (channels, height * scale, width * scale + 2 * margin)
    pixels = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    middle = pixels[:, :, margin : margin + width * scale].astype(float)
    means = middle.reshape(channels, height, scale, width, scale).mean(axis=(2, 4))
    fitted = fit(pixels, height, width)
    assert fitted.shape == (channels, height, width) and fitted.dtype == np.uint8
    assert np.abs(fitted - means).max() <= 1


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_each_pixel_of_a_reduced_part_is_the_mean_of_an_area(
    height, width, factor, top, left, channels, kind
):
    size = (channels, top + height * factor + 2, left + width * factor + 1)
    pixels = np.random.default_rng(1).integers(0, 256, size).astype(kind)
    part = pixels[:, top : top + height * factor, left : left + width * factor].astype(float)
    means = part.reshape(channels, height, factor, width, factor).mean(axis=(2, 4))
    reduced = reduced_part(pixels, top, left, factor, height, width)
    assert reduced.shape == (channels, height, width) and reduced.dtype == kind
    assert np.abs(reduced - means).max() <= 1


@given(st.floats(1, 5), st.floats(0, 1), st.floats(0, 1))
def test_a_reduced_part_may_begin_and_end_between_pixels(factor, row, column):
    ramps = np.mgrid[:40, :45].astype(np.uint16)
    height, width = 8, 9
    top, left = row * (40 - height * factor), column * (45 - width * factor)
    reduced = reduced_part(ramps, top, left, factor, height, width)
    middles = np.mgrid[:height, :width] * factor + (factor - 1) / 2
    assert np.abs(reduced - middles - np.array([top, left])[:, None, None]).max() <= 1.01


def test_an_image_of_the_size_is_left_alone_and_a_small_one_repeats_its_pixels():
    assert (fit(GREY[None], 5, 7) == GREY).all()
    np.testing.assert_array_equal(
        fit(GREY[None], 10, 14)[0], GREY.repeat(2, axis=0).repeat(2, axis=1)
    )


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
)
def test_an_image_that_covers_a_window_has_one_of_its_sides(rows, columns, height, width, channels):
    pixels = np.random.default_rng(1).integers(0, 256, (channels, rows, columns), dtype=np.uint8)
    covering = cover(pixels, height, width)
    assert covering.shape[0] == channels and covering.dtype == np.uint8
    _, new_rows, new_columns = covering.shape
    assert height <= new_rows <= 8 * height and width <= new_columns <= 8 * width
    assert new_rows == height or new_columns == width
    scale = max(height / rows, width / columns)
    for new, side, old in ((new_rows, height, rows), (new_columns, width, columns)):
        assert abs(new - old * scale) <= 0.5 or new == 8 * side or new == side


@pytest.mark.parametrize("step", [1, 7, 20, 2**20])
def test_rows_are_read_in_steps_of_any_size(tmp_path, monkeypatch, step):
    monkeypatch.setattr(image_files, "_PIXELS_PER_STEP", step)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.where(GREY > 99, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "image.png", exif=exif)
    expected = np.where(alpha[..., None] > 0, COLOUR, 255)
    np.testing.assert_array_equal(
        read_image(tmp_path / "image.png", 3), np.rot90(expected, -1).transpose(2, 0, 1)
    )
    few = Image.fromarray(COLOUR).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    few.save(tmp_path / "few.png", transparency=0)
    expected = np.asarray(few.convert("RGB")).copy()
    expected[np.asarray(few) == 0] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "few.png", 3), expected.transpose(2, 0, 1))


def test_a_large_picture_takes_little_more_memory_than_its_pixels(tmp_path):
    """36 megapixels of 16 bits, in a process of their own: 72 MB decoded, and 36 MB as read."""
    side = 6000
    rows = zlib.compressobj(1)
    data = b"".join(rows.compress(b"\0" + bytes(2 * side)) for _ in range(side)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from lmconv.data.image_files import read_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "begin = peak(); pixels = read_image(Path(sys.argv[1]), 1)\n"
        "print((peak() - begin) / 2**10, pixels.shape)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "large.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    megabytes, shape = result.stdout.split(maxsplit=1)
    assert shape.strip() == "(1, 6000, 6000)"
    assert float(megabytes) < 200
    assert result.stderr == ""


def test_pixels_are_counted_without_decoding(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "image.png")
    os.truncate(tmp_path / "image.png", 50)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "text.png").write_text("no image")
    counts = [count_pixels(tmp_path / f"{name}.png") for name in ("image", "pipe", "text", "lost")]
    assert counts == [35, 0, 0, 0]


def test_a_picture_with_the_same_pixels_has_nothing_unseen(tmp_path):
    path, pixels = tmp_path / "image.png", COLOUR.transpose(2, 0, 1)
    Image.fromarray(COLOUR).save(path)
    assert unseen(path, pixels) == []
    assert unseen(path, pixels ^ 1) == ["finer values"]
    assert unseen(path, pixels[:, 1:]) == ["another size"]
    assert unseen(path, pixels[:1]) == ["colours"]
    Image.fromarray(GREY).save(path)
    assert unseen(path, GREY[None]) == []
    assert unseen(path, np.stack([GREY] * 3)) == []
    Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)])).save(path)
    assert unseen(path, pixels) == []
    Image.fromarray(COLOUR).save(path, comment="text", dpi=(72, 72))
    assert unseen(path, pixels) == []


def save(path, picture, **options):
    picture.save(path, **options)
    return unseen(path, read_image(path, 3 if picture.mode in ("RGB", "CMYK", "RGBA") else 1))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_frames_after_the_first_are_known(tmp_path, suffix):
    frames = [Image.fromarray(np.full((5, 7), value, np.uint8)) for value in (0, 90, 200, 255)]
    options = {"save_all": True, "append_images": frames[1:], "lossless": True}
    path = tmp_path / f"image.{suffix}"
    assert save(path, frames[0], **options) == ["several frames"]
    assert (read_image(path, 1) == 0).all()
    assert "several frames" in unseen(path, read_image(path, 1) + 200)


def test_pictures_after_the_first_in_a_jpeg_are_known(tmp_path):
    """As telephones write them: depths or lights behind the picture."""
    photo = Image.fromarray(np.full((8, 8, 3), 99, np.uint8))
    photo.save(tmp_path / "image.jpg", format="MPO", save_all=True, append_images=[photo])
    assert "several frames" in unseen(tmp_path / "image.jpg", read_image(tmp_path / "image.jpg", 3))


def test_finer_bits_colours_transparency_and_an_orientation_are_known(tmp_path):
    path, photo = tmp_path / "image.png", Image.fromarray(COLOUR)
    assert save(path, Image.fromarray(np.dstack([COLOUR, GREY]))) == ["transparency"]
    few = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    few.save(path, transparency=3)
    assert unseen(path, read_image(path, 3)) == ["transparency"]
    assert save(path, Image.fromarray(GREY.astype(np.uint16) * 257)) == ["more than 8 bits"]
    write_deep_png(path, COLOUR.astype(np.uint16) * 257)
    assert Image.open(path).mode == "RGB"
    assert unseen(path, read_image(path, 3)) == ["more than 8 bits"]
    assert save(tmp_path / "inks.jpg", Image.new("CMYK", (6, 4), (9, 200, 255, 0))) == ["colours"]
    for orientation in (1, 2, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        expected = [] if orientation == 1 else ["an orientation"]
        assert save(path, photo, exif=exif) == expected


def swapped(profile):
    """The profile with red and green exchanged; its name stays."""
    for old, new in ((b"rXYZ", b"kept"), (b"gXYZ", b"rXYZ"), (b"kept", b"gXYZ")):
        profile = profile.replace(old, new)
    return profile


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_colour_profile_is_known_unless_it_is_srgb(tmp_path, suffix):
    path, photo = tmp_path / f"image.{suffix}", Image.fromarray(COLOUR)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert save(path, photo, icc_profile=srgb, lossless=True) == []
    for profile in (swapped(srgb), lab, srgb[:300], b"damaged"):
        assert save(path, photo, icc_profile=profile, lossless=True) == ["another colour profile"]


@pytest.mark.parametrize(
    ("chunks", "is_other"),
    [
        ({b"gAMA": struct.pack(">I", 45455)}, False),
        ({b"gAMA": struct.pack(">I", 100000)}, True),
        ({b"gAMA": struct.pack(">I", 100000), b"sRGB": b"\0"}, False),
        (
            {b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)},
            False,
        ),
        (
            {b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)},
            True,
        ),
        ({b"cICP": bytes((1, 13, 0, 1))}, False),
        ({b"sRGB": b"\0", b"cICP": bytes((9, 16, 0, 1))}, True),
        ({b"gAMA": bytes(9)}, True),
        ({b"tEXt": b"gamma\0text", b"zTXt": b"icc_profile\0\0" + zlib.compress(b"text")}, False),
    ],
)
def test_chunks_of_other_colours_are_known(tmp_path, chunks, is_other):
    path = tmp_path / "image.png"
    Image.fromarray(COLOUR).save(path)
    content = path.read_bytes()
    more = b"".join(chunk(kind, data) for kind, data in chunks.items())
    path.write_bytes(content[:33] + more + content[33:])
    expected = ["another colour profile"] if is_other else []
    assert unseen(path, COLOUR.transpose(2, 0, 1)) == expected


def test_a_camera_can_say_adobe_rgb_without_a_profile(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.IFD.Interop: {1: "R03"}}
    assert save(tmp_path / "image.png", Image.fromarray(COLOUR), exif=exif) == [
        "another colour profile"
    ]


def chunk(kind, data):
    """A chunk of a PNG file."""
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def write_deep_png(path, pixels):
    """A PNG of 16-bit colours, which Pillow does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_size_that_is_read_without_decoding_is_that_of_the_image(kind, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    exif, content = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(content, kind, **({} if kind == "BMP" else {"exif": exif}))
    image = EncodedImage(content.getvalue(), "a picture")
    read = read_image(image, 3)
    assert image_size(image) == read.shape[1:]
    # Those with alpha or 16 bits are read in another way, which turns them alike.
    np.testing.assert_array_equal(read_image(image, 4)[:3], read)
    np.testing.assert_array_equal(read_image(image, 3, np.uint16), read * np.uint16(257))
    for damaged in (b"", content.getvalue()[:10], b"GIF89a"):
        with pytest.raises(ImageFileError, match="a picture cannot be read as an image"):
            image_size(EncodedImage(damaged, "a picture"))
