"""Command lines as users type them, for tests."""

import shlex
from pathlib import Path

from main import main


def run(command):
    """The command succeeds."""
    assert main(shlex.split(command)) == 0


def newest(pattern):
    """The file of a pattern that was written last."""
    return max(Path().glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def refused(command, capsys, *words, is_started=False):
    """The command ends with code 2 and one line that holds the words, and leaves nothing behind.

    One that is started before it fails may leave its log and the plot of orders.
    """

    def files():
        names = {path.name for path in Path().rglob("*")}
        if is_started:
            names = {name for name in names if not name.endswith(".log") and "order" not in name}
        return names

    before = files()
    capsys.readouterr()
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error
    assert files() == before, "something was left behind"
