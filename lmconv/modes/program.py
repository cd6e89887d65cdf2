"""What the programs have in common: how they end, and the one line that says why."""

import re
import sys
from collections.abc import Callable

from lmconv.modes.options import in_flags
from lmconv.training.signals import Stopped, StopRequest
from utils import UserError, tolerant_screen

__all__ = ["exit_code_of"]

# In PyTorch's errors.
_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)


def exit_code_of(name: str, work: Callable[[], object]) -> int:
    """Do the work of a program, with one line on standard error if it ends early.

    Args:
        name: name of the program, for that line.
        work: what to do.

    Returns:
        0 on success, even if the screen could not show all messages; 2 after a line that says what
        to correct; 1 if another process of the run has ended; 128 plus the number of the signal
        that stopped the program.
    """
    with tolerant_screen():
        try:
            with StopRequest() as stop, stop.at_once("what is finished is kept"):
                work()
            return 0
        except UserError as error:
            if not str(error):  # another process of the run says why
                return error.exit_code
            line, code = f"error: {error}", error.exit_code
        except OSError as error:
            line, code = f"error: {error}", 2
        except (MemoryError, RuntimeError) as error:  # PyTorch has no class for it on a CPU
            if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))):
                raise
            line, code = (
                (
                    "error: there is not enough memory: use fewer or smaller images at once "
                    "(`batch_size`, `sample_batch_size`), or a smaller network"
                ),
                2,
            )
        except Stopped as stopped:
            line, code = str(stopped), 128 + stopped.signum
        except KeyboardInterrupt:
            line, code = "interrupted", 130
        print(f"{name}: {in_flags(line)}", file=sys.stderr)
        return code
