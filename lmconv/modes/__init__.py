"""The modes of the command line, each with a module that checks and runs it.

A mode's module offers ``check(run)``, which finds every mistake that can be found before anything
is written, and ``run(run)``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from utils import UserError

__all__ = ["MODES", "Mode", "UsageError"]


class UsageError(UserError):
    """A mistake in a command line: one line that names the flag and the remedy."""


class Mode(NamedTuple):
    """What the command line knows about a mode before its module is imported.

    Attributes:
        module: name of the mode's module in this package.
        purpose: what the mode does, for the help.
        flags: flags that only a few modes use, this one among them.
        needs_weights: whether the mode needs a trained model; otherwise it may make a new one.
        is_shared: whether all processes of a run take part; otherwise only the first one works.
        makes_run: whether the mode needs a run, with a model and a directory; otherwise its
            functions take the given flags.
    """

    module: str
    purpose: str
    flags: frozenset[str] = frozenset()
    needs_weights: bool = True
    is_shared: bool = False
    makes_run: bool = True


_HOLES = frozenset({"images", "hole_mask", "resize_images", "part"})

MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "train": Mode(
            "train",
            "train a network",
            frozenset({"change_settings"}),
            needs_weights=False,
            is_shared=True,
        ),
        "test": Mode(
            "test", "compute the likelihood of the test set", frozenset({"part"}), is_shared=True
        ),
        "sample": Mode(
            "sample",
            "draw or complete images",
            _HOLES | {"completions", "order_choice", "sample_class"},
            is_shared=True,
        ),
        "score": Mode(
            "score",
            "compute the likelihood of each image",
            _HOLES | {"likelihood_map"},
            is_shared=True,
        ),
        "classify": Mode(
            "classify",
            "compute the probability of each class given an image or a part of it",
            frozenset({"images", "hole_mask", "resize_images", "part", "visible", "class_prior"}),
            is_shared=True,
        ),
        "compress": Mode(
            "compress",
            "compress images without loss",
            frozenset({"images", "resize_images", "part", "output"})
            | {"compress_order", "compress_views", "no_names"},
            is_shared=True,
        ),
        "decompress": Mode(
            "decompress", "decompress images", frozenset({"input", "output"}), is_shared=True
        ),
        "plot": Mode("plot", "draw learning curves", frozenset({"compare_runs"}), makes_run=False),
        "web": Mode(
            "web",
            "open a page in the browser on which models can be used",
            frozenset({"host", "port", "no_browser"}),
            makes_run=False,
        ),
        "info": Mode("info", "describe a checkpoint", makes_run=False),
        "count_params": Mode("count_params", "count a network's parameters", needs_weights=False),
    }
)
