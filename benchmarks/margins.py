"""How far the logits of a decoder are from those of an encoder, against what files allow.

    python benchmarks/margins.py [FILE] [-i DATA_DIR] [--images N] [--json FILE]

An encoder computes whole images in forward passes, and a decoder the pixels along the order. For
test images of MNIST, in double precision: the largest difference of a logit, and how many would be
rounded differently by a codec that does not record how the close ones are rounded.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from coding import ROOT, agreement, codec_of, logits_as_coded, logits_of_whole_images
from measure import write_rows

import lmconv
from lmconv.compression.pixel_coding import LOGIT_MARGIN

IMAGES_AT_ONCE = 50


def main() -> None:
    """Compare all images, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shipped = ROOT / "pretrained" / "binary_mnist_small.pth"
    parser.add_argument("model", nargs="?", type=Path, default=shipped, metavar="FILE")
    parser.add_argument("-i", "--data-dir", default="data", help="folder with MNIST")
    parser.add_argument("--images", type=int, default=10_000, help="number of test images")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    model = lmconv.load(args.model, device="cpu")
    images = lmconv.read_mnist(args.data_dir, train=False)[: args.images]
    decoded, encoded = [], []
    with torch.inference_mode():
        for first in range(0, len(images), IMAGES_AT_ONCE):
            each = codec_of(model, images[first : first + IMAGES_AT_ONCE])
            decoded.append(logits_as_coded(each, len(each.levels)))
            encoded.append(logits_of_whole_images(each))
    name = f"{len(images)} images"
    row = agreement("double", name, np.concatenate(decoded), np.concatenate(encoded))
    print(
        f"{row['num_logits']:,} logits of {name}: {100 * row['differing']:.1f}% differ, at most by "
        f"{row['largest_difference']:.1e}, and {LOGIT_MARGIN:.1e} is allowed; "
        f"{row['differing_when_rounded']:,} would be rounded differently"
    )
    write_rows(args.json, [row])


if __name__ == "__main__":
    main()
