"""The command line as a user runs it: the modes one after the other, and every way to err."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import newest
from helpers.models import tiny_model
from helpers.paths import REFERENCE, ROOT
from helpers.records import write_tfrecords
from PIL import Image

from lmconv.checkpoints import load_checkpoint, published_state_dict
from lmconv.image_model import ImageModel
from lmconv.modes import UsageError, train
from lmconv.modes.options import parse, settle
from main import main

MODELS = REFERENCE / "models"
TINY = (
    "-q 1 -n 4 --max_train_images 40 --max_test_images 12 -b 8 --disable_wandb "
    "--sample_batch_size 3 -x 2 --test_interval 1 --sample_interval 2"
)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(command):
    return main(shlex.split(command))


def refused(command, capsys, *words):
    """The command ends with code 2 and one line on standard error that holds the words."""
    assert run(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error
    assert not list(Path().rglob("*")), "something was left behind"


@pytest.fixture
def trained(tmp_path):
    """A run directory with a tiny trained network."""
    assert run(f"--mode train {TINY} --run_dir run") == 0
    return tmp_path / "run"


def test_bare_modes_chain_in_a_directory_of_their_own(tmp_path, capsys):
    assert run(f"--mode train {TINY}") == 0
    assert run(f"--mode test {TINY} --load_params") == 0
    assert run(f"--mode sample {TINY}") == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name == "00000_digits_lr0.00300_bs8_gc-1_k3_md2_pono_n4_images40"
    names = {path.name for path in run_dir.iterdir()}
    assert {"args.json", "metrics.jsonl", "best.pth", "0_ep1.pth", "test.json"} <= names
    assert "0_ep0.pth" not in names  # only the newest is kept between save intervals
    assert any(name.startswith("samples_epoch1_seed1") for name in names)
    assert any(name == "training_samples_epoch1_seed1.png" for name in names)
    assert json.loads((run_dir / "args.json").read_text())["nr_filters"] == 4
    assert "ensemble of 8 orders" in capsys.readouterr().out


def test_json_of_a_test_holds_what_scripts_need(trained):
    assert run(f"--mode test {TINY} --run_dir run") == 0
    result = json.loads(newest("run/test*.json").read_text())
    assert result["dataset"] == "digits"
    assert result["checkpoint"].endswith("best.pth")
    assert result["image_shape"] == [1, 8, 8]
    assert result["region"] == [0, 8, 0, 8]
    assert result["num_images"] == 12
    assert [order["index"] for order in result["orders"]] == list(range(8))
    assert set(result["ensemble"]) == {"nats", "bpd", "nats_stderr"}
    for order in result["orders"]:
        assert order["nats"] == pytest.approx(order["bpd"] * 64 * np.log(2))


def test_regions_have_files_of_their_own(trained):
    command = (
        f"--mode test {TINY} --run_dir run --test_region custom --test_minh 4 --test_masks 0 2"
    )
    assert run(command) == 0
    result = json.loads((trained / "test_4-8_0-8.json").read_text())
    assert result["region"] == [4, 8, 0, 8]
    assert [order["index"] for order in result["orders"]] == [0, 2]


def test_the_result_does_not_depend_on_the_batch_size(trained):
    results = []
    for batch_size in (1, 5, 12):
        assert run(f"--mode test {TINY} --run_dir run -b {batch_size}") == 0
        results.append(json.loads(newest("run/test*.json").read_text())["ensemble"]["nats"])
    assert results == pytest.approx([results[0]] * 3, rel=1e-6)


def test_several_sizes_are_tested_one_by_one():
    flags = f"{TINY} -x 1 --resize_sizes 8 6 --resize_probs 0.5 0.5 --run_dir run"
    assert run(f"--mode train {flags}") == 0
    assert run(f"--mode test {flags}") == 0
    results = json.loads(newest("run/test*.json").read_text())
    assert [result["image_shape"] for result in results] == [[1, 8, 8], [1, 6, 6]]
    checkpoint = torch.load("run/0_ep0.pth", weights_only=True)
    assert {"test_loss_1x8x8", "test_loss_1x6x6"} <= set(checkpoint)


@pytest.mark.parametrize("region", ["center", "random_near_center", "top", "custom"])
def test_completions_show_context_result_original_and_difference(trained, region):
    offsets = (
        "--sample_offset1 0 --sample_offset2 -4 --sample_size_w 8" if region == "custom" else ""
    )
    assert run(f"--mode sample {TINY} --run_dir run --sample_region {region} {offsets}") == 0
    grid = np.asarray(Image.open(trained / f"completions_{region}_epoch1_seed1.png").convert("L"))
    scale = json.loads((trained / f"completions_{region}_epoch1_seed1.json").read_text())[
        "dots_per_pixel"
    ]
    side, caption = 8 * scale, 18
    assert side >= 96 and grid.shape == (3 * (side + caption + 2) + 2, 4 * (side + 2) + 2)
    for row in range(3):
        rows = 2 + (side + caption + 2) * row + scale * np.arange(8)
        columns = [2 + (side + 2) * tile + scale * np.arange(8) for tile in range(4)]
        tiles = [grid[np.ix_(rows, cols)].astype(int) for cols in columns]
        context, result, original, difference = tiles
        hidden = context == 128
        assert hidden.sum() >= (32 if region == "custom" else 16)
        assert (context == original)[~hidden].all()
        assert (result == original)[~hidden].all()
        assert (difference[~hidden] == 0).all()
        assert np.abs(np.abs(result - original) - difference).max() <= 2


def test_the_same_seed_samples_the_same_images(trained):
    pictures = []
    for seed in (1, 1, 2):
        assert run(f"--mode sample {TINY} --run_dir run -s {seed} --order_variants 3") == 0
        (path,) = trained.glob(f"samples_*_seed{seed}.png")
        pictures.append(path.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_both_samplers_write_the_same_pictures(trained):
    for region, name in (("full", "samples"), ("center", "completions_center")):
        for sampler in ("cached", "naive", "cached --guess 0", "cached --guess 5"):
            flags = f"{TINY} --run_dir run --sample_region {region} --sampler {sampler}"
            assert run(f"--mode sample {flags}") == 0
        numbers = ("", "_2", "_3", "_4")
        pictures = [trained / f"{name}_epoch1_seed1{number}.png" for number in numbers]
        assert len({picture.read_bytes() for picture in pictures}) == 1


def test_guessing_needs_the_cached_sampler(trained, capsys):
    for flags, word in (
        ("--sampler naive --guess 4", "--sampler cached"),
        ("--guess some", "not a whole number"),
        ("--guess -1", "at least 0"),
    ):
        assert run(f"--mode sample --run_dir run {flags}") == 2
        assert word in capsys.readouterr().err


def test_any_number_of_samples_with_each_image_an_animation_and_a_record(trained):
    flags = f"{TINY} --run_dir run -s 5 --num_samples 7 --save_individual --save_animation"
    assert run(f"--mode sample {flags}") == 0
    (record_path,) = trained.glob("samples_*.json")
    record = json.loads(record_path.read_text())
    assert record["num_images"] == 7
    assert record["args"]["seed"] == 5
    assert record["image_shape"] == [1, 8, 8]
    assert record["checkpoint"].endswith("best.pth")
    assert record["seconds"] > 0
    written = {trained / name for name in record["files"]}
    assert all(path.is_file() for path in written)
    grids = sorted(path.name for path in written if path.parent == trained)
    assert grids == [
        f"samples_epoch1_seed5_images{part}.{suffix}"
        for part in ("0-2", "3-5", "6-6")
        for suffix in ("gif", "png")
    ]
    singles = sorted(path for path in written if path.parent != trained)
    assert [path.name for path in singles] == [f"{index:05d}.png" for index in range(7)]
    (grid,) = (
        np.asarray(Image.open(p).convert("L")) for p in written if p.name.endswith("3-5.png")
    )
    scale = record["dots_per_pixel"]
    assert grid.shape == (8 * scale + 4, 3 * (8 * scale + 2) + 2)
    for column, path in enumerate(singles[3:6]):
        left = 2 + (8 * scale + 2) * column
        image = np.kron(np.asarray(Image.open(path)), np.ones((scale, scale)))
        np.testing.assert_array_equal(grid[2:-2, left : left + 8 * scale], image)
    with Image.open(next(path for path in written if path.suffix == ".gif")) as animation:
        assert animation.n_frames > 30


def test_an_interrupted_run_leaves_what_is_finished(trained, monkeypatch, capsys):
    generate, calls = ImageModel.draw, []

    def interrupted(self, *arguments):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *arguments)

    monkeypatch.setattr(ImageModel, "draw", interrupted)
    assert run(f"--mode sample {TINY} --run_dir run --num_samples 9") == 130
    assert "interrupted" in capsys.readouterr().err
    (grid,) = trained.glob("samples_*.png")
    assert grid.stem.endswith("_images0-2")
    record = json.loads(next(trained.glob("samples_*.json")).read_text())
    assert record["num_images"] == 3 and record["files"] == [grid.name]


def test_the_baseline_samples_naively(capsys):
    tiny = f"{TINY} --model pixelcnnpp --run_dir base -x 1"
    assert run(f"--mode train {tiny}") == 0
    assert run(f"--mode sample {tiny}") == 0
    record = json.loads(next(Path("base").glob("samples_*.json")).read_text())
    assert record["args"]["sampler"] == "naive"
    assert run(f"--mode sample {tiny} --sampler cached") == 2
    assert "--sampler cached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        ("-d cifar --ours -k 3 --normalization pono --order s_curve -dp 0", "46072360"),
        ("-d mnist --ours -k 3 --normalization pono --order s_curve --binarize", "46053604"),
        ("-d mnist --ours -k 3 --normalization pono --order gilbert2d -dp 0", "46058140"),
        ("-d cifar --model pixelcnnpp", "53659080"),
    ],
)
def test_count_params(flags, number, capsys):
    assert run(f"--mode count_params {flags}") == 0
    assert f"Total number of parameters in model: {number}" in capsys.readouterr().out


def test_plots_of_orders_and_masks():
    assert run("--mode count_params -q 1 -n 4 --plot_masks --order_variants 0 5 --run_dir run") == 0
    assert Path("run/count_params_orderings_obs1x8x8.png").is_file()
    kinds = ("init", "undilated", "dilated_d2")
    for name in [f"mask_{kind}_obs1x8x8_order{i}.pdf" for kind in kinds for i in (0, 1)]:
        assert (Path("run") / name).read_bytes().startswith(b"%PDF")


def test_a_folder_of_rectangles_is_trained_on_tested_and_completed(tmp_path):
    random = np.random.default_rng(0)
    Path("pictures").mkdir()
    for number in range(12):
        pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{number}.png")
    flags = (
        "-d folder -i pictures --image_size 6x10 --n_bits 5 -q 1 -n 4 -m 2 -k 3 --normalization "
        "pono -dp 0 -b 4 --order s_curve spiral_out --disable_wandb --run_dir run --plot_masks"
    )
    assert run(f"{flags} -x 1 --randomize_order --sample_batch_size 2") == 0
    assert run(f"{flags} --mode test --randomize_order") == 0
    result = json.loads(newest("run/test*.json").read_text())
    assert result["image_shape"] == [3, 6, 10]
    assert result["num_images"] == 1 and len(result["orders"]) == 16
    box = "--sample_region top --sample_size_h 3 --sample_size_w 10"
    assert run(f"{flags} --mode sample {box} --order_choice best --num_samples 1") == 0
    (path,) = Path("run").glob("completions_*/*.png")
    assert Image.open(path).size == (10, 6)


@pytest.mark.parametrize("size", [64, 256])
def test_celebahq_records_are_trained_on_tested_and_completed(size):
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        images = random.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
        path = Path("celeba-tfr") / split / f"{split}-r08-s-0000-of-0001.tfrecords"
        write_tfrecords(path, [{"data": image.tobytes()} for image in images])
    flags = (
        f"-d celebahq -i . --celeba_size {size} --n_bits 5 -q 1 -n 2 -m 1 -k 3 --normalization "
        "pono -dp 0 -b 1 --max_celeba_train_batches 2 --max_celeba_test_batches 1 --order s_curve "
        "--order_variants 0 --disable_wandb --run_dir run --sample_batch_size 1"
    )
    hole = "--sample_region custom --sample_offset1 0 --sample_offset2 0 --sample_size_h 3"
    hole += " --sample_size_w 4"
    assert run(f"{flags} -x 1 {hole}") == 0
    assert run(f"{flags} --mode test") == 0
    result = json.loads(newest("run/test*.json").read_text())
    assert result["image_shape"] == [3, size, size] and result["num_images"] == 1
    assert run(f"{flags} --mode sample {hole} --completions 2") == 0
    (path,) = Path("run").glob("completions_*.json")
    (entry,) = json.loads(path.read_text())["images"]
    assert len(entry["completions"]) == 2


def test_a_model_of_one_size_scores_and_completes_another(trained):
    flags = f"{TINY} --run_dir run --resize_sizes 11 --mode"
    assert run(f"{flags} score") == 0
    assert Path("run/scores.csv").read_text().count("\n") == 13
    hole = "--sample_region center --sample_size_h 3 --sample_size_w 3"
    assert run(f"{flags} sample {hole} --order_choice best --num_samples 2") == 0
    (path,) = Path("run").glob("completions_*.json")
    assert json.loads(path.read_text())["image_shape"] == [1, 11, 11]


def test_orders_from_files_are_trained_and_tested(tmp_path):
    np.save("order.npy", np.random.default_rng(0).permutation(64))
    flags = f"{TINY} --order_file order.npy --run_dir run"
    assert run(f"{flags} --no-randomize_order") == 0
    assert run(f"{flags} --no-randomize_order --mode test") == 0
    assert len(json.loads(newest("run/test*.json").read_text())["orders"]) == 1
    assert run(f"{flags} --order random --order_seed 3 --randomize_order --mode test") == 0
    assert len(json.loads(newest("run/test*.json").read_text())["orders"]) == 16


def test_published_checkpoints_are_tested_on_cifar_files(tmp_path, capsys):
    words = ["--output", "data", "--train-images", "10", "--test-images", "6"]
    subprocess.run(
        [sys.executable, ROOT / "tools/photo_patches.py", *words],
        check=True,
        capture_output=True,
    )
    flags = (
        "-d cifar -b 4 --ours -q 1 -n 8 -k 3 --normalization pono --order s_curve "
        "--randomize_order -dp 0 --disable_wandb --run_dir runs/cifar_run "
        f"--load_params {MODELS / 'pono_color.pth'}"
    )
    region = "--test_region custom --test_maxh 16 --test_maxw 32 --test_masks 1 3"
    assert run(f"{flags} --mode test {region}") == 0
    result = json.loads(Path("runs/cifar_run/test_0-16_0-32.json").read_text())
    assert result["num_images"] == 6
    assert result["image_shape"] == [3, 32, 32]


def test_the_number_of_threads_is_what_is_asked_for():
    before = torch.get_num_threads()
    try:
        for number in (2, 1):
            assert run(f"--mode count_params -q 1 -n 2 --run_dir run --threads {number}") == 0
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def test_the_program_runs_as_a_script():
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", "--mode", "count_params", "-q", "1", "-n", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "Total number of trainable parameters" in done.stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--mode dance", ["dance"]),
        ("--not_a_flag 3", ["--not_a_flag"]),
        ("-d celeba", ["celebahq"]),
        ("-k 4", ["kernel_size", "4"]),
        ("-n 0", ["nr_filters", "0"]),
        ("-n many", ["many"]),
        ("-dp 1.5", ["dropout_prob", "1.5"]),
        ("-l 0", ["lr"]),
        ("--n_bits 9", ["n_bits", "9"]),
        ("-d cifar --binarize", ["--binarize", "cifar"]),
        ("--ours --model pixelcnnpp", ["contradicts"]),
        ("-d mnist --model pixelcnnpp --order s_curve", ["raster"]),
        ("-d mnist --model pixelcnnpp -k 5", ["kernel_size", "pixelcnnpp"]),
        ("-d mnist --model pixelcnnpp --resize_sizes 10", ["10x10"]),
        ("-d mnist --order hilbert", ["hilbert", "28x28", "gilbert2d"]),
        ("--order_variants 8", ["--order_variants", "8"]),
        ("--train_masks 8", ["--train_masks", "8", "0 to 7"]),
        ("--mode test --test_maxh 4", ["--test_region custom"]),
        ("--mode sample --sample_region custom", ["--sample_offset1"]),
        ("--sample_offset1 3", ["--sample_region custom"]),
        ("--resize_sizes 8 6 --resize_probs 1", ["--resize_probs"]),
        ("--resize_sizes 8 6 --resize_probs 0.5 0.6", ["--resize_probs", "1.1"]),
        ("--load_last_params --load_params x.pth", ["contradict"]),
        ("--load_last_params --run_dir nowhere", ["nowhere", "no checkpoint"]),
        ("--mode test", ["no checkpoint", "train first"]),
        ("--mode sample --load_params lost.pth", ["lost.pth"]),
        ("-m 0", ["nr_logistic_mix"]),
        ("--normalization pono -n 1", ["at least 2"]),
        ("@lost.txt", ["lost.txt", "No such file"]),
        (f"@{ROOT}", ["is a folder"]),
        (f"@{MODELS / 'pono_color.pth'}", ["preset"]),
        ("-d folder", ["--image_size"]),
        ("-d folder --image_size 8x0", ["8x0"]),
        ("-d folder --image_size 8x8 --channels 9", ["9"]),
        ("--image_size 8x8", ["-d folder"]),
        ("--order_file lost.npy", ["--order_file lost.npy"]),
        ("--compare_runs x", ["--mode plot"]),
        ("--order_seed 3", ["--order random"]),
        ("--threads 0", ["threads", "0"]),
        ("--threads 9999", ["--threads", "1024", "9999"]),
        ("-d folder -i . --image_size 8", ["no images for training"]),
        ("-d folder --image_size 8x9 --resize_sizes 8", ["--resize_sizes", "square"]),
        ("-d folder -i mistyped --image_size 8", ["folder of images mistyped does not exist"]),
        ("-d mnist -i mistyped", ["folder mistyped does not exist", "--data_dir"]),
        ("-d cifar -i mistyped", ["folder mistyped does not exist", "--data_dir"]),
        ("--order_file /dev/zero", ["--order_file /dev/zero", "not a regular file"]),
    ],
)
def test_bad_input_ends_with_one_line_and_leaves_nothing_behind(command, words, capsys):
    refused(command, capsys, *words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--mode test --test_masks 2 9", ["--test_masks", "9"]),
        ("--mode test --test_region custom --test_maxh 9", ["8x8"]),
        ("--mode sample --sample_region center --sample_size_h 9", ["8x8"]),
        ("--mode sample --order hilbert --resize_sizes 6", ["--order hilbert", "6x6"]),
        ("--mode test -d folder -i empty", ["no images for testing"]),
        ("--mode test -d cifar", ["cifar have 3 channels", "works on 1", "-d/--dataset"]),
        ("--mode test -n 64", ["--nr_filters 64 contradicts", "best.pth", "has 4"]),
        ("--mode sample -k 5", ["--kernel_size 5 contradicts", "has 3"]),
        ("--mode sample --n_bits 5", ["--n_bits 5 contradicts", "has 8"]),
        ("--mode score --binarize", ["--binarize True contradicts"]),
        ("--mode score --images /dev/zero", ["/dev/zero is a device, not a regular file"]),
        ("--mode sample --hole_mask pipe.png", ["--hole_mask: pipe.png is a pipe, not a regular"]),
        ("--mode info --load_params lost.pth", ["lost.pth"]),
    ],
)
def test_what_does_not_fit_a_checkpoint_ends_with_one_line(trained, command, words, capsys):
    Path("empty").mkdir()
    os.mkfifo("pipe.png")
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert run(f"{command} --run_dir run") == 2
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ") and error.count("\n") == 1
    for word in words:
        assert word in error, error
    assert sorted(Path().rglob("*")) == before


def test_a_checkpoint_needs_no_other_flag(trained, capsys):
    """All modes in another directory, with nothing but the file; its orders and data are known."""
    path = trained / "best.pth"
    for mode in ("test", "sample", "score", "info", "count_params"):
        assert run(f"--mode {mode} --load_params {path} --run_dir other") == 0, mode
    out = capsys.readouterr().out
    assert "1 x 4 filters, kernel 3" in out and "trained on digits" in out
    assert json.loads(Path("other/test.json").read_text())["num_images"] == 297
    hole = "--sample_region center --sample_size_h 3 --num_samples 2 --completions 2"
    assert run(f"--mode sample --load_params {path} --run_dir other {hole}") == 0
    few = f"--load_params {path} --run_dir other --max_test_images 5"
    assert run(f"--mode compress {few} --output five.lmc") == 0
    assert (
        run(f"--mode decompress --load_params {path} --run_dir o --input five.lmc --output out")
        == 0
    )
    assert len(list(Path("out").iterdir())) == 5


@pytest.mark.parametrize(
    ("flags", "line", "recorded"),
    [
        ("", None, {}),
        ("-i elsewhere --max_test_images 3", None, {}),
        (
            "--order raster_scan --no-randomize_order",
            "not as in training: --order raster_scan (was s_curve), --randomize_order off (was on)",
            {"order": [["raster_scan"], ["s_curve"]], "randomize_order": [False, True]},
        ),
        (
            "--resize_sizes 6",
            "not as in training: --image_size 6x6 (was 8x8)",
            {"image_size": [[6, 6], [8, 8]]},
        ),
        (
            "--order_file own.npy",
            "--order none (was s_curve), --order_file own.npy (was none)",
            {"order": [[], ["s_curve"]], "order_file": [["own.npy"], []]},
        ),
    ],
)
def test_other_images_and_orders_than_in_training_are_said_and_recorded(
    flags, line, recorded, trained, capsys
):
    np.save("own.npy", np.arange(64))
    assert run(f"--mode test --load_params {trained / 'best.pth'} --run_dir other {flags}") == 0
    out = capsys.readouterr().out
    assert line in out if line else "not as in training" not in out
    assert json.loads(Path("other/test.json").read_text())["not_as_trained"] == recorded


def test_flags_may_depend_on_what_the_checkpoint_says(tmp_path):
    """Neither the data set nor the order is given: both are those of the run."""
    for number in range(10):
        pixels = np.full((8, 8), 25 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    flags = "-d folder -i . --image_size 8 --channels 1 --order random"
    assert run(f"--mode train {TINY} -x 1 {flags} --run_dir run") == 0
    assert run("--mode test --run_dir run --image_size 6 --order_seed 3") == 0
    assert json.loads(newest("run/test*.json").read_text())["image_shape"] == [1, 6, 6]


def test_a_checkpoint_is_described_where_its_orders_do_not_exist_at_its_size(capsys):
    assert run(f"--mode info --load_params {MODELS / 'none_gray_mask_weight.pth'}") == 0
    assert "8: hilbert, all 8 variants" in capsys.readouterr().out


def test_a_model_that_knows_no_epoch_is_said_to_have_none(capsys):
    tiny_model().save("a.pth")
    assert run("--mode info --load_params a.pth") == 0
    assert "not recorded" in capsys.readouterr().out
    assert run("--mode sample --load_params a.pth --num_samples 1 --run_dir out") == 0
    assert "weights from a.pth" in capsys.readouterr().out


def test_a_run_with_random_crops_and_mirrored_images_is_resumed_exactly(tmp_path):
    random = np.random.default_rng(0)
    Path("pictures").mkdir()
    for number in range(20):
        pixels = random.integers(0, 256, (6, 9), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{number:02d}.png")
    flags = f"{TINY} -d folder -i pictures --image_size 6 --channels 1 -k 3 -nm pono -dp 0 -ts 9"
    assert run(f"{flags} --random_crop --flip -x 3 --run_dir whole") == 0
    assert run(f"{flags} --random_crop --flip -x 1 --run_dir parts") == 0
    assert run("--load_last_params -x 3 --run_dir parts") == 0
    settings = json.loads(Path("parts/args.json").read_text())
    assert settings["random_crop"] and settings["flip"]
    states = [
        torch.load(f"{name}/0_ep2.pth", weights_only=True)["model_state_dict"]
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert run("--mode test --run_dir parts") == 0


def test_a_model_of_pieces_of_pictures_works_on_whole_ones(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in ("train/a", "train/b", "test/c"):
        path = Path(f"pictures/{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, cols = np.indices((20, 26))
        levels = 90 + 3 * rows[..., None] + 2 * cols[..., None] + random.integers(0, 9, (20, 26, 3))
        Image.fromarray(levels.astype(np.uint8)).save(path)
    flags = f"{TINY} -d folder -i pictures --crop 8x8 -k 3 -nm pono -dp 0 --local_prediction"
    flags += " --order raster_scan -ts 9 --optimizer muon --coefficient_bound 3 --permute_channels"
    assert run(f"{flags} -x 2 --run_dir whole") == 0
    assert run(f"{flags} -x 1 --run_dir parts") == 0
    assert run("--load_last_params -x 2 --run_dir parts -i pictures") == 0
    states = [load_checkpoint(Path(f"{name}/0_ep1.pth")) for name in ("whole", "parts")]
    for name, weight in states[0]["model_state_dict"].items():
        assert torch.equal(weight, states[1]["model_state_dict"][name])
    assert run("--mode test --run_dir parts") == 0
    tested = json.loads(newest("parts/test*.json").read_text())
    assert tested["num_images"] == 6  # the pieces of the run's own test picture
    assert run("--mode info --run_dir parts") == 0
    said = capsys.readouterr().out
    assert "local prediction" in said and "coefficients up to 3" in said
    assert run("--mode test --run_dir parts --coefficient_bound 2") == 2
    assert "--coefficient_bound 2.0 contradicts" in capsys.readouterr().err
    pieces = "--run_dir parts -i pictures"
    assert run(f"--mode compress {pieces} --output pieces.lmc") == 0
    assert run("--mode decompress --run_dir parts --input pieces.lmc --output pieces") == 0
    names = {path.name for path in Path("pieces").iterdir()}
    assert names == {f"c_row{row}_column{col}.png" for row in (2, 10) for col in (1, 9, 17)}
    assert run(f"--mode score {pieces}") == 0
    assert "c_row2_column1.png" in Path("parts/scores.csv").read_text()
    hole = "--sample_region custom --sample_offset1 0 --sample_offset2 0 --sample_size_h 2"
    assert (
        run(f"--mode sample {pieces} {hole} --sample_size_w 2 --completions 2 --num_samples 2") == 0
    )
    assert len(set(Path("parts").glob("completions*/*_c_row2_column*_0.png"))) == 2
    capsys.readouterr()
    assert run("--mode score --run_dir parts --crop 8x8 --images pictures/test/c.png") == 2
    assert "--crop cuts the images of a data set" in capsys.readouterr().err
    whole = "--load_params parts/0_ep1.pth --image_size 20x26"
    files = "--images pictures/test/c.png"
    assert run(f"--mode compress {whole} {files} --output c.lmc --run_dir out") == 0
    assert run("--mode decompress --load_params parts/0_ep1.pth --input c.lmc --output back") == 0
    assert np.array_equal(*map(pixels_of, ("pictures/test/c.png", "back/c.png")))
    assert run(f"--mode score {whole} {files} --run_dir out") == 0
    assert run(f"--mode sample {whole} --num_samples 1 --run_dir out") == 0
    weights = load_checkpoint(Path("parts/0_ep1.pth"))["model_state_dict"]
    torch.save({"model_state_dict": weights}, "weights.pth")
    flags = "-d folder -i pictures --crop 8x8 -q 1 -n 4 -k 3 -nm pono -dp 0 --order raster_scan"
    capsys.readouterr()
    assert run(f"--mode test --load_params weights.pth {flags}") == 2
    assert "another network: with --local_prediction" in capsys.readouterr().err
    assert run(f"--mode test --load_params weights.pth {flags} --local_prediction") == 0


def test_what_is_for_channels_of_colours_is_refused_for_grey_images(capsys):
    refused(f"{TINY} --coefficient_bound 2 --run_dir run", capsys, "--coefficient_bound", "one")
    refused(f"{TINY} --permute_channels --run_dir run", capsys, "--permute_channels", "one channel")
    assert not Path("run").exists()


def pixels_of(path):
    return np.asarray(Image.open(path))


def test_training_goes_on_with_the_settings_of_the_run(trained):
    assert run("--mode train --load_last_params --run_dir run -x 3") == 0
    settings = json.loads((trained / "args.json").read_text())
    assert (settings["nr_filters"], settings["batch_size"], settings["max_epochs"]) == (4, 8, 3)
    assert settings["max_train_images"] == 40 and settings["disable_wandb"]
    checkpoint = torch.load(trained / "0_ep2.pth", weights_only=True)
    assert checkpoint["global_step"] == 15


def test_a_flag_that_chooses_wins_over_the_checkpoint(trained):
    flags = "--mode test --run_dir run --max_test_images 4"
    assert run(f"{flags} --order raster_scan --no-randomize_order") == 0
    assert len(json.loads(newest("run/test*.json").read_text())["orders"]) == 1
    assert run(f"{flags} --order_variants 3 1") == 0
    assert len(json.loads(newest("run/test*.json").read_text())["orders"]) == 2
    assert run(f"{flags} --resize_sizes 6") == 0
    assert json.loads(newest("run/test*.json").read_text())["image_shape"] == [1, 6, 6]


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("-q 2 -n 8 -k 5", ["--nr_resnet 1, not 2", "--nr_filters 4, not 8", "--kernel_size 3"]),
        ("-q 1 -n 4 -m 3", ["--nr_logistic_mix 10, not --nr_logistic_mix 3"]),
        ("-q 1 -n 4 --binarize", ["--nr_logistic_mix 10, not --binarize"]),
        ("-q 1 -n 4 -nm weight_norm", ["--normalization other than weight_norm"]),
        ("-q 1 -n 4 --no_bias", ["with bias (--no_bias)"]),
        ("-q 1 -n 4 --learn_weight_for_masks", ["without mask_weight (--learn_weight_for_masks)"]),
        ("--model pixelcnnpp -q 1 -n 4", ["--model lmconv, not pixelcnnpp"]),
        ("-d cifar -q 1 -n 4 -k 3 -nm pono", ["--channels 1, not 3 (--dataset)"]),
    ],
)
def test_weights_that_do_not_fit_are_told_by_flags(network, words, weights_alone, capsys):
    refused(f"--mode test {network} --load_params {weights_alone}", capsys, *words)


@pytest.fixture(scope="module")
def weights_alone(tmp_path_factory):
    """A file with only the weights of a tiny network, without a description."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({"model_state_dict": published_state_dict(tiny_model().network)}, path)
    return path


