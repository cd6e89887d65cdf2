"""Completions of holes of any shape: what they see, what they are worth, and what is written."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refused, run
from helpers.models import tiny_model
from helpers.paths import REFERENCE
from PIL import Image

from lmconv.completion import Completer
from lmconv.image_model import ImageModel
from main import main

NETWORK = "-d digits --binarize -q 1 -n 6 --disable_wandb -b 8"
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_mask(name, hidden):
    Image.fromarray(np.asarray(hidden, dtype=np.uint8) * 255).save(name)


@pytest.fixture
def trained(tmp_path):
    """A run directory with a tiny trained network, three images, and a mask of two holes."""
    run(f"{NETWORK} --max_train_images 64 --max_test_images 8 -x 1 --run_dir run")
    for number in range(3):
        Image.fromarray(RANDOM.integers(0, 2, (8, 8), dtype=np.uint8) * 255).save(f"{number}.png")
    hidden = np.zeros((8, 8), bool)
    hidden[1:4, 2:5] = hidden[6, 6:] = True
    write_mask("mask.png", hidden)
    return hidden


FLAGS = f"{NETWORK} --run_dir run --mode sample --images 0.png 1.png 2.png --hole_mask mask.png"


def test_completions_keep_what_is_visible_and_come_with_their_likelihoods(trained):
    run(f"{FLAGS} --completions 3 --order_choice each --order_variants 0 3")
    record = json.loads(Path("run/completions_mask_epoch0_seed1.json").read_text())
    assert record["num_hidden_pixels"] == 11
    assert [entry["image"] for entry in record["images"]] == ["0.png", "1.png", "2.png"]
    for entry in record["images"]:
        original = np.asarray(Image.open(entry["image"]))
        nats = [completion["nats"] for completion in entry["completions"]]
        assert nats == sorted(nats) and len(nats) == 6
        assert {completion["order_index"] for completion in entry["completions"]} == {0, 1}
        for completion in entry["completions"]:
            image = np.asarray(Image.open(Path("run") / completion["file"]))
            np.testing.assert_array_equal(image[~trained], original[~trained])
            assert completion["bpd"] == pytest.approx(completion["nats"] / 11 / np.log(2))
    assert len(list(Path("run").glob("completions_mask_epoch0_seed1_images0-2.png"))) == 1


def test_likelihoods_of_originals_are_those_that_scores_report(trained):
    run(f"{FLAGS} --order_choice first")
    record = json.loads(Path("run/completions_mask_epoch0_seed1.json").read_text())
    score = FLAGS.replace("--mode sample", "--mode score --test_context visible --test_masks 0")
    run(score)
    with Path("run/scores_mask_visible.csv").open() as file:
        scores = [float(row["nats"]) for row in csv.DictReader(file)]
    got = [entry["original"]["nats"] for entry in record["images"]]
    np.testing.assert_allclose(got, scores, rtol=1e-5)


def test_completions_follow_the_distribution_that_they_are_scored_by():
    """Four hidden pixels: the frequencies of all 16 completions are their likelihoods."""
    hidden = np.zeros((8, 8), bool)
    hidden[3:5, 3:5] = True
    model = tiny_model(binarize=True, nr_filters=6)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(2)
    completer = Completer(model, torch.from_numpy(hidden), number=3000, batch_size=3000)
    results = completer.complete(torch.ones(1, 1, 8, 8))
    codes = (results.images[0, :, 0][:, torch.from_numpy(hidden)] > 0).long() @ torch.tensor(
        [8, 4, 2, 1]
    )
    total = 0.0
    for code in range(16):
        chosen = results.nats[0][codes == code]
        if len(chosen):
            assert chosen.std(correction=0) < 1e-4
            probability = (-chosen[0]).exp().item()
            total += probability
            deviation = (probability * (1 - probability) / 3000) ** 0.5
            assert abs(len(chosen) / 3000 - probability) < 4.5 * deviation
    assert total == pytest.approx(1, abs=0.02)


def test_image_i_depends_on_the_seed_and_on_i_alone(trained):
    records = []
    for flags in ("--sample_batch_size 25", "--sample_batch_size 2", "-s 2"):
        run_dir = Path(f"run{len(records)}")
        weights = f"--run_dir {run_dir} --load_params run/best.pth"
        run(f"{FLAGS} --completions 2 {flags} {weights}")
        (path,) = run_dir.glob("completions_*.json")
        images = [
            np.asarray(Image.open(path.parent / completion["file"]))
            for entry in json.loads(path.read_text())["images"]
            for completion in entry["completions"]
        ]
        records.append(np.stack(images))
    np.testing.assert_array_equal(records[0], records[1])
    assert (records[0] != records[2]).any()


def test_test_images_are_completed_in_a_box_with_the_best_order(trained):
    box = "--sample_offset1 0 --sample_offset2 -4 --sample_size_h 4 --sample_size_w 8"
    flags = f"{NETWORK} --run_dir run --mode sample --sample_region custom {box}"
    run(f"{flags} --order_choice best --num_samples 3")
    record = json.loads(Path("run/completions_custom_epoch0_seed1.json").read_text())
    assert record["order_indices"] == [0]
    assert [entry["image"] for entry in record["images"]] == ["0", "1", "2"]


def test_scores_agree_with_the_test(trained):
    flags = f"{NETWORK} --run_dir run --max_test_images 20"
    run(f"{flags} --mode test")
    run(f"{flags} --mode score --likelihood_map")
    result = json.loads(Path("run/test.json").read_text())
    with Path("run/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    for suffix, expected in [("", result["ensemble"]), ("_order5", result["orders"][5])]:
        for unit in ("nats", "bpd"):
            mean = np.mean([float(row[unit + suffix]) for row in rows])
            assert mean == pytest.approx(expected[unit])
    assert len(list(Path("run").glob("likelihood_images*.png"))) == 3


def test_scores_of_a_region_agree_with_the_test(trained):
    box = "--test_region custom --test_minh 2 --test_maxh 6 --test_minw 0 --test_maxw 5"
    flags = f"{NETWORK} --run_dir run --max_test_images 9 {box}"
    run(f"{flags} --mode test")
    run(f"{flags} --mode score")
    result = json.loads(Path("run/test_2-6_0-5.json").read_text())
    with Path("run/scores_2-6_0-5.csv").open() as file:
        nats = [float(row["nats"]) for row in csv.DictReader(file)]
    assert np.mean(nats) == pytest.approx(result["ensemble"]["nats"])


def test_a_box_is_scored_by_the_flags_that_hide_it_as_well(trained):
    flags = f"{NETWORK} --run_dir run --max_test_images 9 --mode score"
    run(f"{flags} --sample_region top --sample_size_h 3 --sample_size_w 8")
    run(f"{flags} --test_region custom --test_maxh 3 --test_maxw 8")
    hidden = Path("run/scores_top_3x8.csv").read_text()
    assert hidden == Path("run/scores_0-3_0-8.csv").read_text()


def test_a_region_given_all_else_is_what_is_left_of_the_whole():
    """log p(hole | rest) = log p(image) - log p(rest) under an order that visits the hole last."""
    model = tiny_model(binarize=True, nr_filters=6)
    images = torch.where(torch.rand(4, 1, 8, 8) < 0.5, 1.0, -1.0)
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[5:] = True
    nats = Completer(model, hidden).complete(images).original_nats
    order = model.orders()[0].visible_first(hidden)
    whole = model.log_prob(images, order)
    rest = model.log_prob(images, order, pixels=~hidden)
    torch.testing.assert_close(-nats, whole - rest)


def test_images_of_another_size_and_colours_are_taken_by_flag_alone(trained, capsys):
    Image.fromarray(RANDOM.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save("colour.png")
    flags = FLAGS.replace("0.png 1.png 2.png", "colour.png")
    refused(flags, capsys, "colour.png", "colours", "grey", "--resize_images")
    refused(f"{flags} --image_size 8x8 -d folder -i .", capsys, "24x40", "8x8", "--resize_images")
    Image.fromarray(RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save("small.png")
    refused(FLAGS.replace("1.png", "small.png"), capsys, "small.png", "colours", "grey")
    run(f"{flags} --resize_images")


def test_the_baseline_completes_nothing(capsys):
    path = REFERENCE / "models" / "pixelcnnpp_gray_q2.pth"
    for wish in (
        "sample --sample_region center --order_choice first",
        "score --test_region custom --test_maxh 9 --test_context visible",
    ):
        refused(f"--load_params {path} --mode {wish}", capsys, "pixelcnnpp", "lmconv")


def test_any_name_of_a_file_can_be_drawn(trained):
    Path("0.png").rename("_$5_$6_{.png")
    run(FLAGS.replace("0.png", "'_$5_$6_{.png'"))
    run(f"{NETWORK} --run_dir run --mode score --images '_$5_$6_{{.png' --likelihood_map")
    assert Path("run/scores.csv").read_text().splitlines()[1].startswith("_$5_$6_{.png,")


def test_a_scan_that_is_interrupted_keeps_the_scores_so_far(trained, monkeypatch):
    batches = iter([True, True])
    original = ImageModel.maps

    def interrupted(*arguments):
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(ImageModel, "maps", interrupted)
    assert main(shlex.split(f"{NETWORK} --run_dir run --max_test_images 40 --mode score")) == 130
    assert len(Path("run/scores_unfinished/00000.csv").read_text().splitlines()) == 17
    assert not Path("run/scores.csv").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--images lost.png --hole_mask mask.png", ["lost.png", "No such file"]),
        ("--images mask.png", ["--hole_mask", "--sample_region"]),
        ("--images 0.png --hole_mask lost.png", ["--hole_mask", "lost.png"]),
        ("--images 0.png --hole_mask all.png", ["all.png", "nothing visible"]),
        ("--images 0.png --hole_mask none.png", ["none.png", "hides nothing"]),
        ("--images 0.png --hole_mask large.png", ["large.png", "9x8", "8x8"]),
        ("--images broken.png --hole_mask mask.png", ["broken.png", "as an image"]),
        ("--order_choice best", ["--hole_mask"]),
        ("--images 0.png --hole_mask mask.png --mode train", ["--hole_mask", "--mode sample"]),
        ("--completions 0", ["completions"]),
        ("--completions 2 --mode score", ["--completions", "--mode sample"]),
        (
            "--hole_mask mask.png --sample_region center",
            ["--hole_mask contradicts --sample_region"],
        ),
        (
            "--mode score --sample_region center --test_region custom",
            ["--sample_region", "--test_region"],
        ),
        ("--mode score --test_context visible", ["--test_context", "region"]),
        ("--mode score --resize_sizes 8 9", ["--resize_sizes"]),
        ("--resize_images", ["--resize_images", "--images"]),
        ("--likelihood_map", ["--likelihood_map", "--mode score"]),
        ("--images 0.png --hole_mask mask.png --num_samples 2", ["--num_samples"]),
        ("--images 0.png --hole_mask large.png --resize_images", ["large.png", "9x8", "0.png"]),
    ],
)
def test_mistakes_end_with_one_line_and_nothing_written(trained, flags, words, capsys):
    write_mask("all.png", np.ones((8, 8)))
    write_mask("none.png", np.zeros((8, 8)))
    write_mask("large.png", np.eye(9, 8))
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    capsys.readouterr()
    refused(f"{NETWORK} --run_dir run --mode sample {flags}", capsys, *words)
