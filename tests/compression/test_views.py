"""Views: each shows the same image in another way, and leads back to it."""

import numpy as np
import pytest

from lmconv.compression.views import num_views, originals_of, view_of, views_of


@pytest.mark.parametrize("size", [(2, 3), (3, 3)])
@pytest.mark.parametrize(("channels", "number"), [(1, 4), (2, 8), (3, 24), (8, 24)])
def test_all_views_are_different_and_lead_back(channels, number, size):
    shape = (channels, *size)
    image = np.arange(np.prod(shape), dtype=np.uint16).reshape(1, *shape)
    number *= 2 if size == (3, 3) else 1
    assert num_views(shape) == number
    views = np.random.default_rng(0).permutation(number)
    viewed = views_of(np.repeat(image, number, axis=0), views)
    assert len({each.tobytes() for each in viewed}) == number
    assert (
        viewed.dtype == image.dtype
        and (np.sort(viewed, axis=None)[::number] == image.ravel()).all()
    )
    assert (originals_of(viewed, views) == image).all()


def test_views_are_those_that_the_format_says():
    image = np.arange(12).reshape(3, 2, 2)
    assert (view_of(image, 0) == image).all()
    assert (view_of(image, 1) == image[:, :, ::-1]).all()
    assert (view_of(image, 2) == image[:, ::-1]).all()
    assert (view_of(image, 3) == image[:, ::-1, ::-1]).all()
    assert (view_of(image, 4) == image[[0, 2, 1]]).all()
    assert (view_of(image, 13) == image[[1, 2, 0], :, ::-1]).all()
    assert (view_of(image, 24) == image.transpose(0, 2, 1)).all()
    assert (view_of(image, 24 + 5) == image.transpose(0, 2, 1)[[0, 2, 1], :, ::-1]).all()
    assert (view_of(image[None], 23) == image[None, ::-1, ::-1, ::-1]).all()
