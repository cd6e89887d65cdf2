"""Pickled batches are read as they were written; hostile ones do nothing at all."""

import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmconv.data import pickled_batches
from lmconv.data.pickled_batches import read_pickled_batch

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PIXELS = np.arange(0, 240, 10, dtype=np.uint8).reshape(2, 12)
BATCH = {
    "batch_label": "testing batch 1 of 1",
    "labels": [6, 9],
    "data": PIXELS,
    "filenames": ["leptodactylus_pentadactylus_s_000004.png", "x\xe9.png"],
}
# What cPickle of Python 2.7 and NumPy 1.16 wrote of this batch.
PYTHON_2 = {
    0: b"(dp1\nS'data'\np2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n(I0\n"
    b"tS'b'\ntRp5\n(I1\n(I2\nI12\ntcnumpy\ndtype\np6\n(S'u1'\nI0\nI1\ntRp7\n(I3\nS'|'\nNNNI-1\n"
    b"I-1\nI0\ntbI00\nS'\\x00\\n\\x14\\x1e(2<FPZdnx\\x82\\x8c\\x96\\xa0\\xaa\\xb4\\xbe\\xc8\\xd2"
    b"\\xdc\\xe6'\ntbsS'labels'\np8\n(lp9\nI6\naI9\nasS'batch_label'\np10\n"
    b"S'testing batch 1 of 1'\np11\nsS'filenames'\np12\n(lp13\n"
    b"S'leptodactylus_pentadactylus_s_000004.png'\np14\naVx\xe9.png\np15\nas.",
    1: b"}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03(cnumpy\nndarray\nq\x04(K"
    b"\x00tU\x01btRq\x05(K\x01(K\x02K\x0ctcnumpy\ndtype\nq\x06(U\x02u1K\x00K\x01tRq\x07(K\x03U\x01"
    b"|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbI00\nU\x18\x00\n\x14\x1e(2<FPZdnx\x82\x8c\x96"
    b"\xa0\xaa\xb4\xbe\xc8\xd2\xdc\xe6tbU\x06labelsq\x08]q\t(K\x06K\teU\x0bbatch_labelq\nU\x14"
    b"testing batch 1 of 1q\x0bU\tfilenamesq\x0c]q\r(U(leptodactylus_pentadactylus_s_000004.png"
    b"q\x0eX\x07\x00\x00\x00x\xc3\xa9.pngq\x0feu.",
    2: b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
    b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87R"
    b"q\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x18\x00\n\x14\x1e(2<FPZdnx"
    b"\x82\x8c\x96\xa0\xaa\xb4\xbe\xc8\xd2\xdc\xe6tbU\x06labelsq\x08]q\t(K\x06K\teU\x0bbatch_label"
    b"q\nU\x14testing batch 1 of 1q\x0bU\tfilenamesq\x0c]q\r(U("
    b"leptodactylus_pentadactylus_s_000004.pngq\x0eX\x07\x00\x00\x00x\xc3\xa9.pngq\x0feu.",
}


def assert_same(batch: dict, expected: dict) -> None:
    assert {**batch, "data": None} == {**expected, "data": None}
    assert batch["data"].dtype == np.uint8
    np.testing.assert_array_equal(batch["data"], expected["data"])


def written_with(content: bytes, package: str) -> bytes:
    """A small pickle as NumPy 1 (core) or 2 (_core) writes it."""
    if content[2:3] == pickle.FRAME:
        content = content[:2] + content[11:]  # its length would change

    def renamed(found: re.Match[bytes]) -> bytes:
        name = b"numpy." + package.encode() + found[2]
        return (pickle.SHORT_BINUNICODE + bytes([len(name)]) if found[1] else b"") + name

    return re.sub(rb"(\x8c[\x10-\x20])?numpy\._?core(\.multiarray|\.numeric)", renamed, content)


# What is written is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("package", ["core", "_core"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_of_python_3_is_read_under_every_protocol_and_numpy(
    protocol: int, package: str, order: str
) -> None:
    batch = {**BATCH, "data": np.asarray(PIXELS, order=order)}
    content = written_with(pickle.dumps(batch, protocol), package)
    assert f"numpy.{package}.".encode() in content
    assert_same(read_pickled_batch(content), BATCH)


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_a_batch_of_python_2_is_read_under_every_protocol(protocol: int) -> None:
    assert_same(read_pickled_batch(PYTHON_2[protocol]), BATCH)


