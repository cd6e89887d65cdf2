"""``--mode count_params``: the size of a network."""

import logging

from lmconv.modes.run import Run
from model import count_parameters

__all__ = ["check", "run"]

log = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Check nothing: the network is made by now, so nothing can be wrong."""


def run(run: Run) -> None:
    """Print the numbers of parameters, as the published code does."""
    network = run.model.network
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    log.info("  Total number of parameters in model: %d", count_parameters(network))
    log.info("  Total number of trainable parameters in model: %d", trainable)
