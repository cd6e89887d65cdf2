"""Standard outputs that cannot show what they are given."""

import errno
import io
import os


class _Unwritable(io.TextIOBase):
    encoding = "utf-8"

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, text: str) -> int:
        raise OSError(self._number, os.strerror(self._number))

    def flush(self) -> None:
        raise OSError(self._number, os.strerror(self._number))


class _Filling(io.StringIO):
    """Takes the first line, and then nobody reads on."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def _closed() -> io.TextIOBase:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.close()
    return stream


SCREENS = {
    "none": lambda: None,
    "closed pipe": lambda: _Unwritable(errno.EPIPE),
    "pipe that is closed later": _Filling,
    "full disk": lambda: _Unwritable(errno.ENOSPC),
    "terminal that is gone": lambda: _Unwritable(errno.EIO),
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "closed": _closed,
}
