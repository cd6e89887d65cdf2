"""How threads wait for each other, which must be decided before PyTorch is imported.

Threads that wait look again and again whether the others are done. If other programs use the
processors, that keeps the others from finishing: steps can take a hundred times as long.
"""

import os
import sys

__all__ = ["let_threads_give_way"]

# About 50 microseconds, which is what waking a thread takes: waiting longer gains nothing.
_SPINS = "1000"
# With this load for each processor, other programs are at work.
_BUSY = 0.5


def let_threads_give_way() -> None:
    """Set how long threads wait before they sleep, unless the user has set it.

    On a busy machine they sleep at once. On an idle one that would cost a tenth of the time of
    small steps, so they sleep soon.
    """
    is_set = "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ
    if is_set or "torch" in sys.modules or not hasattr(os, "getloadavg"):
        return
    if os.getloadavg()[0] >= _BUSY * (os.cpu_count() or 1):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = _SPINS