def test_a_missing_data_set_names_the_folder_and_the_remedy(capsys, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    assert run("-d mnist -q 1 -n 4 -i nothing_here") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nothing_here" in error


def test_a_flag_that_contradicts_the_checkpoint_is_refused_with_both_values(trained, capsys):
    capsys.readouterr()
    assert run(f"--mode test {TINY} -n 5 --run_dir run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--nr_filters 5 contradicts" in error and "has 4" in error


def test_a_run_directory_that_cannot_be_written_is_named(capsys):
    refused(f"{TINY} --run_dir {os.devnull}/run", capsys, f"{os.devnull}/run", "another --run_dir")


def test_a_stopped_run_says_so_and_returns_the_signal(capsys, monkeypatch):
    def stopped_test(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "score_sizes", stopped_test)
    assert run(f"{TINY} --run_dir run") == 128 + signal.SIGTERM
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "stopped by SIGTERM" in error
    assert "0_ep0.pth is saved" in error and "--load_last_params" in error


def test_the_average_is_tested_unless_raw_weights_are_asked_for(capsys):
    assert run(f"{TINY} --ema 0.5 --run_dir run") == 0
    results = []
    for flags in ("", "--raw_weights"):
        assert run(f"--mode test {TINY} --run_dir run {flags}") == 0
        results.append(json.loads(newest("run/test*.json").read_text())["ensemble"]["bpd"])
    best = torch.load("run/best.pth", weights_only=True)
    assert results[0] == pytest.approx(best["test_loss_1x8x8"])
    assert abs(results[0] - results[1]) > 1e-6


def test_a_used_run_directory_is_not_overwritten(trained, capsys):
    before = (trained / "0_ep1.pth").read_bytes()
    assert run(f"--mode train {TINY} --run_dir run") == 2
    assert "--load_last_params" in capsys.readouterr().err
    assert (trained / "0_ep1.pth").read_bytes() == before


def test_help_shows_the_defaults_of_each_data_set(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "channels (default: 160; digits: 24)" in text


def test_published_defaults_hold_for_published_data_sets():
    args = settle(parse(["-d", "cifar"]))
    published = {
        "nr_resnet": 5,
        "nr_filters": 160,
        "nr_logistic_mix": 10,
        "lr": 0.0002,
        "lr_decay": 0.999995,
        "batch_size": 64,
        "max_epochs": 5000,
        "kernel_size": 5,
        "max_dilation": 2,
        "dropout_prob": 0.5,
        "normalization": "weight_norm",
        "clip": -1,
        "seed": 1,
        "sample_batch_size": 25,
        "save_interval": 20,
        "sample_interval": 4,
        "test_interval": 1,
        "randomize_order": False,
        "order": ["s_curve"],
    }
    assert {name: getattr(args, name) for name in published} == published


def test_unambiguous_prefixes_of_flags_are_accepted_as_published():
    assert parse(["--test_mask", "3"]).test_masks == [3]


def test_flags_of_a_preset_are_read_as_in_a_shell_and_later_flags_win(tmp_path, capsys):
    preset = tmp_path / "preset.txt"
    preset.write_text(
        "# a comment\n-n 6 --run_dir 'a directory'  # and another\n\n--order hilbert\n"
    )
    args = parse([f"@{preset}", "-n", "7"])
    assert (args.nr_filters, args.run_dir, args.order) == (7, "a directory", ["hilbert"])
    assert parse(["-n", "7", f"@{preset}"]).nr_filters == 6


def test_flags_without_effect_are_accepted():
    args = parse(shlex.split("-d cifar --two_stream -o x --sample_quantize --amp_opt_level O0"))
    assert args.two_stream
    with pytest.raises(UsageError):
        parse(["--amp_opt_level", "O7"])
