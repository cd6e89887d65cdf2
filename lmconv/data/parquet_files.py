"""Parquet files with a column of encoded pictures, as the Hugging Face hub stores data sets.

Pictures are read by row groups, so that memory does not grow with the set. Shuffled, they come from
some row groups at a time, which are drawn from all files.
"""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from lmconv.data.folders import FolderSource, OwnSizesSource
from lmconv.data.image_files import EncodedImage, image_size
from lmconv.data.looks import Looks
from lmconv.data.pieces import PieceSource, counted
from lmconv.data.shuffling import draw_epoch, owners
from lmconv.data.sources import DataError, Source
from lmconv.data.splits import drawn, in_words, split
from lmconv.distributed import Processes
from lmconv.pixel_values import ImageShape
from utils import check_regular

__all__ = [
    "check_parquet",
    "is_split_parquet",
    "open_parquet",
    "open_parquet_at_own_sizes",
    "open_parquet_pieces",
    "read_parquet_labels",
]

log = logging.getLogger(__name__)

_WINDOW = 2**27  # bytes of the row groups whose pictures are shuffled among each other
_LARGEST_GROUP = 2**31  # bytes
_GROUPS_TOGETHER = 4  # that one process should read
# Names of columns, the first of which that is there is used.
_IMAGES, _LABELS = ("image", "img", "picture"), ("label", "labels", "fine_label", "class")
# What the name of a file, or of a folder that it is in, says of its part.
_PART_NAMES = {"train": "train", "test": "test", "validation": "valid", "valid": "valid"}
_PART_NAMES |= {"val": "valid", "dev": "valid"}


def is_split_parquet(data_dir: Path) -> bool:
    """Whether there are files for testing or validation.

    Raises:
        DataError: there are no files.
    """
    return "all" not in _parts(data_dir)


def check_parquet(data_dir: Path, part: str) -> None:
    """Check that there are pictures of a part, of whose files only the headers are read.

    Raises:
        DataError: as ``open_parquet``.
    """
    _chosen(data_dir, part, seed=0, limit=None)


def open_parquet(
    data_dir: Path,
    part: str,
    image_shape: ImageShape,
    seed: int,
    limit: int | None = None,
    random_crop: bool = False,
    processes: Processes | None = None,
) -> Source:
    """Open the pictures of one part, ``train``, ``test`` or ``all``.

    Args:
        data_dir: a Parquet file, or a folder with such files at any depth. Files are for training
            or testing as their names or folders say (``train-00000-of-00002.parquet``); those for
            validation stand in for missing ones for testing. If the names tell no two parts apart,
            a tenth of the rows is drawn for testing.
        part: which pictures.
        image_shape: (C, H, W) that they are brought to, as pictures of a folder are.
        seed: seed of the draw, and of the choice if there is a limit.
        limit: draw this many pictures of the part; None for all.
        random_crop: whether shuffled pictures are cropped at a random place, not to their middle.
        processes: those that share shuffled batches, of which each reads row groups of its own, and
            one between two of them both; by default only this one.

    Raises:
        DataError: there are no such files, one is damaged, or pyarrow is missing.
    """
    rows = _opened(data_dir, part, seed, limit)
    draw = partial(rows.epoch, processes=processes or Processes())
    return FolderSource(rows, image_shape, random_crop, permute=draw, together=rows.together)


def open_parquet_at_own_sizes(
    data_dir: Path,
    part: str,
    channels: int,
    seed: int,
    limit: int | None = None,
    processes: Processes | None = None,
) -> Source:
    """Open the pictures of one part, each at its own size.

    Args:
        data_dir, part, seed, limit: as for ``open_parquet``.
        channels: C, 1 to 4.
        processes: those that share the pictures: each reads the sizes of some. By default only this
            one.

    Raises:
        DataError: as ``open_parquet``, or a picture is damaged.
    """
    rows = _opened(data_dir, part, seed, limit)
    sizes = _sizes(rows, processes or Processes())
    return OwnSizesSource(rows, sizes, channels, together=rows.together)


