"""``--mode web`` as a user starts it: the address, Ctrl-C, and mistakes."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from helpers.commands import refused
from helpers.models import tiny_model
from helpers.paths import ROOT


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_page_is_served_until_ctrl_c():
    pytest.importorskip("uvicorn", reason="the page is an extra")
    tiny_model().save("tiny.pth")
    command = [sys.executable, ROOT / "main.py", "--mode", "web", "--port", "0", "--no_browser"]
    with subprocess.Popen(
        [*command, "--load_params", "tiny.pth"], stdout=subprocess.PIPE, text=True
    ) as program:
        line = program.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        with urllib.request.urlopen(address) as page:
            assert b"<title>LMConv" in page.read()
        with urllib.request.urlopen(f"{address}api/models") as models:
            assert b"tiny" in models.read()
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["tiny.pth"]


def test_mistakes_are_a_line(capsys, monkeypatch):
    pytest.importorskip("uvicorn", reason="the page is an extra")
    refused("--mode web", capsys, "no model in pretrained/ or runs/", "--load_params")
    refused("--mode web --load_params none.pth", capsys, "none.pth")
    refused("--mode web --port 65536", capsys, "--port", "65535")
    refused("--mode test --port 1", capsys, "--port needs --mode web")
    tiny_model().save("tiny.pth")
    refused("--mode web --load_params tiny.pth --host 192.0.2.1", capsys, "--host 192.0.2.1")


def test_without_the_extra_a_line_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("lmconv.web.server", "lmconv.modes.web"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    refused("--mode web", capsys, "uvicorn", "pip install -r requirements-web.txt")
