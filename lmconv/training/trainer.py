"""Training: epochs of batches, each in an order drawn at random; tests, samples and checkpoints.

A checkpoint stores everything that the rest of a run depends on: a run that is killed at any moment
and resumed ends with the same parameters as a run that is not killed.
"""

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lmconv.checkpoints import (
    checkpoint_path,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from lmconv.data.pipeline import TrainData
from lmconv.distributed import Processes
from lmconv.image_model import ImageModel
from lmconv.orders import Order
from lmconv.training.contention import ThreadWatch
from lmconv.training.holes import draw_hole
from lmconv.training.optimization import Optimization, OptimizationConfig
from lmconv.training.progress import Progress, Totals
from lmconv.training.signals import Stopped, StopRequest
from lmconv.training.tracking import Tracker
from utils import UserError, progress

__all__ = ["Trainer", "TrainingConfig", "TrainingError"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# Tells the numbers that draw a batch's hole from those that shuffle and resize an epoch.
_HOLES = 1
# This many skipped steps in a row end a run: it will not recover.
_MOST_SKIPPED_IN_A_ROW = 20
_GO_ON = "use `load_last_params` to go on from it"


class TrainingError(UserError):
    """A loss or gradient that is not finite ended a run; the message is one line with a remedy."""


@dataclass(frozen=True)
class TrainingConfig:
    """How long a run goes on, and what it does between its steps.

    Attributes:
        max_epochs: number of epochs of the whole run.
        optimization: what a step does to the parameters.
        accum_freq: number of batches per optimizer step.
        nonfinite: what to do if a loss or gradient is not finite: ``stop`` the run, or ``skip``
            the step.
        seed: seed of the orders drawn, and of dropout.
        train_orders: indices of the model's orders to train on; None for all.
        train_holes: share of the batches whose order has a random hole last: the visible pixels
            come first and then the hidden ones, both along the order drawn.
        print_every: number of steps between records of metrics.
        save_interval: number of epochs between checkpoints that are kept in addition to the newest.
        save_minutes: also save within epochs, this many minutes after the last save.
        test_interval, sample_interval: number of epochs between tests, and between pictures of
            samples.
        exp_id: number that the names of checkpoints begin with.
    """

    max_epochs: int
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    accum_freq: int = 1
    nonfinite: str = "stop"
    seed: int = 1
    train_orders: tuple[int, ...] | None = None
    train_holes: float = 0.0
    print_every: int = 20
    save_interval: int = 20
    save_minutes: float | None = None
    test_interval: int = 1
    sample_interval: int = 4
    exp_id: int = 0


class Trainer:
    """A training run.

    Args:
        model: the model to train.
        data: the training set.
        config: settings of the run.
        run_dir: directory for the checkpoints.
        processes: the processes that share the run; by default only this one.
        settings: plain data that checkpoints store as ``args``.
        test: scores a model, and returns the results of ``score_sizes``; the checkpoint with the
            best result for the whole set, or else the best mean, is kept as ``best.pth``.
        draw: writes pictures of a model's samples after an epoch, and returns their paths.

    Attributes:
        optimization: network, optimizer and running average.
        progress: where the run stands.
        metrics_size: number of bytes of ``metrics.jsonl`` that are from before ``progress``; None
            for all.
    """

    def __init__(
        self,
        model: ImageModel,
        data: TrainData,
        config: TrainingConfig,
        run_dir: Path,
        *,
        processes: Processes | None = None,
        settings: Mapping[str, Any] | None = None,
        test: Callable[[ImageModel], list[dict[str, Any]]] | None = None,
        draw: Callable[[ImageModel, int], list[Path]] | None = None,
    ) -> None:
        self.model, self.data, self.config, self.run_dir = model, data, config, run_dir
        self.processes = processes or Processes(device=model.device)
        self._settings, self._test, self._draw = dict(settings or {}), test, draw
        self.optimization = Optimization(model, config.optimization, self.processes)
        self.progress = Progress()
        self.metrics_size: int | None = 0
        self._orders = {shape: model.orders(shape) for shape in data.image_shapes}
        first = self._orders[data.image_shapes[0]]
        self._train_orders = config.train_orders or tuple(range(len(first)))
        self._rolling: Path | None = None  # the newest checkpoint, if it is not one to keep
        self._last_save = time.monotonic()
        self._skipped_in_a_row = 0
        # Only where nothing else than other threads is waited for: no GPU, no other process.
        is_alone = self.processes.number == 1 and model.device.type == "cpu"
        self._thread_watch = ThreadWatch(torch.get_num_threads() if is_alone else 1)
        if rank := self.processes.rank:  # dropout differs; rank 0 uses the run's own seed
            state = np.random.SeedSequence([config.seed, rank]).generate_state(1)
            torch.manual_seed(int(state[0]))
        if self.processes.number > 1:
            # After their first pass, processes sum gradients in another order, so that pass is
            # made without images.
            self.optimization.backward(torch.empty(0, *data.image_shapes[0]), first[0])
            self.optimization.optimizer.zero_grad(set_to_none=True)

    def resume(
        self,
        path: Path,
        checkpoint: Mapping[str, Any],
        with_optimizer: bool = True,
        keeps_metrics: bool = True,
        keeps_checkpoint: bool = False,
    ) -> None:
        """Go on from a checkpoint; published ones have only network, optimizer and epoch.

        Args:
            path: path of the file.
            checkpoint: what ``load_checkpoint`` returns for it.
            with_optimizer: whether to load the optimizer's state as well as the weights.
            keeps_metrics: whether to keep only the metrics from before the checkpoint; otherwise
                all are kept.
            keeps_checkpoint: whether to keep the file when newer checkpoints are written.

        Raises:
            CheckpointError: the file belongs to another network or optimizer.
        """
        self.optimization.load(checkpoint, str(path), with_optimizer)
        self.progress = Progress.of(checkpoint, self.data.batch_size, self.data.num_batches)
        self._restore_random_state(checkpoint.get("random_states", []))
        own = [other for _, other in find_checkpoints(self.run_dir, self.config.exp_id)]
        best = self.run_dir / "best.pth"
        if any(path.samefile(other) for other in own):
            self._rolling = None if keeps_checkpoint or self._is_kept() else path
            for other in own:  # a checkpoint can name any file, but only those of the run go
                is_replaced = other.name == checkpoint.get("replaces") and other.name != path.name
                if is_replaced and self.processes.is_main:
                    other.unlink(missing_ok=True)
        elif best.is_file():  # it may be from later, and better
            known = Progress.of(load_checkpoint(best), self.data.batch_size).best_bpd
            self.progress.best_bpd = min(self.progress.best_bpd, known)
        self.metrics_size = checkpoint.get("metrics_size") if keeps_metrics else None
        epoch, done = self.progress.epoch, self.progress.batches_done
        places = [f"epoch {epoch}"] * (epoch >= 0) + [f"{done} batches"] * (done > 0)
        if places:
            log.info("going on after %s, from %s", " and ".join(places), path)
        else:
            log.info("starting with the weights of %s", path)

    def run(self, tracker: Tracker, stop: StopRequest) -> None:
        """Train the epochs that are left, testing, sampling and saving at their intervals.

        Raises:
            Stopped: a signal has stopped the run, which is saved.
            TrainingError: losses or gradients are no longer finite.
        """
        last = self.config.max_epochs - 1
        if self.progress.epoch >= last and self.progress.is_closed:
            log.info(
                "nothing to do: %d epochs are done and max_epochs is %d: raise it to train more",
                *(self.progress.epoch + 1, last + 1),
            )
        if not self.progress.is_closed:
            self._close_epoch(tracker, stop)
        while self.progress.epoch < last:
            try:
                summary = self._train_epoch(tracker, stop)
            finally:
                self.optimization.network.eval()  # what follows must be without dropout
            self.progress.end_epoch()
            self._save(tracker)  # before a message, which a halted screen could hold up
            log.info("epoch %d: %s", self.progress.epoch, summary)
            self._close_epoch(tracker, stop)
        log.info("run directory: %s", self.run_dir)

    def _train_epoch(self, tracker: Tracker, stop: StopRequest) -> str:
        """Take the steps of the epoch that are left, and return how it went, for people to read."""
        config, position, epoch = self.config, self.progress, self.progress.epoch + 1
        self.optimization.network.train()
        random = np.random.default_rng([config.seed, epoch])
        for _ in range(position.batches_done):  # skips the orders of the batches before
            random.choice(self._train_orders)
        step_totals, norm = Totals(), 0.0
        bar = progress(
            _with_last(self.data.labelled_epoch(epoch, position.batches_done)),
            desc=f"epoch {epoch}",
            total=self.data.num_batches,
            initial=position.batches_done,
            is_on=self.processes.is_main,
        )
        orders: list[int] = []  # those of the batches of a step
        begin = ready = time.monotonic()
        for number, (data, is_last) in enumerate(bar, start=position.batches_done + 1):
            images, label = data
            started, ran_before = time.monotonic(), time.thread_time()
            waited = started - ready
            orders.append(int(random.choice(self._train_orders)))
            ends_step = is_last or number % config.accum_freq == 0
            order = self._order(images, orders[-1], epoch, number)
            batch = self._backward(images, order, ends_step, label)
            step_totals = step_totals.plus(batch)
            if ends_step:
                norm = self._step(step_totals, orders)
                step_totals, orders = Totals(), []
            batch = replace(batch.if_finite(), waited=waited, seconds=time.monotonic() - begin)
            begin = ready = time.monotonic()
            warning = self._thread_watch.note(ready - started, time.thread_time() - ran_before)
            if warning is not None:
                log.warning(warning)
            position.count(batch)
            if not ends_step:
                continue
            position.batches_done = number
            health = self._health(position.window, norm)
            bar.set_postfix_str(_as_line(health), refresh=False)
            if self.optimization.global_step % config.print_every == 0:
                tracker.log(self.optimization.global_step, health)
                position.window = Totals()
            if is_last:
                metrics = {**health, "train/epoch_bpd": position.totals.bpd}
                tracker.log(self.optimization.global_step, metrics)
            self._save_or_stop(tracker, stop, is_last)
            ready = time.monotonic()
        return _as_line(self._health(position.totals, norm))

    def _backward(
        self, images: Tensor, order: Order, ends_step: bool, label: Tensor | None
    ) -> Totals:
        """Add a batch's gradients, and return the batch's totals over all processes."""
        nats = self.optimization.backward(images, order, ends_step, label)
        own = [nats, float(len(images)), float(images.numel())]
        return Totals(*self.processes.sum(own))

    def _order(self, images: Tensor, index: int, epoch: int, batch: int) -> Order:
        """The order for a batch; epoch and number of the batch decide about its hole."""
        _, channels, height, width = images.shape
        order = self._orders[channels, height, width][index]
        if not self.config.train_holes:
            return order
        random = np.random.default_rng([self.config.seed, epoch, batch, _HOLES])
        if random.random() >= self.config.train_holes:
            return order
        return order.visible_first(torch.from_numpy(draw_hole(height, width, random)))

    def _step(self, totals: Totals, orders: Sequence[int]) -> float:
        """Take an optimizer step with the gradients that have been added, and return their norm.

        Raises:
            TrainingError: a number is not finite, and the run is to stop then, or this has happened
                too many times in a row.
        """
        optimization, norm = self.optimization, math.nan
        step, rate = optimization.global_step, self._learning_rate()
        if math.isfinite(totals.nats):
            norm = optimization.step(int(totals.images), rate)
        else:
            optimization.skip()
        if math.isfinite(norm):
            self._skipped_in_a_row = 0
            return norm
        self._skipped_in_a_row += 1
        what = f"norm of the gradient is {norm}"
        if not math.isfinite(totals.nats):
            what = f"loss is {totals.nats}"
        order = f"order{'s' * (len(orders) > 1)} {', '.join(map(str, orders))}"
        message = f"the {what} at step {step} with {order} and learning rate {rate:g}"
        if self.config.nonfinite == "stop" or self._skipped_in_a_row == _MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{message}: lower `lr` or set `clip`, and go on with `load_last_params`"
            )
        log.warning("%s: step skipped, %d so far", message, optimization.skipped_steps)
        return norm

    def _learning_rate(self) -> float:
        epochs = self.progress.epoch + 1.0
        if self.data.num_batches is not None:
            epochs += self.progress.batches_done / self.data.num_batches
        return self.config.optimization.learning_rate(
            self.optimization.global_step, epochs, self.config.max_epochs
        )

    def _save_or_stop(self, tracker: Tracker, stop: StopRequest, is_last: bool) -> None:
        """Between two steps, stop or save if any process is asked to, or if it is time to save."""
        processes, every = self.processes, self.config.save_minutes
        minutes = (time.monotonic() - self._last_save) / 60
        is_time = every is not None and minutes >= every and processes.is_main
        stops, saves = processes.sum([stop.signum is not None, stop.wants_save or is_time])
        stop.wants_save = False
        if stops:
            stop.signum = stop.signum or signal.SIGTERM  # or what another process was sent
        if is_last or not (stops or saves):
            return  # after the last step, the epoch is saved in any case
        self._save(tracker)
        if stop.signum is not None and stops:
            processes.wait()  # launchers end all processes as soon as one has ended
            raise Stopped(stop.signum, f"{self._path()} is saved; {_GO_ON}")

    def _health(self, totals: Totals, norm: float) -> dict[str, float]:
        """Metrics that tell how a run is doing."""
        position = self.progress
        health = {
            "train/bpd": totals.bpd,
            "gradient_norm": norm,
            "lr": self.optimization.optimizer.param_groups[0]["lr"],
            "epoch": position.epoch + 1.0,
            "images_per_second": totals.images / max(totals.seconds, 1e-9),
            "loader_share": totals.waited / max(totals.seconds, 1e-9),
            "epoch_seconds": position.totals.seconds,
            "peak_memory": float(_peak_memory(self.model.device)),
            "skipped_steps": float(self.optimization.skipped_steps),
        }
        if self.data.num_images is not None:
            epochs_left = self.config.max_epochs - position.epoch - 1
            left = epochs_left * self.data.num_images - position.totals.images
            health["remaining_seconds"] = left / max(health["images_per_second"], 1e-9)
        return health

    def _close_epoch(self, tracker: Tracker, stop: StopRequest) -> None:
        """Test, sample and save after an epoch, if it is time to."""
        config, epoch = self.config, self.progress.epoch
        is_last = epoch == config.max_epochs - 1
        tests = (epoch + 1) % config.test_interval == 0 or is_last
        samples = (epoch + 1) % config.sample_interval == 0 or is_last
        improved = False
        with stop.at_once(f"{self._path()} is saved; {_GO_ON} and test it again"):
            if tests and self._test is not None:
                improved = self._note_test(self._test(self.optimization.test_model), tracker)
            if samples and self._draw is not None and self.processes.is_main:
                for path in self._draw(self.optimization.test_model, epoch):
                    tracker.image(self.optimization.global_step, "samples", path)
        self.progress.is_closed = True
        if tests or samples:
            self._save(tracker, improved)

    def _note_test(self, results: Sequence[dict[str, Any]], tracker: Tracker) -> bool:
        """Log the results of a test, and return whether it is the best so far."""
        for result in results:
            name = "x".join(map(str, result["image_shape"] or ("all",)))
            self.progress.test_losses[f"test_loss_{name}"] = result["ensemble"]["bpd"]
            metrics = {f"test/bpd_{name}": result["ensemble"]["bpd"]}
            metrics |= {f"test/nats_{name}": result["ensemble"]["nats"]}
            if "with_label" in result:
                given_class = result["with_label"]["ensemble"]["nats"]
                metrics[f"test/nats_{name}_given_class"] = given_class
            for order in result["orders"]:
                metrics[f"test/bpd_{name}_order{order['index']}"] = order["bpd"]
            tracker.log(self.optimization.global_step, metrics)
        whole = [each for each in results if each["image_shape"] is None]
        bpds = [each["ensemble"]["bpd"] for each in whole or results]
        return self.progress.is_best(float(np.mean(bpds)))

    def _path(self) -> Path:
        """The checkpoint file of the newest epoch, finished or not."""
        epoch = self.progress.epoch + (self.progress.batches_done > 0)
        return checkpoint_path(self.run_dir, self.config.exp_id, max(epoch, 0))

    def _is_kept(self) -> bool:
        is_whole = self.progress.batches_done == 0
        return is_whole and (self.progress.epoch + 1) % self.config.save_interval == 0

    def _save(self, tracker: Tracker, is_best: bool = False) -> None:
        """Write a checkpoint, then remove the previous one unless it is to be kept."""
        self._last_save = time.monotonic()
        random_states = self.processes.gather(_random_state(self.model.device))
        if not self.processes.is_main:
            return
        path = self._path()
        replaced = None if self._rolling == path else self._rolling
        checkpoint = {
            **self.optimization.state(),
            **self.progress.state(self.data.batch_size),
            "model": self.model.description.as_plain_data(),
            "args": self._settings,
            "random_states": random_states,
            "metrics_size": tracker.size,
            "replaces": replaced and replaced.name,
        }
        if is_best:
            save_checkpoint(self.run_dir / "best.pth", checkpoint)
        save_checkpoint(path, checkpoint)
        if replaced is not None:
            replaced.unlink(missing_ok=True)
        self._rolling = None if self._is_kept() else path
        log.info("saved %s", path)

    def _restore_random_state(self, states: list[dict[str, Tensor]]) -> None:
        processes = self.processes
        if len(states) == processes.number:
            state = states[processes.rank]
            torch.set_rng_state(state["cpu"])
            if processes.device.type == "cuda" and "cuda" in state:
                torch.cuda.set_rng_state(state["cuda"], processes.device)
        elif states:
            log.warning(
                "the checkpoint is from %d processes, not %d: from here on, dropout draws other "
                "numbers",
                *(len(states), processes.number),
            )


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    iterator = iter(items)
    try:
        item = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield item, False
        item = following
    yield item, True


def _peak_memory(device: torch.device) -> int:
    """Peak memory so far in bytes: what PyTorch allocated on the GPU, or that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _as_line(health: dict[str, float]) -> str:
    """A run's health as a line for people to read."""
    parts = [
        f"{health['train/bpd']:.4f} bpd",
        f"gradient {health['gradient_norm']:.3g}",
        f"lr {health['lr']:.3g}",
        f"{health['images_per_second']:.0f} images/s",
        f"{_duration(health['epoch_seconds'])} in this epoch",
        f"{health['peak_memory'] / 2**30:.2f} GB",
    ]
    if "remaining_seconds" in health:
        parts.append(f"{_duration(health['remaining_seconds'])} to go")
    if health["skipped_steps"]:
        parts.append(f"{health['skipped_steps']:.0f} steps skipped")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 1e13))))  # timedelta ends at 10^14 seconds
