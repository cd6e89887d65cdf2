"""``--mode train``: epochs of steps, each under one order drawn; tests, samples and checkpoints.

A checkpoint holds all that the rest of a run depends on: a run that is killed at any moment and
resumed ends with the parameters of one that was not.
"""

import math
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lmconv.checkpoints import checkpoint_path, find_checkpoints, load_checkpoint, save_checkpoint
from lmconv.data.datasets import ImageShape, TrainData, load_test, load_train
from lmconv.modes.run import Experiment
from lmconv.modes.sample import Sampler
from lmconv.scoring import evaluate, report
from lmconv.training.optimization import Optimization, learning_rate
from lmconv.training.tracking import Tracker
from masking import Masks
from utils import (
    ProgressBar,
    Stopped,
    StopRequest,
    UsageError,
    nats_to_bpd,
    peak_memory,
    progress,
    write_json,
)

__all__ = ["Trainer", "train"]

T = TypeVar("T")

# So many skipped steps in a row end a run: it will not recover.
_MOST_SKIPPED_IN_A_ROW = 20
_GO_ON = "--load_last_params goes on from it"


def train(experiment: Experiment) -> None:
    """Train until ``--max_epochs``; see ``Trainer``.

    Raises:
        UsageError: numbers are no longer finite.
        CheckpointError: the checkpoint to go on from is missing or holds another network.
        Stopped: a signal has come, and the run is saved.
    """
    args, processes = experiment.args, experiment.processes
    trainer = Trainer(experiment, load_train(experiment.data, processes))
    if experiment.resumes:
        trainer.resume(experiment.checkpoint_path())
    if processes.is_main:
        write_json(experiment.run_dir / "args.json", vars(args))
    with (
        Tracker(
            experiment.run_dir,
            vars(args),
            use_wandb=not args.disable_wandb,
            is_on=processes.is_main,
            step=trainer.optimization.global_step,
            kept_size=trainer.metrics_size,
        ) as tracker,
        StopRequest() as stop,
    ):
        trainer.run(tracker, stop)


