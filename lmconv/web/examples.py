"""Pictures to begin with: those of the data sets at hand that fit a model."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lmconv.data.cifar import read_cifar
from lmconv.data.digits import read_digits
from lmconv.data.idx_files import read_mnist
from lmconv.data.image_files import fit, read_image
from lmconv.pixel_values import ImageShape

__all__ = ["Examples"]

_PIECES = 5  # of each photograph, in each direction


class Examples:
    """Pictures of the data sets in a folder, and of what comes with the project.

    Args:
        data_dir: folder that may have MNIST or CIFAR10; nothing is downloaded.
        shipped: folder of the digits that come with the project.
    """

    def __init__(self, data_dir: Path = Path("data"), shipped: Path = Path("examples")) -> None:
        self._data_dir, self._shipped = data_dir, shipped

    def choose(
        self, dataset: str | None, image_shape: ImageShape, first: int, number: int
    ) -> tuple[np.ndarray, int, str]:
        """Some pictures of a size.

        Args:
            dataset: the data set that a model was trained on, if it is known.
            image_shape: (C, H, W).
            first: number of the first of them.
            number: the most to return.

        Returns:
            ``B x C x H x W``, uint8; how many there are in all; and where they come from.
        """
        channels, height, width = image_shape
        if channels == 3:
            images, source = self._colours(height, width)
        elif channels == 1:
            images, source = self._grey(dataset)
        else:
            return np.zeros((0, *image_shape), np.uint8), 0, ""
        chosen = [fit(image, height, width) for image in images[first : first + number]]
        return np.array(chosen, np.uint8).reshape(-1, *image_shape), len(images), source

    def _grey(self, dataset: str | None) -> tuple[np.ndarray, str]:
        if dataset != "digits":
            for folder in (self._data_dir, self._shipped):
                if (folder / "MNIST" / "raw").is_dir():
                    return read_mnist(folder, train=False), "test digits of MNIST"
        return read_digits(train=False), "test digits of scikit-learn"

    def _colours(self, height: int, width: int) -> tuple[np.ndarray, str]:
        if (self._data_dir / "cifar-10-batches-py").is_dir():
            return read_cifar(self._data_dir, train=False), "test images of CIFAR10"
        spec = find_spec("sklearn")
        folder = Path(str(spec and spec.origin)).parent / "datasets" / "images"
        pictures = []
        for path in sorted(folder.glob("*.jpg")):
            whole = read_image(path, 3)
            rows, columns = whole.shape[1:]
            for top in np.linspace(rows - height, 0, _PIECES, dtype=int):
                for left in np.linspace(0, columns - width, _PIECES, dtype=int):
                    pictures.append(whole[:, top : top + height, left : left + width])
        return np.array(pictures), "pieces of the two photographs of scikit-learn"
