"""``--mode info``: describe a checkpoint."""

import argparse
import logging

from lmconv.checkpoint_summary import summary_lines
from lmconv.modes.run_directory import checkpoint_file, open_checkpoint

__all__ = ["check", "run"]

log = logging.getLogger(__name__)


def check(given: argparse.Namespace) -> None:
    """Raise CheckpointError if there is no checkpoint."""
    checkpoint_file(given)


def run(given: argparse.Namespace) -> None:
    """Print the network, images, likelihood, orders, training position and results of a file."""
    checkpoint = open_checkpoint(given)
    path, contents, description = checkpoint.path, checkpoint.contents, checkpoint.description
    log.info("%s (%.1f MB)", path, path.stat().st_size / 1e6)
    for name, value in summary_lines(contents, description):
        log.info("  %-12s %s", f"{name}:", value)
