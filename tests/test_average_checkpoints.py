"""Averaging: the golden average, selection of files, refusals."""

import math
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers.models import tiny_model
from helpers.paths import REFERENCE

import lmconv
from average_checkpoints import main
from lmconv.checkpoints import load_checkpoint, published_state_dict, save_checkpoint

GOLDEN = REFERENCE / "average"


@pytest.fixture(autouse=True)
def _in_a_directory_with_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN, tmp_path / "run")
    (tmp_path / "run" / "averaged.pth").unlink()


def run(command):
    return main(shlex.split(command))


@pytest.mark.parametrize(
    "inputs", ["run --num-epoch-checkpoints 2", "run/10000_ep1.pth run/10000_ep0.pth"]
)
def test_the_golden_average(inputs, capsys):
    assert run(f"--run_id 10000 --inputs {inputs} --output a.pth") == 0
    got, expected = load_checkpoint(Path("a.pth")), load_checkpoint(GOLDEN / "averaged.pth")
    assert got["epoch"] == expected["epoch"] == 1
    for key, value in expected["model_state_dict"].items():
        torch.testing.assert_close(got["model_state_dict"][key], value, rtol=1e-6, atol=1e-7)
    out = capsys.readouterr().out
    assert "averaged run/10000_ep0.pth" in out
    assert "epoch 1, optimizer and settings: those of run/10000_ep1.pth; results" in out


def test_an_epoch_that_is_not_known_is_not_named(capsys):
    for name in "ab":
        tiny_model().save(f"{name}.pth")
    assert run("--run_id 1 --inputs a.pth b.pth --output c.pth --weights-only") == 0
    assert capsys.readouterr().out == "averaged a.pth\naveraged b.pth\nwrote c.pth\n"


def test_the_upper_bound_leaves_out_later_epochs():
    command = "--run_id 10000 --inputs run --num-epoch-checkpoints 1 --checkpoint-upper-bound 0"
    assert run(f"{command} --output a.pth") == 0
    assert load_checkpoint(Path("a.pth"))["epoch"] == 0


def test_updates_are_chosen_by_their_number():
    for update in (5, 20, 100):
        weights = {"w": torch.tensor([float(update)])}
        save_checkpoint(Path(f"run/7_0_{update}.pth"), {"model_state_dict": weights})
    assert run("--run_id 7 --inputs run --num-update-checkpoints 2 --output a.pth") == 0
    weights = load_checkpoint(Path("a.pth"))["model_state_dict"]
    assert weights["w"].item() == 60


def test_running_averages_are_averaged_where_all_have_one():
    for epoch in (0, 1):
        state = {"model_state_dict": {"w": torch.ones(1)}, "epoch": epoch}
        state["ema_state_dict"] = {"w": torch.tensor([float(epoch)])}
        save_checkpoint(Path(f"run/3_ep{epoch}.pth"), state)
    assert run("--run_id 3 --inputs run --num-epoch-checkpoints 2 --output a.pth") == 0
    assert load_checkpoint(Path("a.pth"))["ema_state_dict"]["w"].item() == 0.5


def test_weights_alone_are_those_that_would_be_tested():
    model = tiny_model()
    weights = published_state_dict(model.network)
    average = {name: torch.zeros_like(value) for name, value in weights.items()}
    state = {"model_state_dict": weights, "ema_state_dict": average, "epoch": 4}
    state |= {"optimizer_state_dict": {}, "args": {"data_dir": "private"}}
    state |= {"model": model.description.as_plain_data()}
    save_checkpoint(Path("run/3_ep4.pth"), state)
    assert run("--run_id 3 --inputs run/3_ep4.pth --output a.pth --weights-only") == 0
    got = load_checkpoint(Path("a.pth"))
    assert got.keys() == {"format_version", "epoch", "model", "model_state_dict"}
    assert got["epoch"] == 4
    assert not got["model_state_dict"]["u_init.weight"].any()
    assert lmconv.load("a.pth").description == model.description


