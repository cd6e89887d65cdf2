"""Boxes of command lines in images."""

import pytest

from lmconv.modes import UsageError
from lmconv.modes.options import parse, settle
from lmconv.modes.regions import box_pixels, scored_box


def settled(flags):
    return settle(parse(["--test_region", "custom", *flags.split()]))


@pytest.mark.parametrize(
    ("flags", "box"),
    [
        ("", (0, 8, 0, 8)),
        ("--test_minh 2 --test_maxw 3", (2, 8, 0, 3)),
    ],
)
def test_custom_regions_default_to_the_image(flags, box):
    assert scored_box(settled(flags), (1, 8, 8)) == box


@pytest.mark.parametrize("flags", ["--test_maxh 9", "--test_minw 4 --test_maxw 4"])
def test_regions_outside_the_image_are_refused(flags):
    with pytest.raises(UsageError, match="8x8"):
        scored_box(settled(flags), (1, 8, 8))


def test_a_box_has_the_pixels_between_its_bounds():
    pixels = box_pixels((1, 3, 2, 5), (3, 4, 6))
    assert pixels.shape == (4, 6) and pixels.sum() == 6
    assert pixels[1:3, 2:5].all()
