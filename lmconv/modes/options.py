"""The command line as it is given, what fills in the rest, and the rules between flags.

``parse`` reads the given flags, and ``settle`` fills in the rest: from a checkpoint if there is
one, otherwise from the defaults of the data set. Nothing here imports PyTorch, so that ``--help``
is quick.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from lmconv.file_names import printable
from lmconv.modes import MODES, UsageError
from lmconv.modes.flags import (
    ANY_SIZE,
    BINARY_DATASETS,
    BROUGHT_DATASETS,
    DEFAULTS,
    MUON_LR,
    PICTURE_DATASETS,
    SIZE_FLAGS,
    build_parser,
)
from lmconv.modes.presets import expand_presets

__all__ = [
    "changed_settings",
    "has_several_sizes",
    "in_flags",
    "parse",
    "parse_stored",
    "settle",
    "size_words",
]

# Flags that shape masked convolutions or orders, which the baseline does not have.
_LMCONV_ONLY = (
    "kernel_size",
    "max_dilation",
    "normalization",
    "no_bias",
    "learn_weight_for_masks",
    "input_positions",
    "local_prediction",
    "randomize_order",
    "order_variants",
    "base_order_reflect_rows",
    "base_order_reflect_cols",
    "base_order_transpose",
    "order_file",
    "order_seed",
    "train_masks",
    "train_holes",
    "plot_masks",
)
# What the baseline has instead, also in the names of run directories.
_BASELINE = {
    "order": ["raster_scan"],
    "order_file": [],
    "randomize_order": False,
    "kernel_size": 3,
    "max_dilation": 2,
    "normalization": "weight_norm",
    "sampler": "naive",
}


_MOST_THREADS = 1024

# Flags of a training run that are not taken over when it goes on: they say what to do, and where.
_NOT_STORED = frozenset(
    {
        "mode",
        "run_dir",
        "load_params",
        "load_last_params",
        "do_not_load_optimizer",
        "raw_weights",
        "order_file",
        "ours",
        "amp_opt_level",
        "save_dir",
        "two_stream",
        "sample_quantize",
        *(name for mode in MODES.values() for name in mode.flags),
    }
)
# Parameters, as errors of other modules call them, whose flags have other names.
_FLAGS_OF_PARAMETERS = {
    "bias": "no_bias",
    "mask_weight": "learn_weight_for_masks",
    "label": "sample_class",
    "num_mixtures": "nr_logistic_mix",
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; flags that it leaves out are None.

    Raises:
        UsageError: a flag is unknown, malformed, or contradicts another; one line says which.
    """
    words = sys.argv[1:] if argv is None else argv
    args = _parse_given(build_parser(), expand_presets(words))
    args.mode = args.mode or "train"
    if args.ours and args.model == "pixelcnnpp":
        raise UsageError("--ours means --model lmconv and contradicts --model pixelcnnpp: give one")
    args.model = "lmconv" if args.ours else args.model
    args.own_sizes = _takes_own_sizes(args)
    if args.image_size == ANY_SIZE:
        args.image_size = None
    _check_modes(args)
    _check_pairs(args)
    if (args.kernel_size or 1) % 2 == 0:
        raise UsageError(f"--kernel_size must be odd, to have a centre, got {args.kernel_size}")
    if (args.threads or 1) > _MOST_THREADS:
        raise UsageError(f"--threads must be at most {_MOST_THREADS}, got {args.threads}")
    return args


def _takes_own_sizes(args: argparse.Namespace) -> bool:
    """Whether each image is taken at its own size, whatever the model's is.

    Raises:
        UsageError: that is asked for, but the mode cannot do it.
    """
    if args.image_size != ANY_SIZE:
        is_free = bool(args.images) and not args.resize_images and args.image_size is None
        return is_free and args.mode != "classify"
    completes = args.mode == "sample" and (args.images or args.hole_mask or args.sample_region)
    if not completes and args.mode not in ("score", "compress"):
        raise UsageError(
            f"--image_size {ANY_SIZE} is for scores, completions and compression, not for --mode "
            f"{args.mode}: give HxW"
        )
    if args.resize_images or args.crop or args.resize_sizes:
        raise UsageError(
            f"--image_size {ANY_SIZE} leaves pictures as they are: leave out --resize_images, "
            "--crop and --resize_sizes"
        )
    return True