def test_weights_in_16_bits_make_a_file_of_half_the_size_and_the_same_model(capsys):
    model = tiny_model()
    state = {"model_state_dict": published_state_dict(model.network), "epoch": 4}
    save_checkpoint(Path("whole.pth"), state | {"model": model.description.as_plain_data()})
    flags = "--run_id 3 --inputs whole.pth --weights-only --output"
    assert run(f"{flags} full.pth") == run(f"{flags} half.pth --half") == 0
    sizes = {
        name: sum(map(torch.numel, load_checkpoint(Path(name))["model_state_dict"].values()))
        for name in ("full.pth", "half.pth")
    }
    assert sizes["full.pth"] == sizes["half.pth"]
    saved = Path("full.pth").stat().st_size - Path("half.pth").stat().st_size
    assert saved > 1.9 * sizes["half.pth"]
    full, half = (lmconv.load(name).network.state_dict() for name in ("full.pth", "half.pth"))
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=2**-11, atol=2**-24)
    save("large.pth", {"w": torch.tensor([1e6])})
    refused(
        "--run_id 3 --inputs large.pth --output a.pth --weights-only --half",
        capsys,
        "large.pth",
        "65504",
    )
    assert run("--run_id 3 --inputs half.pth full.pth --weights-only --output mean.pth") == 0
    mean = load_checkpoint(Path("mean.pth"))["model_state_dict"]
    assert {value.dtype for value in mean.values()} == {torch.float32}
    refused("--run_id 3 --inputs whole.pth --output a.pth --half", capsys, "--weights-only")


def save(path, weights=None, **rest):
    weights = {"w": torch.ones(2)} if weights is None else weights
    save_checkpoint(Path(path), {"model_state_dict": weights, **rest})


def refused(flags, capsys, *words):
    """The command ends with code 2 and one line that holds the words, and changes no file."""

    def files():
        return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    before = files()
    capsys.readouterr()
    assert run(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("average_checkpoints.py: error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error
    assert files() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--inputs run --num-epoch-checkpoints 5 --output a.pth", ["2", "5"]),
        ("--inputs run --output a.pth", ["--num-epoch-checkpoints"]),
        ("--inputs run/lost.pth --output a.pth", ["lost.pth"]),
        ("--inputs '' --output a.pth", ["--num-epoch-checkpoints"]),
        ("--inputs lost --num-epoch-checkpoints 1 --output a.pth", ["lost"]),
        ("--inputs run/10000_ep1.pth --num-epoch-checkpoints 1 --output a.pth", ["directory"]),
        ("--inputs run run --num-epoch-checkpoints 1 --output a.pth", ["directory"]),
        ("--inputs run --num-epoch-checkpoints 2 --output nowhere/a.pth", ["nowhere"]),
        ("--inputs run --num-epoch-checkpoints 2 --output run", ["run", ".pth"]),
        ("--inputs run --num-epoch-checkpoints 2 --output ''", [".pth"]),
        ("--inputs run --num-epoch-checkpoints 2 --output averaged", ["averaged", ".pth"]),
        (
            "--inputs run --num-epoch-checkpoints 1 --num-update-checkpoints 1 --output a.pth",
            ["not allowed"],
        ),
        *(
            (f"--inputs run --num-epoch-checkpoints {number} --output a.pth", [number])
            for number in ("0", "-3", "1.5", "nan", "x", f"1{'0' * 30}")
        ),
        ("--inputs run --num-update-checkpoints 1 --output a.pth", ["{epoch}_{update}"]),
        (
            "--inputs run --num-epoch-checkpoints 1 --checkpoint-upper-bound -1 --output a.pth",
            ["up to -1"],
        ),
        (
            "--inputs run/10000_ep0.pth --checkpoint-upper-bound 1 --output a.pth",
            ["--checkpoint-upper-bound"],
        ),
        ("--inputs run/10000_ep1.pth run/../run/10000_ep1.pth --output a.pth", ["same file"]),
    ],
)
def test_mistakes_end_with_one_line_and_write_nothing(flags, words, capsys):
    refused(f"--run_id 10000 {flags}", capsys, *words)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("notes.txt", b"dear diary"),
        ("notes.pth", b"dear diary"),
        ("empty.pth", b""),
        ("list.pth", None),
    ],
)
def test_other_files_are_never_replaced(name, contents, capsys):
    if contents is None:
        torch.save([1], name)
    else:
        Path(name).write_bytes(contents)
    refused(f"--run_id 10000 --inputs run --num-epoch-checkpoints 2 --output {name}", capsys, name)


