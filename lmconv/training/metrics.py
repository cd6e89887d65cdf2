"""The metrics of a run, as they are read again: one JSON record a line, in ``metrics.jsonl``."""

import json
from pathlib import Path
from typing import Any

from utils import UserError

__all__ = ["Record", "read_metrics"]

Record = dict[str, Any]

# Numbers from here on cannot be drawn; a run has none.
_LARGEST = 1e100


def read_metrics(run_dir: Path) -> list[Record]:
    """Read a run's ``metrics.jsonl``, except for a last line that was cut off by a kill.

    Raises:
        UserError: there are none, or one is damaged.
    """
    path = run_dir / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the `run_dir` of a run") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise UserError(f"{path} is damaged in line {number}: {error}") from error
    if not records:
        raise UserError(f"{path} is empty: the run has not got as far as its first metrics")
    return records


def _record(line: str) -> Record:
    """Read a line, whose values are numbers or null."""
    record = json.loads(line, parse_constant=lambda name: None)  # NaN and infinity are no JSON
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError("it is not a record of a step")
    for name, value in record.items():
        is_number = type(value) in (int, float) and abs(value) < _LARGEST
        if not (is_number or value is None):
            raise ValueError(f"{name} is not a number")
    return record
