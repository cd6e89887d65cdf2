"""What comes with the project: the trained model, its preset and the example digits, offline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import run
from helpers.paths import ROOT
from PIL import Image
from sklearn.datasets import load_sample_image

import lmconv
from lmconv.checkpoints import load_checkpoint
from lmconv.data.datasets import DataConfig, load_test
from lmconv.data.idx_files import MNIST
from lmconv.generation.guessing import Guessing, draw_by_guessing
from lmconv.generation.sampler import pixel_noise, sample_cached
from lmconv.generation.schedule import whole_image_schedule
from lmconv.pixel_values import Preparation

MODEL = ROOT / "pretrained" / "binary_mnist_small.pth"
EXAMPLE_NATS = 81.732  # of the ensemble on the example digits
FLAGS = f"-i {ROOT / 'examples'} -b 50 --load_params {MODEL} --run_dir run"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_file_holds_weights_and_what_they_are_of():
    keys = {"format_version", "epoch", "model", "model_state_dict"}
    assert load_checkpoint(MODEL).keys() == keys
    assert MODEL.stat().st_size < 10_000_000


def test_the_model_trained_with_muon_has_the_likelihood_that_is_documented():
    model = ROOT / "pretrained" / "binary_mnist.pth"
    assert load_checkpoint(model).keys() == {"format_version", "epoch", "model", "model_state_dict"}
    run(f"-i {ROOT / 'examples'} -b 50 --load_params {model} --run_dir run --mode test")
    result = json.loads(Path("run/test.json").read_text())
    assert result["ensemble"]["nats"] == pytest.approx(76.813, abs=0.005)


def test_the_model_with_classes_tells_the_digits_of_the_examples():
    model = lmconv.load(ROOT / "pretrained" / "binary_mnist_classes.pth", device="cpu")
    digits = lmconv.read_mnist(ROOT / "examples", train=False)
    labels = MNIST.read_labels(ROOT / "examples", "test")
    found = model.classify(digits, order=[0, 4]).argmax(dim=1).numpy()
    assert (found == labels).mean() >= 0.9
    given = model.log_prob(digits, order=0, label=labels).mean()
    assert given > model.log_prob(digits, order=0).mean() + 2


def test_the_model_of_grey_digits_has_the_likelihood_that_is_documented():
    model = ROOT / "pretrained" / "grey_mnist.pth"
    run(f"-i {ROOT / 'examples'} -b 50 --load_params {model} --run_dir run --mode test")
    result = json.loads(Path("run/test.json").read_text())
    assert result["ensemble"]["nats"] == pytest.approx(567.861, abs=0.05)


def test_the_model_of_photographs_stores_one_of_any_size_in_fewer_bytes_than_other_formats():
    photograph = load_sample_image("china.jpg")[100:160, 200:280]
    Image.fromarray(photograph).save("photograph.png")
    model = f"--load_params {ROOT / 'pretrained' / 'photographs.pth'}"
    files = "--images photograph.png --image_size 60x80 --run_dir run --output photograph.lmc"
    run(f"--mode compress {model} {files}")
    record = json.loads(Path("run/compress_photograph.json").read_text())
    assert record["promised_bpd"] == pytest.approx(4.8770, abs=0.005)
    for name in ("PNG", "WebP", "JPEG XL"):
        assert record["bytes"] < record["other_codecs"][name]["files"]
    run(f"--mode decompress {model} --input photograph.lmc --output back")
    assert np.array_equal(np.asarray(Image.open("back/photograph.png")), photograph)


def test_guessing_ahead_takes_few_steps_for_the_same_digits():
    model = lmconv.load(MODEL, device="cpu")
    order = model.orders()[0]
    hidden = torch.ones(28, 28, dtype=torch.bool)
    arguments = (model.network, model.likelihood, order.pixels, order.masks)
    schedule = whole_image_schedule(model.network, order.pixels, order.masks)
    noise = pixel_noise(model.likelihood, 4, 28, 28, seed=1)
    expected = sample_cached(*arguments, torch.zeros(4, 1, 28, 28), hidden, noise)
    for number, most in ((1, 50), (4, 60)):
        images = torch.zeros(number, 1, 28, 28)
        with torch.inference_mode():
            steps = draw_by_guessing(
                *(model.network, model.likelihood.sample, schedule, images, hidden),
                *(noise[:number], Guessing(32)),
            )
        assert steps <= most
        assert torch.equal(images, expected[:number])


@pytest.mark.slow
def test_it_has_the_likelihood_that_is_documented():
    run(f"{FLAGS} --mode test")
    result = json.loads(Path("run/test.json").read_text())
    assert result["num_images"] == 100
    nats = [order["nats"] for order in result["orders"]]
    assert result["ensemble"]["nats"] == pytest.approx(EXAMPLE_NATS, abs=0.005)
    assert min(nats) > EXAMPLE_NATS and max(nats) < EXAMPLE_NATS + 4


def test_it_compresses_digits_to_what_it_promises_and_far_better_than_other_formats():
    run(f"{FLAGS} --mode compress --output digits.lmc")
    record = json.loads(Path("run/compress_digits.json").read_text())
    size = Path("digits.lmc").stat().st_size
    assert record["promised_bytes"] < size < 1.005 * record["promised_bytes"] + 64
    for name in ("PNG", "WebP", "JPEG XL"):
        assert record["other_codecs"][name]["files"] > 3 * size
    run(f"{FLAGS} --mode decompress --input digits.lmc --output digits")
    config = DataConfig("mnist", str(ROOT / "examples"), preparation=Preparation(True))
    expected = torch.cat(list(load_test(config).batches((1, 28, 28))))[:, 0] > 0
    for path, digit in zip(sorted(Path("digits").iterdir()), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), digit.numpy() * np.uint8(255))


@pytest.mark.parametrize(("name", "number"), [("raster", 3), ("random", 7), ("best", 12)])
def test_files_of_the_first_version_of_the_format_are_still_read(name, number):
    """Of single images in steps of many pixels, batches of three with a last one of one, orders."""
    file = ROOT / "tests" / "reference" / "version_1" / f"{name}.lmc"
    run(f"{FLAGS} --mode decompress --input {file} --output digits")
    config = DataConfig(
        "mnist", str(ROOT / "examples"), preparation=Preparation(True), max_test_images=number
    )
    expected = torch.cat(list(load_test(config).batches((1, 28, 28))))[:, 0] > 0
    for path, digit in zip(sorted(Path("digits").iterdir()), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), digit.numpy() * np.uint8(255))


def test_single_images_in_steps_of_many_pixels_take_what_they_promise():
    """All but the header: 8 x 2 bytes of checks and the last word."""
    raster = "--order raster_scan --no-randomize_order --max_test_images 8"
    sizes = {}
    for at_once in (1, 8):
        run(
            f"{FLAGS} --mode compress {raster} --output x{at_once}.lmc "
            f"--sample_batch_size {at_once}"
        )
        sizes[at_once] = Path(f"x{at_once}.lmc").stat().st_size
    promised = json.loads(Path("run/compress_x1.json").read_text())["promised_bytes"]
    assert promised < sizes[8] <= promised * 1.005 + 64
    assert sizes[1] <= sizes[8] + 8 * 2 + 4


def test_it_samples_digits_and_completes_their_lower_halves():
    run(f"{FLAGS} --mode sample --num_samples 2 --save_individual")
    half = "--sample_offset1 0 --sample_offset2 -14 --sample_size_h 14 --sample_size_w 28"
    region = f"--order_variants 0 --sample_region custom {half}"
    run(f"{FLAGS} --mode sample {region} --num_samples 2")
    records = [
        json.loads(path.read_text()) for path in sorted(Path("run").glob("*_epoch0_seed1.json"))
    ]
    assert [record["num_hidden_pixels"] for record in records] == [14 * 28, 28 * 28]
    samples = list(Path("run").glob("samples_*/*.png"))
    assert len(samples) == 2
    for path in samples:
        white = (np.asarray(Image.open(path).convert("L")) > 127).sum()
        assert 20 < white < 250, "no digit has so few or so many white pixels"
