"""What the page answers: the same as the Python API and the command line, and sentences."""

import base64
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import run
from helpers.models import tiny_model
from helpers.pages import Page, picture, pixels_of
from helpers.paths import EXAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import lmconv
from lmconv.data.image_files import read_image, to_picture
from lmconv.image_model import ensemble
from lmconv.web.examples import Examples
from lmconv.web.tasks import TASKS

HOLE = np.zeros((8, 8), bool)
HOLE[2:6, 3:] = True
NAMES = ("height", "width", "channels", "data", "hidden", "number", "order", "temperature", "seed")
NAMES += ("picture", "pictures", "first", "index", "family", "variant", "own", "class")
SAMPLING = {"number": 3, "order": {"index": 0}, "temperature": 1.0, "seed": 2}
SAMPLING |= {"height": 8, "width": 8}
DRAWING = {"number": 3, "order": "best", "temperature": 1.0, "seed": 5}


@pytest.fixture
def digit():
    return (np.random.default_rng(0).random((1, 8, 8)) < 0.5).astype(np.uint8) * 255


def write(pixels, name):
    to_picture(pixels).save(name)


def run_command(command):
    """Run the command line that the page shows, in the current folder."""
    words = shlex.split(command)
    assert words[:2] == ["python", "main.py"]
    run(shlex.join(words[2:]))


def test_classes_are_told_from_what_is_visible_as_by_the_api(tmp_path, digit):
    path = tmp_path / "run" / "classes.pth"
    path.parent.mkdir()
    model = tiny_model(binarize=True, classes=("a", "b", "c"))
    model.save(path)
    page = Page(path)
    assert page.ask("describe")["classes"] == ["a", "b", "c"]
    for hidden in (HOLE, np.zeros_like(HOLE)):
        result = page.ask("classify", picture=picture(digit, hidden))
        expected = model.classify(digit[None], ~hidden)[0]
        assert result["probabilities"] == pytest.approx(expected.tolist())
        assert ("--hole_mask" in result["command"]) == hidden.any()
        assert "--mode classify" in result["command"]
    events = page.events("classify", picture=picture(digit, np.ones_like(HOLE)))
    assert "Everything is hidden" in events[-1]["error"]
    drawn = [
        event["part"]
        for event in page.events("sample", **SAMPLING, **{"class": "b"})
        if "part" in event
    ]
    images = np.stack([pixels_of(each) for part in drawn for each in part["pictures"]])
    levels = ((model.sample(3, seed=2, label="b") + 1) * 127.5).numpy()
    assert np.array_equal(images, levels.round().astype(np.uint8))


def test_a_model_without_classes_says_so(page, digit):
    assert page.ask("describe")["classes"] == []
    assert "no classes" in page.events("classify", picture=picture(digit, HOLE))[-1]["error"]


def test_completions_keep_what_is_visible_and_are_ranked(page, digit):
    result = page.ask("complete", picture=picture(digit, HOLE), **DRAWING)
    assert np.array_equal(pixels_of(result["original"]["picture"]), digit)
    nats = [each["nats"] for each in result["completions"]]
    assert nats == sorted(nats) and len(nats) == 3
    for each in result["completions"]:
        assert np.array_equal(pixels_of(each["picture"])[:, ~HOLE], digit[:, ~HOLE])
        assert each["bpd"] == pytest.approx(each["nats"] / HOLE.sum() / np.log(2))
        assert sorted(result["sequences"][str(each["order"])]) == np.flatnonzero(HOLE).tolist()


@pytest.mark.parametrize(
    ("settings", "flags"),
    [({}, []), ({"order": "each", "temperature": 0.5}, ["--sample_mixture_temperature", "0.5"])],
)
def test_the_command_line_of_completions_draws_the_same_pictures(
    page,
    digit,
    tmp_path,
    monkeypatch,
    settings,
    flags,
):
    monkeypatch.chdir(tmp_path)
    result = page.ask("complete", picture=picture(digit, HOLE), **{**DRAWING, **settings})
    write(digit, "picture.png")
    write(HOLE[None].astype(np.uint8) * 255, "hole.png")
    assert set(flags) <= set(result["command"].split())
    run_command(result["command"])
    files = sorted(Path("runs/page").glob("*/00000_picture_*.png"))
    files.sort(key=lambda path: int(path.stem.rpartition("_")[2]))
    ours = [pixels_of(each["picture"]) for each in result["completions"]]
    assert len(files) == len(ours) > 2
    for path, pixels in zip(files, ours, strict=True):
        assert np.array_equal(read_image(path, 1), pixels)


