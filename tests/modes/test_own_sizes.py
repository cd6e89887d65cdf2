"""Pictures that are scored, completed and compressed at their own sizes."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refused, run
from helpers.models import tiny_model
from PIL import Image

from lmconv.compression.fields import unsealed
from lmconv.image_model import ImageModel
from lmconv.orders import OrderConfig

SIZES = [(9, 14), (8, 8), (8, 8), (5, 31), (9, 14)]
ORDERS = OrderConfig(families=("raster_scan", "s_curve"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model of 3 x 8 x 8 colour images, pictures of four sizes, and a folder of the same."""
    folder = tmp_path_factory.mktemp("own_sizes")
    torch.manual_seed(3)
    model = tiny_model((3, 8, 8), n_bits=8, orders=ORDERS, num_mixtures=2, local_prediction=True)
    model.save(folder / "model.pth")
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    images = []
    for number, (height, width) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        images.append(pixels.transpose(2, 0, 1))
    return folder, model, images


@pytest.fixture(autouse=True)
def _in_a_copy(made, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(made[0], folder)
    monkeypatch.chdir(folder)


COMMAND = "--load_params model.pth --run_dir run --threads 1"
FILES = "--images " + " ".join(f"pictures/{number}.png" for number in range(len(SIZES)))
FOLDER = "-d folder -i pictures --image_size any"


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("source", [FILES, FOLDER])
def test_each_picture_is_scored_as_a_whole_and_named_with_its_size(made, source, capsys):
    _, model, images = made
    run(f"{COMMAND} --mode score {source}")
    assert "images keep their sizes: 3x9x14 and 1 other size (the model is made for 3x8x8)" in (
        capsys.readouterr().out
    )
    rows = read_rows("run/scores.csv")
    assert [Path(row["image"]).name for row in rows] == [f"{i}.png" for i in range(len(SIZES))]
    assert [(int(row["height"]), int(row["width"])) for row in rows] == SIZES
    nats, dimensions = 0.0, 0
    for row, image in zip(rows, images, strict=True):
        expected = -model.log_prob(image[None]).item()
        assert float(row["nats"]) == pytest.approx(expected, rel=1e-6)
        assert float(row["bpd"]) == pytest.approx(expected / image.size / np.log(2), rel=1e-6)
        nats, dimensions = nats + expected, dimensions + image.size
    record = json.loads(Path("run/scores.json").read_text())
    assert record["image_shape"] is None
    assert record["ensemble"]["bpd"] == pytest.approx(nats / dimensions / np.log(2), rel=1e-6)
    assert "several sizes" in Path("run/summary.md").read_text()


def test_regions_of_each_size_are_scored_given_all_else(made):
    _, model, images = made
    region = "--sample_region center --sample_size_h 3 --sample_size_w 2"
    run(f"{COMMAND} --mode score {FILES} {region} --test_context visible")
    rows = read_rows("run/scores_center_3x2_visible.csv")
    for row, image in zip(rows, images, strict=True):
        _, height, width = image.shape
        hidden = torch.zeros(height, width, dtype=torch.bool)
        top, left = height // 2 - 2, width // 2 - 1
        hidden[top : top + 3, left : left + 2] = True
        orders = [order.visible_first(hidden) for order in model.orders(image.shape)]
        expected = -model.log_prob(image[None], orders, hidden).item()
        assert float(row["nats"]) == pytest.approx(expected, rel=1e-5)


def test_holes_in_pictures_of_any_size_are_completed(made):
    _, _, images = made
    region = "--sample_region center --sample_size_h 3 --sample_size_w 2"
    run(f"{COMMAND} --mode sample {FILES} {region} --completions 2 --order_choice each")
    record = json.loads(Path("run/completions_center_seed1.json").read_text())
    assert record["image_shape"] is None and record["num_hidden_pixels"] == 6
    assert len(record["images"]) == len(images)
    for entry, image in zip(record["images"], images, strict=True):
        assert entry["image_shape"] == list(image.shape) and entry["num_hidden_pixels"] == 6
        assert len(entry["completions"]) == 4
        for completion in entry["completions"]:
            found = np.asarray(Image.open(Path("run") / completion["file"])).transpose(2, 0, 1)
            assert found.shape == image.shape
            assert 0 < (found != image).any(axis=0).sum() <= 6


def test_pictures_of_a_folder_are_completed_at_their_own_sizes_by_default(made):
    _, _, images = made
    box = "--sample_region center --sample_size_h 3 --sample_size_w 2 --num_samples 9"
    run(f"{COMMAND} --mode sample {FOLDER} --part all {box}")
    record = json.loads(Path("run/completions_center_seed1.json").read_text())
    shapes = [entry["image_shape"] for entry in record["images"]]
    assert shapes == [list(image.shape) for image in images]


@pytest.mark.parametrize("order", ["first", "best"])
@pytest.mark.parametrize("source", [FILES, FOLDER])
def test_pictures_of_any_size_come_back_from_one_file(made, source, order, capsys):
    _, _, images = made
    run(f"{COMMAND} --mode compress {source} --output a.lmc --compress_order {order}")
    report = json.loads(Path("run/compress_a.json").read_text())
    dimensions = sum(image.size for image in images)
    assert report["image_shape"] is None and report["num_images"] == len(images)
    assert report["bytes"] == Path("a.lmc").stat().st_size
    assert report["bpd"] == pytest.approx(8 * report["bytes"] / dimensions)
    assert sum(report["images_of_orders"]) == len(images)
    # What each size takes beyond the promised bits is a few dozen bytes.
    assert report["promised_bytes"] < report["bytes"] < report["promised_bytes"] + 400
    assert report["other_codecs"]["PNG"]["files"] and not report["other_codecs"]["PNG"]["sheet"]
    run(f"{COMMAND} --mode decompress --input a.lmc --output back")
    assert "5 images of 3x9x14 and 2 other sizes in back" in capsys.readouterr().out
    for number, image in enumerate(images):
        found = np.asarray(Image.open(f"back/{number}.png")).transpose(2, 0, 1)
        np.testing.assert_array_equal(found, image)


def test_pictures_of_one_size_take_the_format_of_one_size():
    run(f"{COMMAND} --mode compress --images pictures/0.png pictures/4.png --output a.lmc")
    assert unsealed(Path("a.lmc").read_bytes(), range(256))[0] == 2


def test_a_model_of_several_sizes_takes_any_other(made):
    _, model, images = made
    several = replace(model.description, image_shapes=((3, 8, 8), (3, 16, 16)))
    ImageModel(several, model.network).save("several.pth")
    run(f"--load_params several.pth --run_dir run --mode score {FILES}")
    nats = [float(row["nats"]) for row in read_rows("run/scores.csv")]
    assert nats == pytest.approx([-model.log_prob(image[None]).item() for image in images])


def test_a_size_that_is_given_wins(capsys):
    small = "--images pictures/1.png pictures/2.png"
    run(f"{COMMAND} --mode score {FILES} --resize_images")
    assert "keep their sizes" not in capsys.readouterr().out
    assert list(read_rows("run/scores.csv")[0])[-1] == "bpd_order1"
    run(f"{COMMAND} --mode score {small} -d folder -i pictures --image_size 8 --run_dir other")
    assert "height" not in Path("other/scores.csv").read_text()
    other = f"{FILES} -d folder -i pictures --image_size 8"
    refused(f"{COMMAND} --mode score {other}", capsys, "pictures/0.png is 9x14", "8x8")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--mode test -d folder -i pictures --image_size any", ["--image_size any", "score"]),
        ("--mode train -d folder -i pictures --image_size any", ["--image_size any", "train"]),
        ("--mode sample --image_size any", ["--image_size any", "completions"]),
        (f"--mode score {FILES} --resize_images --image_size any", ["any", "--resize_images"]),
        ("--mode score -d folder -i pictures --image_size any --crop 4x4", ["any", "--crop"]),
        ("--mode score -d digits --image_size any", ["--image_size any", "-d folder"]),
        ("--mode score -d folder -i pictures --image_size some", ["'some'", "HxW"]),
        (
            f"--mode score {FILES} --sample_region center --sample_size_h 6 --sample_size_w 2",
            ["5x31", "--sample_size_h"],
        ),
        (f"--mode score {FILES} --order hilbert", ["hilbert"]),
        (f"--mode score {FILES} --hole_mask pictures/1.png", ["8x8", "9x14"]),
        (
            "--mode sample -d folder -i pictures --image_size any --sample_region center "
            "--completions 2",
            ["center", "inside"],
        ),
        ("--mode compress --images pictures/0.png broken.png --output a.lmc", ["broken.png"]),
    ],
)
def test_mistakes_end_with_one_line_and_nothing_written(flags, words, capsys):
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(f"{COMMAND} {flags}", capsys, *words)
