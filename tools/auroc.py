"""How well likelihoods tell two sets of images apart, from the files of `--mode score`.

    python tools/auroc.py runs/usual/scores.csv runs/unusual/scores.csv

Prints the area under the ROC curve: the probability that an image of the second set has a lower
likelihood than one of the first.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from sklearn.metrics import roc_auc_score

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the AUROC of the ensemble's nats."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("usual", type=Path, help="scores.csv of images like those trained on")
    parser.add_argument("unusual", type=Path, help="scores.csv of the other images")
    args = parser.parse_args(argv)
    usual, unusual = _nats(args.usual, parser), _nats(args.unusual, parser)
    labels = [0] * len(usual) + [1] * len(unusual)
    area = roc_auc_score(labels, usual + unusual)
    print(f"AUROC {area:.4f} of {len(usual)} usual and {len(unusual)} unusual images")


def _nats(path: Path, parser: argparse.ArgumentParser) -> list[float]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            nats = [float(row["nats"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError) as error:
        parser.error(f"{path} is not a readable file of scores ({error!r})")
    if not nats:
        parser.error(f"{path} has no scores")
    return nats


if __name__ == "__main__":
    main()
