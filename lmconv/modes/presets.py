"""Presets: ``@FILE`` on a command line stands for the flags in a text file."""

import codecs
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmconv.modes import UsageError
from utils import check_regular

__all__ = ["expand_presets", "split_line"]

_MOST_BYTES = 2**20
_MOST_PRESETS = 1000
# A comment, or a word: what stands in quotes, and what stands between blanks.
_WORD = re.compile(r"""[ \t]*(?:(?P<comment>\#.*)|(?P<word>(?:'[^']*'|"[^"]*"|[^ \t'"])+))""")
_PART = re.compile(r"""'([^']*)'|"([^"]*)"|([^'"]+)""")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def expand_presets(words: Sequence[str]) -> list[str]:
    """Replace each ``@FILE`` by the flags in the file, except where ``@FILE`` is itself a file.

    So the names that ``*.png`` stands for in a shell are names of files, even ``@home.png``.

    Args:
        words: a command line.

    Raises:
        UsageError: a preset cannot be read or split, or names itself, or there are too many.
    """
    return _expanded(words, (), itertools.count(1))


def _expanded(words: Sequence[str], parents: tuple[str, ...], numbers: Iterator[int]) -> list[str]:
    """``expand_presets`` for words inside presets; each preset takes the next number."""
    expanded = []
    for word in words:
        if not word.startswith("@") or os.path.exists(word):
            expanded.append(word)
            continue
        path = Path(word[1:]).expanduser()
        if os.path.realpath(path) in parents:
            raise UsageError(f"{word} is a preset that names itself")
        if next(numbers) > _MOST_PRESETS:
            raise UsageError(f"presets that name each other stand for over {_MOST_PRESETS} files")
        inner = [part for line in _lines(path) for part in split_line(line, path)]
        expanded += _expanded(inner, (*parents, os.path.realpath(path)), numbers)
    return expanded


def _lines(path: Path) -> Sequence[str]:
    check_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if data.startswith(_UTF_16):
            raise UsageError(f"the preset {path} is in UTF-16: save it as UTF-8")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"the preset {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the preset {path} is not a text file in UTF-8") from error
    if "\0" in text or len(data) > _MOST_BYTES:
        raise UsageError(f"the preset {path} is not a text file, or a very large one")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def split_line(line: str, path: Path) -> Iterator[str]:
    r"""Split a line of a preset into words, leaving out comments.

    Blanks separate words, except between ``'`` and ``'`` or ``"`` and ``"``. A ``#`` at the
    beginning of a word begins a comment. A backslash is a character like others, as in the paths of
    Windows. A word that begins with ``~`` outside quotes is a path in a home folder.

    Args:
        line: the line.
        path: the preset that it stands in, for errors.

    Raises:
        UsageError: a quote is not closed.
    """
    place = 0
    line = line.rstrip(" \t")
    while place < len(line):
        match = _WORD.match(line, place)
        if match is None:
            raise UsageError(f"the preset {path} has a quote that is not closed: {line}")
        place = match.end()
        if (word := match["word"]) is not None:
            unquoted = "".join(part.group(part.lastindex or 0) for part in _PART.finditer(word))
            yield os.path.expanduser(unquoted) if word.startswith("~") else unquoted
