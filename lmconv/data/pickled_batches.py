"""Reads pickled batches of images as data: nothing that such a file names is ever called.

A pickle is a program for a small stack machine. An unpickler calls what the program names, with
arguments of its author's choice, and NumPy does not withstand all arguments. The machine here knows
only the instructions that a batch needs, makes plain values from them, and recognises by name the
functions and classes that arrays are written with. It also reads the instructions' arguments
itself: ``pickletools`` refuses Python 2 strings beyond ASCII, and reads a line of any length before
the line can be refused.
"""

import math
import pickle  # only for the instructions' names
import re
import struct
import warnings
from collections.abc import Callable
from enum import Enum
from mmap import mmap
from typing import Any, Literal

import numpy as np

__all__ = ["labels_of_batch", "read_pickled_batch"]

# Bytes from which on an array is a view of the file instead of a copy.
_LARGE = 2**16
# An instruction takes some hundred bytes beyond its part of the file, so this bounds memory.
_MAX_INSTRUCTIONS = 2_000_000
_MAX_DEPTH = 8
_MAX_NAME = 128  # bytes
_MAX_NUMBER = 40  # bytes, if it is written in digits
_MAX_KEY = 1000  # characters
_MAX_AXES = 4
_PLAIN = (
    *(type(None), bool, int, float, str, bytes, bytearray, memoryview),
    *(np.ndarray, list, tuple, dict),
)


def read_pickled_batch(content: bytes | mmap) -> dict[str | int, Any]:
    """Read the dictionary in a pickle of any protocol that Python 2 or 3 has written.

    Its values are plain: numbers, text, bytes or views of the file, uint8 arrays, and lists, tuples
    and dictionaries of these. Keys in bytes become text, as does what Python 2 calls a string.
    Arrays of other numbers and of text are left out, with None in their place.

    Args:
        content: the contents of the file. Its size bounds time and memory, whatever it says. Of a
            mapped file, large arrays are views, which take no memory.

    Raises:
        ValueError: the pickle is damaged or contains anything else; the message is short.
    """
    batch = _Machine(content).run()
    if not isinstance(batch, dict):
        raise ValueError("it is not a dictionary")
    _check(batch)
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: value
        for key, value in batch.items()
    }


def labels_of_batch(
    batch: dict[str | int, Any], key: str, number: int, first: int, num_labels: int
) -> np.ndarray:
    """The labels in a batch as int64 from 0 on.

    Args:
        batch: what ``read_pickled_batch`` has read.
        key: what the batch calls its labels.
        number: the number of its images.
        first: the first label in the file.
        num_labels: the number of labels that there are.

    Raises:
        ValueError: there are none, or not such ones; the message is short.
    """
    labels = batch.get(key)
    allowed = range(first, first + num_labels)
    if (
        not isinstance(labels, list)
        or len(labels) != number
        or not all(type(label) is int and label in allowed for label in labels)
    ):
        raise ValueError(
            f"{key!r} must be {number} whole numbers from {first} to {first + num_labels - 1}"
        )
    return np.array(labels, np.int64) - first


def _check(batch: dict) -> None:
    """Refuse values that are nested too deeply or in themselves, and values that are not plain."""
    containers: list[Any] = [batch]
    for _ in range(_MAX_DEPTH):
        values = [
            value
            for container in containers
            for value in (container.values() if isinstance(container, dict) else container)
        ]
        if not all(type(value) in _PLAIN for value in values):
            raise ValueError("it contains an array that it does not describe, or a type as a value")
        # Each only once per level: otherwise those that share contents would multiply.
        inner = {id(value): value for value in values if isinstance(value, (list, tuple, dict))}
        containers = list(inner.values())
    if containers:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep, or in itself")


class _Named(Enum):
    """Stands for a function or class that arrays are written with."""

    RECONSTRUCT = "_reconstruct"
    FROMBUFFER = "_frombuffer"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    ENCODE = "_codecs.encode"  # how Python 3 writes bytes for Python 2


_NAMES = {
    "numpy.core.multiarray._reconstruct": _Named.RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _Named.RECONSTRUCT,
    "numpy.core.numeric._frombuffer": _Named.FROMBUFFER,
    "numpy._core.numeric._frombuffer": _Named.FROMBUFFER,
    "numpy.ndarray": _Named.NDARRAY,
    "numpy.dtype": _Named.DTYPE,
    "_codecs.encode": _Named.ENCODE,
}