class Trainer:
    """Where a run stands, and how it goes on.

    Attributes:
        optimization: network, optimizer and running average.
        epoch: the last epoch whose steps are done, -1 before the first.
        batches_done: of the epoch after it.
        is_closed: whether the test and the samples of ``epoch`` are done, too.
    """

    def __init__(self, experiment: Experiment, data: TrainData) -> None:
        self.experiment, self.args, self.data = experiment, experiment.args, data
        self.optimization = Optimization(experiment)
        self.test_data = load_test(experiment.data)
        self.masks: dict[ImageShape, list[Masks]] = {
            shape: experiment.masks(shape) for shape in experiment.image_shapes
        }
        self.train_masks = experiment.order_indices("train_masks")
        self.epoch, self.batches_done, self.is_closed = -1, 0, True
        self.totals = self.window = _Totals()  # of the epoch under way; since metrics were logged
        self.best_bpd = math.inf
        self.test_losses: dict[str, float] = {}
        self.rolling: Path | None = None  # the newest checkpoint, if it is not one to keep
        # Bytes that the file had when the checkpoint was written; all of it where that is unknown.
        self.metrics_size: int | None = None if experiment.resumes else 0
        self._last_save = time.monotonic()
        self._skipped_in_a_row = 0
        if rank := experiment.processes.rank:  # dropout differs; rank 0 has the seed of the run
            state = np.random.SeedSequence([self.args.seed, rank]).generate_state(1)
            torch.manual_seed(int(state[0]))
        if experiment.processes.number > 1:
            # After their first pass, processes sum gradients in another order: it is of nothing.
            shape = experiment.image_shapes[0]
            self.optimization.backward(torch.empty(0, *shape), self.masks[shape][0])
            self.optimization.optimizer.zero_grad(set_to_none=True)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint; published ones have no more than network, optimizer and epoch.

        Raises:
            CheckpointError: the file is missing or of another network or optimizer.
        """
        checkpoint = load_checkpoint(path)
        self.optimization.load(checkpoint, str(path))
        self.epoch = int(checkpoint.get("epoch", -1))
        self.is_closed = checkpoint.get("is_closed", True)
        self.totals = _Totals(**checkpoint.get("totals", {}))
        self.window = _Totals(**checkpoint.get("window", {}))
        images_done = checkpoint.get("batches_done", 0) * checkpoint.get("global_batch_size", 0)
        self.batches_done = images_done // self.data.batch_size
        self.best_bpd = checkpoint.get("best_bpd", math.inf)
        self.test_losses = {k: v for k, v in checkpoint.items() if k.startswith("test_loss_")}
        self._restore_random_state(checkpoint.get("random_states", []))
        own = find_checkpoints(self.experiment.run_dir, self.args.exp_id)
        if any(path.samefile(other) for _, other in own):
            self.rolling = None if self._is_kept() else path
            if checkpoint.get("replaces") and self.experiment.processes.is_main:
                path.with_name(checkpoint["replaces"]).unlink(missing_ok=True)
        if self.args.load_last_params:
            self.metrics_size = checkpoint.get("metrics_size")
        position = f" and {self.batches_done} batches" if self.batches_done else ""
        self.experiment.log.info("going on after epoch %d%s of %s", self.epoch, position, path)

    def run(self, tracker: Tracker, stop: StopRequest) -> None:
        """Train the epochs that are left, testing, sampling and saving at their intervals.

        Raises:
            Stopped: a signal has come, and the run is saved.
            UsageError: numbers are no longer finite.
        """
        for shape in self.experiment.image_shapes:
            path = self.experiment.orders_path(shape)
            tracker.image(self.optimization.global_step, path.stem, path)
        last = self.args.max_epochs - 1
        if self.epoch >= last and self.is_closed:
            self.experiment.log.info(
                "nothing to do: epoch %d is done and --max_epochs is %d", self.epoch, last + 1
            )
        if not self.is_closed:
            self._close_epoch(tracker, stop)
        while self.epoch < last:
            self._train_epoch(tracker, stop)
            self.epoch, self.batches_done, self.is_closed = self.epoch + 1, 0, False
            self.totals = self.window = _Totals()
            self._save(tracker)
            self._close_epoch(tracker, stop)
        self.experiment.log.info("run directory: %s", self.experiment.run_dir)

    def _train_epoch(self, tracker: Tracker, stop: StopRequest) -> None:
        """The steps of an epoch that are left."""
        args, epoch = self.args, self.epoch + 1
        self.optimization.model.train()
        random = np.random.default_rng([args.seed, epoch])
        for _ in range(self.batches_done):  # the orders of the batches before
            random.choice(self.train_masks)
        step_totals, norm = _Totals(), 0.0
        bar = progress(
            _with_last(self.data.epoch(epoch, self.batches_done)),
            desc=f"epoch {epoch}",
            total=self.data.num_batches,
            initial=self.batches_done,
            is_on=self.experiment.processes.is_main,
        )
        orders: list[int] = []  # of the batches of a step
        begin = ready = time.monotonic()
        for number, (images, is_last) in enumerate(bar, start=self.batches_done + 1):
            waited = time.monotonic() - ready
            orders.append(int(random.choice(self.train_masks)))
            ends_step = is_last or number % args.accum_freq == 0
            batch = self._backward(images, orders[-1], ends_step)
            step_totals = step_totals.plus(batch)
            if ends_step:
                norm = self._step(step_totals, orders)
                step_totals, orders = _Totals(), []
            batch = replace(batch.if_finite(), waited=waited, seconds=time.monotonic() - begin)
            begin = ready = time.monotonic()
            self.totals, self.window = self.totals.plus(batch), self.window.plus(batch)
            if not ends_step:
                continue
            self.batches_done = number
            health = self._health(self.window, norm)
            bar.set_postfix_str(_as_line(health), refresh=False)
            if self.optimization.global_step % args.print_every == 0:
                tracker.log(self.optimization.global_step, health)
                self.window = _Totals()
            self._save_or_stop(tracker, stop, is_last)
            ready = time.monotonic()
        health = self._health(self.totals, norm)
        self.experiment.log.info("epoch %d: %s", epoch, _as_line(health))
        tracker.log(self.optimization.global_step, {**health, "train/epoch_bpd": self.totals.bpd})

    def _backward(self, images: Tensor, order_index: int, ends_step: bool) -> "_Totals":
        """Add a batch's gradients; returns what it adds to the totals of all processes."""
        _, channels, height, width = images.shape
        masks = self.masks[channels, height, width][order_index]
        nats = self.optimization.backward(images, masks, ends_step)
        own = [nats, float(len(images)), float(images.numel())]
        return _Totals(*self.experiment.processes.sum(own))

    def _step(self, totals: "_Totals", orders: Sequence[int]) -> float:
        """One optimizer step over the gradients that have been added; returns their norm.

        Raises:
            UsageError: a number is not finite, and ``--nonfinite`` is to stop, or it goes on so.
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
        if self.args.nonfinite == "stop" or self._skipped_in_a_row == _MOST_SKIPPED_IN_A_ROW:
            raise UsageError(
                f"{message}: lower --lr or set --clip, and go on with --load_last_params"
            )
        self.experiment.log.warning(
            "%s: skipped, %d steps so far", message, optimization.skipped_steps
        )
        return norm

    def _learning_rate(self) -> float:
        epochs = self.epoch + 1.0
        if self.data.num_batches is not None:
            epochs += self.batches_done / self.data.num_batches
        return learning_rate(self.args, self.optimization.global_step, epochs)

    def _save_or_stop(self, tracker: Tracker, stop: StopRequest, is_last: bool) -> None:
        """Between two steps: what all processes do if any is to stop or the main one is to save."""
        processes = self.experiment.processes
        minutes = (time.monotonic() - self._last_save) / 60
        is_time = self.args.save_minutes is not None and minutes >= self.args.save_minutes
        stops, saves = processes.sum([stop.signum is not None, is_time and processes.is_main])
        if stops:
            stop.signum = stop.signum or signal.SIGTERM  # as another process was told
        if is_last or not (stops or saves):
            return  # after the last step, the epoch is saved in any case
        self._save(tracker)
        if stop.signum is not None and stops:
            processes.wait()  # launchers end all when the first has ended
            raise Stopped(stop.signum, f"{self._path()} is saved, {_GO_ON}")

    def _health(self, totals: "_Totals", norm: float) -> dict[str, float]:
        """What tells how a run is doing."""
        health = {
            "train/bpd": totals.bpd,
            "gradient_norm": norm,
            "lr": self.optimization.optimizer.param_groups[0]["lr"],
            "epoch": self.epoch + 1.0,
            "images_per_second": totals.images / max(totals.seconds, 1e-9),
            "loader_share": totals.waited / max(totals.seconds, 1e-9),
            "epoch_seconds": self.totals.seconds,
            "peak_memory": float(peak_memory(self.experiment.device)),
            "skipped_steps": float(self.optimization.skipped_steps),
        }
        if self.data.num_images is not None:
            epochs_left = self.args.max_epochs - self.epoch - 1
            left = epochs_left * self.data.num_images - self.totals.images
            health["remaining_seconds"] = left / max(health["images_per_second"], 1e-9)
        return health

    def _close_epoch(self, tracker: Tracker, stop: StopRequest) -> None:
        """Test, sample and save after an epoch, where it is time to."""
        args, is_last = self.args, self.epoch == self.args.max_epochs - 1
        tests = (self.epoch + 1) % args.test_interval == 0 or is_last
        samples = (self.epoch + 1) % args.sample_interval == 0 or is_last
        improved = False
        with stop.at_once(f"{self._path()} is saved, {_GO_ON} and tests it anew"):
            if tests:
                improved = self._test(tracker)
            if samples and self.experiment.processes.is_main:
                self._sample(tracker)
        self.is_closed = True
        if tests or samples:
            self._save(tracker, improved)

    def _test(self, tracker: Tracker) -> bool:
        """Score the test set; returns whether it is the best so far."""
        mean_bpd, step = 0.0, self.optimization.global_step
        for shape in self.experiment.image_shapes:
            result = evaluate(self.experiment, self.optimization.test_model, self.test_data, shape)
            report(self.experiment, result)
            name = "x".join(map(str, shape))
            self.test_losses[f"test_loss_{name}"] = result["ensemble"]["bpd"]
            metrics = {f"test/bpd_{name}": result["ensemble"]["bpd"]}
            metrics |= {f"test/nats_{name}": result["ensemble"]["nats"]}
            for order in result["orders"]:
                metrics[f"test/bpd_{name}_order{order['index']}"] = order["bpd"]
            tracker.log(step, metrics)
            mean_bpd += result["ensemble"]["bpd"] / len(self.experiment.image_shapes)
        improved = mean_bpd < self.best_bpd
        self.best_bpd = min(mean_bpd, self.best_bpd)
        return improved

    def _sample(self, tracker: Tracker) -> None:
        args, run_dir = self.args, self.experiment.run_dir
        for shape in self.experiment.image_shapes:
            sampler = Sampler(self.experiment, self.optimization.test_model, shape, self.epoch)
            name = f"tsample_{self.epoch}_obs{'x'.join(map(str, shape))}"
            path = run_dir / f"{name}_order{sampler.order_index}.png"
            number = args.sample_batch_size
            with ProgressBar("sampling", number, int(sampler.hidden.sum())) as bar:
                for originals, images in sampler.batches(number, bar):
                    sampler.grid(originals, images, path)
            self.experiment.log.info("samples in %s", path)
            tracker.image(self.optimization.global_step, "samples", path)

    def _path(self) -> Path:
        """The file of the newest epoch, done or under way."""
        epoch = self.epoch + (self.batches_done > 0)
        return checkpoint_path(self.experiment.run_dir, self.args.exp_id, max(epoch, 0))

    def _is_kept(self) -> bool:
        return self.batches_done == 0 and (self.epoch + 1) % self.args.save_interval == 0

    def _save(self, tracker: Tracker, is_best: bool = False) -> None:
        """Write a checkpoint, then remove the one before unless it is to be kept."""
        self._last_save = time.monotonic()
        random_states = self.experiment.processes.gather(_random_state(self.experiment.device))
        if not self.experiment.processes.is_main:
            return
        path = self._path()
        replaced = None if self.rolling == path else self.rolling
        checkpoint = {
            **self.optimization.state(),
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "global_batch_size": self.data.batch_size,
            "is_closed": self.is_closed,
            "totals": asdict(self.totals),
            "window": asdict(self.window),
            "args": vars(self.args),
            "best_bpd": self.best_bpd,
            "random_states": random_states,
            "metrics_size": tracker.size,
            "replaces": replaced and replaced.name,
            **self.test_losses,
        }
        if is_best:
            save_checkpoint(self.experiment.run_dir / "best.pth", checkpoint)
        save_checkpoint(path, checkpoint)
        if replaced is not None:
            replaced.unlink(missing_ok=True)
        self.rolling = None if self._is_kept() else path
        self.experiment.log.info("saved %s", path)

    def _restore_random_state(self, states: list[dict[str, Tensor]]) -> None:
        processes = self.experiment.processes
        if len(states) == processes.number:
            state = states[processes.rank]
            torch.set_rng_state(state["cpu"])
            if processes.device.type == "cuda" and "cuda" in state:
                torch.cuda.set_rng_state(state["cuda"], processes.device)
        elif states:
            self.experiment.log.warning(
                "the checkpoint is of %d processes, not %d: dropout draws other numbers from here",
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


@dataclass(frozen=True)
class _Totals:
    """What batches add up to, over all processes; the times are this process's."""

    nats: float = 0.0
    images: float = 0.0
    dimensions: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # for the next batch to be ready

    def plus(self, other: "_Totals") -> "_Totals":
        """The sum of both."""
        mine, others = asdict(self).values(), asdict(other).values()
        return _Totals(*(a + b for a, b in zip(mine, others, strict=True)))

    def if_finite(self) -> "_Totals":
        """The same without a log-likelihood that is not finite, and what it is of."""
        return self if math.isfinite(self.nats) else replace(self, nats=0.0, dimensions=0.0)

    @property
    def bpd(self) -> float:
        """Mean bits per dimension."""
        return nats_to_bpd(self.nats, max(int(self.dimensions), 1))


def _as_line(health: dict[str, float]) -> str:
    """A run's health as people read it."""
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
    return str(timedelta(seconds=round(seconds)))
