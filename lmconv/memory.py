"""How much memory there is, and refusals of what cannot fit, before it is allocated."""

import os
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["available_memory", "check_memory"]


def available_memory(device: torch.device | str = "cpu") -> float:
    """Bytes that a device can still give: of a GPU all that it has; infinity if it is not known."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [float("inf")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:  # not on Linux
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # where a container has no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def check_memory(num_bytes: float, what: str, device: torch.device | str = "cpu") -> None:
    """Raise ValueError if something needs more memory than there is.

    Args:
        num_bytes: a lower bound of what it needs.
        what: what needs it, with the values that it depends on, such as ``a batch of 64 images``.
        device: where it will be.
    """
    available = available_memory(device)
    if num_bytes > available:
        raise ValueError(
            f"{what} would take at least {num_bytes / 2**30:.3g} GB of memory, but only "
            f"{available / 2**30:.3g} GB are free: give smaller values, or use a machine with more"
        )
