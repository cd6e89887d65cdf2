"""The models that a browser can choose from, by an identifier that is no path."""

import copy
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lmconv.checkpoints import CheckpointError, best_or_newest_checkpoint
from lmconv.image_model import ImageModel, load

__all__ = ["ModelFile", "Models", "find_models"]

_MOST_KEPT = 3  # models in memory


@dataclass(frozen=True)
class ModelFile:
    """A checkpoint to choose.

    Attributes:
        name: what the page calls it.
        path: path of the file.
    """

    name: str
    path: Path

    @property
    def run_dir(self) -> Path:
        """The folder of the file, which is that of its run if it was trained here."""
        return self.path.parent

    def card(self) -> str:
        """What the folder's README says about the model, in Markdown; nothing if there is none.

        A section belongs to a model if it names its file.
        """
        readme = self.run_dir / "README.md"
        if not readme.is_file():
            return ""
        sections = re.split(r"^(?=## )", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return "\n".join(each for each in sections[1:] if f"`{self.path.name}`" in each)


def find_models(chosen: Sequence[Path] = (), folder: Path = Path()) -> list[ModelFile]:
    """The models of a checkout: those chosen, then the shipped ones, then the best of each run.

    Args:
        chosen: files that come first, wherever they are.
        folder: root of the checkout.
    """
    shipped = sorted((folder / "pretrained").glob("*.pth"))
    paths = [*chosen, *shipped, *_of_runs(sorted((folder / "runs").glob("*/")))]
    unique = {path.resolve(): path for path in reversed(paths)}
    kept = sorted(unique.values(), key=paths.index)
    return [ModelFile(_name(path), path) for path in kept]


def _of_runs(folders: Iterable[Path]) -> list[Path]:
    found = []
    for folder in folders:
        try:
            found.append(best_or_newest_checkpoint(folder, 0))
        except CheckpointError:  # a folder of results
            continue
    return found


def _name(path: Path) -> str:
    is_shipped = path.parent.name == "pretrained"
    return path.stem if is_shipped else f"{path.parent.name}/{path.stem}".lstrip("/")


class Models:
    """Models by their identifiers, loaded when they are used; a few stay in memory.

    Args:
        files: the models to choose from; their identifiers are their places in this list.
        device: device for the networks; by default the GPU, if there is one.
    """

    def __init__(self, files: Sequence[ModelFile], device: str | None = None) -> None:
        self.files, self._device = list(files), device
        self._kept: OrderedDict[tuple[int, int], tuple[ImageModel, ImageModel]] = OrderedDict()

    def file(self, identifier: int) -> ModelFile:
        """The checkpoint with an identifier.

        Raises:
            ValueError: there is none.
        """
        if not 0 <= identifier < len(self.files):
            raise ValueError("There is no such model any more: load the page again.")
        return self.files[identifier]

    def open(self, identifier: int, copy_of_network: bool = False) -> ImageModel:
        """The model with an identifier, read again if its file has changed.

        Args:
            identifier: the place of its file in the list.
            copy_of_network: whether to use a second network with the same weights, which is not at
                work when this is called inside a job that uses the first.

        Raises:
            ValueError: there is none.
            CheckpointError: the file is damaged, or does not describe its model.
        """
        path = self.file(identifier).path
        if not path.is_file():
            raise CheckpointError(f"there is no checkpoint {path} any more")
        key = (identifier, path.stat().st_mtime_ns)
        with torch.inference_mode(False):  # the model outlives the job
            if key not in self._kept:
                model = load(path, self._device)
                second = model.with_network(copy.deepcopy(model.network))
                self._kept[key] = model, second
            self._kept.move_to_end(key)
            # Inside another job, PyTorch may have cached weights by the addresses of modules, which
            # must not become those of other modules.
            while len(self._kept) > _MOST_KEPT and not copy_of_network:
                self._kept.popitem(last=False)
            return self._kept[key][copy_of_network]
