"""A page with a tiny model, for the tests of the server."""

import pytest
from helpers.models import tiny_model


@pytest.fixture
def page(tmp_path):
    """A page with a model of binary images of 8 x 8."""
    from helpers.pages import Page  # skips the test without the extra

    path = tmp_path / "run" / "tiny.pth"
    path.parent.mkdir()
    tiny_model(binarize=True).save(path)
    return Page(path)
