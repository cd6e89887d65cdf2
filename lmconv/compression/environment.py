"""What floating-point results depend on, apart from the program: libraries, processor, threads."""

import platform
import re
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["LIBRARIES", "Environment"]

LIBRARIES = ("torch", "numpy", "constriction")


@dataclass(frozen=True)
class Environment:
    """The environment that something was computed in.

    Attributes:
        versions: versions of ``LIBRARIES``, three numbers each.
        device: type of the device that the network ran on, "cpu" or "cuda".
        processor: checksum of the names of the processors and of the instruction set that is used.
        threads: number of threads that shared the work of an operator.
    """

    versions: tuple[tuple[int, ...], ...]
    device: str
    processor: int
    threads: int

    @classmethod
    def here(cls, device: torch.device) -> "Environment":
        """The environment of this process, with the network on a device."""
        processor = zlib.crc32(_processor(device).encode())
        versions = tuple(_release(version(library)) for library in LIBRARIES)
        return cls(versions, device.type, processor, torch.get_num_threads())

    def differences(self, here: "Environment") -> list[str]:
        """What differs from the environment ``here``, in words."""
        found = []
        for library, *versions in zip(LIBRARIES, self.versions, here.versions, strict=True):
            if versions[0] != versions[1]:
                made, now = (".".join(map(str, numbers)) for numbers in versions)
                found.append(f"{library} {made} (here {now})")
        if self.device != here.device:
            found.append(f"the device {self.device} (here {here.device})")
        if self.processor != here.processor:
            found.append("another processor")
        if self.threads != here.threads:
            found.append(f"{self.threads} thread{'s' * (self.threads > 1)} (here {here.threads})")
        return found


def _release(text: str) -> tuple[int, ...]:
    """The three numbers of a version, without a local part, such as that of a build for a GPU."""
    numbers = [int(number) for number in re.findall(r"\d+", text.partition("+")[0])]
    return tuple([*numbers, 0, 0, 0][:3])


def _processor(device: torch.device) -> str:
    names = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        models = re.findall(r"^model name\s*:\s*(.*)$", cpus.read_text(), re.MULTILINE)
        names += sorted(set(models))
    if device.type == "cuda":
        names.append(torch.cuda.get_device_name(device))
    return ", ".join(names)
