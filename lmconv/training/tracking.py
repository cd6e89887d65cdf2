"""Where a run's numbers and pictures go: ``metrics.jsonl``, TensorBoard, Weights & Biases."""

import logging
import netrc
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from utils import UserError, as_json

__all__ = ["Tracker"]

log = logging.getLogger(__name__)

# How many calls may wait for Weights & Biases, and how long a run waits for it at its end.
_WANDB_BACKLOG = 1000
_WANDB_SECONDS = 60.0


class Tracker:
    """Logs a run's metrics and pictures; only the file ``metrics.jsonl`` is certain to be written.

    TensorBoard is left out if it is not installed. Weights & Biases runs in a thread of its own,
    and offline if there is no account; if it fails or is slow, the run goes on without it.

    Args:
        run_dir: directory for ``metrics.jsonl`` (appended to), ``tensorboard/`` and ``wandb/``; its
            name is the run's name in Weights & Biases.
        settings: settings of the run, for Weights & Biases.
        use_wandb: whether to use Weights & Biases at all.
        is_on: whether to log anything; only one of the processes does.
        step: number of optimizer steps done before; TensorBoard forgets later ones.
        kept_size: number of bytes of the file to keep, those from before a checkpoint; by default
            all.
        use_tensorboard: whether to use TensorBoard, if it is installed.
        on_log: also called with the step and the metrics whenever metrics are logged.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: dict[str, Any],
        use_wandb: bool,
        is_on: bool = True,
        step: int = 0,
        kept_size: int | None = None,
        use_tensorboard: bool = True,
        on_log: Callable[[int, dict[str, float]], object] | None = None,
    ) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._is_on, self._on_log = is_on, on_log
        self._tensorboard, self._wandb = None, None
        if not is_on:
            return
        self._write("", kept_size)
        if use_tensorboard:
            self._tensorboard = _start_tensorboard(run_dir, step if kept_size is not None else 0)
        if use_wandb:
            self._wandb = _Wandb(run_dir, settings)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """The current size of the file in bytes."""
        return self._path.stat().st_size if self._is_on else 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log numbers by name, as they are after ``step`` optimizer steps."""
        if not self._is_on:
            return
        if self._on_log is not None:
            self._on_log(step, metrics)
        self._write(as_json({"step": step, "time": time.time(), **metrics}) + "\n")
        for name, value in metrics.items():
            self._to_tensorboard("add_scalar", name, value, step)
        if self._wandb is not None:
            self._wandb.send(lambda run: run.log({**metrics, "step": step}))

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a picture file."""
        if self._tensorboard is not None:
            import numpy as np
            from PIL import Image

            pixels = np.asarray(Image.open(path).convert("RGB"))
            self._to_tensorboard("add_image", name, pixels, step, dataformats="HWC")

        def send(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path)), "step": step})

        if self._wandb is not None:
            self._wandb.send(send)

    def close(self) -> None:
        """Flush and close everything."""
        self._to_tensorboard("close")
        if self._wandb is not None:
            self._wandb.close()

    def _to_tensorboard(self, method: str, *args: Any, **options: Any) -> None:
        if self._tensorboard is None:
            return
        try:
            getattr(self._tensorboard, method)(*args, **options)
        except Exception as error:  # a tracker must not end hours of training
            log.warning("going on without TensorBoard: %s", error)
            self._tensorboard = None

    def _write(self, line: str, kept_size: int | None = None) -> None:
        """Append a line, after removing what is behind ``kept_size`` bytes, if that is given."""
        try:
            with self._path.open("a") as file:
                if kept_size is not None:
                    file.truncate(min(kept_size, self.size))
                file.write(line)
        except OSError as error:
            raise UserError(
                f"cannot write {self._path} ({error.strerror}): free some space, or give another "
                "`run_dir`"
            ) from error


class _Wandb:
    """Weights & Biases in a thread, so that nothing it does or fails to do holds up the run."""

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        self._is_broken = False
        self._waiting: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_WANDB_BACKLOG)
        self._thread = threading.Thread(target=self._run, args=(run_dir, settings), daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # there may be no more threads
            log.warning("going on without Weights & Biases: %s", error)
            self._is_broken = True

    def send(self, call: Callable[[Any], None]) -> None:
        """Queue a function to be called with the run; drop it if too many are waiting."""
        if self._is_broken:
            return
        try:
            self._waiting.put_nowait(call)
        except queue.Full:
            log.warning("Weights & Biases is too slow: some of the metrics are left out")

    def close(self) -> None:
        """Wait until all is sent, but not for long."""
        if self._is_broken:
            return
        with suppress(queue.Full):
            self._waiting.put(None, timeout=_WANDB_SECONDS)
        self._thread.join(_WANDB_SECONDS)
        if self._thread.is_alive():
            log.warning("Weights & Biases has not finished: its files are in the run directory")

    def _run(self, run_dir: Path, settings: dict[str, Any]) -> None:
        try:
            import wandb

            run = wandb.init(
                project="lmconv",
                name=run_dir.name,
                dir=str(run_dir),
                config=settings,
                mode=None if "WANDB_MODE" in os.environ or _has_account() else "offline",
                settings=wandb.Settings(silent=True, init_timeout=30),
            )
            while (call := self._waiting.get()) is not None:
                call(run)
            run.finish()
        except Exception as error:  # a tracker must not end hours of training, whatever it raises
            log.warning("going on without Weights & Biases: %s", error)
            self._is_broken = True


def _start_tensorboard(run_dir: Path, step: int) -> Any:
    # Makes TensorBoard use its own file system functions. Otherwise it would load TensorFlow if
    # that is installed, which takes seconds and can clash with PyTorch's compiler.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)
    except ModuleNotFoundError:
        log.warning("TensorBoard is not installed: going on without it")
    except Exception as error:  # such as a file of this name, or a library that does not fit
        log.warning("going on without TensorBoard: %s", error)
    return None


def _has_account() -> bool:
    """Whether an API key is available; without one, wandb would stop to ask for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