def _parse_given(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse words, with None instead of the default for every flag that is not among them."""
    return parser.parse_args(words, argparse.Namespace(**dict.fromkeys(_fallbacks())))


@cache
def _fallbacks() -> Mapping[str, Any]:
    """The default of every flag."""
    return vars(build_parser().parse_args([]))


def settle(
    given: argparse.Namespace, stored: Mapping[str, Any] | None = None
) -> argparse.Namespace:
    """Fill in every flag: as given, else as stored, else with the default of the data set.

    Args:
        given: result of ``parse``.
        stored: the settings of a checkpoint, by flag.

    Raises:
        UsageError: a given flag contradicts another flag, as given, as stored, or by default.
    """
    stored = stored or {}
    args = argparse.Namespace(**vars(given))
    args.dataset = given.dataset or stored.get("dataset") or _fallbacks()["dataset"]
    args.model = given.model or stored.get("model") or "lmconv"
    if args.model == "pixelcnnpp":
        _settle_baseline(args)
    _settle_precision(args)
    if (args.optimizer or stored.get("optimizer")) == "muon" and "lr" not in stored:
        args.lr = args.lr or MUON_LR
    if args.dataset in BINARY_DATASETS and "binarize" not in stored:
        args.binarize = True
    column = 1 if args.dataset == "digits" else 0
    for name, fallback in _fallbacks().items():
        if getattr(args, name) is None:
            value = stored.get(name)
            if value is None:
                value = DEFAULTS[name][column] if name in DEFAULTS else fallback
            setattr(args, name, value)
    args.order_file = args.order_file or []
    args.order = args.order or ([] if args.order_file else ["s_curve"])
    args.sampler = args.sampler or "cached"
    args.max_dilation = args.max_dilation or 2
    args.order_seed = args.order_seed or 0
    args.sample_batch_size = args.sample_batch_size or (256 if args.mode == "compress" else 25)
    args.precision = args.precision or "fp32"
    args.class_prior = args.class_prior or "uniform"
    _check_data(given, args)
    return args


def parse_stored(stored: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check a training run's settings from a checkpoint like a command line, and return them.

    Flags that say what to do with a file, or where to write, are left out.

    Raises:
        UsageError: a flag cannot have its stored value.
    """
    words = []
    for name, value in stored.items():
        if name not in _fallbacks() or name in _NOT_STORED or value is None or value is False:
            continue
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, (list, tuple)):
            texts = size_words(value) if name in SIZE_FLAGS else list(map(str, value))
            if any(text.startswith("-") for text in texts):  # it would be a flag of its own
                raise UsageError(f"{source} has an invalid setting: --{name} {value}")
            words += [f"--{name}", *texts] if texts else []
        else:
            words.append(f"--{name}={value}")
    try:
        parsed = vars(_parse_given(build_parser(), words))
    except UsageError as error:
        raise UsageError(f"{source} has an invalid setting: {error}") from error
    return {name: value for name, value in parsed.items() if value is not None}


