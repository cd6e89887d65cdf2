"""The page of ``--mode web``: its application with tiny models, and what browsers send."""

import base64
import json

import numpy as np
import pytest

from helpers.paths import EXAMPLES

pytest.importorskip("starlette", reason="the page is an extra: pip install -r requirements-web.txt")
pytest.importorskip("httpx", reason="the test client needs it: pip install httpx")

from starlette.testclient import TestClient

from lmconv.web.examples import Examples
from lmconv.web.jobs import Worker
from lmconv.web.models import Models, find_models
from lmconv.web.server import make_app
from lmconv.web.tasks import Tasks


def picture(pixels, hidden=None):
    """An image, ``C x H x W``, uint8, as the page sends it."""
    channels, height, width = pixels.shape
    sent = {"channels": channels, "height": height, "width": width, "data": base64_of(pixels)}
    return sent if hidden is None else {**sent, "hidden": base64_of(hidden.astype(np.uint8))}


def base64_of(array):
    return base64.b64encode(array.tobytes()).decode()


def pixels_of(sent):
    """The image, ``C x H x W``, uint8, of a picture that the page gets."""
    shape = sent["channels"], sent["height"], sent["width"]
    return np.frombuffer(base64.b64decode(sent["data"]), np.uint8).reshape(shape)


class Page:
    """What a browser does with the application.

    Args:
        paths: checkpoints to choose from.
    """

    def __init__(self, *paths):
        self.tasks = Tasks(Models(find_models(paths, paths[0].parent / "none")), Examples(EXAMPLES))
        self.app = make_app(self.tasks, Worker(1))
        self.http = TestClient(self.app, base_url="http://127.0.0.1:7860")

    def events(self, task, **values):
        answer = self.http.post(f"/api/{task}", json={"model": 0, **values})
        return [json.loads(line) for line in answer.text.splitlines()]

    def ask(self, task, **values):
        """The result of a request, which succeeds."""
        last = self.events(task, **values)[-1]
        assert "result" in last, last
        return last["result"]

    def refused(self, task, **values):
        """The sentence with which a request is refused."""
        last = self.events(task, **values)[-1]
        assert set(last) == {"error"}, last
        return last["error"]
