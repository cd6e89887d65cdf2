"""The command line: its modes, each a module that checks and runs itself.

A mode's module offers ``check(run)``, which finds all that can be known to be wrong before anything
is written, and ``run(run)``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["MODES", "Mode"]


class Mode(NamedTuple):
    """What the command line knows of a mode before its module is imported.

    Attributes:
        module: its name in this package.
        purpose: what it does, for the help.
        flags: those that few modes look at, this one among them.
        needs_weights: whether it works with a trained model; else it may make a new one.
        is_shared: whether all processes of a run take part; else the first works alone.
        makes_run: whether it needs a run, with a model and a directory; else its functions take the
            flags that are given.
    """

    module: str
    purpose: str
    flags: frozenset[str] = frozenset()
    needs_weights: bool = True
    is_shared: bool = False
    makes_run: bool = True


_HOLES = frozenset({"images", "hole_mask", "resize_images"})

MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "train": Mode("train", "train a network", needs_weights=False, is_shared=True),
        "test": Mode("test", "likelihoods of the test set", is_shared=True),
        "sample": Mode(
            "sample", "draw images, or complete them", _HOLES | {"completions", "order_choice"}
        ),
        "score": Mode("score", "likelihoods of single images", _HOLES | {"likelihood_map"}),
        "compress": Mode(
            "compress",
            "store images in the bits that the model promises",
            frozenset({"images", "resize_images", "compress_order", "output"}),
        ),
        "decompress": Mode("decompress", "give them back", frozenset({"input", "output"})),
        "plot": Mode("plot", "draw learning curves", frozenset({"compare_runs"}), makes_run=False),
        "info": Mode("info", "say what a checkpoint is", makes_run=False),
        "count_params": Mode("count_params", "count a network's parameters", needs_weights=False),
    }
)