@pytest.mark.parametrize(
    "output", ["run/10000_ep0.pth", "link.pth", "hard.pth", "run/10000_ep1.pth"]
)
@pytest.mark.parametrize("inputs", ["run --num-epoch-checkpoints 1", "run/10000_ep0.pth"])
def test_inputs_are_never_replaced(inputs, output, capsys):
    Path("link.pth").symlink_to("run/10000_ep0.pth")
    Path("hard.pth").hardlink_to("run/10000_ep0.pth")
    command = f"--run_id 10000 --inputs {inputs} --output {output}"
    if (inputs, output) == ("run/10000_ep0.pth", "run/10000_ep1.pth"):
        assert run(command) == 0  # a checkpoint that is not an input
    else:
        refused(command, capsys, output, "--inputs")


def test_an_average_can_be_made_again():
    for _ in range(2):
        assert run("--run_id 10000 --inputs run --num-epoch-checkpoints 2 --output a.pth") == 0


def test_folders_and_links_to_nowhere_are_not_replaced(capsys):
    Path("folder.pth").mkdir()
    Path("lost.pth").symlink_to("nowhere")
    for name in ("folder.pth", "lost.pth"):
        refused(f"--run_id 1 --inputs run/10000_ep0.pth --output {name}", capsys, name)


@pytest.mark.parametrize(
    ("contents", "word"),
    [
        ({"w": torch.ones(3)}, "different networks"),
        ({"w": torch.ones(2), "v": torch.ones(2)}, "different networks"),
        ({"v": torch.ones(2)}, "different networks"),
        ({}, "different networks"),
        ({"w": torch.tensor([1, math.nan])}, "not finite"),
        ({"w": torch.tensor([1, -math.inf])}, "not finite"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "int64"),
        ({"w": torch.ones(2, dtype=torch.bool)}, "bool"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({"w": torch.ones(2, device="meta")}, "meta"),
        ({"w": [1.0, 1.0]}, "list"),
        ([], "model_state_dict"),
        (b"", "is empty"),
        (b"x", "text file"),
        (b"PK\x03\x04half", "incomplete"),
    ],
    ids=lambda value: "",
)
def test_files_that_do_not_go_together_are_refused_by_name(contents, word, capsys):
    save("good.pth")
    if isinstance(contents, bytes):
        Path("bad.pth").write_bytes(contents)
    else:
        save("bad.pth", contents)
    for inputs in ("good.pth bad.pth", "bad.pth good.pth"):
        refused(f"--run_id 1 --inputs {inputs} --output a.pth", capsys, "bad.pth", word)


def test_running_averages_that_are_not_finite_are_refused(capsys):
    save("good.pth", ema_state_dict={"w": torch.ones(2)})
    save("bad.pth", ema_state_dict={"w": torch.full((2,), math.nan)})
    refused("--run_id 1 --inputs good.pth bad.pth --output a.pth", capsys, "bad.pth", "finite")


def test_models_whose_weights_mean_something_else_are_refused(capsys):
    for number, settings in enumerate(({}, {"max_dilation": 1}, {"n_bits": 5})):
        tiny_model(**settings).save(f"{number}.pth")
    for other in ("1.pth", "2.pth"):
        refused(f"--run_id 1 --inputs 0.pth {other} --output a.pth", capsys, "different models")


def test_every_kind_of_floating_point_is_averaged():
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for number in (1.0, 4.0):
        save(f"{number}.pth", {str(kind): torch.full((2,), number, dtype=kind) for kind in kinds})
    assert run("--run_id 1 --inputs 1.0.pth 4.0.pth --output a.pth") == 0
    for value in load_checkpoint(Path("a.pth"))["model_state_dict"].values():
        assert value.tolist() == [2.5, 2.5]


def test_results_of_a_single_checkpoint_are_not_those_of_the_average():
    for number in (1, 2):
        save(f"{number}.pth", epoch=number, test_loss_1x8x8=2.0, best_bpd=2.0, replaces="0_ep0.pth")
    assert run("--run_id 1 --inputs 1.pth 2.pth --output a.pth") == 0
    assert load_checkpoint(Path("a.pth")).keys() == {"format_version", "epoch", "model_state_dict"}


def test_the_run_id_is_no_pattern():
    save("run/1x_ep5.pth")
    assert run("--run_id 1. --inputs run --num-epoch-checkpoints 1 --output a.pth") == 2
