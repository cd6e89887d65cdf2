"""Runs of ``double_precision_main.py`` in processes that are forked from one that has loaded all.

As a program, it is that process: it reads requests from standard input and answers each with a
line, both in JSON. ``Forks`` starts it and asks it.
"""

import itertools
import json
import operator
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import Any, NoReturn, TextIO

_MOST_SECONDS = 300  # of a request


class Forks:
    """Starts runs, in the working directory and with the environment that there are at first.

    Args:
        variables: further environment variables.
    """

    def __init__(self, **variables: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | variables,
        )

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, *runs: tuple[int, str], **variables: str) -> tuple[int, str, str]:
        """Run command lines one after the other, until one fails.

        The processes of a run meet as those of torchrun do. They go on with the next run if it has
        the same number of processes.

        Args:
            runs: the number of processes and the flags of each run.
            variables: further environment variables.

        Returns:
            0 or 1 if a run has failed, and all that was written to standard output and error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([runs, variables]), file=self._process.stdin, flush=True)
        code, out, error = json.loads(self._process.stdout.readline())
        return code, out, error


def _answer(runs: list[tuple[int, str]], variables: dict[str, str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        streams = {sys.stdout.fileno(): out, sys.stderr.fileno(): error}
        groups = itertools.groupby(runs, key=operator.itemgetter(0))
        is_done = all(
            _run(number, [flags for _, flags in group], variables, streams)
            for number, group in groups
        )
        for stream in streams.values():
            stream.seek(0)
        return int(not is_done), out.read(), error.read()


def _run(
    number: int, flags: list[str], variables: dict[str, str], streams: dict[int, TextIO]
) -> bool:
    """Run command lines in so many processes, and return whether all have succeeded."""
    ports = _free_ports(len(flags))
    children = []
    for rank in range(number):
        child = os.fork()
        if not child:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number}
            _work(flags, ports, variables | (places if number > 1 else {}), streams)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return not any(codes)


def _work(
    flags: list[str], ports: list[int], variables: dict[str, Any], streams: dict[int, TextIO]
) -> NoReturn:
    """Run command lines one after the other in this process, and end it."""
    import main

    for descriptor, stream in streams.items():
        os.dup2(stream.fileno(), descriptor)
    os.environ.update({name: str(value) for name, value in variables.items()})
    code = 0
    for words, port in zip(flags, ports, strict=True):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        code = code or main.main(shlex.split(words))
    sys.stdout.flush()
    os._exit(code)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as sockets:
        servers = [sockets.enter_context(socket.socket()) for _ in range(number)]
        for server in servers:
            server.bind(("127.0.0.1", 0))
        return [server.getsockname()[1] for server in servers]


if __name__ == "__main__":
    import preloaded  # noqa: F401
    from double_precision_main import use_double_precision

    use_double_precision()
    for line in sys.stdin:
        signal.alarm(_MOST_SECONDS)  # ends this process
        print(json.dumps(_answer(*json.loads(line))), flush=True)
        signal.alarm(0)
    os._exit(0)
