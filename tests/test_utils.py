"""Names of run directories, logging, atomic files."""

import ctypes
import math
import sys
import time
from unittest.mock import patch

import pytest
import torch

from utils import (
    ProgressBar,
    keep_freed_memory,
    nats_to_bpd,
    run_directory_name,
    set_seed,
    setup_logging,
    write_json,
)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (
            (10000, "cifar", False, 2e-4, 32, 2e6, 3, 2, "pono", "s_rand_dp0_pono"),
            "runs/10000_cifar_lr0.00020_bs32_gc2000000.0_k3_md2_pono+s_rand_dp0_pono",
        ),
        (
            (0, "mnist", True, 2e-4, 64, -1, 5, 2, "weight_norm", None),
            "runs/00000_binary_mnist_lr0.00020_bs64_gc-1_k5_md2",
        ),
    ],
)
def test_run_directories_are_named_as_published(settings, name):
    assert run_directory_name(*settings) == name


def test_seeds_repeat():
    set_seed(3)
    first = torch.rand(2)
    set_seed(3)
    assert torch.equal(first, torch.rand(2))


def test_messages_go_to_the_screen_and_with_time_and_level_to_the_file(tmp_path, capsys):
    for name in ("a", "b"):
        setup_logging(tmp_path / name).info("hello %d", 7)
    assert capsys.readouterr().out == "hello 7\nhello 7\n"
    for name in ("a", "b"):
        (line,) = (tmp_path / name).read_text().splitlines()
        assert line.startswith("[") and line.endswith("|INFO] hello 7")


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_one_nat_per_dimension_is_one_over_ln_2_bits():
    assert nats_to_bpd(12.0, 12) == pytest.approx(1 / math.log(2))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_freed_blocks_come_back_without_being_cleared_by_the_system():
    keep_freed_memory()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(32 * 2**20))
    end = libc.sbrk(0)
    assert block < end  # in the heap, not mapped by itself
    libc.free(ctypes.c_void_p(block))
    assert libc.sbrk(0) == end  # and the heap does not shrink


def test_other_systems_are_left_alone():
    with patch.object(sys, "platform", "darwin"), patch.object(ctypes, "CDLL") as library:
        keep_freed_memory()
    library.assert_not_called()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_counts_pixels_and_images_on_a_terminal_alone(is_terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar("sampling", num_images=4, pixels_per_image=500) as bar:
        for _ in range(4):
            time.sleep(0.15)  # it is drawn ten times in a second
            bar.update(500)
    shown = capsys.readouterr().err
    assert ("2.00k/2.00k" in shown and "pixels/s" in shown and "images/s" in shown) == is_terminal
    assert is_terminal or shown == ""
