"""Training on images in memory: the trainer without a command line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmconv.checkpoints import find_checkpoints, has_checkpoints, load_checkpoint
from lmconv.data.pipeline import TestData, TrainData
from lmconv.data.sources import MemorySource
from lmconv.image_model import ImageModel
from lmconv.pixel_values import warn_of_levels
from lmconv.scoring import score_data_set
from lmconv.training.lock import locked
from lmconv.training.signals import StopRequest
from lmconv.training.tracking import Tracker
from lmconv.training.trainer import Trainer, TrainingConfig

__all__ = ["train"]


def train(
    model: ImageModel,
    images: np.ndarray | Tensor,
    run_dir: str | Path,
    config: TrainingConfig,
    *,
    test_images: np.ndarray | Tensor | None = None,
    labels: np.ndarray | Tensor | Sequence[int] | None = None,
    test_labels: np.ndarray | Tensor | Sequence[int] | None = None,
    batch_size: int = 64,
    resume: bool = False,
    on_metrics: Callable[[int, dict[str, float]], object] | None = None,
    on_epoch: Callable[[ImageModel, int], object] | None = None,
) -> ImageModel:
    """Train a model on images in memory, as ``--mode train`` does.

    ::

        >>> import lmconv
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> description = lmconv.ModelDescription.of(
        ...     ((1, 8, 8),), lmconv.Preparation(n_bits=4), lmconv.OrderConfig(),
        ...     architecture="lmconv", nr_resnet=1, nr_filters=8, kernel_size=3,
        ...     normalization="pono", dropout_prob=0.0)
        >>> model = lmconv.ImageModel(description)
        >>> config = lmconv.TrainingConfig(1, lmconv.OptimizationConfig(lr=0.003))
        >>> digits = lmconv.read_digits(train=True)[:64]  # uint8, 64 x 1 x 8 x 8
        >>> model = lmconv.train(model, digits, folder, config, batch_size=16)
        >>> lmconv.load(f"{folder}/0_ep0.pth").image_shape
        (1, 8, 8)

    Args:
        model: the model to train, whose network is changed in place.
        images: uint8 or uint16, ``N x C x H x W``, of the model's size; uint16 if the model's
            images have more than 8 bits.
        run_dir: directory for checkpoints and ``metrics.jsonl``.
        config: settings of the run.
        test_images: images to test on, like ``images``; the checkpoint with the best likelihood of
            these is kept as ``best.pth``.
        labels: the class of each image, N whole numbers below the number of the model's classes; a
            model that knows classes needs them.
        test_labels: those of the test images, which are then also scored given their classes.
        batch_size: images per batch.
        resume: go on from the newest checkpoint in ``run_dir``, if there is one.
        on_metrics: called with the number of steps and the metrics whenever these are recorded.
        on_epoch: called after epochs, as often as ``sample_interval`` says, with the model that is
            tested and the number of the epoch.

    Returns:
        The model that is tested, with the running average of the weights if there is one.

    Raises:
        ValueError: the images or the labels do not fit the model, or ``run_dir`` has checkpoints
            already.
        LockedError: another process trains in ``run_dir``.
        TrainingError: losses or gradients are no longer finite.
        Stopped: a signal has stopped the run, which is saved.
    """
    folder = Path(run_dir)
    preparation, num_classes = model.description.preparation, len(model.description.classes)
    if num_classes and labels is None:
        raise ValueError(f"the model knows {num_classes} classes: pass the labels of the images")
    data = TrainData(
        _source(model, images),
        [model.image_shape],
        preparation,
        batch_size,
        config.seed,
        labels=_labels(model, labels, len(images), "labels"),
        num_classes=num_classes,
    )
    test: Callable[[ImageModel], list[dict[str, Any]]] | None = None
    if test_images is not None:
        test_data = TestData(
            _source(model, test_images),
            model.image_shape[0],
            preparation,
            batch_size,
            config.seed,
            _labels(model, test_labels, len(test_images), "test_labels"),
        )

        def test(model: ImageModel) -> list[dict[str, Any]]:
            return [score_data_set(model, test_data)]

    def draw(model: ImageModel, epoch: int) -> list[Path]:
        if on_epoch is not None:
            on_epoch(model, epoch)
        return []

    with locked(folder):
        torch.manual_seed(config.seed)
        trainer = Trainer(model, data, config, folder, test=test, draw=draw)
        found = find_checkpoints(folder, config.exp_id)
        if has_checkpoints(folder) and not resume:
            raise ValueError(
                f"{folder} already has checkpoints: pass resume=True to go on from them"
            )
        if found:
            path = found[-1][1]
            trainer.resume(path, load_checkpoint(path))
        with (
            Tracker(
                folder,
                {},
                use_wandb=False,
                use_tensorboard=False,
                step=trainer.optimization.global_step,
                kept_size=trainer.metrics_size,
                on_log=on_metrics,
            ) as tracker,
            StopRequest() as stop,
        ):
            trainer.run(tracker, stop)
        return trainer.optimization.test_model


def _labels(
    model: ImageModel,
    labels: np.ndarray | Tensor | Sequence[int] | None,
    number: int,
    name: str,
) -> np.ndarray | None:
    if labels is None:
        return None
    classes = len(model.description.classes)
    if not classes:
        raise ValueError(f"{name}: the model knows no classes: describe it with `classes`")
    numbers = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    is_whole = np.issubdtype(numbers.dtype, np.integer) and numbers.shape == (number,)
    if not is_whole or not ((numbers >= 0) & (numbers < classes)).all():
        raise ValueError(
            f"{name} must be {number} whole numbers from 0 to {classes - 1}, got {numbers.dtype} "
            f"of shape {numbers.shape}" + f" up to {numbers.max()}" * bool(is_whole)
        )
    return numbers.astype(np.int64)


def _source(model: ImageModel, images: np.ndarray | Tensor) -> MemorySource:
    pixels = images.cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    needed = model.description.preparation.pixel_type
    is_stored = pixels.dtype in (np.uint8, np.uint16) and pixels.dtype.itemsize >= needed().itemsize
    if not is_stored or pixels.ndim != 4 or pixels.shape[1:] != model.image_shape:
        shape = "x".join(map(str, model.image_shape))
        raise ValueError(
            f"images for this model must be a {needed.__name__} array of N x {shape}, got "
            f"{pixels.dtype} of shape {pixels.shape}"
        )
    if len(pixels) == 0:
        raise ValueError("there are no images: give at least one")
    warn_of_levels(pixels, model.likelihood.num_values)
    return MemorySource(pixels)