def test_every_byte_of_a_string_of_python_2_is_read_as_it_shows_them() -> None:
    string = bytes(range(256)) + rb"\\n\x \\\'"
    shown = repr(string)[1:].encode()  # Python 3 puts a b before it
    read = read_pickled_batch(b"}S'a'\nS" + shown + b"\ns.")
    assert read["a"].encode("latin1") == string


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_names_in_bytes_are_those_in_text(protocol: int) -> None:
    batch = {name.encode(): value for name, value in BATCH.items()}
    assert_same(read_pickled_batch(pickle.dumps(batch, protocol)), BATCH)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shared_in_a_batch_is_shared_in_what_is_read(protocol: int) -> None:
    labels = [1, 2]
    batch = {"data": PIXELS, "same": PIXELS, "more": PIXELS[:1], "labels": labels, "fine": labels}
    read = read_pickled_batch(pickle.dumps(batch, protocol))
    assert (
        read["data"] is read["same"] and read["labels"] is read["fine"] and read["fine"] == [1, 2]
    )
    np.testing.assert_array_equal(read["data"], PIXELS)
    np.testing.assert_array_equal(read["more"], PIXELS[:1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("other", [np.arange(3), np.ones((2, 2)), np.array(["a.png"]), PIXELS > 9])
def test_arrays_of_other_numbers_and_of_text_are_left_out(protocol: int, other: np.ndarray) -> None:
    read = read_pickled_batch(pickle.dumps({**BATCH, "mean": other}, protocol))
    assert read.pop("mean") is None
    assert_same(read, BATCH)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary(min_size=1),  # Python 3 writes none for Python 2 as a call of another kind
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.binary(min_size=1), inner)
    ),
    max_leaves=8,
).filter(lambda value: repr(value).count("[") + repr(value).count("(") < 5)


@settings(max_examples=200, deadline=None)
@given(
    batch=st.dictionaries(st.text(), PLAIN, max_size=4),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_any_plain_batch_is_read_as_it_was_written(
    batch: dict, shape: tuple[int, int], protocol: int
) -> None:
    batch["data"] = np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)
    assert_same(read_pickled_batch(pickle.dumps(batch, protocol)), batch)


# Hostile files


class Call:
    """Pickled as a call of any function."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return self.parts


class Plain:
    """Pickled as an object with attributes."""

    def __init__(self) -> None:
        self.attribute = 1


def with_data(array: bytes) -> bytes:
    """A dictionary whose data is what these instructions make."""
    return b"}U\x04data" + array + b"s."


def array_state(shape: bytes, kind: bytes, content: bytes) -> bytes:
    """Instructions that make an array as Python 2 does, of any shape, type and content."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape
        + b"cnumpy\ndtype\n(" + kind + b"K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89" + content + b"tb"
    )  # fmt: skip


ADDRESSES = b"U\x08" + b"\x10" * 8
CLAIMED = (2**31 - 1).to_bytes(4, "little")
CLAIMED_8 = (2**62).to_bytes(8, "little")
NESTED_KEY = b"})" + b"\x85" * 300_000 + b"Ns."

