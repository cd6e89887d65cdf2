"""Labels on the command line: training, testing, scoring, sampling and classifying with classes."""

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refused, run
from helpers.paths import EXAMPLES
from PIL import Image

import lmconv
from lmconv.data.standard_sets import STANDARD_SETS
from main import main

TRAIN = (
    "-d digits --binarize --class_conditional -q 1 -n 6 -b 8 --max_train_images 64 -x 1 "
    "--order_variants 0 6 --max_test_images 4 --disable_wandb --sample_batch_size 2"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a tiny network that has been trained on digits with their labels."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(shlex.split(f"{TRAIN} --run_dir {folder}")) == 0
    model = lmconv.load(folder / "best.pth", device="cpu")
    with torch.no_grad():  # after few steps the vectors are still small
        for name, parameter in model.network.named_parameters():
            if name.endswith(".classes"):
                parameter.normal_()
    model.save(folder / "model.pth")
    return folder / "model.pth"


@pytest.fixture(autouse=True)
def _in_a_directory_with_the_model(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained, "model.pth")


FLAGS = "--load_params model.pth --run_dir run --max_test_images 12 -b 5"


def result(name):
    return json.loads(Path(f"run/{name}.json").read_text())


def table(name):
    with Path(f"run/{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def digits():
    images = lmconv.read_digits(train=False)[:12]
    return images, STANDARD_SETS["digits"].read_labels(Path(), "test")[:12]


def test_the_test_scores_with_and_without_labels():
    run(f"{FLAGS} --mode test")
    model, (images, labels) = lmconv.load("model.pth", device="cpu"), digits()
    record = result("test")
    assert record["ensemble"]["nats"] == pytest.approx(-model.log_prob(images).mean().item())
    given = record["with_label"]
    expected = -model.log_prob(images, label=labels).mean().item()
    assert given["ensemble"]["nats"] == pytest.approx(expected)
    for index, order in enumerate(given["orders"]):
        expected = -model.log_prob(images, order=index, label=labels).mean().item()
        assert order["nats"] == pytest.approx(expected)
    assert (
        f"({given['ensemble']['nats']:.3f} given the class)" in Path("run/summary.md").read_text()
    )


def test_scores_have_the_class_and_the_likelihood_given_it():
    run(f"{FLAGS} --mode score")
    model, (images, labels) = lmconv.load("model.pth", device="cpu"), digits()
    rows = table("scores")
    assert [row["class"] for row in rows] == [str(label) for label in labels]
    for column, label in (("nats", None), ("nats_given_class", labels)):
        nats = [float(row[column]) for row in rows]
        assert nats == pytest.approx((-model.log_prob(images, label=label)).tolist())


def test_classes_of_images_and_of_their_halves(capsys):
    run(f"{FLAGS} --mode classify")
    model, (images, labels) = lmconv.load("model.pth", device="cpu"), digits()
    rows = table("classify")
    assert len(rows) == 5 * 12
    rows_of, cols_of = np.mgrid[:8, :8]
    halves = {"all": rows_of >= 0, "top": rows_of < 4, "bottom": rows_of >= 4}
    halves |= {"left": cols_of < 4, "right": cols_of >= 4}
    for entry in result("classify")["visible_parts"]:
        expected = model.classify(images, halves[entry["visible"]])
        own = [row for row in rows if row["visible"] == entry["visible"]]
        found = [[float(row[f"p_{name}"]) for name in range(10)] for row in own]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        predicted = expected.argmax(dim=1).numpy()
        assert [int(row["predicted"]) for row in own] == predicted.tolist()
        assert entry["accuracy"] == pytest.approx((predicted == labels).mean())
        assert sum(each["num_images"] for each in entry["calibration"]) == 12
        assert entry["num_pixels"] == halves[entry["visible"]].sum()
    assert Image.open("run/classify.png").size[0] > 300
    assert "with all classes equally probable beforehand" in capsys.readouterr().out
    assert "## Classification" in Path("run/summary.md").read_text()


def test_the_prior_can_be_that_of_the_training_images():
    run(f"{FLAGS} --mode classify --visible left --class_prior train --max_train_images 64")
    labels = STANDARD_SETS["digits"].read_labels(Path(), "train")[:64]
    prior = np.bincount(labels, minlength=10) / 64
    record = result("classify")
    assert record["prior"] == pytest.approx(prior.tolist())
    model, (images, _) = lmconv.load("model.pth", device="cpu"), digits()
    expected = model.classify(
        images, np.arange(8)[None] + 0 * np.arange(8)[:, None] < 4, None, prior
    )
    found = [[float(row[f"p_{name}"]) for name in range(10)] for row in table("classify")]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_files_without_labels_are_classified_outside_of_a_hole(capsys):
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 2, (8, 8), dtype=np.uint8) * 255
        Image.fromarray(pixels).save(f"{number}.png")
    hole = np.zeros((8, 8), np.uint8)
    hole[2:5, 3:] = 255
    Image.fromarray(hole).save("hole.png")
    flags = "--load_params model.pth --run_dir run --images 0.png 1.png --hole_mask hole.png"
    run(f"{flags} --mode classify")
    rows = table("classify_hole")
    assert [(row["image"], row["class"]) for row in rows] == [("0.png", ""), ("1.png", "")]
    assert "accuracy" not in result("classify_hole")["visible_parts"][0]
    run(f"{flags} --mode sample --completions 4 --sample_class 3 7")
    entries = result("completions_hole_seed1")["images"]
    for entry in entries:
        classes = [completion["class"] for completion in entry["completions"]]
        assert sorted(classes) == ["3", "3", "7", "7"]


def test_images_take_turns_with_the_classes_to_draw():
    run("--load_params model.pth --run_dir run --mode sample --sample_class 3 7 --num_samples 5 "
        "--sample_batch_size 3 --save_individual")  # fmt: skip
    record, model = result("samples_seed1"), lmconv.load("model.pth", device="cpu")
    order = record["order_index"]
    expected = model.sample(5, order=order, label=["3", "7", "3", "7", "3"])
    files = sorted(Path("run/samples_seed1").glob("*.png"))
    drawn = np.stack([np.asarray(Image.open(path)) for path in files])
    assert np.array_equal(drawn > 127, expected[:, 0].numpy() > 0)


def test_images_without_labels_are_scored_without_them(capsys):
    shutil.copytree(EXAMPLES / "MNIST", "data/MNIST")
    Path("data/MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    flags = "--load_params model.pth --run_dir run -d mnist -i data --max_test_images 2"
    run(f"{flags} --mode test")
    assert "with_label" not in result("test")
    assert "used without labels" in capsys.readouterr().out
    refused(f"{flags} --mode classify", capsys, "t10k-labels-idx1-ubyte")


def write_folder(*names):
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 5 * number, dtype=np.uint8)).save(name)