class _Type:
    """Stands for the type of an array's elements."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[|<>=]?[biufcSU]\d{1,9}", name):
            raise ValueError(f"it has an array of type {_shown(name)}: refused")
        self.is_uint8 = name.lstrip("|<>=") == "u1"


class _Array:
    """Stands for an array, which a file makes first and describes later."""

    content: np.ndarray | None = None
    is_described = False


class _File:
    """Reads the parts of a file in turn; a part takes no memory unless it is really there."""

    def __init__(self, content: bytes | mmap) -> None:
        self._content, self._place = content, 0

    def require(self, size: int) -> None:
        if size > len(self._content) - self._place:
            raise ValueError("it ends too early")

    def take(self, size: int) -> bytes:
        self.require(size)
        start, self._place = self._place, self._place + size
        return self._content[start : self._place]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def counted(self, size: int) -> bytes:
        """Read bytes that follow their length, which itself takes ``size`` bytes."""
        return self.take(self.number(size))

    def counted_bytes(self, size: int) -> bytes | memoryview:
        """``counted``, without a copy of what is large."""
        length = self.number(size)
        if length < _LARGE:
            return self.take(length)
        self.require(length)
        start, self._place = self._place, self._place + length
        return memoryview(self._content)[start : self._place]

    def line(self, limit: int) -> bytes:
        end = self._content.find(b"\n", self._place, self._place + limit)
        if end < 0:
            raise ValueError("it has a line that is too long or does not end")
        return self.take(end + 1 - self._place)[:-1]

    def long_line(self) -> bytes:
        return self.line(len(self._content))

    def name(self) -> str:
        return _utf8(self.line(_MAX_NAME))

    def decimal(self) -> int:
        line = self.line(_MAX_NUMBER)
        if line in (b"00", b"01"):
            return line == b"01"  # this is how False and True are written
        return _bounded(int(line.removesuffix(b"L")))


def _bounded(number: int) -> int:
    """Refuse larger numbers, of which enough share a hash to slow a dictionary down."""
    if not -(2**63) <= number < 2**64:
        raise ValueError("it has a number of more than 64 bits")
    return number


def _integer(content: bytes) -> int:
    return _bounded(int.from_bytes(content, "little", signed=True))


def _unquoted(line: bytes) -> str:
    """The string that Python 2 writes as this literal."""
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("it has a string without its quotes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes that Python 2 does not write
        return line[1:-1].decode("unicode_escape")


def _utf8(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _shown(text: str) -> str:
    """A part of a file made fit for a message: short, and without control characters."""
    return ascii(text[:60])[1:-1][:60]


# The strings of Python 2 may be bytes as well as text: latin1 keeps both.
_VALUES: dict[bytes, Callable[[_File], Any]] = {
    pickle.NONE: lambda file: None,
    pickle.NEWTRUE: lambda file: True,
    pickle.NEWFALSE: lambda file: False,
    pickle.INT: _File.decimal,
    pickle.LONG: _File.decimal,
    pickle.BININT: lambda file: _integer(file.take(4)),
    pickle.BININT1: lambda file: file.number(1),
    pickle.BININT2: lambda file: file.number(2),
    pickle.LONG1: lambda file: _integer(file.counted(1)),
    pickle.LONG4: lambda file: _integer(file.counted(4)),
    pickle.FLOAT: lambda file: float(file.line(_MAX_NUMBER)),
    pickle.BINFLOAT: lambda file: struct.unpack(">d", file.take(8))[0],
    pickle.STRING: lambda file: _unquoted(file.long_line()),
    pickle.SHORT_BINSTRING: lambda file: file.counted(1).decode("latin1"),
    pickle.BINSTRING: lambda file: file.counted(4).decode("latin1"),
    pickle.UNICODE: lambda file: file.long_line().decode("raw_unicode_escape"),
    pickle.SHORT_BINUNICODE: lambda file: _utf8(file.counted(1)),
    pickle.BINUNICODE: lambda file: _utf8(file.counted(4)),
    pickle.BINUNICODE8: lambda file: _utf8(file.counted(8)),
    pickle.SHORT_BINBYTES: lambda file: file.counted(1),
    pickle.BINBYTES: lambda file: file.counted_bytes(4),
    pickle.BINBYTES8: lambda file: file.counted_bytes(8),
    pickle.BYTEARRAY8: lambda file: bytearray(file.counted(8)),
    pickle.EMPTY_LIST: lambda file: [],
    pickle.EMPTY_DICT: lambda file: {},
    pickle.EMPTY_TUPLE: lambda file: (),
}
_INDICES: dict[bytes, Callable[[_File], int]] = {
    pickle.PUT: _File.decimal,
    pickle.BINPUT: lambda file: file.number(1),
    pickle.LONG_BINPUT: lambda file: file.number(4),
    pickle.GET: _File.decimal,
    pickle.BINGET: lambda file: file.number(1),
    pickle.LONG_BINGET: lambda file: file.number(4),
}
_PUTS = (pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT)
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


class _Machine:
    """Follows those instructions of a pickle that make plain values."""

    def __init__(self, content: bytes | mmap) -> None:
        self._file = _File(content)
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}
        # Without this limit, a long text could be fetched and encoded again and again.
        self._may_encode = len(content)

    def run(self) -> Any:
        for _ in range(_MAX_INSTRUCTIONS):
            code = self._file.take(1)
            if code == pickle.STOP:
                return self._pop()
            if code in _VALUES:
                self._push(_VALUES[code](self._file))
            elif code in _INDICES:
                self._keep_or_fetch(code in _PUTS, _INDICES[code](self._file))
            else:
                self._follow(code)
        raise ValueError(f"it has more than {_MAX_INSTRUCTIONS} instructions")

    def _follow(self, code: bytes) -> None:
        match code:
            case pickle.PROTO:
                self._file.take(1)
            case pickle.FRAME:
                self._file.require(self._file.number(8))
            case pickle.MEMOIZE:
                self._keep_or_fetch(True, len(self._memo))
            case pickle.MARK:
                self._below.append(self._stack)
                self._stack = []
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                items = [self._pop() for _ in range(_TUPLES[code])]
                self._push(tuple(reversed(items)))
            case pickle.TUPLE:
                self._push(tuple(self._pop_to_mark()))
            case pickle.LIST:
                self._push(self._pop_to_mark())
            case pickle.DICT:
                items = self._pop_to_mark()
                self._push({})
                self._set(items)
            case pickle.APPEND:
                self._extend([self._pop()])
            case pickle.APPENDS:
                self._extend(self._pop_to_mark())
            case pickle.SETITEM:
                value, key = self._pop(), self._pop()
                self._set([key, value])
            case pickle.SETITEMS:
                self._set(self._pop_to_mark())
            case pickle.GLOBAL:
                self._name(self._file.name(), self._file.name())
            case pickle.STACK_GLOBAL:
                name, module = self._pop(), self._pop()
                self._name(module, name)
            case pickle.REDUCE:
                arguments, function = self._pop(), self._pop()
                self._push(self._call(function, arguments))
            case pickle.BUILD:
                self._describe(self._pop())
            case _:
                raise ValueError(f"it has the instruction {code!r}, which no batch needs: refused")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._top()
        del self._stack[-1]
        return value

    def _top(self) -> Any:
        if not self._stack:
            raise ValueError("it takes a value that is not there")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._below:
            raise ValueError("it goes back to a mark that is not there")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _keep_or_fetch(self, keeps: bool, index: int) -> None:
        if keeps:
            self._memo[index] = self._top()
            return
        if index not in self._memo:
            raise ValueError("it fetches a value that it has not kept")
        value = self._memo[index]
        described = isinstance(value, _Array) and value.is_described
        self._push(value.content if described else value)

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise ValueError("it appends to something that is not a list")
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target, keys = self._top(), items[::2]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets an item of what is not a dictionary, or half an item")
        if not all(isinstance(key, (str, bytes, int)) for key in keys):
            raise ValueError("it has a key that is neither text nor a whole number: refused")
        # A long key could be compared with a similar one again and again.
        if any(not isinstance(key, int) and len(key) > _MAX_KEY for key in keys):
            raise ValueError(f"it has a key of more than {_MAX_KEY} characters: refused")
        target.update(zip(keys, items[1::2], strict=True))

    def _name(self, module: Any, name: Any) -> None:
        full_name = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if full_name not in _NAMES:
            raise ValueError(f"it asks for {_shown(full_name)}, which may run code: refused")
        self._push(_NAMES[full_name])

    def _call(self, function: Any, arguments: Any) -> Any:
        """What a call would return, if it is one of those that arrays are written with."""
        if not isinstance(function, _Named):
            raise ValueError("it calls something that is not a function: refused")
        # Only what is known to be text is compared: arrays compare element by element.
        match function, arguments:
            case _Named.ENCODE, (str(text), str(encoding)) if encoding == "latin1":
                return self._encoded(text)
            case _Named.DTYPE, (str(name), *_):
                return _Type(name)
            case _Named.RECONSTRUCT, (_Named() as kind, *_) if kind is _Named.NDARRAY:
                return _Array()
            case _Named.FROMBUFFER, (content, _Type() as kind, tuple(shape), str(order)):
                if order in ("C", "F"):
                    return self._array(content, kind, shape, "C" if order == "C" else "F")
        raise ValueError(f"it calls {function.value} in a way that no batch needs: refused")

    def _describe(self, state: Any) -> None:
        """Give the array on top of the stack its contents."""
        match self._top(), state:
            case _Type(), tuple():
                pass  # the byte order, which does not matter for single bytes
            case _Array(is_described=False) as target, (
                int(),
                tuple(shape),
                _Type() as kind,
                int(is_fortran),
                content,
            ):
                order: Literal["C", "F"] = "F" if is_fortran else "C"
                target.content = self._array(content, kind, shape, order)
                target.is_described = True
                self._stack[-1] = target.content
            case _:
                raise ValueError("it describes an object in a way that no batch needs: refused")

    def _array(
        self, content: Any, kind: _Type, shape: tuple, order: Literal["C", "F"]
    ) -> np.ndarray | None:
        if isinstance(content, str):
            content = self._encoded(content)
        if not isinstance(content, (bytes, bytearray, memoryview)):
            raise ValueError("it has an array whose contents are not bytes: refused")
        if not kind.is_uint8:
            return None
        sides = [side for side in shape if type(side) is int and 0 <= side < 2**31]
        if not len(sides) == len(shape) <= _MAX_AXES or math.prod(sides) != len(content):
            raise ValueError(f"it has an array whose shape does not fit its {len(content)} bytes")
        return np.frombuffer(content, np.uint8).reshape(sides, order=order)

    def _encoded(self, text: str) -> bytes:
        self._may_encode -= len(text)
        if self._may_encode < 0:
            raise ValueError("it makes more bytes from text than it has itself: refused")
        return text.encode("latin1")
