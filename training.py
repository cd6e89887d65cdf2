"""``--mode train``: maximum likelihood with one order drawn for each batch, tests, checkpoints."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from checkpoints import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    load_optimizer_state,
    load_published_state_dict,
    model_weights,
    published_state_dict,
    save_checkpoint,
)
from data import ImageShape, TrainData, load_test, load_train
from evaluation import evaluate, report
from experiment import Experiment
from masking import Masks
from sampling import Sampler
from tracking import Tracker
from utils import ProgressBar, UsageError, nats_to_bpd, progress, write_json

__all__ = ["Trainer", "train"]


def train(experiment: Experiment) -> None:
    """Train until ``--max_epochs``; see ``Trainer``.

    Raises:
        UsageError: the loss is no longer finite.
        CheckpointError: the checkpoint to go on from is missing or holds another network.
    """
    args = experiment.args
    data = load_train(experiment.data)
    trainer = Trainer(experiment, data)
    if experiment.resumes:
        trainer.resume(experiment.checkpoint_path())
    write_json(experiment.run_dir / "args.json", vars(args))
    name = experiment.run_dir.name
    with Tracker(experiment.run_dir, vars(args), name, not args.disable_wandb) as tracker:
        trainer.run(tracker)


class Trainer:
    """The state of a training run: network, optimizer, running average, step and epoch.

    The objective is the sum of negative log-likelihoods of a batch, in nats (paper, section 4), or
    with ``--minimize_bpd`` their mean in bits per dimension.
    """

    def __init__(self, experiment: Experiment, data: TrainData) -> None:
        args = experiment.args
        self.experiment, self.args, self.data = experiment, args, data
        self.model = experiment.model
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=args.lr, weight_decay=args.weight_decay
        )
        self.average: AveragedModel | None = None
        if args.ema < 1:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema))
        self.test_data = load_test(experiment.data)
        self.masks: dict[ImageShape, list[Masks]] = {
            shape: experiment.masks(shape) for shape in experiment.image_shapes
        }
        self.train_masks = experiment.order_indices("train_masks")
        self.epoch = -1
        self.global_step = 0
        self.best_bpd = math.inf
        self.test_losses: dict[str, float] = {}
        self.rolling: Path | None = None  # the newest checkpoint, if it is not one to keep

    @property
    def test_model(self) -> nn.Module:
        """The weights that tests and samples use: the running average where there is one."""
        return self.model if self.average is None else self.average.module

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: weights, optimizer, running average, step and epoch.

        Raises:
            CheckpointError: the file is missing or of another network or optimizer.
        """
        checkpoint = load_checkpoint(path)
        if "model_state_dict" not in checkpoint:
            raise CheckpointError(f"{path} has no model_state_dict: it is no training checkpoint")
        load_published_state_dict(self.model, checkpoint["model_state_dict"], str(path))
        if self.average is not None:
            load_published_state_dict(self.average.module, model_weights(checkpoint), str(path))
            self.average.n_averaged.fill_(1)
        if not self.args.do_not_load_optimizer:
            if "optimizer_state_dict" not in checkpoint:
                raise CheckpointError(
                    f"{path} has no optimizer state: --do_not_load_optimizer goes on without it"
                )
            load_optimizer_state(self.optimizer, checkpoint["optimizer_state_dict"], str(path))
        self.epoch = int(checkpoint.get("epoch", -1))
        self.global_step = int(checkpoint.get("global_step", 0))
        self.best_bpd = checkpoint.get("best_bpd", math.inf)
        if "rng_state" in checkpoint:
            torch.set_rng_state(checkpoint["rng_state"])
        in_run_dir = path.resolve().parent == self.experiment.run_dir.resolve()
        if in_run_dir and path.name != "best.pth" and not self._is_kept(self.epoch):
            self.rolling = path
        self.experiment.log.info("going on after epoch %d of %s", self.epoch, path)

    def run(self, tracker: Tracker) -> None:
        """Train the epochs that are left, testing, sampling and saving at their intervals."""
        last = self.args.max_epochs - 1
        if self.epoch >= last:
            self.experiment.log.info(
                "nothing to do: epoch %d is done and --max_epochs is %d", self.epoch, last + 1
            )
        while self.epoch < last:
            epoch = self.epoch + 1
            self._train_epoch(epoch, tracker)
            self.epoch = epoch
            is_last = epoch == last
            improved = False
            if (epoch + 1) % self.args.test_interval == 0 or is_last:
                improved = self._test(tracker)
            self._save(improved)
            if (epoch + 1) % self.args.sample_interval == 0 or is_last:
                self._sample(tracker)
        self.experiment.log.info("run directory: %s", self.experiment.run_dir)

    def _train_epoch(self, epoch: int, tracker: Tracker) -> None:
        """One pass over the training set."""
        args, log = self.args, self.experiment.log
        learning_rate = args.lr * args.lr_decay**epoch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        random = np.random.default_rng([args.seed, epoch])
        bar = progress(self.data.epoch(epoch), desc=f"epoch {epoch}", total=self.data.num_batches)
        totals, window, norm = _Totals(), _Totals(), 0.0
        waiting: list[int] = []  # images of each batch since the last optimizer step
        for number, images in enumerate(bar, start=1):
            nats = self._backward(images, int(random.choice(self.train_masks)))
            totals.add(nats, images)
            window.add(nats, images)
            waiting.append(len(images))
            if len(waiting) == args.accum_freq or number == self.data.num_batches:
                norm = self._step(sum(waiting))
                waiting = []
            bar.set_postfix(bpd=f"{totals.bpd:.4f}", img_s=f"{totals.images_per_second:.0f}")
            if number % args.print_every == 0:
                metrics = {"train/bpd": window.bpd, "images_per_second": window.images_per_second}
                metrics |= {"gradient_norm": norm, "lr": learning_rate, "epoch": float(epoch)}
                tracker.log(self.global_step, metrics)
                window = _Totals()
        if waiting:  # a stream that does not know its length may end between two steps
            self._step(sum(waiting))
        log.info(
            "epoch %d: train %.4f bpd, %.0f images/s, step %d",
            *(epoch, totals.bpd, totals.images_per_second, self.global_step),
        )
        tracker.log(self.global_step, {"train/epoch_bpd": totals.bpd, "epoch": float(epoch)})

    def _backward(self, images: Tensor, order_index: int) -> float:
        """Add a batch's gradients; returns its negative log-likelihood in nats."""
        experiment = self.experiment
        _, channels, height, width = images.shape
        masks = self.masks[channels, height, width][order_index]
        images = images.to(experiment.device)
        with experiment.autocast():
            logits = self.model(images, masks)
        nats = -experiment.likelihood.log_prob(logits, images).sum()
        if not torch.isfinite(nats):
            raise UsageError(
                f"the loss is {nats.item()} at step {self.global_step} with order {order_index} "
                f"and learning rate {self.optimizer.param_groups[0]['lr']:g}: lower --lr or set "
                "--clip, and go on with --load_last_params"
            )
        if self.args.minimize_bpd:
            (nats / (images[0].numel() * math.log(2))).backward()
        else:
            nats.backward()
        return nats.item()

    def _step(self, num_images: int) -> float:
        """One optimizer step over the gradients of ``num_images``; returns their norm."""
        parameters = list(self.model.parameters())
        if self.args.minimize_bpd:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= num_images
        limit = self.args.clip if self.args.clip > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.global_step += 1
        return norm.item()

    def _test(self, tracker: Tracker) -> bool:
        """Score the test set; returns whether it is the best so far."""
        mean_bpd = 0.0
        for shape in self.experiment.image_shapes:
            result = evaluate(self.experiment, self.test_model, self.test_data, shape)
            report(self.experiment, result)
            name = "x".join(map(str, shape))
            self.test_losses[f"test_loss_{name}"] = result["ensemble"]["bpd"]
            metrics = {f"test/bpd_{name}": result["ensemble"]["bpd"]}
            metrics |= {f"test/nats_{name}": result["ensemble"]["nats"]}
            for order in result["orders"]:
                metrics[f"test/bpd_{name}_order{order['index']}"] = order["bpd"]
            tracker.log(self.global_step, metrics)
            mean_bpd += result["ensemble"]["bpd"] / len(self.experiment.image_shapes)
        improved = mean_bpd < self.best_bpd
        self.best_bpd = min(mean_bpd, self.best_bpd)
        return improved

    def _sample(self, tracker: Tracker) -> None:
        args, run_dir = self.args, self.experiment.run_dir
        for shape in self.experiment.image_shapes:
            sampler = Sampler(self.experiment, self.test_model, shape, self.epoch)
            name = f"tsample_{self.epoch}_obs{'x'.join(map(str, shape))}"
            path = run_dir / f"{name}_order{sampler.order_index}.png"
            number = args.sample_batch_size
            with ProgressBar("sampling", number, int(sampler.hidden.sum())) as bar:
                for originals, images in sampler.batches(number, bar):
                    sampler.grid(originals, images, path)
            self.experiment.log.info("samples in %s", path)
            tracker.image(self.global_step, "samples", path)

    def _is_kept(self, epoch: int) -> bool:
        return (epoch + 1) % self.args.save_interval == 0

    def _save(self, improved: bool) -> None:
        """Write this epoch's checkpoint, then remove the previous one unless it is to be kept."""
        run_dir, exp_id = self.experiment.run_dir, self.args.exp_id
        path = checkpoint_path(run_dir, exp_id, self.epoch)
        checkpoint = self._checkpoint()
        save_checkpoint(path, checkpoint)
        if improved:
            save_checkpoint(run_dir / "best.pth", checkpoint)
        if self.rolling is not None and self.rolling != path:
            self.rolling.unlink(missing_ok=True)
        self.rolling = None if self._is_kept(self.epoch) else path
        self.experiment.log.info("saved %s", path)

    def _checkpoint(self) -> dict[str, Any]:
        checkpoint: dict[str, Any] = {
            "epoch": self.epoch,
            "global_step": self.global_step,
            "args": vars(self.args),
            "model_state_dict": published_state_dict(self.model),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "best_bpd": self.best_bpd,
            "rng_state": torch.get_rng_state(),
            **self.test_losses,
        }
        if self.average is not None:
            checkpoint["ema_state_dict"] = published_state_dict(self.average.module)
        return checkpoint


class _Totals:
    """What an epoch, or the stretch between two log lines, added up to."""

    def __init__(self) -> None:
        self.nats = self.dimensions = self.images = 0.0
        self.start = time.monotonic()

    def add(self, nats: float, images: Tensor) -> None:
        self.nats += nats
        self.dimensions += images.numel()
        self.images += len(images)

    @property
    def bpd(self) -> float:
        return nats_to_bpd(self.nats, int(self.dimensions))

    @property
    def images_per_second(self) -> float:
        return self.images / max(time.monotonic() - self.start, 1e-9)
