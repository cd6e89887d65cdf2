"""Train, test and sample locally masked convolution networks.

python main.py --mode train                                 # a small network on built-in digits
python main.py --mode test                                  # its exact likelihoods
python main.py --mode sample                                # its samples
python main.py --mode info --load_params FILE.pth           # what a checkpoint is
python main.py --mode compress --output FILE.lmc            # its test set, compressed without loss
python main.py --help                                       # everything else
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lmconv.modes.options import in_flags, parse
from lmconv.training.signals import Stopped
from utils import UserError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code: 0 on success; 2 after a line that says what to correct; 1 if another process
        of the run has ended; 128 plus the number of the signal that stopped the run.
    """
    try:
        given = parse(argv)
        from lmconv.modes.run import execute  # imports PyTorch, which --help does not need

        execute(given)
    except UserError as error:
        print(f"main.py: error: {in_flags(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"main.py: {in_flags(str(stopped))}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("main.py: interrupted", file=sys.stderr)
        return 130
    return 0


def run_and_leave() -> NoReturn:
    """Run the command line of this process and end it; the command ``lmconv`` calls this."""
    code = main()
    # Skip the exit handlers of libraries: one that waits for a server would hang.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run_and_leave()
