"""How the programs end: with the screen gone, with Ctrl-C at any time, after each kind of error."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.screens import SCREENS

import average_checkpoints
from lmconv.modes.program import exit_code_of
from main import main
from utils import UserError

MODEL = ROOT / "pretrained" / "binary_mnist_small.pth"
TRAIN = shlex.split(
    "-q 1 -n 4 --max_train_images 16 --max_test_images 4 -b 8 --disable_wandb --order_variants 0 "
    "--sample_batch_size 2 -x 1 -tt 1 -ts 1"
)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("`n_bits` is 9"), 2, "name: error: --n_bits is 9"),
        (OSError("the disk is full"), 2, "name: error: the disk is full"),
        (KeyboardInterrupt(), 130, "name: interrupted"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert exit_code_of("name", lambda: fail(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("kind", SCREENS)
@pytest.mark.parametrize("gone", ["stdout", "stderr", "both"])
def test_work_is_done_whatever_the_screen_shows(kind, gone, monkeypatch):
    for name in ("stdout", "stderr"):
        if gone in (name, "both"):
            monkeypatch.setattr(sys, name, SCREENS[kind]())
    assert main(["--mode", "info", "--load_params", str(MODEL)]) == 0
    assert main(["--mode", "info", "--load_params", "lost"]) == 2
    words = ["--run_id", "0", "--inputs", str(MODEL), "--output", "averaged.pth"]
    assert average_checkpoints.main(words) == 0
    assert Path("averaged.pth").is_file()


def test_training_saves_and_logs_what_the_screen_cannot_show(monkeypatch):
    name = "ü\udcff" if sys.platform == "linux" else "ü"
    monkeypatch.setattr(sys, "stdout", SCREENS["full disk"]())
    monkeypatch.setattr(sys, "stderr", SCREENS["ascii"]())
    assert main([*TRAIN, "--run_dir", name]) == 0
    assert {"0_ep0.pth", "best.pth"} <= set(os.listdir(name))
    assert main(["--mode", "plot", "--run_dir", name]) == 0
    (log,) = Path(name).glob("train_*.log")
    shown = name.replace("\udcff", "\\udcff")
    assert f"saved {shown}{os.sep}0_ep0.pth" in log.read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that nobody reads")
@pytest.mark.parametrize("program", ["main.py", "average_checkpoints.py"])
def test_help_into_a_pipe_that_nobody_reads(program):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / program), "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


INTERRUPT = """
import runpy, sys
module, program = sys.argv.pop(1), sys.argv.pop(1)
class Finder:
    def find_spec(name, path=None, target=None):
        if name == module:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder)
runpy.run_path(program, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("program", "module"),
    [
        ("main.py", "lmconv.modes.flags"),
        ("main.py", "tqdm"),
        ("main.py", "torch"),
        ("main.py", "lmconv.modes.run"),
        ("average_checkpoints.py", "torch"),
        ("average_checkpoints.py", "utils"),
    ],
)
def test_ctrl_c_during_imports_is_one_line(program, module):
    shutil.copy(MODEL, "model.pth")
    words = ["--mode", "info", "--load_params", "model.pth"] if program == "main.py" else []
    command = [sys.executable, "-c", INTERRUPT, module, str(ROOT / program), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, f"{program}: interrupted\n")
