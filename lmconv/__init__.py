"""Locally masked convolution: exact-likelihood image models that generate pixels in any order.

    import lmconv

    model = lmconv.load("pretrained/binary_mnist_small.pth")
    nats = -model.log_prob(images)
    samples = model.sample(16, seed=1)
    result = lmconv.complete(model, images, hidden, number=4)
    data = lmconv.compress(model, images)

``docs/python.md`` shows more. Names are imported on first use, since PyTorch takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmconv.checkpoints import CheckpointError
    from lmconv.completion import Completions, complete
    from lmconv.compression.collection import compress, decompress
    from lmconv.compression.fields import CompressedFileError
    from lmconv.data.cifar import read_cifar
    from lmconv.data.datasets import DataError
    from lmconv.data.digits import read_digits
    from lmconv.data.idx_files import read_mnist
    from lmconv.description import ModelDescription
    from lmconv.image_model import ImageModel, SamplingConfig, ensemble, load
    from lmconv.orders import Order, OrderConfig
    from lmconv.pixel_values import Preparation
    from lmconv.training.arrays import train
    from lmconv.training.optimization import OptimizationConfig
    from lmconv.training.trainer import TrainingConfig, TrainingError

_MODULES = {
    "CheckpointError": "lmconv.checkpoints",
    "CompressedFileError": "lmconv.compression.fields",
    "Completions": "lmconv.completion",
    "DataError": "lmconv.data.datasets",
    "ImageModel": "lmconv.image_model",
    "ModelDescription": "lmconv.description",
    "OptimizationConfig": "lmconv.training.optimization",
    "Order": "lmconv.orders",
    "OrderConfig": "lmconv.orders",
    "Preparation": "lmconv.pixel_values",
    "SamplingConfig": "lmconv.image_model",
    "TrainingConfig": "lmconv.training.trainer",
    "TrainingError": "lmconv.training.trainer",
    "complete": "lmconv.completion",
    "compress": "lmconv.compression.collection",
    "decompress": "lmconv.compression.collection",
    "ensemble": "lmconv.image_model",
    "load": "lmconv.image_model",
    "read_cifar": "lmconv.data.cifar",
    "read_digits": "lmconv.data.digits",
    "read_mnist": "lmconv.data.idx_files",
    "train": "lmconv.training.arrays",
}

__all__ = [
    "CheckpointError",
    "Completions",
    "CompressedFileError",
    "DataError",
    "ImageModel",
    "ModelDescription",
    "OptimizationConfig",
    "Order",
    "OrderConfig",
    "Preparation",
    "SamplingConfig",
    "TrainingConfig",
    "TrainingError",
    "complete",
    "compress",
    "decompress",
    "ensemble",
    "load",
    "read_cifar",
    "read_digits",
    "read_mnist",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
