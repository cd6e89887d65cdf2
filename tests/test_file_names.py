"""Names of files in texts, and those made from other names."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmconv.file_names import (
    MOST_NAME_BYTES,
    distinct_names,
    is_portable,
    name_limit,
    portable_name,
    printable,
    shorten,
)

NAMES = st.binary(min_size=1, max_size=300).filter(lambda data: b"\0" not in data).map(os.fsdecode)


def read_back(text):
    """What docs/completion.md says about reading names."""
    return os.fsdecode(
        re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    )


@given(NAMES | st.text(st.sampled_from("\\xf0a\n\u2028é\udcff")))
def test_any_name_is_one_line_of_text_and_comes_back(name):
    text = printable(name)
    assert len(text.splitlines()) <= 1
    assert read_back(text) == name


@pytest.mark.parametrize("name", ["a.png", "ä 日本 $_{.png", "C:\\data\\x.png", "\\x4", ""])
def test_names_that_can_be_printed_stay(name):
    assert printable(name) == name


@given(NAMES, st.integers(20, 255))
def test_short_names_stay_and_long_ones_keep_their_beginning(name, most_bytes):
    short = shorten(name, most_bytes)
    if len(os.fsencode(name)) <= most_bytes:
        assert short == name
        return
    assert len(os.fsencode(short)) <= most_bytes
    assert name.startswith(short[:-9]) and len(os.fsencode(short)) > most_bytes - 4
    assert shorten(name + "x", most_bytes) != short


def test_the_limit_is_that_of_the_folder_to_be_made(tmp_path):
    assert name_limit(tmp_path / "new" / "folder") == os.pathconf(tmp_path, "PC_NAME_MAX")


@given(st.lists(st.sampled_from(["a", "A", "a_2", "b", "é", "e\u0301", "x" * 200])))
def test_only_repeated_names_get_numbers_and_all_are_distinct(names):
    distinct = distinct_names(names)
    assert len({name.casefold() for name in distinct}) == len(names)
    for index, (name, given_name) in enumerate(zip(distinct, names, strict=True)):
        if given_name.casefold() not in {other.casefold() for other in names[:index]}:
            assert name == given_name or given_name in ("é", "e\u0301")
        assert len(name.encode()) <= 200


@given(NAMES)
def test_portable_names_are_allowed_and_stay_as_they_are(name):
    portable = portable_name(name)
    assert is_portable(portable) and len(portable.encode()) <= MOST_NAME_BYTES
    assert portable_name(portable) == portable


@pytest.mark.parametrize("name", ["con", "NUL", "aux.x", "Com1", "lpt².a", "prn ", "CONIN$"])
def test_devices_of_windows_are_no_portable_names(name):
    assert portable_name(name) == f"_{name}"


@pytest.mark.parametrize("name", ["console", "com10", "aux1", "nul_", "a.con", "com"])
def test_names_like_those_of_devices_stay(name):
    assert portable_name(name) == name
