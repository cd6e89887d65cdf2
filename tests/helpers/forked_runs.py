"""Run ``double_precision_main.py`` several times, one after the other, from one start of Python.

    python forked_runs.py NUMBER FLAGS [NUMBER FLAGS ...]

Each run has NUMBER processes, which meet as those of torchrun do. They are forked from a process
that has loaded all. Exits with 1 as soon as a run has failed.
"""

import os
import shlex
import socket
import sys

from double_precision_main import use_double_precision
from preloaded import main


def start(flags: str, **variables: object) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update({name: str(value) for name, value in variables.items()})
    code = main.main(shlex.split(flags))
    sys.stdout.flush()
    os._exit(code)


def run(number: int, flags: str) -> bool:
    if number == 1:
        children = [start(flags)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
        children = [
            start(flags, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=number, **address)
            for rank in range(number)
        ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return not any(codes)


use_double_precision()
words = sys.argv[1:]
sys.exit(not all(run(int(words[i]), words[i + 1]) for i in range(0, len(words), 2)))
