"""Train, test and sample locally masked convolution networks.

python main.py --mode train                                 # a small network on built-in digits
python main.py --mode test                                  # its exact likelihoods
python main.py --mode sample                                # its samples
python main.py --mode info --load_params FILE.pth           # what a checkpoint is
python main.py --mode compress --output FILE.lmc            # its test set, compressed without loss
python main.py --help                                       # everything else
"""

import sys

try:
    from collections.abc import Sequence
    from typing import NoReturn

    from lmconv.modes.options import parse
    from lmconv.modes.program import exit_code_of
    from lmconv.modes.waiting import let_threads_give_way
    from utils import leave_after
except KeyboardInterrupt:
    print("main.py: interrupted", file=sys.stderr)
    sys.exit(130)

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, and return the exit code, which is that of ``exit_code_of``."""

    def work() -> None:
        given = parse(argv)
        let_threads_give_way()
        from lmconv.modes.run import execute  # imports PyTorch, which --help does not need

        execute(given)

    return exit_code_of("main.py", work)


def run_and_leave() -> NoReturn:
    """Run the command line of this process and end it; the command ``lmconv`` calls this."""
    leave_after(main)


if __name__ == "__main__":
    run_and_leave()
