"""What is said about where a file was made."""

import dataclasses

import torch

from lmconv.compression.environment import LIBRARIES, Environment, _release


def test_this_process_is_no_different_from_itself():
    here = Environment.here(torch.device("cpu"))
    assert here.differences(Environment.here(torch.device("cpu"))) == []
    assert len(here.versions) == len(LIBRARIES)
    assert here.threads == torch.get_num_threads()


def test_differences_are_named_with_both_values():
    here = Environment(((2, 6, 0), (1, 26, 4), (0, 5, 0)), "cpu", 1, 2)
    there = Environment(((2, 7, 1), (1, 26, 4), (0, 4, 1)), "cuda", 2, 1)
    assert there.differences(here) == [
        "torch 2.7.1 (here 2.6.0)",
        "constriction 0.4.1 (here 0.5.0)",
        "the device cuda (here cpu)",
        "another processor",
        "1 thread (here 2)",
    ]
    assert dataclasses.replace(here, threads=4).differences(here) == ["4 threads (here 2)"]


def test_versions_are_read_as_releases():
    assert _release("2.14.1+cu130") == (2, 14, 1)
    assert _release("3.0") == (3, 0, 0)
    assert _release("2.6.0a0+git123") == (2, 6, 0)
