"""Presets: what an ``@FILE`` stands for, and files that are none."""

import os
from pathlib import Path

import pytest
from helpers.commands import refused
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st

from lmconv.modes.options import parse
from lmconv.modes.presets import expand_presets, split_line


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "presets").glob("*.txt")), ids=lambda path: path.stem
)
def test_each_preset_of_the_project_is_a_command_line(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = parse([f"@presets/{path.name}"])
    assert given.mode == "train" and {given.dataset, given.optimizer, given.batch_size} != {None}


def words(text):
    Path("preset.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return expand_presets(["@preset.txt"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"-i C:\data\x -n 4", ["-i", r"C:\data\x", "-n", "4"]),
        (r"-i 'C:\my data\' \\host\x", ["-i", "C:\\my data\\", r"\\host\x"]),
        ('--exp_name "it\'s" \'say "a"\'', ["--exp_name", "it's", 'say "a"']),
        ("--exp_name a'b c'd\"e f\"", ["--exp_name", "ab cde f"]),
        ("--exp_name '' x", ["--exp_name", "", "x"]),
        ("# all\n-i img#1 # rest '\n\n  -n 4", ["-i", "img#1", "-n", "4"]),
        ("-n 4\r\n-k 3\r-q 1\n", ["-n", "4", "-k", "3", "-q", "1"]),
        ("\ufeff-n 4", ["-n", "4"]),
        ("-i a\u00a0b\u2028c", ["-i", "a\u00a0b\u2028c"]),
        ("", []),
    ],
)
def test_lines_are_split_at_blanks_outside_quotes_and_backslashes_stay(text, expected):
    assert words(text) == expected


@given(st.lists(st.text(st.characters(exclude_characters="'\0\r\n", codec="utf-8"))))
def test_whatever_stands_in_quotes_comes_back(values):
    line = " ".join(f"'{value}'" for value in values)
    assert list(split_line(line, Path("preset"))) == values


def test_home_folders_are_found_outside_quotes_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("home.txt").write_text("-i ~/data --exp_name '~/x' --run_dir a~")
    expected = ["-i", f"{tmp_path}/data", "--exp_name", "~/x", "--run_dir", "a~"]
    assert expand_presets(["@~/home.txt"]) == expected


def test_a_file_whose_name_begins_with_an_at_sign_is_no_preset():
    Path("at.png").write_text("-n 4")
    assert parse(["--mode", "score", "--images", "a.png", "@at.png"]).nr_filters == 4
    Path("@at.png").touch()
    given = parse(["--mode", "score", "--images", "a.png", "@at.png"])
    assert given.images == ["a.png", "@at.png"]


def test_presets_may_name_presets_but_not_themselves(capsys):
    Path("a.txt").write_text("@b.txt -n 4")
    Path("b.txt").write_text("-k 3 # from @a.txt")
    assert expand_presets(["@a.txt", "@b.txt"]) == ["-k", "3", "-n", "4", "-k", "3"]
    for text in ("@./a.txt", "@./a.txt @./a.txt"):
        Path("b.txt").write_text(text)
        refused("@a.txt", capsys, "a.txt", "names itself")


def test_presets_that_name_others_twice_each_end_at_once(capsys):
    for number in range(40):
        Path(str(number)).write_text(f"@{number + 1}\n@{number + 1}")
    Path("40").write_text("-n 4")
    refused("@0", capsys, "1000 files")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("-n 4".encode("utf-16"), "UTF-16: save it as UTF-8"),
        (b"\xfe\xff" + "-n 4".encode("utf-16-be"), "UTF-16: save it as UTF-8"),
        ("-n 4".encode("utf-16-le"), "not a text file"),
        (b"-i caf\xe9", "not a text file in UTF-8"),
        (b"-n 4 " * 2**19, "very large"),
        (b"--run_dir 'open", "quote that is not closed: --run_dir 'open"),
        (b'--run_dir a" b', "quote that is not closed"),
    ],
)
def test_files_that_are_no_presets_end_with_one_line(contents, message, capsys):
    Path("preset.txt").write_bytes(contents)
    refused("@preset.txt", capsys, "preset.txt", message)


def test_pipes_and_devices_are_not_read(capsys):
    os.mkfifo("pipe")
    for name in ("pipe", "/dev/zero"):
        refused(f"@{name}", capsys, name, "not a regular file")
    refused("@", capsys, "is a folder")
