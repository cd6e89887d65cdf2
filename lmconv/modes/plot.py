"""``--mode plot``: draw the learning curves of runs from their ``metrics.jsonl``."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmconv.modes import UsageError
from lmconv.plots import save_figure
from lmconv.training.metrics import Record, read_metrics
from utils import escaped

__all__ = ["check", "plot_runs", "run"]

log = logging.getLogger(__name__)

# Noisy values are drawn with a smooth curve over them: the means of this many parts.
_SMOOTH_PARTS = 40


def check(given: argparse.Namespace) -> None:
    """Raise UsageError if no run directory is given, or if one has no metrics."""
    if given.run_dir is None:
        raise UsageError("--mode plot needs --run_dir: the directory of a training run")
    for folder in _folders(given):
        read_metrics(folder)


def run(given: argparse.Namespace) -> None:
    """Draw ``--run_dir`` and ``--compare_runs`` into the former's ``learning_curves.png``."""
    log.info("learning curves in %s", plot_runs(_folders(given)))


def _folders(given: argparse.Namespace) -> list[Path]:
    return [Path(given.run_dir), *map(Path, given.compare_runs or ())]


def plot_runs(folders: Sequence[Path]) -> Path:
    """Draw runs into ``learning_curves.png`` in the first one's directory, and return its path.

    The curves are bits per dimension in training and of the test ensemble, gradient norm and
    learning rate, by optimizer step.

    Raises:
        UsageError: a run has no metrics.
    """
    runs = {_label(folder, folders): read_metrics(folder) for folder in folders}
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    panels[0, 1].sharex(panels[0, 0])  # a single test is then where training ends
    panels[1, 0].set_yscale("log")
    for number, (name, records) in enumerate(runs.items()):
        colour = f"C{number}"
        _draw_smoothed(panels[0, 0], records, "train/bpd", colour, name)
        _draw_tests(panels[0, 1], records, colour, name)
        _draw_smoothed(panels[1, 0], records, "gradient_norm", colour, name)
        _draw(panels[1, 1], *_series(records, "lr"), colour, name)
    titles = ("training", "test, ensemble of the orders", "gradient norm", "learning rate")
    labels = ("bits per dimension", "bits per dimension", "norm", "rate")
    for panel, title, label in zip(panels.flat, titles, labels, strict=True):
        panel.set(title=title, xlabel="optimizer step", ylabel=label)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        if not panel.has_data():
            panel.text(0.5, 0.5, "not recorded", ha="center", transform=panel.transAxes)
    bpd = np.concatenate([_series(records, "train/bpd")[1] for records in runs.values()])
    if len(bpd):  # otherwise the first steps would take up all of the height
        panels[0, 0].set_ylim(bpd.min() * 0.95, np.percentile(bpd, 98) * 1.05)
        panels[0, 0].legend(fontsize=8)
    path = folders[0] / "learning_curves.png"
    save_figure(figure, path)
    return path


def _label(folder: Path, folders: Sequence[Path]) -> str:
    """The name of a run, or its path if another run has the same name."""
    name = folder.resolve().name
    same = [other for other in folders if other.resolve().name == name]
    label = name if len(same) == 1 else str(folder)
    return (
        escaped(label).replace("$", r"\$").lstrip("_")
    )  # the legend leaves out names with a leading _


def _series(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have a number with this name."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return tuple(np.array(points, dtype=float).reshape(-1, 2).T)


def _draw(axis: Axes, steps: np.ndarray, values: np.ndarray, colour: str, name: str) -> None:
    if len(steps):  # a line of one point would not be seen
        axis.plot(steps, values, color=colour, label=name, marker="o" if len(steps) == 1 else "")


def _draw_smoothed(
    axis: Axes, records: Sequence[Record], metric: str, colour: str, name: str
) -> None:
    steps, values = _series(records, metric)
    parts = min(_SMOOTH_PARTS, len(steps))
    if parts < _SMOOTH_PARTS:
        _draw(axis, steps, values, colour, name)
        return
    axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.6)
    means = [
        [part.mean() for part in np.array_split(numbers, parts)] for numbers in (steps, values)
    ]
    _draw(axis, np.array(means[0]), np.array(means[1]), colour, name)


def _draw_tests(axis: Axes, records: Sequence[Record], colour: str, name: str) -> None:
    """Draw a curve for each image size, marked with its last value."""
    metrics = sorted({key for record in records for key in record if key.startswith("test/bpd_")})
    for metric in (metric for metric in metrics if "_order" not in metric):
        steps, values = _series(records, metric)
        if not len(steps):
            continue
        axis.plot(steps, values, "o-", color=colour, label=name, markersize=4)
        axis.annotate(
            f"{values[-1]:.4f} ({metric.removeprefix('test/bpd_')})",
            (steps[-1], values[-1]),
            textcoords="offset points",
            xytext=(-4, 8),
            ha="right",
            fontsize=8,
            color=colour,
        )
