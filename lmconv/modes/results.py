"""The files of results in the run directory: their names and their JSON.

A name belongs to one choice of settings. Whoever asks for the same result again writes it again,
and so does whoever asks for it after more training. A result of other settings gets a name with a
number; so it does where a file of that name was written by hand.
"""

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmconv.file_names import name_limit, printable, shorten
from lmconv.modes.run import Run
from lmconv.modes.summary import Result, read_results
from lmconv.pixel_values import ImageShape
from utils import write_json

__all__ = ["ResultFiles", "name_of_images", "warn_of_fewer"]

log = logging.getLogger(__name__)

# What a number and the parts of a result add to its name, such as _12_images1000-1024.json.
_BYTES_OF_ENDINGS = 40
# Flags that do not change a result: the others, with the checkpoint, are its settings.
_WITHOUT_INFLUENCE = frozenset(
    {
        "run_dir",
        "exp_name",
        "exp_id",
        "load_params",
        "load_last_params",
        "ours",
        "amp_opt_level",
        "batch_size",
        "threads",
        "disable_wandb",
        "plot_masks",
        "likelihood_map",
        "save_dir",
        "two_stream",
        "sample_quantize",
    }
)
_PATHS = ("data_dir", "images", "hole_mask", "order_file", "output")


class ResultFiles:
    """The files of one result, which begin with the same name.

    Args:
        run: the run, whose settings the result belongs to. All processes that share it must make
            this together; only process 0 writes.
        name: name to begin with. It gets a number if files of other settings have it already.

    Attributes:
        name: the name with that number.
        earlier: what the JSON has of the same settings and epoch, or None.
    """

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._settings_id = run, _settings_id(run)
        self.earlier: Result | None = None
        name = shorten(name, name_limit(run.run_dir) - _BYTES_OF_ENDINGS)
        own = next(filter(self._is_own, self._names_there(name)), None)
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        self.name = run.processes.gather(own or next(filter(self._is_free, names)))[0]

    def path(self, ending: str) -> Path:
        """The path of a file of the result, such as that with the ending ``.csv``."""
        return self._run.run_dir / f"{self.name}{ending}"

    def write(self, result: Result | Sequence[Result], is_finished: bool = True) -> Path:
        """Write the JSON of the result, or of one for each image size, and return its path.

        Until the result is finished, a JSON of the same settings and epoch with more images stays:
        its pictures are still there, and those that are drawn again are the same. A result that is
        finished replaces it; a line says so if it has fewer images.
        """
        run, path = self._run, self.path(".json")
        source: dict[str, Any] = {
            "checkpoint": str(run.weights.path),
            "epoch": run.weights.epoch,
            "not_as_trained": run.not_as_trained,
        }
        settings = {"args": vars(run.args), "settings_id": self._settings_id}
        results = [result] if isinstance(result, dict) else result
        records = [{**source, **each, **settings} for each in results]
        num_images, before = records[0]["num_images"], self._num_images_before()
        if not run.processes.is_main:
            return path
        if num_images < before and not is_finished:
            if num_images == 0:
                log.info(
                    "%s, of %d images, stays until this run has as many or is finished",
                    *(printable(path), before),
                )
            return path
        write_json(path, records if len(records) > 1 else records[0])
        if num_images < before:
            log.warning(
                "%s, like the results beside it, had %d images and now has %d; pictures of images "
                "beyond these are from the earlier run",
                *(printable(path), before, num_images),
            )
        return path

    def _num_images_before(self) -> int:
        """The number of images in a JSON of the same settings and epoch, 0 if there is none."""
        number = self.earlier.get("num_images") if self.earlier else None
        return number if isinstance(number, int) else 0

    def _names_there(self, name: str) -> list[str]:
        """The name, and with numbers, of results whose JSON is there, lowest number first."""
        found = {}
        for path in self._run.run_dir.glob("*.json"):
            if match := re.fullmatch(f"{re.escape(name)}(?:_([0-9]+))?", path.stem):
                found[path.stem] = int(match[1] or 1)
        return sorted(found, key=found.__getitem__)

    def _is_own(self, name: str) -> bool:
        """Whether the JSON of this name is of the same settings; remember it if it is current."""
        for record in read_results(self._run.run_dir / f"{name}.json"):
            if record.get("settings_id") == self._settings_id:
                if record.get("epoch") == self._run.weights.epoch:
                    self.earlier = record
                return True
        return False

    def _is_free(self, name: str) -> bool:
        others = self._run.run_dir.iterdir() if self._run.run_dir.is_dir() else ()
        return not any(path.name == name or path.name.startswith(f"{name}.") for path in others)


def name_of_images(run: Run, epoch: int, image_shape: ImageShape | None) -> str:
    """What the files of drawn or completed images are called, in words.

    Args:
        run: the run.
        epoch: epoch of the weights, -1 if it is not known.
        image_shape: (C, H, W), which is named if the run has several; None for different ones.
    """
    args, words = run.args, ["samples"]
    if args.hole_mask is not None:
        words = ["completions", Path(args.hole_mask).stem]
    elif args.sample_region != "full":
        words = ["completions", args.sample_region]
    if epoch >= 0:
        words.append(f"epoch{epoch}")
    if len(run.image_shapes) > 1 and image_shape is not None:
        words.append("{}x{}".format(*image_shape[1:]))
    return "_".join([*words, f"seed{args.seed}"])


def warn_of_fewer(done: int, asked_for: int) -> None:
    """Say if a data set had fewer images than were asked for; a stream shows it only at its end."""
    if done < asked_for:
        log.warning("there are only %d images, not %d", done, asked_for)


def _settings_id(run: Run) -> str:
    """A hash of all settings that can change a result."""
    settings = {k: v for k, v in vars(run.args).items() if k not in _WITHOUT_INFLUENCE}
    for name in _PATHS:
        value = settings.get(name)
        if isinstance(value, str):
            settings[name] = os.path.abspath(value)
        elif value:
            settings[name] = [os.path.abspath(path) for path in value]
    settings["checkpoint"] = os.path.abspath(run.weights.path)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
