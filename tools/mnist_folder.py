"""Write the MNIST digits as PNG files, for `-d folder` and for `--images`.

    python tools/mnist_folder.py --input data --output digits --labels 0 1 2 3 4 5 6 7 8
    python main.py -d folder -i digits --channels 1 --image_size 28 --binarize

Training images go to train/, test images to test/, each into a folder named after its label.
"""

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``train/`` and ``test/`` into the output folder; exit with a message if it exists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="folder that contains MNIST/raw")
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    parser.add_argument("--labels", type=int, nargs="+", default=list(range(10)))
    parser.add_argument(
        "--change",
        choices=("none", "upside_down", "shuffle"),
        default="none",
        help="turn the digits upside down, or shuffle the pixels of all digits in the same way",
    )
    parser.add_argument("--max-train-images", type=int, help="for all labels together")
    parser.add_argument("--max-test-images", type=int)
    args = parser.parse_args(argv)
    if args.output.exists():
        parser.error(f"--output {args.output} exists: remove it, or name another folder")
    raw = args.input / "MNIST" / "raw"
    for split, prefix, most in (
        ("train", "train", args.max_train_images),
        ("test", "t10k", args.max_test_images),
    ):
        try:
            labels = _read(raw / f"{prefix}-labels-idx1-ubyte", 8)
            images = _read(raw / f"{prefix}-images-idx3-ubyte", 16).reshape(-1, 28, 28)
        except (OSError, ValueError) as error:
            parser.error(f"{raw} has no readable {prefix} images and labels ({error})")
        for index in np.isin(labels, args.labels).nonzero()[0][:most]:
            folder = args.output / split / str(labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_change(images[index], args.change)).save(folder / f"{index:05d}.png")


def _change(image: np.ndarray, change: str) -> np.ndarray:
    if change == "upside_down":
        return np.ascontiguousarray(image[::-1])
    if change == "shuffle":
        order = np.random.RandomState(0).permutation(image.size)
        return image.ravel()[order].reshape(image.shape)
    return image


def _read(path: Path, header: int) -> np.ndarray:
    """The bytes after the header of an idx file, gzipped or not."""
    packed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    return np.frombuffer(content, np.uint8, offset=header)


if __name__ == "__main__":
    main()