FOLDER = TRAIN.replace(
    "-d digits", "-d folder -i x --image_size 8 --channels 1 -k 3 --randomize_order"
)


def test_the_folders_of_pictures_are_classes():
    names = [
        f"x/{part}/{name}/{i}.png" for part in ("train", "test") for name in "ab" for i in "01"
    ]
    write_folder(*names)
    run(f"{FOLDER} --run_dir run")
    model = lmconv.load("run/best.pth", device="cpu")
    assert model.description.classes == ("a", "b")
    run("--mode classify --run_dir run --visible all")
    assert [row["class"] for row in table("classify")] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x/train/a/0.png", "x/train/1.png", "x/test/a/2.png"], ["x/train/1.png is in no folder"]),
        (["x/train/a/0.png", "x/train/b/1.png", "x/test/c/2.png"], ["'c'", "not among the 2"]),
        (["x/train/a/0.png", "x/test/a/2.png"], ["only one class, 'a'"]),
    ],
)
def test_folders_without_classes_end_in_one_line(names, words, capsys):
    write_folder(*names)
    refused(f"{FOLDER} --run_dir run", capsys, *words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--mode sample --sample_class 10", ["--sample_class 10", "choose one of 0, 1"]),
        ("--mode sample --sample_class x 1", ["--sample_class 'x'"]),
        ("--mode test --sample_class 1", ["--sample_class needs --mode sample"]),
        ("--mode test --visible top", ["--visible needs --mode classify"]),
        ("--mode classify --visible top --sample_region top", ["--visible contradicts"]),
        ("--mode classify --images model.pth --class_prior train", ["--class_prior train needs"]),
        ("--mode classify --visible middle", ["middle"]),
    ],
)
def test_flags_of_classes_that_do_not_fit_end_in_one_line(flags, words, capsys):
    refused(f"--load_params model.pth --run_dir run {flags}", capsys, *words)


def test_models_and_sets_without_classes_end_in_one_line(capsys):
    tiny = "-d digits -q 1 -n 4 --disable_wandb --max_train_images 8 -x 1 --run_dir plain"
    run(f"{tiny} --max_test_images 2 --sample_batch_size 1")
    refused("--mode classify --run_dir plain", capsys, "knows no classes", "--class_conditional")
    refused("--mode sample --run_dir plain --sample_class 1", capsys, "knows no classes")
    refused(
        "--mode test --run_dir plain --class_conditional",
        capsys,
        "--class_conditional",
        "contradicts",
    )
    refused("-d celebahq --class_conditional --run_dir new", capsys, "celebahq have no labels")
    crop = "-d folder -i x --crop 8 --class_conditional --run_dir new"
    write_folder("x/train/a/0.png", "x/train/b/1.png")
    refused(crop, capsys, "--crop cuts pieces")
