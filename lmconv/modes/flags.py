"""The flags of the command line, their help, and their defaults for each data set.

Nothing here imports PyTorch, so that ``--help`` is quick.
"""

import argparse
import math
import re
from typing import Any, NoReturn

from lmconv.modes import MODES, UsageError

__all__ = [
    "ANY_SIZE",
    "BINARY_DATASETS",
    "BROUGHT_DATASETS",
    "DATASETS",
    "DEFAULTS",
    "MUON_LR",
    "NORMALIZATIONS",
    "ORDERS",
    "PARTS",
    "PICTURE_DATASETS",
    "SIZE_FLAGS",
    "VISIBLE_PARTS",
    "build_parser",
]

# The names that flags choose from. They are the same as in the registries of ``masking``, ``model``
# and ``lmconv.data.datasets``, which need PyTorch; a test checks that.
ORDERS = (
    "raster_scan",
    "s_curve",
    "hilbert",
    "gilbert2d",
    "s_curve_center_quarter_last",
    "diagonal",
    "spiral_in",
    "spiral_out",
    "zipper",
    "random",
)
NORMALIZATIONS = ("none", "weight_norm", "order_rescale", "pono")
# Data sets that people bring: pictures of any size, which are brought to one, and arrays.
PICTURE_DATASETS = ("folder", "parquet")
BROUGHT_DATASETS = (*PICTURE_DATASETS, "array")
DATASETS = (
    *("mnist", "cifar", "celebahq", "digits", *BROUGHT_DATASETS),
    *("binary_mnist", "fashion_mnist", "kmnist"),
    *("emnist_balanced", "emnist_byclass", "emnist_bymerge"),
    *("emnist_digits", "emnist_letters", "emnist_mnist"),
    *("omniglot", "svhn", "cifar100", "imagenet32", "imagenet64", "celeba64"),
)
# Those of black and white pixels, which imply --binarize.
BINARY_DATASETS = ("binary_mnist",)
PARTS = ("train", "test", "valid", "all")
# What --mode classify can be given of an image.
VISIBLE_PARTS = ("all", "top", "bottom", "left", "right")

# Defaults of flags that depend on the data set: (published data sets, digits). The published values
# are those of the paper's code; digits has a small network that trains in minutes on two cores.
DEFAULTS: dict[str, tuple[Any, Any]] = {
    "nr_resnet": (5, 1),
    "nr_filters": (160, 24),
    "kernel_size": (5, 3),
    "normalization": ("weight_norm", "pono"),
    "dropout_prob": (0.5, 0.0),
    "randomize_order": (False, True),
    "lr": (2e-4, 3e-3),
    "lr_decay": (0.999995, 0.88),
    "batch_size": (64, 32),
    "max_epochs": (5000, 16),
    "test_interval": (1, 8),
    "sample_interval": (4, 16),
    "sample_size_h": (16, 4),
    "sample_size_w": (16, 4),
}
# Default of --lr for --optimizer muon, whatever the data set.
MUON_LR = 0.02


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists all flags)")


# The image size that stands for each picture's own.
ANY_SIZE = "any"
# Flags whose value is a height and a width; that of the first can also be several of these.
SIZE_FLAGS = ("image_size", "crop")
# Larger whole numbers fit neither NumPy nor PyTorch.
_MOST = 2**63 - 1
# Squares of this side have as many pixels as a model's description allows.
_LARGEST_SIDE = 2**11


def _at_least(minimum: int, maximum: int = _MOST) -> Any:
    def parse_integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {text:.40}")
        if value > maximum:
            raise argparse.ArgumentTypeError(f"must be at most {maximum}, got {text:.40}")
        return value

    return parse_integer


def _number_between(low: float, high: float, low_included: bool = True) -> Any:
    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a finite number, got {text:.40}")
        if not (low < value <= high or (low_included and value == low)):
            relation = "at least" if low_included else "above"
            upper = "" if high == math.inf else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"must be {relation} {low:g}{upper}, got {text}")
        return value

    return parse_number


