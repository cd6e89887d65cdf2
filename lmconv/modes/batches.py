"""Which numbers of images and of pixels around them cannot fit into memory.

Estimates are lower bounds: what they refuse would certainly be killed, and nothing else is refused.
"""

import argparse
from collections.abc import Sequence

from lmconv.data.standard_sets import STANDARD_SETS
from lmconv.image_model import ImageModel
from lmconv.memory import check_memory
from lmconv.pixel_values import ImageShape
from lmconv.plots import grid_size

__all__ = ["check_batches"]


def check_batches(
    args: argparse.Namespace, model: ImageModel, image_shapes: Sequence[ImageShape]
) -> None:
    """Raise ValueError if what a mode works on at once cannot fit into memory.

    Args:
        args: the command line, with every flag's value.
        model: the model.
        image_shapes: (C, H, W) of each image size.
    """
    trains = args.mode == "train"
    for shape in image_shapes:
        if args.mode in ("train", "test", "score", "classify"):
            number = min(args.batch_size, _most_images(args, trains))
            model.check_batch(number, shape, "batch_size", trains)
        if args.mode in ("train", "sample"):
            _check_samples(args, model, shape)


def _most_images(args: argparse.Namespace, train: bool) -> int:
    """A number of images that the data set, or the part of it that is used, does not exceed."""
    if args.images:
        return len(args.images)
    limit = args.max_train_images if train else args.max_test_images
    limits = [limit] if limit != -1 and args.dataset != "celebahq" else []
    if args.dataset in STANDARD_SETS:
        numbers = STANDARD_SETS[args.dataset].num_images
        limits.append(numbers["train" if train else "test"])
    return min(limits, default=args.batch_size)


def _check_samples(args: argparse.Namespace, model: ImageModel, image_shape: ImageShape) -> None:
    channels, height, width = image_shape
    is_partial = args.sample_region != "full" or args.hole_mask is not None
    at_once = args.sample_batch_size
    if args.mode == "sample" and args.num_samples:
        at_once = min(at_once, args.num_samples)
    if is_partial:
        at_once = min(at_once, _most_images(args, train=False) * (args.completions or 1))
    if args.sampler == "naive":
        model.check_batch(at_once, image_shape, "sample_batch_size")
    tiles = at_once * (4 if is_partial else 1)
    rows, columns = grid_size(tiles, height, width, args.save_nrow, args.save_padding)
    # Originals, results and what is drawn of them, and the picture twice in colour.
    check_memory(
        4 * (4 * at_once * channels * height * width + 6 * rows * columns),
        f"`sample_batch_size` {at_once} with pictures of {rows}x{columns} dots (`save_nrow` "
        f"{args.save_nrow or 'by default'}, `save_padding` {args.save_padding})",
    )
    check_memory(
        4 * channels * height * width * (args.completions or 1),
        f"`completions` {args.completions or 1} of an image of {height}x{width}",
    )
