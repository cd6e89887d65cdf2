"""File names in texts, and names for files that are made from those of other files.

On Unix a name is bytes, which Python keeps in a string even where they are not UTF-8.
"""

import os
import re
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "MOST_NAME_BYTES",
    "distinct_names",
    "is_portable",
    "name_limit",
    "portable_name",
    "printable",
    "shorten",
]

# The longest name of an image in a compressed file, without suffix.
MOST_NAME_BYTES = 200
_NOT_PRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|\\(?=x[0-9a-f]{2})")
_NOT_PORTABLE = frozenset('/\\:*?"<>|')
_WINDOWS_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\.|$)", re.IGNORECASE
)


def printable(name: str | os.PathLike[str]) -> str:
    r"""A name as one line of valid text, from which the name can be had again.

    Bytes that are not UTF-8, and those of control characters, become ``\xHH``. So does a backslash
    before ``xHH``. All else stays as it is::

        >>> print(printable("caf\udce9.png"))
        caf\xe9.png
    """
    return _NOT_PRINTED.sub(
        lambda match: "".join(f"\\x{byte:02x}" for byte in os.fsencode(match[0])),
        os.fspath(name),
    )


def name_limit(folder: Path) -> int:
    """The most bytes that a name can have in a folder, which need not exist yet."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # systems and file systems that do not say
        return 255


def shorten(name: str, most_bytes: int) -> str:
    """Cut a name that is too long, and end it with a checksum of all of it."""
    data = os.fsencode(name)
    if len(data) <= most_bytes:
        return name
    ending = f"~{zlib.crc32(data):08x}"
    kept = name[: most_bytes - len(ending)]
    while len(os.fsencode(kept)) > most_bytes - len(ending):
        kept = kept[:-1]
    return kept + ending


def distinct_names(names: Iterable[str], most_bytes: int = MOST_NAME_BYTES) -> list[str]:
    """Number the names that are there already, as in ``a``, ``a_2``, and keep all others.

    Names that differ only in case, or in how their accents are stored, count as the same.
    """
    wanted = list(names)
    taken = {_folded(name) for name in wanted}
    first_uses: set[str] = set()
    counts: dict[str, int] = {}
    distinct = []
    for name in wanted:
        key = _folded(name)
        if key in first_uses:
            number = counts.get(key, 1)
            candidate = name
            while _folded(candidate) in taken:
                number += 1
                ending = f"_{number}"
                candidate = shorten(name, most_bytes - len(ending)) + ending
            counts[key] = number
            taken.add(_folded(candidate))
            name = candidate
        first_uses.add(key)
        distinct.append(name)
    return distinct


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def is_portable(name: str) -> bool:
    """Whether a name is one for a file inside a folder, on any operating system but for devices.

    Windows takes names such as ``nul`` for devices. ``portable_name`` changes these as well.
    """
    if not name or not name.isprintable() or name[0] == "." or set(name) & _NOT_PORTABLE:
        return False
    return len(name.encode()) <= MOST_NAME_BYTES


def portable_name(name: str) -> str:
    """A name for a file on any operating system, as much like the given one as possible."""
    letters = (
        letter if letter.isprintable() and letter not in _NOT_PORTABLE else "_"
        for letter in printable(name)
    )
    changed = "".join(letters)
    if not changed or changed[0] == "." or _WINDOWS_DEVICE.match(changed):
        changed = f"_{changed}"
    return shorten(changed, MOST_NAME_BYTES)