def _image_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(re.fullmatch("[0-9]{1,9}", side) for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a size: give HxW, such as 32x48, or 32"
        )
    height, width = int(sides[0]), int(sides[-1])
    if not 0 < height * width <= _LARGEST_SIDE**2:
        raise argparse.ArgumentTypeError(
            f"must have 1 to {_LARGEST_SIDE**2} pixels (2^22), got {text}"
        )
    return height, width


def _image_size_or_any(text: str) -> tuple[int, int] | str:
    return text if text == ANY_SIZE else _image_size(text)


class _Sizes(argparse.Action):
    """Stores a size that stands alone as it is, and several ones as a list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if len(values) > 1 and ANY_SIZE in values:
            raise argparse.ArgumentError(self, f"{ANY_SIZE} stands alone: leave out other sizes")
        setattr(namespace, self.dest, values if len(values) > 1 else values[0])


def _guess(text: str) -> int | str:
    return text if text == "auto" else _at_least(0, _LARGEST_SIDE)(text)


_positive = _at_least(1)
_side = _at_least(1, _LARGEST_SIDE)
_whole_number = _at_least(-_MOST)
_any_number = _number_between(-math.inf, math.inf)
_positive_number = _number_between(0, math.inf, low_included=False)
_rate = _number_between(0, 1e30, low_included=False)
_temperature = _number_between(1e-6, 1e6)


def _by_dataset(name: str) -> str:
    published, digits = DEFAULTS[name]
    return f"(default: {published}; digits: {digits})"


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of ``main.py``; flags whose defaults depend on the data set are None."""
    parser = _Parser(
        prog="main.py",
        description="Train, test and sample autoregressive image models with any pixel order.",
        epilog="@FILE stands for the flags in a text file, such as those in presets/. Later flags "
        "win. Put a value that contains blanks in quotes; a backslash is an ordinary character.",
    )
    purposes = "; ".join(f"{name}: {mode.purpose}" for name, mode in MODES.items())
    parser.add_argument(
        "--mode",
        choices=tuple(MODES),
        default="train",
        help=f"what to do (default: %(default)s). {purposes}",
    )
    for add_group in (
        _add_files,
        _add_data,
        _add_model,
        _add_optimization,
        _add_orders,
        _add_sampling,
        _add_testing,
        _add_compression,
        _add_page,
        _add_published_only,
    ):
        add_group(parser)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files and logging").add_argument
    add("-rd", "--run_dir", help="run directory (default: named after the settings, in runs/)")
    add(
        "--compare_runs",
        nargs="+",
        metavar="RUN_DIR",
        help="directories of further runs, whose learning curves --mode plot draws together with "
        "those of --run_dir",
    )
    add("--exp_name", help="text to append to the default name of the run directory")
    add(
        "-ID",
        "--exp_id",
        type=_at_least(0),
        default=0,
        help="number that the default name of the run directory and the names of checkpoints begin "
        "with (default: %(default)s)",
    )
    add(
        "-r",
        "--load_params",
        nargs="?",
        const="",
        help="checkpoint to load: a path, or a name inside the run directory; without a value, the "
        "best or newest one in the run directory, which all modes that need one load by default",
    )
    add(
        "--load_last_params",
        action="store_true",
        help="continue from the newest checkpoint in the run directory",
    )
    add(
        "--change_settings",
        action="store_true",
        help="continue a run with other data, orders, batches or another seed than it had",
    )
    add(
        "--raw_weights",
        action="store_true",
        help="use the weights themselves instead of their running average; not in --mode train or "
        "web",
    )
    add(
        "--do_not_load_optimizer",
        action="store_true",
        help="load only the weights, and start with a fresh optimizer",
    )
    add(
        "-p",
        "--print_every",
        type=_positive,
        default=20,
        help="steps between records of metrics (default: %(default)s)",
    )
    add(
        "-t",
        "--save_interval",
        type=_positive,
        default=20,
        help="epochs between checkpoints that are kept in addition to the newest one (default: "
        "%(default)s)",
    )
    add(
        "--save_minutes",
        type=_positive_number,
        help="also save within epochs, this many minutes after the last save (default: never)",
    )
    add(
        "-ts",
        "--sample_interval",
        type=_positive,
        help=f"epochs between sample grids {_by_dataset('sample_interval')}",
    )
    add(
        "-tt",
        "--test_interval",
        type=_positive,
        help=f"epochs between tests {_by_dataset('test_interval')}",
    )
    add("--disable_wandb", action="store_true", help="do not log to Weights & Biases")
    add("--plot_masks", action="store_true", help="draw the masks of every order, as PDF files")


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "-d",
        "--dataset",
        choices=DATASETS,
        default="digits",
        metavar="NAME",
        help=f"data set to use (default: %(default)s): {', '.join(DATASETS)}. folder, parquet and "
        "array are images of yours in --data_dir: image files, Parquet files with a column of "
        "pictures, .npy or .npz",
    )
    add(
        "-i",
        "--data_dir",
        default="data",
        help="folder with the data sets, or with the images of -d folder, parquet or array, which "
        "may be a single file as well (default: %(default)s)",
    )
    add(
        "--binarize",
        action="store_true",
        help="binarize one-channel images at random; -d binary_mnist is binary already, and needs "
        "no flag",
    )
    add(
        "--n_bits",
        type=_whole_number,
        default=8,
        help="bits per channel, the upper ones of each value: 1 to 8, or up to 16 for files of 16 "
        "bits in -d folder and arrays of uint16 in -d array (default: %(default)s)",
    )
    add(
        "--celeba_size",
        type=_side,
        default=256,
        help="height and width that -d celebahq is resized to (default: %(default)s)",
    )
    add(
        "--image_size",
        type=_image_size_or_any,
        nargs="+",
        action=_Sizes,
        metavar="HxW",
        help="size that the images of -d folder and parquet are cropped and resized to, "
        "required with them; those of -d array have theirs without it; one number stands "
        "for a square; of several sizes, each picture of a folder is brought to the one with the "
        "nearest proportions, and a batch has one size; 'any' scores, completes and "
        "compresses each of these images at its own size, as is done with --images",
    )
    add(
        "--crop",
        type=_image_size,
        metavar="HxW",
        help="cut the images of -d folder, parquet or array into pieces of this size instead of "
        "resizing them to --image_size; in training at random places, anew in each epoch",
    )
    add(
        "--max_reduction",
        type=_number_between(1, 100),
        default=1.0,
        metavar="R",
        help="with --crop: reduce each piece of a training picture by a random factor from 1 to R, "
        "so that few pictures show more kinds of detail (default: %(default)s)",
    )
    add(
        "--split_seed",
        type=_at_least(0),
        default=0,
        help="seed for choosing a tenth of the images of -d folder, parquet or array as the test "
        "set, if they are not split into parts already, and for choosing the images that "
        "--max_train_images and --max_test_images keep (default: %(default)s)",
    )
    add(
        "--part",
        choices=PARTS,
        help="part of the data set to test, score, classify, complete or compress; valid needs -d "
        "binary_mnist or celeba64, and all needs -d folder, parquet or array (default: "
        "test; to score or compress one of these three that is not split in two: all, "
        "unless --max_test_images is given)",
    )
    add(
        "--random_crop",
        action="store_true",
        help="crop training images of -d folder or parquet at a random place, anew in each "
        "epoch, instead of to their middle",
    )
    add(
        "--flip",
        action="store_true",
        help="mirror each training image from left to right with probability 1/2, anew in each "
        "epoch",
    )
    add(
        "--permute_channels",
        action="store_true",
        help="put the channels of each training image in random order, anew in each epoch: few "
        "pictures then show more colours",
    )
    add(
        "--channels",
        type=int,
        choices=range(1, 9),
        metavar="{1-4}",
        help="channels of the images of -d folder or parquet: 1 for grey, 2 for grey and alpha, 3 "
        "for RGB, 4 for RGB and alpha (default: 3)",
    )
    for split in ("train", "test"):
        add(
            f"--max_celeba_{split}_batches",
            type=_whole_number,
            default=-1,
            help=f"maximum number of {split} batches of -d celebahq, -1 for no limit "
            "(default: %(default)s)",
        )
    for split in ("train", "test"):
        add(
            f"--max_{split}_images",
            type=_whole_number,
            default=-1,
            help=f"number of {split} images to use: the first ones, or those of -d folder, "
            "parquet or array that --split_seed draws; not for celebahq; -1 for all "
            "(default: %(default)s)",
        )
    add(
        "--images",
        nargs="+",
        metavar="FILE",
        help="files to complete, score, classify or compress instead of the test set (PNG, JPEG, "
        "WebP, TIFF, BMP), each at its own size unless --image_size or --resize_images says "
        "otherwise; images to classify must have the model's size",
    )
    add(
        "--resize_images",
        action="store_true",
        help="crop and resize --images to the model's size, and turn them grey for grey models",
    )
    add(
        "--hole_mask",
        metavar="MASK.png",
        help="picture of the same size as the images; pixels that are white in it are completed or "
        "scored, or hidden from --mode classify",
    )
    add(
        "--resize_sizes",
        type=_side,
        nargs="+",
        help="square sizes to resize images to, one drawn for each training batch (default: the "
        "data set's own size)",
    )
    add(
        "--resize_probs",
        type=_any_number,
        nargs="+",
        help="probabilities of --resize_sizes (default: equal)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        choices=("lmconv", "pixelcnnpp"),
        help="network: lmconv, with locally masked convolutions, or pixelcnnpp, the PixelCNN++ "
        "baseline (default: lmconv)",
    )
    add("--ours", action="store_true", help="the same as --model lmconv")
    add("-q", "--nr_resnet", type=_positive, help=f"blocks per stage {_by_dataset('nr_resnet')}")
    add(
        "-n",
        "--nr_filters",
        type=_positive,
        help=f"number of feature channels {_by_dataset('nr_filters')}",
    )
    add(
        "-m",
        "--nr_logistic_mix",
        type=_positive,
        default=10,
        help="number of logistics per mixture (default: %(default)s)",
    )
    add(
        "--coefficient_bound",
        type=_number_between(1, 16),
        default=1.0,
        help="let a channel of colour images shift the means of later ones by at most this many "
        "times its own value or, with --local_prediction, its difference from the prediction "
        "(1 to 16; default and published: 1); 3 suits photographs",
    )
    add(
        "-k",
        "--kernel_size",
        type=_positive,
        help=f"size of the masked kernels, an odd number {_by_dataset('kernel_size')}",
    )
    add(
        "-md",
        "--max_dilation",
        type=_positive,
        help="dilation of the convolutions between the stages (default: 2)",
    )
    add(
        "-dp",
        "--dropout_prob",
        type=_number_between(0, 0.999),
        help=f"probability of dropout {_by_dataset('dropout_prob')}",
    )
    add(
        "-nm",
        "--normalization",
        choices=NORMALIZATIONS,
        help=f"kind of normalization {_by_dataset('normalization')}",
    )
    add("--no_bias", action="store_true", help="use masked convolutions without bias")
    add("--learn_weight_for_masks", action="store_true", help="also learn weights for the masks")
    add(
        "--input_positions",
        action="store_true",
        help="tell the network where in the image each pixel is: add a learned function of its row "
        "and column, as shares of the height and width, to the first features",
    )
    add(
        "--local_prediction",
        action="store_true",
        help="predict each pixel of grey or colour images as a weighted mean of the visible pixels "
        "around it, which the network corrects: fewer bits, above all for photographs",
    )
    add(
        "--class_conditional",
        action="store_true",
        help="train one network for all classes of images: it is told the class of each training "
        "image, by the labels of the data set or, of -d folder, by the folder that the image is in "
        "(train/CLASS/), except for a tenth of the images, so that it also works without labels",
    )
    add(
        "--rematerialize",
        action="store_true",
        help="recompute blocks in the backward pass: less memory for more computation",
    )


