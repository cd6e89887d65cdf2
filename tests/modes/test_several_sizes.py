"""Runs on pictures of many proportions, each brought to the nearest of several sizes."""

import csv
import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refused, run
from helpers.forked_runs import Forks
from PIL import Image

import lmconv
from lmconv.checkpoints import load_checkpoint
from lmconv.data.image_files import fit, read_image
from lmconv.training.optimization import Optimization
from main import main

SIZES = [(8, 12), (24, 16), (10, 10), (5, 9), (18, 12), (8, 12), (7, 7), (20, 13), (16, 24), (3, 3)]
NETWORK = (
    "-q 1 -n 3 -k 3 --normalization pono -dp 0.1 --nr_logistic_mix 1 -b 2 -p 1 --disable_wandb "
    "--sample_batch_size 2 --threads 1"
)
DATA = "-d folder -i pictures --image_size 4x6 6x4 5x5"
TRAIN = f"--mode train {DATA} {NETWORK}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of pictures, and a run on it."""
    folder = tmp_path_factory.mktemp("several")
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, size in enumerate(SIZES):
            path = folder / "pictures" / part / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(f"{TRAIN} -x 2 --run_dir run")
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def bucket(path):
    """The bucket of a picture of ``SIZES``: by the difference of logarithms."""
    ratio = math.log(np.divide(*SIZES[int(Path(path).stem)]))
    return min([(4, 6), (6, 4), (5, 5)], key=lambda size: abs(ratio - math.log(np.divide(*size))))


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_tests_each_bucket_and_all_images_and_draws_samples_of_each_size():
    best = load_checkpoint(Path("run/best.pth"))
    assert best["model"]["image_shapes"] == ((3, 4, 6), (3, 6, 4), (3, 5, 5))
    log = next(Path("run").glob("train_*.log")).read_text()
    assert log.count("images in buckets: 4 at 4x6, 3 at 6x4, 3 at 5x5") == 2
    of_sizes = [best[f"test_loss_{name}"] for name in ("3x4x6", "3x6x4", "3x5x5")]
    dimensions = [4 * 72, 3 * 72, 3 * 75]
    assert best["test_loss_all"] == pytest.approx(np.average(of_sizes, weights=dimensions))
    # The best result is that for all images, not the mean of the sizes.
    assert best["best_bpd"] == best["test_loss_all"] != pytest.approx(np.mean(of_sizes), rel=1e-9)
    for size in ("4x6", "6x4", "5x5"):
        assert Path(f"run/training_samples_epoch1_{size}_seed1.png").is_file()


def test_tests_and_scores_agree_and_take_each_picture_in_its_bucket(capsys):
    run("--mode test --run_dir run")
    *results, whole = json.loads(Path("run/test.json").read_text())
    assert [result["num_images"] for result in results] == [4, 3, 3] and whole["num_images"] == 10
    assert whole["image_shape"] is None and whole["num_pixels"] == (7 * 24 + 3 * 25) / 10
    assert "test of all 10 images" in capsys.readouterr().out
    run("--mode score --run_dir run")
    rows, model = read_rows("run/scores.csv"), lmconv.load("run/best.pth")
    for row in rows:
        size = bucket(row["image"])
        assert (int(row["height"]), int(row["width"])) == size
        pixels = fit(read_image(Path(row["image"]), 3), *size)
        expected = -model.log_prob(pixels[None]).item()
        assert float(row["nats"]) == pytest.approx(expected, rel=1e-6)
    nats = [float(row["nats"]) for row in rows]
    assert len({row["image"] for row in rows}) == len(nats) == 10
    assert whole["ensemble"]["nats"] == pytest.approx(np.mean(nats))
    assert whole["ensemble"]["nats_stderr"] == pytest.approx(np.std(nats, ddof=1) / 10**0.5)
    for result in results:
        own = [
            n
            for n, row in zip(nats, rows, strict=True)
            if int(row["height"]) == result["image_shape"][1]
        ]
        assert result["ensemble"]["nats"] == pytest.approx(np.mean(own))
    scores = json.loads(Path("run/scores.json").read_text())
    assert scores["ensemble"]["bpd"] == pytest.approx(whole["ensemble"]["bpd"])
    assert "10 of several sizes" in Path("run/summary.md").read_text()


