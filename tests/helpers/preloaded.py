"""All that a training run imports, so that runs forked from a process need not import it again."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import sklearn.datasets  # noqa: F401

import main

__all__ = ["main"]

# As tracking.py does it, so that TensorFlow is not loaded.
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
import_module("torch.utils.tensorboard")
import_module("lmconv.modes.train")