def _add_optimization(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimization").add_argument
    add(
        "--optimizer",
        choices=("adam", "muon"),
        default="adam",
        help="adam; or muon, which learns faster: Muon for the kernels of convolutions, Adam at a "
        "tenth of --lr for other weights (default: %(default)s)",
    )
    add(
        "-l",
        "--lr",
        type=_rate,
        help=f"learning rate {_by_dataset('lr')[:-1]}; --optimizer muon: {MUON_LR:g})",
    )
    add(
        "-e",
        "--lr_decay",
        type=_number_between(0, 1, low_included=False),
        help=f"factor applied to the learning rate after each epoch {_by_dataset('lr_decay')}",
    )
    add(
        "--lr_schedule",
        choices=("exponential", "cosine"),
        default="exponential",
        help="how the learning rate falls; exponential: only by --lr_decay; cosine: also along "
        "half a cosine to 0 over --max_epochs (default: %(default)s)",
    )
    add(
        "--warmup_steps",
        type=_at_least(0),
        default=0,
        help="steps over which the learning rate rises at the start (default: %(default)s)",
    )
    add(
        "-wd",
        "--weight_decay",
        type=_number_between(0, 1e6),
        default=0.0,
        help="factor of the L2 penalty; with --optimizer muon, the share by which weights shrink "
        "in each step, times their learning rate (default: %(default)s)",
    )
    add(
        "-c",
        "--clip",
        type=_any_number,
        default=-1,
        help="largest gradient norm; 0 or less for no limit (default: %(default)s)",
    )
    add(
        "-b",
        "--batch_size",
        type=_positive,
        help=f"images per batch in each process {_by_dataset('batch_size')}",
    )
    add(
        "-af",
        "--accum_freq",
        type=_positive,
        default=1,
        help="batches per optimizer step (default: %(default)s)",
    )
    add(
        "-x",
        "--max_epochs",
        type=_positive,
        help="epochs of the whole run, including those before it was resumed "
        f"{_by_dataset('max_epochs')}",
    )
    add(
        "-s",
        "--seed",
        type=_at_least(0),
        default=1,
        help="seed of the run's random numbers (default: %(default)s)",
    )
    add(
        "--ema",
        type=_number_between(0, 1),
        default=1.0,
        help="decay of the running average of the weights, which testing and sampling use; it is "
        "at most (1 + n) / (10 + n) in step n; 1 for no average (default: %(default)s)",
    )
    add(
        "--minimize_bpd",
        action="store_true",
        help="minimize the mean bits per dimension of a step's images instead of the sum of their "
        "nats; gradients, which --clip limits, become smaller",
    )
    add(
        "--precision",
        choices=("fp32", "bf16"),
        help="precision of the network; weights and likelihoods stay in float32 (default: fp32)",
    )
    add(
        "--amp_opt_level",
        choices=("O0", "O1", "O2"),
        help="published name of --precision: O0 is the same as fp32, O1 and O2 as bf16",
    )
    add(
        "--tf32",
        action="store_true",
        help="let GPUs multiply float32 numbers as TF32, with 10 bits of mantissa: faster",
    )
    add(
        "--threads",
        type=_positive,
        help="processor threads to compute with; where other programs use the processors, 1 can be "
        "many times faster (default: as many as PyTorch chooses)",
    )
    add("--compile", action="store_true", help="let torch.compile fuse the network's operations")
    add(
        "--nonfinite",
        choices=("stop", "skip"),
        default="stop",
        help="what to do if a loss or gradient is not finite: stop the run, or skip the step "
        "(default: %(default)s)",
    )


def _add_orders(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("orders").add_argument
    add(
        "--order",
        nargs="+",
        choices=ORDERS,
        help="orders to generate pixels in (default: s_curve, or none with --order_file)",
    )
    add(
        "--order_file",
        nargs="+",
        metavar="FILE.npy",
        help="files with orders of your own, which come after those of --order: the (row, column) "
        "of each pixel, H*W x 2, or its number, counted row by row, H*W",
    )
    add("--order_seed", type=_at_least(0), help="seed of --order random (default: 0)")
    add(
        "--randomize_order",
        action=argparse.BooleanOptionalAction,
        help="use the 8 variants of each order, mirrored and transposed; variant v of order k has "
        f"the index 8 * k + v {_by_dataset('randomize_order')}",
    )
    add(
        "--order_variants",
        type=_at_least(0),
        nargs="+",
        help="indices of the orders to keep, of those that --order, --order_file and "
        "--randomize_order make; the ones kept are numbered anew from 0 (default: all)",
    )
    for change in ("transpose", "reflect_rows", "reflect_cols"):
        add(
            f"--base_order_{change}",
            action="store_true",
            help=f"apply {change} to each order before its variants are made",
        )
    add(
        "--train_masks",
        type=_at_least(0),
        nargs="+",
        help="indices of the orders to train on (default: all)",
    )
    add(
        "--train_holes",
        type=_number_between(0, 1),
        default=0.0,
        metavar="P",
        help="share of the training batches that get a random hole, whose pixels come last in the "
        "order, as in completions: boxes, halves, brush strokes and single pixels "
        "(default: %(default)s)",
    )
    add(
        "--test_masks",
        type=_at_least(0),
        nargs="+",
        help="indices of the orders to test, score or classify with (default: all)",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add(
        "--sample_region",
        choices=("full", "center", "random_near_center", "top", "custom"),
        default="full",
        help="pixels to generate: all, or a box of --sample_size_h x --sample_size_w: in the "
        "center, near it (--seed decides where), in the upper left corner (top), or at "
        "--sample_offset1 and --sample_offset2 (custom); the other pixels are taken from test "
        "images (default: %(default)s)",
    )
    for axis, name in (("h", "height"), ("w", "width")):
        add(
            f"--sample_size_{axis}",
            type=_positive,
            help=f"{name} of the hidden box {_by_dataset(f'sample_size_{axis}')}",
        )
    for number, axis in ((1, "row"), (2, "column")):
        add(
            f"--sample_offset{number}",
            type=_whole_number,
            help=f"first {axis} of the box of --sample_region custom, counted from the centre",
        )
    add(
        "--num_samples",
        type=_positive,
        help="number of images to generate (default: one grid of --sample_batch_size)",
    )
    add(
        "--sample_class",
        nargs="+",
        metavar="CLASS",
        help="class of the images to draw or complete, by name or number; of several, images take "
        "turns, and so do the --completions of an image (default: unknown)",
    )
    add(
        "--sample_batch_size",
        type=_positive,
        help="number of images to generate at once and show in a grid (default: 25), or to "
        "compress at once (default: 256, if memory allows)",
    )
    add(
        "--sampler",
        choices=("cached", "naive"),
        help="cached computes each pixel's features once; naive runs the network on the whole "
        "image for each pixel. The images are the same up to rounding (default: cached; pixelcnnpp "
        "supports only naive)",
    )
    add(
        "--guess",
        type=_guess,
        metavar="{auto,0,W}",
        help="positions of each image that the cached sampler computes at once under a guess of "
        "their values, keeping those that come out right: fewer steps for the same images; 0 for "
        "none (default: auto, which chooses)",
    )
    add(
        "--order_choice",
        choices=("first", "best", "each"),
        help="complete images given all visible pixels, and generate the hidden ones in the first "
        "order, in the best one (where the visible pixels influence them most), or in each order "
        "(default with --images, --image_size any, --hole_mask or --completions: first; otherwise "
        "each hidden pixel sees only those before it in an order drawn at random)",
    )
    add(
        "--completions",
        type=_positive,
        help="number of completions of each image and order, drawn independently and ranked "
        "(default: 1)",
    )
    add(
        "--save_individual",
        action="store_true",
        help="also write each image to a file of its own: a PNG, or .npy for more than 4 channels",
    )
    add("--save_animation", action="store_true", help="also write a GIF of the generation")
    add(
        "--sample_mixture_temperature",
        type=_temperature,
        default=1.0,
        help="divisor of the logits of the mixture, or of those of binary pixels; below 1 for "
        "likelier images (default: %(default)s)",
    )
    add(
        "--sample_logistic_temperature",
        type=_temperature,
        default=1.0,
        help="factor applied to the scales of the logistics; below 1 for less noise; binary "
        "pixels have none (default: %(default)s)",
    )
    add(
        "--save_nrow",
        type=_positive,
        help="tiles per row of a grid (default: as many as make the grid nearly square)",
    )
    add(
        "--save_padding",
        type=_at_least(0),
        default=2,
        help="dots between tiles (default: %(default)s)",
    )


def _add_testing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("testing").add_argument
    add(
        "--test_region",
        choices=("full", "custom"),
        default="full",
        help="pixels to score: whole images, or a box (default: %(default)s)",
    )
    for name, default in (("minh", "0"), ("maxh", "32"), ("minw", "0"), ("maxw", "32")):
        limit = f"(default: {default}, at most the image's size)"
        add(
            f"--test_{name}",
            type=_at_least(0),
            help=f"{name} of the box of --test_region custom, which has rows minh to maxh - 1 and "
            f"columns minw to maxw - 1 {limit}",
        )
    add(
        "--test_context",
        choices=("order", "visible"),
        default="order",
        help="what each pixel of a region is given in --mode score: the pixels before it in the "
        "order, or also all pixels outside the region (default: %(default)s)",
    )
    add(
        "--visible",
        nargs="+",
        choices=VISIBLE_PARTS,
        help="parts of images that --mode classify is given, one after the other: all, or a half "
        "(default: all of these, or with --hole_mask or a box the pixels outside)",
    )
    add(
        "--class_prior",
        choices=("uniform", "train"),
        help="with --mode classify: how probable classes are before an image is seen: equally, or "
        "as frequent as in the training images (default: uniform)",
    )
    add(
        "--likelihood_map",
        action="store_true",
        help="with --mode score: also draw the bits that each pixel takes",
    )


def _add_compression(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("compression").add_argument
    add("--input", metavar="FILE.lmc", help="compressed file to decompress")
    add("--output", metavar="PATH", help="file to compress into, or new folder to decompress into")
    add(
        "--compress_order",
        choices=("first", "best"),
        help="compress all images in the first order, or each in the order in which it takes the "
        "fewest bits (default: first)",
    )
    add(
        "--compress_views",
        type=_positive,
        help="try this many views of each image and compress the one that takes the fewest bits: "
        "as it is, mirrored, upside down, both, the same with the channels in other orders, and "
        "all that of the transposed image if it is a square (default: 1; at most 4 for grey "
        "images, 24 for colour images, and twice as many for squares)",
    )
    add(
        "--no_names",
        action="store_true",
        help="number the images instead of storing the names of their files, which take some bytes",
    )


def _add_page(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the page of --mode web").add_argument
    add("--host", help="address that the page is served at (default: 127.0.0.1, this machine only)")
    add("--port", type=_at_least(0, 2**16 - 1), help="its port; 0: any (default: 7860)")
    add("--no_browser", action="store_true", help="do not open the page in the browser")


def _add_published_only(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("accepted for old command lines, without effect").add_argument
    add("-o", "--save_dir", help="ignored: nothing was ever saved there")
    add("--two_stream", action="store_true", help="ignored: it never had an effect")
    add(
        "--sample_quantize",
        action="store_true",
        help="ignored: samples always lie on the data grid",
    )