# Each with what is said of it.
HOSTILE: dict[str, tuple[bytes, str]] = {
    # arrays
    "objects of raw bytes": (
        with_data(array_state(b"K\x01\x85", b"U\x02O8", ADDRESSES)),
        "type O8",
    ),
    "a list of objects": (with_data(array_state(b"K\x01\x85", b"U\x01O", b"]")), "type O"),
    "a record of objects": (with_data(array_state(b"K\x01\x85", b"U\x02V8", ADDRESSES)), "type V8"),
    "a type of many digits": (
        with_data(b"cnumpy\ndtype\n(Vu" + b"1" * 100_000 + b"\ntR"),
        "type u111",
    ),
    "a type of a dictionary": (with_data(b"cnumpy\ndtype\n}\x85R"), "calls numpy.dtype"),
    "bytes that are none": (
        with_data(array_state(b"K\x01\x85", b"U\x02u1", b"K\x05")),
        "not bytes",
    ),
    "fewer bytes than its shape": (
        with_data(array_state(b"J\xff\xff\xff\x7fK\x08\x86", b"U\x02u1", ADDRESSES)),
        "shape does not fit its 8 bytes",
    ),
    "a shape below zero": (
        with_data(array_state(b"J\xff\xff\xff\xffJ\xf8\xff\xff\xff\x86", b"U\x02u1", ADDRESSES)),
        "shape does not fit",
    ),
    "a shape that overflows": (
        with_data(
            array_state(b"K\x00" + b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x86", b"U\x02u1", b"U\0")
        ),
        "shape does not fit",
    ),
    "a huge empty array": (
        with_data(array_state(b"(K\x00" + b"J\xff\xff\xff\x7f" * 3 + b"t", b"U\x02u1", b"U\0")),
        "array",
    ),
    "many sides": (
        with_data(array_state(b"(" + b"K\x01" * 70 + b"t", b"U\x02u1", b"U\x01a")),
        "shape does not fit",
    ),
    "ndarray with an address": (
        with_data(b"cnumpy\nndarray\n((K\x01tU\x01OC" + ADDRESSES[1:] + b"tR"),
        "calls numpy.ndarray",
    ),
    "ndarray with strides": (
        with_data(b"cnumpy\nndarray\n((K\x02tU\x02u1C\x02aaK\x00(J\0\0\0\x70ttR"),
        "calls numpy.ndarray",
    ),
    "an array reconstructed from another class": (
        with_data(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR"),
        "calls _reconstruct",
    ),
    "an array that is not described": (
        with_data(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"),
        "does not describe",
    ),
    "an array described twice": (
        with_data(array_state(b"K\x01\x85", b"U\x02u1", b"U\x01a") + b"(K\x01)N\x89U\0tb"),
        "describes an object",
    ),
    "a buffer that is none": (
        with_data(
            b"cnumpy.core.numeric\n_frombuffer\n(K\x05cnumpy\ndtype\n(U\x02u1tRK\x05\x85U\x01CtR"
        ),
        "not bytes",
    ),
    "a buffer in another order": (
        with_data(
            b"cnumpy.core.numeric\n_frombuffer\n(U\0cnumpy\ndtype\n(U\x02u1tRK\0\x85U\x01KtR"
        ),
        "calls _frombuffer",
    ),
    "an array as an encoding": (
        with_data(
            b"c_codecs\nencode\n(U\0" + array_state(b"K\x01\x85", b"U\x02u1", b"U\x01a") + b"tR"
        ),
        "calls _codecs.encode",
    ),
    "another encoding": (with_data(b"c_codecs\nencode\n(U\0U\x03zlbtR"), "calls _codecs.encode"),
    "one text encoded often": (
        b"(V"
        + b"a" * 10_000
        + b"\np0\nVlatin1\np1\nc_codecs\nencode\np2\n"
        + b"g2\ng0\ng1\n\x86R" * 5000,
        "more bytes from text",
    ),
    # calls and objects
    "a call of the shell": (b"cposix\nsystem\n(S'true'\ntR.", "posix.system, which may run code"),
    "a call of the shell, protocol 0": (
        pickle.dumps(Call(os.system, ("true",)), 0),
        "may run code",
    ),
    "a call of the shell, protocol 4": (
        pickle.dumps(Call(os.system, ("true",)), 4),
        "may run code",
    ),
    "a name inside a permitted module": (b"cnumpy\nload\n.", "asks for numpy.load"),
    "a name with control characters": (b"cos\x1b[2J\nsystem\n.", r"os\x1b[2J.system"),
    "a long name": (b"c" + b"a" * 1000 + b"\nb\n.", "line that is too long"),
    "a long name from the stack": (b"X\xe8\x03\0\0" + b"a" * 1000 + b"U\x01b\x93.", "asks for aaa"),
    "names that are numbers": (b"K\x01K\x02\x93.", "asks for ,"),
    "a call of a number": (b"K\x01)R.", "not a function"),
    "a call of an array": (
        array_state(b"K\x01\x85", b"U\x02u1", b"U\x01a") + b")R.",
        "not a function",
    ),
    "arguments that are none": (b"cnumpy\ndtype\nK\x01R.", "calls numpy.dtype"),
    "attributes of a dictionary": (b"}}b.", "describes an object"),
    "attributes of a class": (b"cnumpy\nndarray\n}b.", "describes an object"),
    "a class as a value": (with_data(b"cnumpy\nndarray\n"), "a type as a value"),
    "an object": (pickle.dumps(Plain(), 2), "may run code"),
    **{
        f"the instruction {name}": (before + code + after, "which no batch needs: refused")
        for name, before, code, after in [
            ("INST", b"(", pickle.INST, b"posix\nsystem\n."),
            ("OBJ", b"(cnumpy\ndtype\nU\x02u1", pickle.OBJ, b"."),
            ("NEWOBJ", b"cnumpy\nndarray\n)", pickle.NEWOBJ, b"."),
            ("NEWOBJ_EX", b"cnumpy\nndarray\n)}", pickle.NEWOBJ_EX, b"."),
            ("EXT1", b"", pickle.EXT1, b"\x01."),
            ("EXT2", b"", pickle.EXT2, b"\x01\x01."),
            ("EXT4", b"", pickle.EXT4, b"\x01\x01\x01\x01."),
            ("PERSID", b"", pickle.PERSID, b"a\n."),
            ("BINPERSID", b"K\x01", pickle.BINPERSID, b"."),
            ("NEXT_BUFFER", b"", pickle.NEXT_BUFFER, b"."),
            ("READONLY_BUFFER", b"C\x01a", pickle.READONLY_BUFFER, b"."),
            ("EMPTY_SET", b"", pickle.EMPTY_SET, b"."),
            ("ADDITEMS", b"](N", pickle.ADDITEMS, b"."),
            ("FROZENSET", b"(", pickle.FROZENSET, b"."),
            ("DUP", b"]", pickle.DUP, b"a."),
            ("POP", b"]", pickle.POP, b"."),
            ("POP_MARK", b"(", pickle.POP_MARK, b"."),
            ("255", b"", b"\xff", b"."),
        ]
    },
    # claims
    "a huge place to keep a value": (b"\x80\x02Nr\xff\xff\xff\x0f.", "not a dictionary"),
    "the largest place to keep a value": (b"Nr\xff\xff\xff\xff.", "not a dictionary"),
    "a place that is no number": (b"Npx\n.", "invalid literal"),
    "a place beyond all numbers": (b"Np" + b"9" * 30 + b"\n.", "more than 64 bits"),
    "a place never used": (b"h\x05.", "has not kept"),
    **{
        f"a huge length after {code!r}": (code + claim + b"abc.", "ends too early")
        for code, claim in [
            (pickle.BINSTRING, CLAIMED),
            (pickle.BINSTRING, b"\xff\xff\xff\xff"),  # -1
            (pickle.BINUNICODE, CLAIMED),
            (pickle.BINBYTES, CLAIMED),
            (pickle.LONG4, CLAIMED),
            (pickle.BINUNICODE8, CLAIMED_8),
            (pickle.BINBYTES8, CLAIMED_8),
            (pickle.BYTEARRAY8, CLAIMED_8),
            (pickle.FRAME, CLAIMED_8),
            (pickle.BINUNICODE8, b"\xff" * 8),
            (pickle.FRAME, b"\xff" * 8),
        ]
    },
    "digits without end": (b"I" + b"9" * 100_000 + b"\n.", "line that is too long"),
    "a number of many digits": (b"L" + b"9" * 30 + b"L\n.", "more than 64 bits"),
    "a number of many bytes": (pickle.LONG4 + b"\0\1\0\0" + b"\x7f" * 256 + b".", "64 bits"),
    "a number that is none": (b"Fabc\n.", "could not convert"),
    "a string without quotes": (b"Sabc\n.", "without its quotes"),
    "a string of one quote": (b"S'\n.", "without its quotes"),
    "a damaged escape": (b"S'\\x1'\n.", "escape"),
    "an escape without an end": (b"S'\\'\n.", "at end of string"),
    "damaged UTF-8": (b"X\x01\0\0\0\xff.", "utf-8"),
    # containers
    "a deeply nested tuple as a key": (NESTED_KEY, "a key that is neither"),
    "a deeply nested value": (b"}U\x01a)" + b"\x85" * 300_000 + b"s.", "nested"),
    "deeply nested lists": (b"}U\x01a" + b"]" * 300_000 + b"a" * 299_999 + b"s.", "nested"),
    "a dictionary in itself": (b"}q\0U\x01ah\0s.", "in itself"),
    "a list in itself": (b"}U\x01a]q\0h\0as.", "in itself"),
    "a tuple in itself by a list": (b"}U\x01a]q\0h\0\x85as.", "in itself"),
    "lists whose sizes multiply": (
        b"}(U\x01a]q\0"
        + b"".join(b"U\x01a](" + b"h%c" % n * 1000 + b"eq%c" % (n + 1) for n in range(9))
        + b"u.",
        "nested",
    ),
    "a list as a key": (b"}]Ns.", "a key that is neither"),
    "an array as a key": (
        b"}" + array_state(b"K\x01\x85", b"U\x02u1", b"U\x01a") + b"Ns.",
        "a key that is neither",
    ),
    "long keys that are alike": (
        b"}X\xe9\x03\0\0" + b"a" * 1001 + b"Ns" + b"X\xe9\x03\0\0" + b"a" * 1001 + b"q\0Nsh\0Ns.",
        "a key of more than 1000 characters",
    ),
    "half an item": (b"}(Nu.", "half an item"),
    "an item of a list": (b"]NNs.", "not a dictionary"),
    "a value appended to a tuple": (b")Na.", "not a list"),
    "values appended to a dictionary": (b"}(Ne.", "not a list"),
    "values without a mark": (b"}Nu.", "a mark that is not there"),
    "a value that is not there": (b"R.", "a value that is not there"),
    "fewer values than a tuple has": (b"N\x87.", "a value that is not there"),
    "nothing kept": (b"\x94.", "a value that is not there"),
    "no end": (b"}", "ends too early"),
    "nothing": (b"", "ends too early"),
    "a list": (b"].", "not a dictionary"),
}
# Empty dictionaries, and what a reader may not bear before them.
HARMLESS = {
    "deeply nested rubbish": b")" + b"\x85" * 300_000 + b"}.",
    "many marks": b"(" * 300_000 + b"}.",
    "a huge place to keep a value": b"}r\xff\xff\xff\xff.",
    "more after the end": b"}.cposix\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_short_line(name: str) -> None:
    content, expected = HOSTILE[name]
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        read_pickled_batch(content)
    assert len(str(error.value)) < 250 and str(error.value).isprintable()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_has_no_part_in_the_batch_does_no_harm(name: str) -> None:
    assert read_pickled_batch(HARMLESS[name]) == {}


def test_a_file_of_too_many_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps({"labels": [0] * 10}, protocol=2)
    monkeypatch.setattr(pickled_batches, "_MAX_INSTRUCTIONS", 25)
    assert read_pickled_batch(content) == {"labels": [0] * 10}
    monkeypatch.setattr(pickled_batches, "_MAX_INSTRUCTIONS", 12)
    with pytest.raises(ValueError, match="more than 12 instructions"):
        read_pickled_batch(content)


def test_no_damage_crashes_or_hangs_the_reader_or_fills_the_memory() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["refused"] + counts["accepted"] == 10_000 + len(HOSTILE) + len(HARMLESS)
    assert counts["refused"] > 1000 and counts["accepted"] > 200


def read_damaged_files() -> None:
    """Read every hostile file and 10,000 damaged ones in little memory; print how many are read.

    Anything but a refusal or a batch of plain values ends the process with an error.
    """
    limit_memory()
    source = random.Random(0)
    files = [*PYTHON_2.values(), *(pickle.dumps(BATCH, protocol) for protocol in PROTOCOLS)]
    hostile = [content for content, _ in HOSTILE.values()]
    files = files * 20 + [content for content in hostile if len(content) < 2000]
    counts = Counter(refused=0, accepted=0)
    for content in [*hostile, *HARMLESS.values(), *(damaged(files, source) for _ in range(10_000))]:
        try:
            batch = read_pickled_batch(content)
        except ValueError as error:
            assert len(str(error)) < 250 and str(error).isprintable()
            counts["refused"] += 1
        else:
            assert type(batch) is dict and repr(batch)
            counts["accepted"] += 1
    print(json.dumps(counts))


def limit_memory() -> None:
    """Let the process take 512 MiB more than it has; where that can be known."""
    taken = Path("/proc/self/statm")
    if taken.exists():
        import resource

        pages = int(taken.read_text().split()[0])
        limit = pages * resource.getpagesize() + 2**29
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


INSTRUCTIONS = b"".join(
    code for name, code in vars(pickle).items() if name.isupper() and isinstance(code, bytes)
)


def damaged(files: list[bytes], source: random.Random) -> bytes:
    """One of the files with one to three places overwritten, taken out, doubled or mixed in."""
    content = bytearray(source.choice(files))
    for _ in range(source.randint(1, 3)):
        start = source.randint(0, len(content))
        end = start + source.choice([1, 1, 2, 4, 8, 40])
        other = source.choice(files)
        place = source.randint(0, len(other))
        content[start:end] = source.choice(
            [
                bytes(source.choices(INSTRUCTIONS, k=end - start)),
                source.randbytes(end - start),
                b"\xff" * (end - start),
                b"",
                content[start:end] * 2,
                other[place : place + 60] + content[start:end],
            ]
        )
    return bytes(content)


if __name__ == "__main__":
    read_damaged_files()