def test_images_come_back_from_a_file_at_the_sizes_of_their_buckets():
    run("--mode compress --run_dir run --output a.lmc")
    run("--mode decompress --run_dir run --input a.lmc --output back")
    paths = list(Path("pictures/test").rglob("*.png"))
    assert len(list(Path("back").iterdir())) == len(paths) == 10
    for path in paths:
        pixels = fit(read_image(path, 3), *bucket(path))
        np.testing.assert_array_equal(read_image(Path("back", path.name), 3), pixels)


def test_holes_are_completed_in_images_of_each_bucket(capsys):
    box = "--sample_region center --sample_size_h 2 --sample_size_w 2 --num_samples 10"
    run(f"--mode sample --run_dir run {box} --order_choice first")
    record = json.loads(Path("run/completions_center_epoch1_seed1.json").read_text())
    sizes = {entry["image"]: tuple(entry["image_shape"][1:]) for entry in record["images"]}
    assert len(sizes) == 10 and all(size == bucket(path) for path, size in sizes.items())
    # In the first order alone, each size is completed by itself.
    capsys.readouterr()
    run(f"--mode sample --run_dir run {box}")
    for size, number in (("4x6", 4), ("6x4", 3), ("5x5", 3)):
        record = json.loads(Path(f"run/completions_center_epoch1_{size}_seed1.json").read_text())
        assert record["num_images"] == number
    out = capsys.readouterr().out
    assert "there are only 4 images, not 10" in out
    assert out.count("images in buckets: ") == 1, "the folder is opened once"


def test_files_that_are_named_go_to_their_buckets_if_they_may_be_resized():
    names = [f"pictures/test/class{number % 2}/{number}.png" for number in (4, 0, 2)]
    run(f"--mode score --run_dir run --images {' '.join(names)} --resize_images")
    rows = read_rows("run/scores.csv")
    assert [row["image"] for row in rows] == names
    assert [(int(row["height"]), int(row["width"])) for row in rows] == [(6, 4), (4, 6), (5, 5)]
    run(f"--mode score --run_dir run --images {names[0]}")
    assert read_rows("run/scores_2.csv")[0]["height"] == "18"


def test_one_size_wins_over_the_buckets_of_a_model(capsys):
    run("--mode test --run_dir run --image_size 6x6")
    assert "--image_size 6x6 (was 4x6 6x4 5x5)" in capsys.readouterr().out
    assert json.loads(Path("run/test.json").read_text())["image_shape"] == [3, 6, 6]


def same_weights(first, second):
    first, second = (load_checkpoint(Path(path)) for path in (first, second))
    assert first["global_step"] == second["global_step"]
    for name, value in first["model_state_dict"].items():
        assert torch.equal(second["model_state_dict"][name], value), name


def test_arrays_keep_their_size_also_with_a_model_of_buckets(capsys):
    np.save("others.npy", np.random.default_rng(1).integers(0, 256, (2, 7, 9, 3), dtype=np.uint8))
    run("--mode score --load_params run/0_ep1.pth -d array -i others.npy --image_size any")
    assert "images keep their sizes: 3x7x9" in capsys.readouterr().out


def test_a_run_stopped_within_an_epoch_goes_on_exactly(monkeypatch):
    original, steps = Optimization.step, []

    def with_signal(self, num_images, rate):
        steps.append(None)
        if len(steps) == 9:  # of 6 in an epoch
            signal.raise_signal(signal.SIGTERM)
        return original(self, num_images, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Optimization, "step", with_signal)
        assert main(f"{TRAIN} -x 2 --run_dir parts".split()) == 128 + signal.SIGTERM
    assert load_checkpoint(Path("parts/0_ep1.pth"))["batches_done"] == 3
    run("--load_last_params --run_dir parts")
    same_weights("run/0_ep1.pth", "parts/0_ep1.pth")


