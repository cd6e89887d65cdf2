"""Files that are taken for checkpoints: what they are is said, in one line."""

import io
import json
import zipfile

import pytest
import torch
from helpers.commands import refused
from helpers.paths import REFERENCE, ROOT

from lmconv.file_kinds import kind_of_file


def archive(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as written:
        for name, contents in files.items():
            written.writestr(name, contents)
    return data.getvalue()


def checkpoint():
    data = io.BytesIO()
    torch.save({"model_state_dict": {"w": torch.zeros(1000)}}, data)
    return data.getvalue()


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
KINDS = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(5000), "only zeros"),
    "page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", "web page"),
    "page after blanks": (b"\xef\xbb\xbf\r\n  <html lang='en'>" + b"<p>" * 999, "web page"),
    "error in XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "text": ("no checkpoint, für niemanden ".encode() * 99, "text file"),
    "text cut within a letter": (b"a" * 1023 + "ü".encode(), "text file"),
    "json": (b'{"epoch": 3}', "text file"),
    "safetensors": (len(HEADER).to_bytes(8, "little") + HEADER + bytes(4), "safetensors"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "gzip"),
    "picture": (b"\x89PNG\r\n" + bytes(99), "PNG"),
    "array": (b"\x93NUMPY" + bytes(99), "NumPy"),
    "archive": (archive({"a.txt": "x", "b/c.pth": "y"}), "ZIP archive of other files"),
    "program": (archive({"a/data.pkl": "x", "a/constants.pkl": "y"}), "TorchScript"),
    "bomb": (archive({"a/data.pkl": "x", "a/data/0": bytes(10**7)}), "more data"),
    "truncated": (checkpoint()[:-300], "incomplete"),
    "half": (checkpoint()[:2000], "incomplete"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_files_are_recognised(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    contents, words = KINDS[name]
    (tmp_path / "a.pth").write_bytes(contents)
    assert words in kind_of_file(tmp_path / "a.pth")
    refused("--mode info --load_params a.pth", capsys, "a.pth is not a checkpoint: it", words)


@pytest.mark.parametrize(
    "path", [*(REFERENCE / "models").glob("*.pth"), *ROOT.glob("pretrained/*.pth")]
)
def test_checkpoints_are_not_taken_for_anything_else(path):
    assert kind_of_file(path) is None


def test_old_formats_are_not_taken_for_anything_else(tmp_path):
    contents = {"model_state_dict": {"w": torch.zeros(3)}}
    torch.save(contents, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert kind_of_file(tmp_path / "old.pth") is None
