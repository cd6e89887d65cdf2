"""Where a training run stands between two steps, as its checkpoints store it with the weights."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from utils import nats_to_bpd

__all__ = ["Progress", "Totals"]


@dataclass(frozen=True)
class Totals:
    """Totals of batches over all processes, except for the times, which are this process's."""

    nats: float = 0.0
    images: float = 0.0
    dimensions: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0  # seconds spent waiting for the next batch

    def plus(self, other: "Totals") -> "Totals":
        """The sum of both."""
        mine, others = asdict(self).values(), asdict(other).values()
        return Totals(*(a + b for a, b in zip(mine, others, strict=True)))

    def if_finite(self) -> "Totals":
        """The same totals, but without nats and dimensions if the nats are not finite."""
        return self if math.isfinite(self.nats) else replace(self, nats=0.0, dimensions=0.0)

    @property
    def bpd(self) -> float:
        """Mean bits per dimension; not a number if no batch counts."""
        return nats_to_bpd(self.nats, int(self.dimensions)) if self.dimensions else math.nan


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: the last epoch whose steps are done, -1 before the first.
        batches_done: number of batches that are done in the epoch after it.
        is_closed: whether the test and the samples of ``epoch`` are also done.
        totals: totals of the current epoch.
        window: totals since metrics were last logged.
        best_bpd: best result of all tests so far, in bits per dimension.
        test_losses: results of the last test, by their names in checkpoints.
    """

    epoch: int = -1
    batches_done: int = 0
    is_closed: bool = True
    totals: Totals = Totals()
    window: Totals = Totals()
    best_bpd: float = math.inf
    test_losses: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, checkpoint: Mapping[str, Any], batch_size: int, num_batches: int | None = None
    ) -> "Progress":
        """Read it from a checkpoint; published ones have only the epoch and test losses.

        Args:
            checkpoint: what ``load_checkpoint`` returns.
            batch_size: current batch size of all processes together.
            num_batches: number of batches of an epoch, if it is known; no more can be done.
        """
        images_done = checkpoint.get("batches_done", 0) * checkpoint.get("global_batch_size", 0)
        batches_done = images_done // batch_size
        return cls(
            epoch=int(checkpoint.get("epoch", -1)),
            batches_done=min(batches_done, batches_done if num_batches is None else num_batches),
            is_closed=checkpoint.get("is_closed", True),
            totals=Totals(**checkpoint.get("totals", {})),
            window=Totals(**checkpoint.get("window", {})),
            best_bpd=checkpoint.get("best_bpd", math.inf),
            test_losses={k: v for k, v in checkpoint.items() if k.startswith("test_loss_")},
        )

    def state(self, batch_size: int) -> dict[str, Any]:
        """What a checkpoint stores for ``of`` to read."""
        return {
            "epoch": self.epoch,
            "batches_done": self.batches_done,
            "global_batch_size": batch_size,
            "is_closed": self.is_closed,
            "totals": asdict(self.totals),
            "window": asdict(self.window),
            "best_bpd": self.best_bpd,
            **self.test_losses,
        }

    def count(self, batch: Totals) -> None:
        """Add the totals of a batch."""
        self.totals, self.window = self.totals.plus(batch), self.window.plus(batch)

    def end_epoch(self) -> None:
        """Note that the steps of an epoch are done, but not yet its test and samples."""
        self.epoch, self.batches_done, self.is_closed = self.epoch + 1, 0, False
        self.totals = self.window = Totals()

    def is_best(self, bpd: float) -> bool:
        """Note the result of a test, and return whether it is the best so far."""
        is_best = bpd < self.best_bpd  # False if bpd is not a number
        if is_best:
            self.best_bpd = bpd
        return is_best
