"""The scores of ``--mode score`` on their way into one CSV, in parts that outlast the run."""

import csv
import hashlib
import itertools
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lmconv.compression.codec import model_hash
from lmconv.data.pipeline import TestData
from lmconv.file_names import printable
from lmconv.image_model import ensemble
from lmconv.modes.results import ResultFiles
from lmconv.modes.run import Run
from lmconv.pixel_values import ImageShape
from lmconv.scoring import Summary
from utils import nats_to_bpd, write_atomically

__all__ = ["ScoreParts", "Scores"]

log = logging.getLogger(__name__)

# A part is written as soon as it has so many images, or once so many seconds have passed.
_IMAGES_PER_PART = 2**14
_SECONDS_PER_PART = 300


class Scores(NamedTuple):
    """The scores of a batch of images of one size.

    Attributes:
        names: the B images.
        image_shape: (C, H, W).
        num_pixels: number of pixels that are scored in each.
        log_likelihoods: nats under K orders, ``K x B``, float64.
        labels: the class of each image, if they are known.
        given_class: then also the nats given the classes, ``K x B``.
    """

    names: list[str]
    image_shape: ImageShape
    num_pixels: int
    log_likelihoods: Tensor
    labels: list[int] | None = None
    given_class: Tensor | None = None


class ScoreParts:
    """Collects scores: finished parts are files, only the last part and sums are in memory.

    The parts are in a folder whose name ends with ``_unfinished``, beside a JSON of that name with
    the settings and the means so far. If another run has left such files with the same settings,
    its scores are gone on from.

    Args:
        run: the run, of which process 0 collects.
        name: what the names of the files begin with.
        indices: indices of the K orders.
        data: the images.
    """

    def __init__(self, run: Run, name: str, indices: Sequence[int], data: TestData) -> None:
        self._run, self._indices, self._data = run, indices, data
        self._name = f"{name}_unfinished"
        self._files = ResultFiles(run, self._name)
        self._inputs = _digest(run)
        self._num_parts, self._num_pixels = 0, 0
        self._shape: ImageShape | None = None
        self._shapes_differ = False
        self._summary = Summary(indices)
        self._classes = () if data.labels is None else run.model.description.classes
        self._given_class = Summary(indices) if self._classes else None
        self._rows: list[list[Any]] = []
        self._since = time.monotonic()
        if run.processes.is_main:
            self._resume()

    @property
    def num_images(self) -> int:
        """The number of images that have been scored, from the first one on."""
        return self._summary.num_images

    @property
    def mean_nats(self) -> float:
        """The nats of an image under the ensemble of the orders, on average."""
        nats: float = self._summary.result(1)["ensemble"]["nats"]
        return nats

    @property
    def mean_nats_given_class(self) -> float | None:
        """The same given the class of each image; None if the classes are not known."""
        if self._given_class is None:
            return None
        nats: float = self._given_class.result(1)["ensemble"]["nats"]
        return nats

    def add(self, scores: Scores) -> None:
        """Add the scores of the images that follow."""
        shape, has_sizes = scores.image_shape, bool(self._data.own_shapes)
        first = len(self._rows)
        joint = scores.log_likelihoods
        nats = -ensemble(joint)[:, None], -joint.T
        for name, *values in zip(scores.names, *(each.tolist() for each in nats), strict=True):
            each = [
                (value, nats_to_bpd(value, shape[0] * scores.num_pixels))
                for value in itertools.chain.from_iterable(values)
            ]
            row = [printable(name), *itertools.chain.from_iterable(each)]
            self._rows.append(row + list(shape[1:]) * has_sizes)
        self._add_classes(scores, first)
        self._shapes_differ |= self._shape not in (None, shape)
        self._shape = shape
        self._num_pixels += scores.num_pixels * len(scores.names)
        self._summary.add(joint)
        is_time = time.monotonic() - self._since > _SECONDS_PER_PART
        if is_time or len(self._rows) >= _IMAGES_PER_PART:
            self._write_part()

    def _add_classes(self, scores: Scores, first: int) -> None:
        """Add what is known given the classes to the rows from ``first`` on."""
        if self._given_class is None or scores.given_class is None or scores.labels is None:
            return
        self._given_class.add(scores.given_class)
        dimensions = scores.image_shape[0] * scores.num_pixels
        given = (-ensemble(scores.given_class)).tolist()
        for row, label, nats in zip(self._rows[first:], scores.labels, given, strict=True):
            row += [printable(self._classes[label]), nats, nats_to_bpd(nats, dimensions)]

    def keep(self) -> None:
        """Write what is finished, for a later run to go on from."""
        if self._rows:
            self._write_part()
        if self.num_images:
            log.warning(
                "the scores of the first %d images are kept in %s: the same command goes on from "
                "there",
                *(self.num_images, printable(self._files.path(""))),
            )

    def finish(self, files: ResultFiles) -> Path:
        """Join the parts in the CSV, write the JSON beside it, and return the path of the CSV."""
        path = files.path(".csv")
        write_atomically(path, self._join)
        files.write({**self._result(), "file": path.name})
        self._discard()
        return path

    def _resume(self) -> None:
        """Go on from what an earlier run has left, if it has the same settings and images."""
        record, path = self._files.earlier, self._files.path(".json")
        if record is None:
            if self._files.name != self._name:
                log.info(
                    "%s has scores of other settings and is kept: scoring starts with the first "
                    "image",
                    printable(self._run.run_dir / f"{self._name}.json"),
                )
            return
        if not self._goes_on(record):
            log.warning(
                "%s is damaged, or its images, weights, hole or maps are not those of this run: it "
                "is replaced, and scoring starts with the first image",
                printable(path),
            )
            self._discard()
            return
        log.info(
            "going on after the first %d images, whose scores are in %s",
            *(self.num_images, printable(self._files.path(""))),
        )

    def _goes_on(self, record: dict[str, Any]) -> bool:
        """Go on from a record, if its parts are there and are of what is to be scored."""
        try:
            state = record["state"]
            summary, shape = Summary(self._indices, state["summary"]), tuple(state["image_shape"])
            given_class = None
            if self._given_class is not None:
                given_class = Summary(self._indices, state["given_class"])
            num_parts, num_pixels = int(state["parts"]), int(state["num_pixels"])
            is_of_these = (
                state["of_images"] == self._data.num_images
                and state["last_image"] == printable(self._data.name(summary.num_images - 1))
                and state["inputs"] == self._inputs
                and state["has_maps"] >= self._run.args.likelihood_map
                and len(shape) == 3
                and all(self._part(place).is_file() for place in range(num_parts))
            )
            differ = bool(state["shapes_differ"])
        except (KeyError, TypeError, ValueError, IndexError):
            return False
        if is_of_these:
            self._summary, self._given_class = summary, given_class
            self._shape, self._shapes_differ = shape, differ
            self._num_parts, self._num_pixels = num_parts, num_pixels
        return is_of_these

    def _part(self, place: int) -> Path:
        return self._files.path("") / f"{place:05d}.csv"

    def _write_part(self) -> None:
        """Write the rows in memory as a part, and then the JSON that counts it."""
        path, is_first = self._part(self._num_parts), self._num_parts == 0
        write_atomically(path, lambda temporary: self._write_rows(temporary, is_first))
        self._num_parts += 1
        state = {
            "parts": self._num_parts,
            "num_pixels": self._num_pixels,
            "image_shape": self._shape,
            "shapes_differ": self._shapes_differ,
            "of_images": self._data.num_images,
            "last_image": self._rows[-1][0],
            "inputs": self._inputs,
            "has_maps": bool(self._run.args.likelihood_map),
            "summary": self._summary.state,
            "given_class": None if self._given_class is None else self._given_class.state,
        }
        self._files.write({**self._result(), "state": state})
        self._rows, self._since = [], time.monotonic()

    def _write_rows(self, path: Path, has_header: bool) -> None:
        header = ["image", "nats", "bpd"]
        header += [f"{unit}_order{index}" for index in self._indices for unit in ("nats", "bpd")]
        header += ["height", "width"] * bool(self._data.own_shapes)
        header += ["class", "nats_given_class", "bpd_given_class"] * bool(self._classes)
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header] * has_header + self._rows)

    def _join(self, path: Path) -> None:
        """Write all parts, and the rows in memory after them, as one CSV."""
        with path.open("wb") as joined:
            for place in range(self._num_parts):
                with self._part(place).open("rb") as part:
                    shutil.copyfileobj(part, joined)
        self._write_rows(path, self._num_parts == 0)

    def _result(self) -> dict[str, Any]:
        """The means so far, with the sizes of the images."""
        assert self._shape is not None
        mean_pixels = self._num_pixels / self.num_images
        sized: dict[str, Any] = {"image_shape": None, "num_pixels": mean_pixels}
        if not self._shapes_differ:
            sized = {"image_shape": list(self._shape), "num_pixels": round(mean_pixels)}
        summary = self._summary.result(self._shape[0] * mean_pixels)
        if self._given_class is not None:
            summary["with_label"] = self._given_class.result(self._shape[0] * mean_pixels)
        return {"dataset": self._run.args.dataset, **sized, **summary}

    def _discard(self) -> None:
        """Remove the parts and their JSON."""
        if self._files.earlier is not None or self._num_parts:
            # The JSON goes last: without it, nobody would know whose the folder is.
            shutil.rmtree(self._files.path(""), ignore_errors=True)
            self._files.path(".json").unlink(missing_ok=True)
            self._files.earlier = None


def _digest(run: Run) -> str:
    """A hash of the model, and of the files that choose pixels and orders."""
    digest = hashlib.blake2b(model_hash(run.model), digest_size=16)
    for path in (run.args.hole_mask, *run.args.order_file):
        if path is not None:
            digest.update(Path(path).read_bytes())
    return digest.hexdigest()