@pytest.mark.parametrize(
    ("order", "side"),
    [
        ({"index": 5}, 8),
        ({"index": 2}, 16),
        ({"family": "spiral_in", "variant": 3}, 8),
        ({"own": list(range(64))[::-1]}, 8),
    ],
)
def test_the_command_line_of_samples_draws_the_same_images(
    page, tmp_path, monkeypatch, order, side
):
    monkeypatch.chdir(tmp_path)
    events = page.events(
        "sample", number=5, order=order, height=side, width=side, temperature=1.0, seed=3
    )
    parts = [each["part"]["pictures"] for each in events if "part" in each]
    assert [len(part) for part in parts] == [2, 2, 1]
    result = events[-1]["result"]
    assert result["steps"] > 0
    if "own" in order:
        np.save("order.npy", np.array(order["own"], dtype=np.int32))
        assert result["sequence"] == order["own"]
    run_command(result["command"])
    files = sorted(Path("runs/page").glob("samples*/*.png"))
    ours = [pixels_of(each) for part in parts for each in part]
    for path, pixels in zip(files, ours, strict=True):
        assert np.array_equal(read_image(path, 1), pixels)


def test_scores_are_those_of_the_api_and_of_the_command_line(page, digit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = [digit, 255 - digit]
    result = page.ask("score", pictures=[picture(each) for each in pictures])
    model = page.tasks.models.open(0)
    for number, (pixels, score) in enumerate(zip(pictures, result["scores"], strict=True)):
        joint = torch.stack([model.log_prob(pixels[None], order=k) for k in range(8)])
        nats = [each["nats"] for each in score["orders"]]
        assert nats == pytest.approx((-joint[:, 0]).tolist(), abs=1e-4)
        assert score["ensemble"]["nats"] == pytest.approx(-ensemble(joint).item(), abs=1e-4)
        bits = np.frombuffer(base64.b64decode(score["bits"]), np.float32)
        assert bits.sum() * np.log(2) == pytest.approx(np.mean(nats), abs=1e-3)
        write(pixels, f"picture{number}.png")
    run_command(result["command"])
    lines = Path("runs/page/scores.csv").read_text().splitlines()[1:]
    told = [float(line.split(",")[1]) for line in lines]
    assert told == pytest.approx([s["ensemble"]["nats"] for s in result["scores"]], abs=1e-4)


def test_a_single_order_scores_by_itself(page, digit):
    order = {"family": "hilbert", "variant": 1}
    (score,) = page.ask("score", pictures=[picture(digit)], order=order)["scores"]
    assert len(score["orders"]) == 1
    assert score["ensemble"]["nats"] == pytest.approx(score["orders"][0]["nats"])


def test_an_order_is_shown_with_its_masks_and_steps(page):
    order = page.ask("order", order={"family": "diagonal", "variant": 0}, height=8, width=8)
    model = page.tasks.models.open(0)
    pixels = lmconv.OrderConfig(("diagonal",)).pixels((1, 8, 8))[0]
    assert order["sequence"] == (pixels @ [8, 1]).tolist()
    assert len(order["levels"]) == 64 and max(order["levels"]) == order["num_levels"] - 1 < 63
    for shown, mask in zip(order["masks"], model.order(pixels).masks, strict=True):
        taps = np.frombuffer(base64.b64decode(shown["taps"]), np.uint8)
        assert np.array_equal(taps.reshape(64, 9), mask[0].t().numpy())


def test_a_model_is_described_with_its_curves(page):
    path = page.tasks.models.file(0).path
    metrics = path.parent / "metrics.jsonl"
    metrics.write_text("".join(f'{{"step": {n}, "train/bpd": {1 / n}}}\n' for n in range(1, 999)))
    info = page.ask("describe")
    assert ["images", "1x8x8, binarized"] in info["lines"]
    (curve,) = info["curves"]
    assert 100 < len(curve["points"]) <= 300 and curve["points"][0] == [1, 1.0]
    metrics.write_text("damaged\n\n")
    assert page.ask("describe")["curves"] == []


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
def test_examples_are_as_the_model_sees_them(tmp_path, shape):
    path = tmp_path / "tiny.pth"
    tiny_model(shape, n_bits=2).save(path)
    page = Page(path)
    examples = page.ask("examples", height=8, width=8, first=24)
    assert len(examples["pictures"]) == min(24, examples["total"] - 24) > 0
    levels = {value for each in examples["pictures"] for value in pixels_of(each).flat}
    assert levels <= {0, 85, 170, 255}
    scored = page.ask("score", pictures=examples["pictures"][:1])
    assert scored["scores"][0]["picture"] == examples["pictures"][0]


def test_an_upload_is_decoded_and_fitted(page, tmp_path):
    Image.new("RGB", (40, 20), "white").save(tmp_path / "white.png")
    kind = {"content-type": "application/octet-stream"}
    url = "/api/decode?model=0&height=8&width=8"
    answer = page.http.post(url, content=(tmp_path / "white.png").read_bytes(), headers=kind).text
    assert '"result"' in answer.splitlines()[-1]
    for content in (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\x80\x04K\x01."):
        last = page.http.post(url, content=content, headers=kind).text.splitlines()[-1]
        assert "The file cannot be read as an image" in last and "/tmp" not in last


def test_a_picture_of_too_many_pixels_is_not_decoded(page, tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    kind = {"content-type": "application/octet-stream"}
    url = "/api/decode?model=0&height=8&width=8"
    answer = page.http.post(url, content=(tmp_path / "bomb.png").read_bytes(), headers=kind)
    assert "use a smaller one" in answer.text


def test_requests_that_are_impossible_are_refused_with_a_sentence(page, digit):
    hole = picture(digit, HOLE)
    drawing = {"picture": hole, **DRAWING}
    size = {"height": 8, "width": 8}
    sampling = {"number": 1, "order": {"index": 0}, "temperature": 1, "seed": 1, **size}
    for task, values, words in (
        ("complete", {**drawing, "number": 17}, "1 to 16"),
        ("complete", {**drawing, "number": True}, "whole number"),
        ("complete", {**drawing, "order": "none"}, "first, best, each"),
        ("complete", {**drawing, "temperature": 0}, "temperature must be"),
        ("complete", {**drawing, "temperature": "1"}, "temperature must be"),
        ("complete", {**drawing, "seed": -1}, "seed must be"),
        ("complete", {**drawing, "picture": None}, "picture is missing"),
        ("complete", {**drawing, "picture": {**hole, "data": "a"}}, "bytes in Base64"),
        ("complete", {**drawing, "picture": {**hole, "height": 9}}, "bytes in Base64"),
        ("complete", {**drawing, "picture": picture(digit, ~HOLE & HOLE)}, "Nothing is hidden"),
        ("complete", {**drawing, "picture": picture(digit, ~HOLE | HOLE)}, "Everything is hidden"),
        ("complete", {**drawing, "model": 1}, "no such model"),
        ("complete", {**drawing, "model": "../../etc/passwd"}, "model must be"),
        ("score", {"pictures": []}, "1 to 12"),
        ("score", {"pictures": [picture(digit[:, :7])]}, "cannot be worked with"),
        ("score", {"pictures": [picture(np.repeat(digit, 3, 0))]}, "3 channels"),
        ("score", {"pictures": [picture(digit), picture(np.tile(digit, (1, 2, 2)))]}, "one size"),
        ("sample", {**sampling, "number": 65}, "1 to 64"),
        ("sample", {**sampling, "height": 128, "width": 127}, "cannot be worked with"),
        ("sample", {**sampling, "number": 64, "height": 128, "width": 128}, "is the most"),
        ("sample", {**sampling, "order": {"index": 8}}, "0 to 7"),
        ("order", {**size, "order": {"family": "none", "variant": 0}}, "one of raster_scan"),
        ("order", {**size, "order": {"own": [0] * 64}}, "permutation"),
        ("order", {**size, "order": {"own": [0]}}, "64 numbers"),
        ("order", {**size}, "order is missing"),
    ):
        assert words in page.refused(task, **values), (task, words)


def test_the_baseline_refuses_other_orders_and_holes(tmp_path):
    path = tmp_path / "tiny.pth"
    orders = lmconv.OrderConfig(("raster_scan",))
    sizes = {"kernel_size": 3, "normalization": "weight_norm"}
    tiny_model(architecture="pixelcnnpp", orders=orders, **sizes).save(path)
    page = Page(path)
    black = np.zeros((1, 8, 8), np.uint8)
    assert "one order" in page.refused("complete", picture=picture(black, HOLE), **DRAWING)
    spec = {"family": "s_curve", "variant": 0}
    assert "one order" in page.refused("score", pictures=[picture(black)], order=spec)
    assert len(page.ask("score", pictures=[picture(black)])["scores"]) == 1
    assert not page.ask("describe")["can_complete"]


def test_pages_at_once_get_their_own_answers(page, digit):
    def sample(seed):
        values = {"number": 2, "order": {"index": 0}, "height": 8, "width": 8, "temperature": 1.0}
        parts = [e["part"] for e in page.events("sample", seed=seed, **values) if "part" in e]
        return [each["data"] for part in parts for each in part["pictures"]]

    alone = [sample(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(sample, range(4))) == alone


def test_shipped_digits_are_examples_of_the_shipped_model():
    images, total, source = Examples(EXAMPLES).choose("mnist", (1, 28, 28), 98, 24)
    assert (len(images), total) == (2, 100) and "MNIST" in source


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=8,
)


@given(task=st.sampled_from(sorted(TASKS)), values=st.dictionaries(st.sampled_from(NAMES), JSON))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_there_is_a_result_or_a_sentence(page, task, values):
    try:
        last = page.events(task, **values)[-1]
    except ValueError:  # JSON has no infinity
        return
    assert "result" in last or "log" not in last["error"], last
