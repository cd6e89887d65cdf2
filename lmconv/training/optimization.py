"""What a training step does to the parameters: objective, gradients, Adam, schedule, average."""

import argparse
import math
from contextlib import AbstractContextManager, nullcontext
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
from lmconv.modes.run import Experiment
from masking import Masks

__all__ = ["Optimization", "learning_rate"]


def learning_rate(args: argparse.Namespace, step: int, epochs: float) -> float:
    """The learning rate of an optimizer step.

    Args:
        args: ``--lr``, ``--lr_decay`` for each epoch, ``--lr_schedule``, ``--warmup_steps``.
        step: optimizer steps before this one.
        epochs: done before this step, the fraction of the present one included.
    """
    rate = args.lr * args.lr_decay ** math.floor(epochs)
    if args.lr_schedule == "cosine":
        rate *= (1 + math.cos(math.pi * min(1.0, epochs / args.max_epochs))) / 2
    return rate * min(1.0, (step + 1) / args.warmup_steps) if args.warmup_steps else rate


class Optimization:
    """A network with its optimizer and the running average of its weights.

    The objective is the sum of negative log-likelihoods in nats (paper, section 4) of the images of
    a step, those of all processes and of all accumulated batches together, or with
    ``--minimize_bpd`` their mean in bits per dimension.

    Attributes:
        model: the network; its parameters are the same in all processes.
        optimizer: Adam.
        average: the running average, or None (``--ema 1``).
        global_step: optimizer steps done.
        skipped_steps: steps left out because a number was not finite (``--nonfinite skip``).
    """

    def __init__(self, experiment: Experiment) -> None:
        args = experiment.args
        self.args, self.model = args, experiment.model
        self._experiment = experiment
        network = cast(nn.Module, torch.compile(self.model)) if args.compile else self.model
        self._network = experiment.processes.parallel(network)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
        )
        self.average: AveragedModel | None = None
        if args.ema < 1:
            self.average = AveragedModel(self.model, multi_avg_fn=_averaging(args.ema))
        self.global_step = self.skipped_steps = 0

    @property
    def test_model(self) -> nn.Module:
        """The weights that tests and samples use: the running average where there is one."""
        return self.model if self.average is None else self.average.module

    def backward(self, images: Tensor, masks: Masks, is_last: bool = True) -> float:
        """Add the gradients of a batch.

        Args:
            images: this process's share, ``B x C x H x W``; where it is empty, only the gradients
                of the other processes count.
            masks: of the batch's order.
            is_last: of the batches of a step; processes exchange their gradients then.

        Returns:
            The negative log-likelihood of the share, in nats.
        """
        experiment = self._experiment
        if is_empty := len(images) == 0:
            images = images.new_zeros(1, *images.shape[1:])
        images = images.to(experiment.device, non_blocking=True)
        exchange: AbstractContextManager[object] = nullcontext()
        if not is_last and isinstance(self._network, nn.parallel.DistributedDataParallel):
            exchange = self._network.no_sync()
        with exchange:
            with experiment.autocast():
                logits = self._network(images, masks)
            nats = -experiment.likelihood.log_prob(logits, images).sum()
            # Processes average their gradients; the objective is a sum.
            objective = nats * (0 if is_empty else experiment.processes.number)
            if self.args.minimize_bpd:
                objective = objective / (images[0].numel() * math.log(2))
            objective.backward()
        return 0.0 if is_empty else nats.item()

    def step(self, num_images: int, rate: float) -> float:
        """One optimizer step over the gradients of ``num_images``, of all processes.

        Returns:
            The norm of the gradient before clipping (``--clip``). Where it is not finite, nothing
            is changed but the count of skipped steps.
        """
        parameters = list(self.model.parameters())
        if self.args.minimize_bpd:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= num_images
        limit = self.args.clip if self.args.clip > 0 else math.inf
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
            self.average.update_parameters(self.model)
        return norm

    def skip(self) -> None:
        """Drop the gradients that have been added, and count the step as skipped."""
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped_steps += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        state: dict[str, Any] = {
            "global_step": self.global_step,
            "skipped_steps": self.skipped_steps,
            "model_state_dict": published_state_dict(self.model),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }
        if self.average is not None:
            state["ema_state_dict"] = published_state_dict(self.average.module)
            state["ema_steps"] = int(self.average.n_averaged)
        return state

    def load(self, checkpoint: dict[str, Any], source: str) -> None:
        """Go on from a checkpoint, also from a published one.

        Raises:
            CheckpointError: it is of another network or optimizer.
        """
        if "model_state_dict" not in checkpoint:
            raise CheckpointError(f"{source} has no model_state_dict: it is no training checkpoint")
        load_published_state_dict(self.model, checkpoint["model_state_dict"], source)
        if self.average is not None:
            weights = model_weights(checkpoint)
            load_published_state_dict(self.average.module, weights, source)
            is_averaged = weights is not checkpoint["model_state_dict"]
            steps = checkpoint.get("ema_steps", checkpoint["global_step"] if is_averaged else 1)
            self.average.n_averaged.fill_(steps)
        if not self.args.do_not_load_optimizer:
            if "optimizer_state_dict" not in checkpoint:
                raise CheckpointError(
                    f"{source} has no optimizer state: --do_not_load_optimizer goes on without it"
                )
            load_optimizer_state(self.optimizer, checkpoint["optimizer_state_dict"], source)
        self.global_step = int(checkpoint.get("global_step", 0))
        self.skipped_steps = int(checkpoint.get("skipped_steps", 0))


def _averaging(decay: float) -> Any:
    """The update of a running average, which forgets its first steps faster."""

    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], steps: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averages, values, weight)

    return update
