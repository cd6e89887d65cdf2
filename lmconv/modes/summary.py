"""``summary.md`` in the run directory: tables of all results whose JSON is there, for a paper."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmconv.file_names import printable
from utils import write_atomically

__all__ = ["Result", "read_results", "write_summary"]

log = logging.getLogger(__name__)

Result = dict[str, Any]

_NAME = "summary.md"
_HEADING = "# Results"


def read_results(path: Path) -> list[Result]:
    """The results in a JSON file; none if it is missing or something else."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    records = contents if isinstance(contents, list) else [contents]
    return [record for record in records if isinstance(record, dict)]


def write_summary(run_dir: Path) -> None:
    """Write ``summary.md``: tables of all results whose JSON is in the run directory.

    It is made anew each time, so that modes that run at once do not get in each other's way.
    """
    path = run_dir / _NAME
    tables: dict[str, list[Sequence[str]]] = {}
    for file in sorted(run_dir.glob("*.json")):
        for record in read_results(file):
            title = next((t for t, table in _TABLES.items() if record.get(table.key)), None)
            if title is None:
                continue
            try:
                row = [file.name, *_TABLES[title].make_row(record)]
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                log.warning("%s is damaged, and left out of %s", printable(file), _NAME)
                continue
            tables.setdefault(title, []).append(row)
    if not tables:
        return
    if path.exists() and not path.read_bytes().startswith(_HEADING.encode()):
        log.warning("%s was not written by this program, and stays as it is", printable(path))
        return
    text = "\n".join(_lines(tables))
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _lines(tables: dict[str, list[Sequence[str]]]) -> Iterator[str]:
    yield f"{_HEADING}\n\nEach line is a JSON file of this directory, which has the settings."
    for title, table in _TABLES.items():
        if title not in tables:
            continue
        yield f"\n## {title}\n"
        yield f"| file | {' | '.join(table.columns)} |"
        yield f"|---|{'---|' * len(table.columns)}"
        for row in tables[title]:
            yield f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _images(record: Result) -> str:
    shape = record["image_shape"]
    size = "x".join(map(str, shape)) if shape else "several sizes"
    return f"{record['num_images']:,} of {size}"


def _model(record: Result) -> str:
    name = os.path.basename(record["checkpoint"])
    return name if record.get("epoch", -1) < 0 else f"{name}, epoch {record['epoch']}"


def _likelihoods(record: Result) -> Sequence[str]:
    ensemble, error = record["ensemble"], record["ensemble"].get("nats_stderr")
    nats = f"{ensemble['nats']:.3f}" + ("" if error is None else f" ± {error:.3f}")
    if "with_label" in record:
        nats += f" ({record['with_label']['ensemble']['nats']:.3f} given the class)"
    pixels = record.get("num_pixels") or math.prod(record["image_shape"][1:])
    orders = str(len(record["orders"]))
    return (
        _model(record),
        _images(record),
        f"{pixels:,.10g}",
        orders,
        f"{ensemble['bpd']:.4f}",
        nats,
    )


def _completions(record: Result) -> Sequence[str]:
    entries = record["images"]
    best = [entry["completions"][0] for entry in entries]
    means = [
        f"{sum(likelihood[unit] for likelihood in likelihoods) / len(entries):{digits}}"
        for likelihoods in (best, [entry["original"] for entry in entries])
        for unit, digits in (("bpd", ".4f"), ("nats", ".3f"))
    ]
    number = str(len(entries[0]["completions"]))
    images = _images({**record, "num_images": len(entries)})  # also of older programs
    return _model(record), images, f"{record['num_hidden_pixels']:,.10g}", number, *means


def _compression(record: Result) -> Sequence[str]:
    others = record["other_codecs"]
    sheets = [others.get(name, {}).get("sheet") for name in ("PNG", "WebP", "JPEG XL")]
    return (
        _model(record),
        _images(record),
        f"{record['promised_bpd']:.4f}",
        f"{record['bpd']:.4f}",
        f"{record['bytes']:,}",
        *("" if size is None else f"{size:,}" for size in sheets),
    )


def _samples(record: Result) -> Sequence[str]:
    rate = record["num_images"] / max(record["seconds"], 1e-9)
    hidden = f"{record['num_hidden_pixels']:,.10g}"
    return _model(record), _images(record), hidden, str(record["order_index"]), f"{rate:.3g}"


def _classification(record: Result) -> Sequence[str]:
    entries = record["visible_parts"]
    accuracies, errors = (
        ", ".join(f"{entry[name]:{form}}" for entry in entries if name in entry)
        for name, form in (("accuracy", ".1%"), ("calibration_error", ".3f"))
    )
    parts = ", ".join(entry["visible"] for entry in entries)
    orders = str(len(record["order_indices"]))
    return _model(record), _images(record), orders, parts, accuracies, errors


class _Table(NamedTuple):
    """The table of a kind of result: a key of its JSON, and what makes the cells after the file."""

    key: str
    columns: Sequence[str]
    make_row: Callable[[Result], Sequence[str]]


_TABLES = {
    "Likelihoods": _Table(
        "ensemble",
        ("model", "images", "pixels", "orders", "bits per dimension", "nats per image"),
        _likelihoods,
    ),
    "Completions given all visible pixels": _Table(
        "images",
        (
            *("model", "images", "hidden pixels", "completions of each"),
            *("the likeliest: bits per hidden dimension", "nats"),
            *("the originals: bits per hidden dimension", "nats"),
        ),
        _completions,
    ),
    "Classification": _Table(
        "classes",
        ("model", "images", "orders", "visible", "accuracy", "calibration error"),
        _classification,
    ),
    "Compression": _Table(
        "promised_bytes",
        (
            *("model", "images", "bits per dimension promised", "paid", "bytes"),
            *(f"as one {name} sheet" for name in ("PNG", "WebP", "JPEG XL")),
        ),
        _compression,
    ),
    "Samples": _Table(
        "files",
        ("model", "images", "generated pixels", "order", "images/s"),
        _samples,
    ),
}