def has_several_sizes(value: Any) -> bool:
    """Whether the value of ``--image_size`` is several sizes, and not one or none."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(isinstance(each, (list, tuple)) for each in value)


def size_words(value: Sequence[Any]) -> list[str]:
    """The words of a flag whose value is a size or several sizes."""
    sizes = value if has_several_sizes(value) else [value]
    return ["x".join(map(str, size)) for size in sizes]


def changed_settings(
    args: argparse.Namespace, stored: Mapping[str, Any], source: str
) -> dict[str, tuple[Any, Any]]:
    """The settings that differ from those of a training run: by flag, the stored and the new value.

    Args:
        args: result of ``settle``.
        stored: the run's settings from a checkpoint.
        source: name of the checkpoint, for errors.
    """
    before = parse_stored(stored, source)
    derived = () if args.dataset in PICTURE_DATASETS else ("image_size", "channels")
    changed = {}
    for name in stored.keys() & vars(args).keys() - _NOT_STORED - set(derived):
        new = getattr(args, name)
        old = before.get(name, False if isinstance(new, bool) else None)
        if (old or None) != (new or None):  # a flag that is False or 0 may be left out
            changed[name] = (old, new)
    return dict(sorted(changed.items()))


def in_flags(message: str) -> str:
    """Replace the parameters in a message, which are in backquotes, by their flags.

    The message stays one line of valid text, whatever the names of files in it are.
    """
    return re.sub(
        r"`(\w+)`",
        lambda match: f"--{_FLAGS_OF_PARAMETERS.get(match[1], match[1])}",
        printable(message),
    )


def _settle_baseline(args: argparse.Namespace) -> None:
    if args.sampler == "cached":
        raise UsageError("--sampler cached needs masked convolutions: leave it out for pixelcnnpp")
    for name in _LMCONV_ONLY:
        if getattr(args, name) not in (None, False):
            raise UsageError(f"--{name} has no meaning for --model pixelcnnpp: leave it out")
    if args.order not in (None, ["raster_scan"]):
        raise UsageError("--model pixelcnnpp works only in raster order: use --order raster_scan")
    vars(args).update(_BASELINE)


def _settle_precision(args: argparse.Namespace) -> None:
    by_level = {"O0": "fp32", "O1": "bf16", "O2": "bf16", None: None}[args.amp_opt_level]
    if by_level and args.precision not in (None, by_level):
        raise UsageError(
            f"--amp_opt_level {args.amp_opt_level} means --precision {by_level} and contradicts "
            f"--precision {args.precision}: give only one"
        )
    args.precision = args.precision or by_level


def _check_data(given: argparse.Namespace, args: argparse.Namespace) -> None:
    for name, takers in (("image_size", BROUGHT_DATASETS), ("channels", PICTURE_DATASETS)):
        if args.dataset not in takers and getattr(given, name) is not None:
            raise UsageError(
                f"--{name} needs -d {' or '.join(takers)}: the images of {args.dataset} have a "
                "fixed shape"
            )
    if given.own_sizes and args.dataset not in BROUGHT_DATASETS and not args.images:
        raise UsageError(
            f"--image_size {ANY_SIZE} needs -d {' or '.join(BROUGHT_DATASETS)}, or --images: the "
            f"images of {args.dataset} have one size"
        )
    for name in ("n_bits", "nr_logistic_mix", "coefficient_bound"):
        if args.binarize and getattr(given, name) is not None:
            raise UsageError(f"--{name} has no meaning for binarized images: leave it out")
    args.channels = args.channels or 3
    if args.crop and given.image_size not in (None, args.crop):
        raise UsageError(
            "--image_size and --crop contradict each other: give one of them, to resize pictures "
            "or to cut them"
        )
    is_resized = args.resize_sizes and not (args.crop or has_several_sizes(args.image_size))
    args.image_size = args.crop or args.image_size
    if args.dataset in BROUGHT_DATASETS and is_resized and len(set(args.image_size or ())) > 1:
        raise UsageError(
            "--resize_sizes are sides of squares: leave them out, or give a square --image_size"
        )
    if given.order_seed is not None and "random" not in args.order:
        raise UsageError("--order_seed needs --order random")


def _check_modes(args: argparse.Namespace) -> None:
    """Raise UsageError if a flag is given that the mode does not use."""
    for name in sorted({name for mode in MODES.values() for name in mode.flags}):
        takers = [mode for mode, entry in MODES.items() if name in entry.flags]
        if args.mode not in takers and getattr(args, name):
            raise UsageError(f"--{name} needs --mode {' or '.join(takers)}, not {args.mode}")


def _check_pairs(args: argparse.Namespace) -> None:
    """Raise UsageError if given flags contradict each other, whatever the others are."""
    if args.sampler == "naive" and args.guess not in (None, "auto", 0):
        raise UsageError("--guess needs --sampler cached: leave one of them out")
    if args.load_last_params and args.load_params is not None:
        raise UsageError(
            "--load_last_params and --load_params contradict each other: give only one"
        )
    if args.change_settings and not (args.load_last_params or args.load_params is not None):
        raise UsageError("--change_settings needs --load_last_params or --load_params")
    offsets = (args.sample_offset1, args.sample_offset2)
    if args.sample_region == "custom":
        if None in offsets:
            raise UsageError(
                "--sample_region custom needs --sample_offset1 and --sample_offset2 "
                "(first row and column, counted from the image's centre)"
            )
    elif offsets != (None, None):
        raise UsageError("--sample_offset1/2 need --sample_region custom")
    if args.test_region != "custom":
        for name in ("minh", "maxh", "minw", "maxw"):
            if getattr(args, f"test_{name}") is not None:
                raise UsageError(f"--test_{name} needs --test_region custom")
    has_boxes = [region not in (None, "full") for region in (args.sample_region, args.test_region)]
    if args.hole_mask and any(has_boxes):
        raise UsageError("--hole_mask contradicts --sample_region and --test_region: give one")
    if args.resize_images and not (args.images or args.hole_mask):
        raise UsageError("--resize_images needs --images or --hole_mask")
    if args.images and args.crop:
        raise UsageError("--crop cuts the images of a data set: leave it out with --images")
    if args.images and args.part:
        raise UsageError("--part chooses images of the data set: leave it out with --images")
    if args.part == "all" and (args.max_train_images, args.max_test_images) != (None, None):
        raise UsageError(
            "--part all takes every image: leave out --max_train_images and --max_test_images"
        )
    if args.images and args.num_samples:
        raise UsageError("--num_samples is a number of test images: leave it out with --images")