@pytest.mark.slow
def test_processes_train_as_one_also_where_a_bucket_has_none_for_some():
    """A batch of 4 leaves 3 images of a bucket for 4 processes."""
    flags = f"{TRAIN} -dp 0 --flip --random_crop -x 1"
    runs = (1, f"{flags} -b 4 --run_dir one"), (4, f"{flags} -b 1 --run_dir many")
    with Forks(OMP_NUM_THREADS="1") as forks:
        code, _, error = forks.run(*runs)
    assert code == 0, error[-3000:]
    one, many = (load_checkpoint(Path(name, "0_ep0.pth")) for name in ("one", "many"))
    for name, value in one["model_state_dict"].items():
        torch.testing.assert_close(many["model_state_dict"][name], value, rtol=1e-7, atol=1e-9)
    assert many["test_loss_all"] == pytest.approx(one["test_loss_all"], rel=1e-9)


def test_an_empty_bucket_is_said_and_does_no_harm(capsys):
    for path in Path("pictures/test").rglob("*.png"):
        if bucket(path) == (6, 4):
            path.unlink()
    box = "--sample_region center --sample_size_h 2 --sample_size_w 2"
    run(f"{TRAIN} -x 1 --run_dir other {box}")
    out = capsys.readouterr().out
    assert "images in buckets: 4 at 4x6, none at 6x4, 3 at 5x5" in out
    assert "images in buckets: 4 at 4x6, 3 at 6x4, 3 at 5x5" in out
    assert "test of all 7 images" in out and "3x6x4, region" not in out
    names = {path.name for path in Path("other").glob("training_*.png")}
    assert names == {f"training_completions_center_epoch0_{s}_seed1.png" for s in ("4x6", "5x5")}
    run(f"--mode sample --run_dir other {box}")
    records = {path.name for path in Path("other").glob("completions_*.json")}
    assert records == {f"completions_center_epoch0_{size}_seed1.json" for size in ("4x6", "5x5")}
    run("--mode test --run_dir other --part train")
    assert len(json.loads(Path("other/test_train.json").read_text())) == 4


def test_classes_are_the_folders_also_in_buckets(capsys):
    run(f"{TRAIN} -x 1 --class_conditional --run_dir classes")
    run("--mode score --run_dir classes")
    for row in read_rows("classes/scores.csv"):
        assert row["class"] == Path(row["image"]).parent.name
    run("--mode test --run_dir classes")
    rows = [float(row["nats_given_class"]) for row in read_rows("classes/scores.csv")]
    whole = json.loads(Path("classes/test.json").read_text())[-1]
    assert whole["with_label"]["ensemble"]["nats"] == pytest.approx(np.mean(rows))
    refused(
        "--mode classify --run_dir classes",
        capsys,
        "--image_size must be one size",
        "not 4x6 6x4 5x5: give one",
    )


@pytest.mark.parametrize("sizes", ["8x8 16x16", "4x6 6x4"])
def test_a_checkpoint_says_its_sizes_as_the_flag_does(sizes, capsys):
    run(f"{TRAIN} --image_size {sizes} -x 1 --max_train_images 4 --run_dir squares")
    capsys.readouterr()
    run("--mode test --run_dir squares")
    out = capsys.readouterr().out
    assert "images in buckets: " in out and "not as in training" not in out
    run("--load_last_params --run_dir squares -x 2")
    other = "--load_last_params --run_dir squares -x 3 --image_size 4x6 8x8"
    refused(
        other, capsys, f"--image_size 4x6 8x8 differs from squares/0_ep1.pth, which has {sizes}"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--crop 4x4", ["--image_size and --crop contradict"]),
        ("--resize_sizes 4", ["--resize_sizes and several sizes in --image_size contradict"]),
        ("-d digits", ["--image_size needs -d folder"]),
        ("-d parquet", ["-d parquet takes one --image_size"]),
        ("--image_size 4x6 any", ["any stands alone"]),
        ("--image_size 4x6 6x4 4x6", ["--image_size has 4x6 more than once"]),
        ("--image_size 4x6 6y4", ["6y4", "not a size"]),
        ("--image_size 4x4 6x4 --model pixelcnnpp", ["6x4"]),
    ],
)
def test_what_contradicts_several_sizes_is_refused(flags, words, capsys):
    refused(f"{DATA} {flags} --run_dir refused", capsys, *words)
