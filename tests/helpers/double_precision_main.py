"""``main.py`` in double precision, where sums in another order hardly differ.

Environment variables slow it down or end one of its processes in the fourth step.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

import main
from lmconv.pixel_values import Preparation
from lmconv.training.optimization import Optimization

single, step = Preparation.apply, Optimization.step


def double_images(*arguments: object) -> torch.Tensor:
    return single(*arguments).double()


def disturbed_step(self: Optimization, num_images: int, rate: float) -> float:
    time.sleep(float(os.environ.get("LMCONV_TEST_SECONDS_PER_STEP", "0")))
    dies = os.environ.get("LMCONV_TEST_RANK_THAT_DIES")
    if dies is not None and dies == os.environ.get("RANK") and self.global_step == 3:
        os._exit(9)
    return step(self, num_images, rate)


def use_double_precision() -> None:
    torch.set_default_dtype(torch.float64)
    Preparation.apply, Optimization.step = double_images, disturbed_step


if __name__ == "__main__":
    use_double_precision()
    sys.exit(main.main())
