"""Every flag with extreme values: it is refused in one line, or the run can be made."""

import shlex
from pathlib import Path

import pytest
from helpers.commands import refused

from lmconv.image_model import ImageModel
from lmconv.modes import UsageError, count_params, sample
from lmconv.modes.flags import build_parser
from lmconv.modes.options import parse, settle
from lmconv.modes.run import make_run
from utils import UserError

EXTREMES = [
    *("-1", "0", "1000000", str(10**9), str(10**18), str(10**30), f"-{10**30}", "9" * 5000),
    *("nan", "inf", "-inf", "1e400", "1e300", "1e-300", "", "x", "1.5", "1000000x1000000", "1x0"),
    "x".join(["9" * 5000] * 2),
]
NUMBERS = [action for action in build_parser()._actions if action.type is not None]
FLOATS = ["lr", "lr_decay", "weight_decay", "clip", "ema", "dropout_prob", "save_minutes"]
FLOATS += ["resize_probs", "sample_mixture_temperature", "sample_logistic_temperature"]
SMALL = "--mode train -q 1 -n 4 --run_dir run"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_of(command):
    return make_run(parse(shlex.split(command)))


@pytest.mark.parametrize("action", NUMBERS, ids=lambda action: action.dest)
def test_extreme_values_are_refused_in_one_line_or_do_no_harm(action):
    for value in EXTREMES:
        try:
            settle(parse([f"{action.option_strings[-1]}={value}"]))
        except UserError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 300 or action.dest == "channels"


@pytest.mark.parametrize(
    "name",
    [
        *("nr_resnet", "nr_filters", "kernel_size", "max_dilation", "nr_logistic_mix"),
        *("batch_size", "sample_batch_size", "save_padding", "save_nrow", "resize_sizes"),
        *("max_epochs", "seed", "num_samples", "print_every", "accum_freq", "warmup_steps"),
        *("test_interval", "order_seed"),
    ],
)
def test_runs_with_large_numbers_are_made_or_refused_by_name(name):
    for value in (10**6 + 1, 10**7 + 1, 10**9 + 1, 10**18 + 1, 10**30 + 1):
        order = "--order random" if name == "order_seed" else ""
        try:
            run = run_of(f"{SMALL} {order} --{name} {value}")
        except (UserError, ValueError) as error:
            assert name in str(error) or name == "nr_logistic_mix", error
        else:
            assert getattr(run.args, name) == value


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_not_finite_are_refused(name, value):
    with pytest.raises(UsageError, match=f"--{name}: must be a finite number, got {value}"):
        parse([f"--{name}={value}"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--nr_resnet 10000000", ["--nr_resnet", "1024", "10000000"]),
        ("--nr_filters 60000", ["--nr_filters 60000", "GB of memory", "are free"]),
        ("--nr_filters 1000000", ["--nr_filters", "1000000"]),
        ("-k 255 -n 4000", ["--kernel_size 255", "--nr_filters 4000", "GB"]),
        ("-k 100001", ["--kernel_size", "100001"]),
        ("-k 255 -md 255 --resize_sizes 2000", ["GB"]),
        ("--nr_logistic_mix 1000000", ["--nr_logistic_mix", "1000000"]),
        ("-b 1000000000 --resize_sizes 512", ["--batch_size 1500 with images of 512", "GB"]),
        ("-b 64 --resize_sizes 2048", ["--batch_size 64", "2048x2048", "GB"]),
        ("--sample_batch_size 1000000000", ["--sample_batch_size 1000000000", "GB"]),
        ("--save_padding 1000000", ["--save_padding 1000000", "GB"]),
        ("--resize_sizes 1000000", ["--resize_sizes", "2048", "1000000"]),
        ("-d celebahq --celeba_size 1000000", ["--celeba_size", "2048"]),
        ("-d folder --image_size 1000000x1000000", ["--image_size", "1000000x1000000"]),
        ("-d folder --image_size 0x3", ["--image_size", "0x3"]),
        ("--seed 100000000000000000000", ["--seed", "100000000000000000000"]),
        ("--clip nan", ["--clip", "nan"]),
        ("--lr_decay 1.5", ["--lr_decay", "1.5"]),
        ("--sample_mixture_temperature inf", ["--sample_mixture_temperature", "inf"]),
        ("--sample_logistic_temperature 1e-300", ["--sample_logistic_temperature"]),
        ("-nm pono -n 1", ["--normalization", "--nr_filters"]),
    ],
)
def test_what_takes_too_much_is_refused_before_anything_is_made(flags, words, capsys):
    refused(f"--mode train -q 1 -n 4 {flags} --run_dir run", capsys, *words)


def test_a_thousand_million_samples_are_only_a_number_of_things_to_do(monkeypatch):
    description = run_of(f"{SMALL} --order raster_scan --no-randomize_order").model.description
    ImageModel(description, device="cpu").save("a.pth")
    run = run_of(f"--mode sample --load_params a.pth --num_samples {10**9} --run_dir run")

    class Enough(Exception):
        pass

    saved = []

    def save(images, path, *settings):
        saved.append((len(images), path.name[-20:]))
        if len(saved) == 2:
            raise Enough
        return 1

    monkeypatch.setattr(sample, "save_image_grid", save)
    Path("run").mkdir()
    sample.check(run)
    with pytest.raises(Enough):
        sample.run(run)
    assert [number for number, _ in saved] == [25, 25]


def test_batches_may_be_larger_than_the_data_set():
    assert run_of(f"{SMALL} -b {10**18}").args.batch_size == 10**18


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you tried\n9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_is_one_line(error, monkeypatch, capsys):
    def fail(run):
        raise error

    monkeypatch.setattr(count_params, "run", fail)
    Path("run").mkdir()
    refused(
        "--mode count_params -q 1 -n 4 --run_dir run",
        capsys,
        "not enough memory",
        is_started=True,
    )
