"""Write patches of scikit-learn's two sample photos in the format of CIFAR10.

A colour data set that needs no download, for trying things out:

    python tools/photo_patches.py --output data/photos
    python main.py -d cifar -i data/photos

Test patches come from the middle fifth of each photo, and training patches from the parts to the
left and right of it, so the two share no pixels. On average, half of the patches come from the
photo at half size.
"""

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["main"]

PATCH = 32
LABELS = ("china", "flower")
TRAIN_BATCHES = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``cifar-10-batches-py`` into the output folder; exit with a message if it exists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a --data_dir")
    parser.add_argument("--train-images", type=int, default=10_000, metavar="N")
    parser.add_argument("--test-images", type=int, default=2_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed for the places")
    args = parser.parse_args(argv)
    if args.train_images < TRAIN_BATCHES or args.test_images < 1 or args.seed < 0:
        parser.error("needs at least 5 training images, at least 1 test image and a seed >= 0")
    folder = args.output / "cifar-10-batches-py"
    if folder.exists():
        parser.error(f"{folder} exists: remove it or choose another --output")
    train_parts, test_parts = load_parts()
    folder.mkdir(parents=True)
    random = np.random.default_rng(args.seed)
    patches, labels = draw_patches(train_parts, args.train_images, random)
    pieces = np.array_split(np.arange(len(patches)), TRAIN_BATCHES)
    for number, piece in enumerate(pieces, start=1):
        title = f"training batch {number} of {TRAIN_BATCHES}"
        write_batch(folder / f"data_batch_{number}", title, patches[piece], labels[piece])
    patches, labels = draw_patches(test_parts, args.test_images, random)
    write_batch(folder / "test_batch", "testing batch 1 of 1", patches, labels)
    meta = {
        "label_names": list(LABELS),
        "num_cases_per_batch": len(pieces[0]),
        "num_vis": 3 * PATCH * PATCH,
    }
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    print(f"{args.train_images} training and {args.test_images} test patches in {folder}")


def load_parts() -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """Training and test parts of each photo, each at full and at half size: uint8 H x W x 3."""
    from sklearn.datasets import load_sample_image

    train, test = [], []
    for label in LABELS:
        photo = load_sample_image(f"{label}.jpg")
        width = photo.shape[1]
        left, middle, right = np.split(photo, [width * 2 // 5, width * 3 // 5], axis=1)
        # Split before halving, so that no averaged pixel mixes the parts.
        train.append([left, halved(left), right, halved(right)])
        test.append([middle, halved(middle)])
    return train, test


def halved(photo: np.ndarray) -> np.ndarray:
    """The mean of each block of 2 x 2 pixels."""
    height, width = photo.shape[0] // 2, photo.shape[1] // 2
    blocks = photo[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def draw_patches(
    parts: list[list[np.ndarray]], number: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Patches from random places: uint8 N x 3072 (channels, rows, columns), and photo indices."""
    patches = np.empty((number, 3, PATCH, PATCH), np.uint8)
    labels = random.integers(len(parts), size=number)
    for patch, label in zip(patches, labels, strict=True):
        photo = parts[label][random.integers(len(parts[label]))]
        row, column = (random.integers(size - PATCH + 1) for size in photo.shape[:2])
        patch[:] = photo[row : row + PATCH, column : column + PATCH].transpose(2, 0, 1)
    return patches.reshape(number, -1), labels


def write_batch(path: Path, title: str, patches: np.ndarray, labels: np.ndarray) -> None:
    """Write one batch file, with the keys that CIFAR10 has."""
    batch = {
        "batch_label": title,
        "labels": labels.tolist(),
        "data": patches,
        "filenames": [f"{LABELS[label]}_{number}.png" for number, label in enumerate(labels)],
    }
    path.write_bytes(pickle.dumps(batch, protocol=2))


if __name__ == "__main__":
    main()
