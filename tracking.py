"""Where a run's numbers and pictures go: ``metrics.jsonl``, TensorBoard, Weights & Biases."""

import json
import logging
import netrc
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Tracker"]

log = logging.getLogger("lmconv")


class Tracker:
    """Logs a run's metrics and pictures; only the file is certain to be there.

    TensorBoard is left out when it is not installed. Weights & Biases works offline where there is
    no account; if it fails, the run goes on without it.

    Args:
        run_dir: gets ``metrics.jsonl`` (appended to), ``tensorboard/`` and ``wandb/``.
        settings: of the run, for Weights & Biases.
        name: of the run there.
        use_wandb: whether to use it at all.
    """

    def __init__(self, run_dir: Path, settings: dict[str, Any], name: str, use_wandb: bool) -> None:
        self._metrics = (run_dir / "metrics.jsonl").open("a")
        self._tensorboard = _start_tensorboard(run_dir)
        self._wandb = _start_wandb(run_dir, settings, name) if use_wandb else None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log numbers by name after so many optimizer steps."""
        self._metrics.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
        self._metrics.flush()
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
        self._send_to_wandb(lambda run: run.log({**metrics, "step": step}))

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a picture file."""
        if self._tensorboard is not None:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path)), "step": step})

        self._send_to_wandb(send)

    def close(self) -> None:
        """Flush and close everything."""
        self._metrics.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._send_to_wandb(lambda run: run.finish())

    def _send_to_wandb(self, send: Any) -> None:
        if self._wandb is None:
            return
        try:
            send(self._wandb)
        except Exception as error:  # a tracker must not end hours of training, whatever it raises
            log.warning("going on without Weights & Biases: %s", error)
            self._wandb = None


def _start_tensorboard(run_dir: Path) -> Any:
    # TensorBoard's own file system functions do; where TensorFlow is installed it would otherwise
    # load it, which takes seconds and can clash with PyTorch's compiler.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("TensorBoard is not installed: going on without it")
        return None
    return SummaryWriter(str(run_dir / "tensorboard"))


def _start_wandb(run_dir: Path, settings: dict[str, Any], name: str) -> Any:
    try:
        import wandb

        return wandb.init(
            project="lmconv",
            name=name,
            dir=str(run_dir),
            config=settings,
            mode=None if "WANDB_MODE" in os.environ or _has_account() else "offline",
            settings=wandb.Settings(silent=True, init_timeout=30),
        )
    except Exception as error:  # a tracker must not keep a run from starting, whatever it raises
        log.warning("going on without Weights & Biases: %s", error)
        return None


def _has_account() -> bool:
    """Whether an API key is at hand; without one wandb would stop to ask for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
