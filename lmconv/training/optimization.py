"""What a training step does to the parameters: objective, gradients, optimizer, average."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lmconv.checkpoints import (
    CheckpointError,
    load_optimizer_state,
    load_published_state_dict,
    model_weights,
    published_state_dict,
)
from lmconv.distributed import Processes
from lmconv.image_model import ImageModel
from lmconv.orders import Order
from lmconv.training.muon import Muon

__all__ = ["Optimization", "OptimizationConfig"]


@dataclass(frozen=True)
class OptimizationConfig:
    """How parameters change; the defaults are those of the published code.

    Attributes:
        optimizer: ``adam``, or ``muon`` for ``lmconv.training.muon.Muon``.
        lr: learning rate.
        lr_decay: factor on the learning rate after each epoch.
        lr_schedule: ``exponential``, or ``cosine`` to let the learning rate also fall to 0 along
            half a cosine.
        warmup_steps: number of steps over which the learning rate rises at the start.
        weight_decay: factor of the L2 penalty; with Muon, of what weights lose in each step.
        clip: largest gradient norm; 0 or less for no limit.
        ema: decay of the running average of the weights, at most (1 + n) / (10 + n) in step n; 1
            for no average.
        minimize_bpd: minimize mean bits per dimension instead of nats.
        compile: let torch.compile fuse the network's operations.
    """

    optimizer: str = "adam"
    lr: float = 2e-4
    lr_decay: float = 0.999995
    lr_schedule: str = "exponential"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip: float = -1.0
    ema: float = 1.0
    minimize_bpd: bool = False
    compile: bool = False

    def learning_rate(self, step: int, epochs: float, max_epochs: int) -> float:
        """The learning rate of an optimizer step.

        Args:
            step: number of optimizer steps before this one.
            epochs: epochs done before this step, including the fraction of the current one.
            max_epochs: number of epochs of the whole run.
        """
        rate = self.lr * self.lr_decay ** math.floor(epochs)
        if self.lr_schedule == "cosine":
            rate *= (1 + math.cos(math.pi * min(1.0, epochs / max_epochs))) / 2
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate


class Optimization:
    """A network with its optimizer and the running average of its weights.

    The objective is the sum of the negative log-likelihoods, in nats (paper, section 4), of all
    images of a step: those of all processes and of all accumulated batches. With ``minimize_bpd``,
    it is their mean in bits per dimension.

    Args:
        model: the model to train; the parameters of its network are the same in all processes.
        config: how to train it.
        processes: the processes that share the images of a step; by default only this one.

    Attributes:
        network: the model's network.
        optimizer: Adam or Muon.
        average: the running average of the weights, or None if ``ema`` is 1.
        global_step: number of optimizer steps done.
        skipped_steps: number of steps left out because a loss or gradient was not finite.
    """

    def __init__(
        self, model: ImageModel, config: OptimizationConfig, processes: Processes | None = None
    ) -> None:
        self.config, self.network = config, model.network
        self._model, self._processes = model, processes or Processes(device=model.device)
        network = cast(nn.Module, torch.compile(self.network)) if config.compile else self.network
        self._parallel = self._processes.parallel(network)
        self.optimizer = _make_optimizer(self.network, config)
        self.average: AveragedModel | None = None
        if config.ema < 1:
            self.average = AveragedModel(self.network, multi_avg_fn=_averaging(config.ema))
        self.global_step = self.skipped_steps = 0

    @property
    def test_model(self) -> ImageModel:
        """The model for tests and samples, with the running average of weights if there is one."""
        if self.average is None:
            return self._model
        return self._model.with_network(self.average.module)

    def backward(
        self, images: Tensor, order: Order, is_last: bool = True, label: Tensor | None = None
    ) -> float:
        """Add the gradients of a batch.

        Args:
            images: this process's share, ``B x C x H x W``; if it is empty, only the gradients of
                the other processes count.
            order: the order for this batch.
            is_last: whether this is the last batch of a step, after which processes exchange their
                gradients.
            label: the class of each image, B; by default unknown.

        Returns:
            The negative log-likelihood of the share, in nats.
        """
        model, number = self._model, self._processes.number
        if is_empty := len(images) == 0:
            images, label = images.new_zeros(1, *images.shape[1:]), None
        if label is not None:
            label = label.to(model.device, non_blocking=True)
        images = images.to(model.device, non_blocking=True)
        exchange: AbstractContextManager[object] = nullcontext()
        if not is_last and isinstance(self._parallel, nn.parallel.DistributedDataParallel):
            exchange = self._parallel.no_sync()
        with exchange:
            with model.autocast():
                logits = self._parallel(images, order.masks, label=label)
            nats = -model.likelihood.log_prob(logits, images, is_checked=True).sum()
            # Processes average their gradients; the objective is a sum.
            objective = nats * (0 if is_empty else number)
            if self.config.minimize_bpd:
                objective = objective / (images[0].numel() * math.log(2))
            objective.backward()
        return 0.0 if is_empty else nats.item()

    def step(self, num_images: int, rate: float) -> float:
        """Take one optimizer step with the gradients of ``num_images`` images of all processes.

        Returns:
            The norm of the gradient before clipping. If it is not finite, only the count of skipped
            steps is changed.
        """
        parameters = list(self.network.parameters())
        if self.config.minimize_bpd:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= num_images
        limit = self.config.clip if self.config.clip > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(parameters, limit).item()
        if not math.isfinite(norm):
            self.skip()
            return norm
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step += 1
        if self.average is not None:
            self.average.update_parameters(self.network)
        return norm

    def skip(self) -> None:
        """Drop the gradients that have been added, and count the step as skipped."""
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped_steps += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores of it."""
        state: dict[str, Any] = {
            "global_step": self.global_step,
            "skipped_steps": self.skipped_steps,
            "model_state_dict": published_state_dict(self.network),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }
        if self.average is not None:
            state["ema_state_dict"] = published_state_dict(self.average.module)
            state["ema_steps"] = int(self.average.n_averaged)
        return state

    def load(self, checkpoint: Mapping[str, Any], source: str, with_optimizer: bool = True) -> None:
        """Go on from a checkpoint, ours or a published one.

        Args:
            checkpoint: what ``load_checkpoint`` returns.
            source: name of the file, for errors.
            with_optimizer: whether to load the optimizer's state as well as the weights.

        Raises:
            CheckpointError: the checkpoint belongs to another network or optimizer.
        """
        load_published_state_dict(self.network, checkpoint["model_state_dict"], source)
        if self.average is not None:
            weights = model_weights(checkpoint)
            load_published_state_dict(self.average.module, weights, source)
            is_averaged = weights is not checkpoint["model_state_dict"]
            steps = checkpoint.get("global_step", 1) if is_averaged else 1
            steps = checkpoint.get("ema_steps", steps)
            self.average.n_averaged.fill_(steps)
        if with_optimizer:
            if "optimizer_state_dict" not in checkpoint:
                raise CheckpointError(
                    f"{source} has no optimizer state: use `do_not_load_optimizer` to start with a "
                    "fresh optimizer"
                )
            load_optimizer_state(self.optimizer, checkpoint["optimizer_state_dict"], source)
        self.global_step = int(checkpoint.get("global_step", 0))
        self.skipped_steps = int(checkpoint.get("skipped_steps", 0))


def _make_optimizer(network: nn.Module, config: OptimizationConfig) -> torch.optim.Optimizer:
    if config.optimizer not in ("adam", "muon"):
        raise ValueError(f"unknown optimizer {config.optimizer!r}: choose adam or muon")
    parameters, rate, decay = network.parameters(), config.lr, config.weight_decay
    if config.optimizer == "muon":
        return Muon(parameters, rate, decay)
    return torch.optim.Adam(parameters, rate, weight_decay=decay, fused=True)


def _averaging(decay: float) -> Any:
    """Make the update function of a running average, which forgets its first steps faster."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], steps: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, values, weight)

    return update
