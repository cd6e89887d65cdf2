"""Train undisturbed, then in rounds that are killed again and again, sometimes inside a save.

    python killed_runs.py FOLDER FLAGS... --run_dir

Prints the numbers of kills and of rounds. Runs are forked from a process that has loaded all.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

import torch
from preloaded import main

KILLS = {"anywhere": 17, "in a save": 5}
real_save = torch.save


def start(flags: list[str], dies_in_save: int | None = None) -> int:
    """Run ``main.py`` in a child; it can be told to die in the middle of one of its saves."""
    child = os.fork()
    if child:
        return child
    saves = 0

    def save(contents: object, file: BinaryIO) -> None:
        nonlocal saves
        real_save(contents, file)
        saves += 1
        if saves == dies_in_save:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, sys.stdout.fileno())
    os._exit(main.main(flags))


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(folder: Path, flags: list[str]) -> None:
    torch.set_num_threads(1)
    begin = time.monotonic()
    assert status(start([*flags, str(folder / "whole")])) == 0
    seconds = time.monotonic() - begin
    kills, draw, rounds = dict.fromkeys(KILLS, 0), random.Random(0), 0
    while kills != KILLS:
        parts, code = folder / f"parts{rounds}", None
        while code != 0:
            left = [kind for kind in KILLS if kills[kind] < KILLS[kind]]
            kind = draw.choice(left) if left else ""
            resumes = ["--load_last_params"] if list(parts.glob("0_ep*.pth")) else []
            number = draw.randrange(1, 9) if kind == "in a save" else None
            child = start([*flags, str(parts), *resumes], number)
            if kind == "anywhere":
                time.sleep(draw.uniform(0, 0.6) * seconds)
                os.kill(child, signal.SIGKILL)
            code = status(child)
            assert code in (0, -signal.SIGKILL), code
            if code != 0:
                kills[kind] += 1
        rounds += 1
    print(json.dumps({**kills, "rounds": rounds, "seconds": seconds}))


run(Path(sys.argv[1]), sys.argv[2:])
