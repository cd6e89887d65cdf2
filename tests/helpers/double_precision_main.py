"""``main.py`` in double precision, where sums in another order hardly differ.

Environment variables leave it in single precision, slow it down, end one of its processes in the
fourth step of training or the second batch of scores, or let each process note the pictures that it
opens.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import PIL.Image
import torch

import main
from lmconv.image_model import ImageModel
from lmconv.pixel_values import Preparation
from lmconv.training.optimization import Optimization

single, step = Preparation.apply, Optimization.step
maps, open_picture = ImageModel.maps, PIL.Image.open


def double_images(*arguments: object) -> torch.Tensor:
    return single(*arguments).double()


def disturbed_step(self: Optimization, num_images: int, rate: float) -> float:
    time.sleep(float(os.environ.get("LMCONV_TEST_SECONDS_PER_STEP", "0")))
    dies = os.environ.get("LMCONV_TEST_RANK_THAT_DIES")
    if dies is not None and dies == os.environ.get("RANK") and self.global_step == 3:
        os._exit(9)
    return step(self, num_images, rate)


def disturbed_maps(self: ImageModel, *arguments: object) -> object:
    time.sleep(float(os.environ.get("LMCONV_TEST_SECONDS_PER_STEP", "0")))
    dies = os.environ.get("LMCONV_TEST_RANK_THAT_DIES")
    self.batches = getattr(self, "batches", 0) + 1
    if dies is not None and dies == os.environ.get("RANK") and self.batches == 2:
        os._exit(9)
    return maps(self, *arguments)


def noted_open(path: object, **options: object) -> object:
    folder = os.environ.get("LMCONV_TEST_OPENED")
    if folder is not None:
        with Path(folder, os.environ.get("RANK", "0")).open("a") as notes:
            notes.write(f"{path}\n")
    return open_picture(path, **options)


def use_double_precision() -> None:
    if "LMCONV_TEST_SINGLE_PRECISION" not in os.environ:
        torch.set_default_dtype(torch.float64)
        Preparation.apply = double_images
    Optimization.step = disturbed_step
    ImageModel.maps, PIL.Image.open = disturbed_maps, noted_open


if __name__ == "__main__":
    use_double_precision()
    sys.exit(main.main())