def open_parquet_pieces(
    data_dir: Path,
    part: str,
    image_shape: ImageShape,
    seed: int,
    limit: int | None = None,
    max_reduction: float = 1.0,
    processes: Processes | None = None,
) -> Source:
    """Open pieces of the pictures of one part; a line in the log counts them.

    Args:
        data_dir, part: as for ``open_parquet``.
        image_shape: (C, H, W) of the pieces.
        seed: seed of the draw of pictures for testing, and of that of pieces if there is a limit.
        limit, max_reduction: see ``PieceSource``.
        processes: as for ``open_parquet`` and ``open_parquet_at_own_sizes``.

    Raises:
        DataError: as ``open_parquet``, a picture is damaged, or none is as large as a piece.
    """
    rows, processes = _opened(data_dir, part, seed, None), processes or Processes()
    source = PieceSource(
        rows,
        _sizes(rows, processes),
        image_shape,
        limit,
        seed,
        max_reduction,
        permute=rows.permutation,
        processes=processes,
        together=rows.together,
    )
    return counted(source, str(data_dir))


def read_parquet_labels(
    data_dir: Path, part: str, seed: int, limit: int | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the labels of the pictures that ``open_parquet`` opens, int64 N, and their names.

    The column has whole numbers, whose names the file may tell as the Hugging Face hub does, or
    names. No other column is read.

    Raises:
        DataError: as ``open_parquet``, or there is no such column.
    """
    tables, rows = _chosen(data_dir, part, seed, limit)
    columns = [table.labels() for table in tables]
    values = np.concatenate(columns)[rows]
    names = tables[0].label_names
    if values.dtype.kind == "i" and names and values.min() >= 0 and values.max() < len(names):
        return values.astype(np.int64), names
    different, labels = np.unique(values, return_inverse=True)
    return labels.astype(np.int64), tuple(map(str, different.tolist()))


def _opened(data_dir: Path, part: str, seed: int, limit: int | None) -> "_Rows":
    """The rows of a part that are used; a line in the log counts them."""
    tables, chosen = _chosen(data_dir, part, seed, limit)
    total = sum(table.num_rows for table in tables)
    place = f"{tables[0].path}{f' and {len(tables) - 1} more' * (len(tables) > 1)}"
    log.info(in_words(len(chosen), total, place, part, seed))
    return _Rows(tables, chosen)


def _sizes(rows: "_Rows", processes: Processes) -> list[tuple[int, int]]:
    """Height and width of each picture, of which each process reads some row groups."""
    at_once = min(rows.together, -(-len(rows) // processes.number))
    return Looks(processes, at_once).at(
        range(len(rows)), lambda some: [image_size(rows[index]) for index in some], "reading sizes"
    )


def _chosen(
    data_dir: Path, part: str, seed: int, limit: int | None
) -> tuple[list["_Table"], np.ndarray]:
    """The tables of a part, and which of their rows are used, counted through all of them."""
    parts = _parts(data_dir)
    is_split = "all" not in parts
    if is_split and part == "all":
        raise DataError(
            f"`part` all needs files that are not split, and {data_dir} has those of "
            f"{', '.join(parts)}: choose train or test"
        )
    wanted = (part, "valid") if part == "test" else (part,)
    name = next((each for each in wanted if each in parts), None) if is_split else "all"
    if name is None:
        raise DataError(
            f"{data_dir} has no files for `part` {part}, only for {', '.join(parts)}: add some, or "
            "rename the files so that none has the name of a part, and they are split"
        )
    tables = [_Table.open(path) for path in parts[name]]
    number = sum(table.num_rows for table in tables)
    if number == 0:
        raise DataError(f"{data_dir} has no rows for `part` {part}: give another `data_dir`")
    rows = split(number, "all" if is_split else part, seed)
    if len(rows) == 0:
        raise DataError(f"{data_dir} has a single picture, which is for testing: add others")
    return tables, rows[drawn(len(rows), limit, seed)]


def _parts(data_dir: Path) -> dict[str, list[Path]]:
    """The files of each part, if names tell which are for testing or validation; or ``all``."""
    if not data_dir.exists():
        raise DataError(
            f"{data_dir} does not exist: give a Parquet file or a folder of such as `data_dir`"
        )
    files = [data_dir]
    if data_dir.is_dir():
        files = [
            path
            for path in sorted(data_dir.rglob("*.parquet"))
            if not any(name.startswith(".") for name in path.relative_to(data_dir).parts)
        ]
    if not files:
        raise DataError(f"{data_dir} has no files *.parquet: give another `data_dir`")
    parts: dict[str, list[Path]] = {}
    for path in files:
        words = re.split(r"[^a-z]+", "/".join(path.relative_to(data_dir).parts).lower())
        named = [_PART_NAMES[word] for word in words if word in _PART_NAMES]
        parts.setdefault(named[-1] if named else "", []).append(path)
    if not parts.keys() & {"test", "valid"}:
        return {"all": files}
    if others := parts.pop("", []):
        log.warning(
            "left out: %d Parquet file%s whose names say no part, the first being %s",
            *(len(others), "s" * (len(others) != 1), others[0]),
        )
    return parts


@dataclass(frozen=True)
class _Table:
    """A file whose header has been read.

    Attributes:
        path: the file.
        column: the column of pictures.
        is_struct: whether its values are structs of ``bytes`` and ``path``.
        group_rows: number of rows in each row group.
        group_bytes: bytes of the pictures of each row group.
        label_names: the names of the labels, if the file tells them.
    """

    path: Path
    column: str
    is_struct: bool
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    label_names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> "_Table":
        """Read the header of a file.

        Raises:
            UserError: it is not a regular file.
            DataError: it is damaged, or has no column of pictures.
        """
        parquet = _pyarrow().parquet
        check_regular(path)
        try:
            with parquet.ParquetFile(path) as file:
                column, is_struct = _image_column(path, file.schema_arrow)
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                sizes = [_bytes_of(group, column) for group in groups]
                names = _label_names(file.schema_arrow.metadata or {})
        except DataError:
            raise
        except Exception as error:  # on damaged files, the reader can raise almost anything
            raise _damaged(path, error) from error
        if max(sizes, default=0) > _LARGEST_GROUP:
            raise DataError(
                f"{path} has a row group of {max(sizes)} bytes of pictures, which are in memory "
                "together: write it again with smaller ones (row_group_size=1000)"
            )
        rows = tuple(group.num_rows for group in groups)
        return cls(path, column, is_struct, rows, tuple(sizes), names)

    @property
    def num_rows(self) -> int:
        return sum(self.group_rows)

    @cached_property
    def first_rows(self) -> list[int]:
        """The number of the first row of each row group."""
        return [0, *np.cumsum(self.group_rows).tolist()]

    def pictures(self, group: int) -> Any:
        """The encoded pictures of a row group, a column of bytes.

        Raises:
            DataError: it is damaged.
        """
        name = f"{self.column}.bytes" if self.is_struct else self.column
        try:
            with _pyarrow().parquet.ParquetFile(self.path) as file:
                table = file.read_row_group(group, columns=[name], use_threads=False)
            if table.num_rows != self.group_rows[group]:
                raise ValueError(f"row group {group} has {table.num_rows} rows")
            column = table.column(0).combine_chunks()
            return column.field("bytes") if self.is_struct else column
        except Exception as error:  # on damaged files, the reader can raise almost anything
            raise _damaged(self.path, error) from error

    def labels(self) -> np.ndarray:
        """The labels of all rows: whole numbers or names."""
        try:
            with _pyarrow().parquet.ParquetFile(self.path) as file:
                name = next((each for each in _LABELS if each in file.schema_arrow.names), None)
                values = file.read(columns=[name]).column(0).to_pylist() if name else None
        except Exception as error:  # on damaged files, the reader can raise almost anything
            raise _damaged(self.path, error) from error
        if values is None:
            raise DataError(
                f"{self.path} has no column of labels ({', '.join(_LABELS)}): add one, or give "
                "another `data_dir`"
            )
        if not values:
            return np.zeros(0, np.int64)
        kinds = {type(value) for value in values}
        if len(kinds) > 1 or not kinds <= {int, str}:
            raise DataError(
                f"the column {name} of {self.path} has labels that are neither whole numbers nor "
                "names, or none in some rows: replace it"
            )
        return np.array(values, np.int64 if kinds == {int} else str)


class _Rows:
    """Chosen rows of tables as encoded pictures, read by row groups that are kept for a while.

    Attributes:
        together: how many rows one process should read, those of a few row groups.
    """

    def __init__(self, tables: Sequence[_Table], rows: np.ndarray) -> None:
        self._rows = rows
        self._groups = [
            (table, group) for table in tables for group in range(len(table.group_rows))
        ]
        self._ends = np.cumsum([table.group_rows[group] for table, group in self._groups])
        self._bytes = np.array([table.group_bytes[group] for table, group in self._groups])
        # Of each row group, the place of the first chosen row, and their number.
        self._starts = np.searchsorted(rows, np.append(0, self._ends))
        self._counts = np.diff(self._starts)
        self._kept: OrderedDict[int, Any] = OrderedDict()
        rows_per_group = -(-len(rows) // np.count_nonzero(self._counts))
        self.together = _GROUPS_TOGETHER * rows_per_group

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int, /) -> EncodedImage:
        row = int(self._rows[index])
        number = int(np.searchsorted(self._ends, row, side="right"))
        table, group = self._groups[number]
        place = row - int(self._ends[number]) + table.group_rows[group]
        content = self._pictures(number)[place].as_py()
        name = f"row {table.first_rows[group] + place} of {table.path}"
        if not content:
            raise DataError(
                f"{name} has no bytes of a picture: write the data set again with its pictures "
                "in it"
            )
        return EncodedImage(content, name)

    def _pictures(self, number: int) -> Any:
        """The pictures of a row group, which replaces those that were not used for longest."""
        if number not in self._kept:
            table, group = self._groups[number]
            self._kept[number] = table.pictures(group)
            # Two windows: a batch may begin in one and end in the next.
            while len(self._kept) > 1 and self._bytes[list(self._kept)].sum() > 2 * _WINDOW:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]

    def permutation(self, random: np.random.Generator) -> np.ndarray:
        """The places of all rows in random order, one row group after the other."""
        groups = random.permutation(np.flatnonzero(self._counts))
        return np.concatenate([random.permutation(self._places(group)) for group in groups])

    def epoch(
        self, random: np.random.Generator, batch_size: int, processes: Processes
    ) -> np.ndarray:
        """The places of all rows in random order, those of few row groups near each other.

        In batches of a size, the share of each process is from row groups of its own.
        """
        groups = random.permutation(np.flatnonzero(self._counts))
        places = np.concatenate([self._places(group) for group in groups])
        counts, sizes = self._counts[groups], self._bytes[groups]
        owner_of = owners(processes, len(self), batch_size)
        order, _ = draw_epoch(random, places, counts, sizes, _WINDOW, owner_of)
        return order

    def _places(self, group: int) -> np.ndarray:
        """The places of the rows of a row group."""
        return np.arange(self._starts[group], self._starts[group + 1])


def _image_column(path: Path, schema: Any) -> tuple[str, bool]:
    """The name of the column of pictures, and whether its values are structs."""
    types = _pyarrow().types
    structs, plain = [], []
    for field in schema:
        is_struct = types.is_struct(field.type)
        inner = {each.name: each.type for each in field.type} if is_struct else {}
        if "bytes" in inner and _is_bytes(inner["bytes"]):
            structs.append(field.name)
        elif _is_bytes(field.type):
            plain.append(field.name)
    found = structs + plain
    known = [name for name in _IMAGES if name in found]
    if not known and len(found) != 1:
        raise DataError(
            f"{path} has {len(found)} columns of pictures (bytes, or structs with bytes) among "
            f"{', '.join(schema.names)[:200]}: name one of them image"
        )
    name = (known or found)[0]
    return name, name in structs


def _is_bytes(kind: Any) -> bool:
    types = _pyarrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _bytes_of(group: Any, column: str) -> int:
    """The bytes that a row group's pictures take."""
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema in (column, f"{column}.bytes")
    )


def _label_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """The names of the labels that the Hugging Face hub writes into files; () if there are none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = next(features[name]["names"] for name in _LABELS if name in features)
        return tuple(map(str, found))
    except (KeyError, TypeError, ValueError, StopIteration):
        return ()


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path} is damaged or not a Parquet file ({reason}): replace it")


def _pyarrow() -> Any:
    """The package pyarrow with its reader of Parquet files."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("-d parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow
