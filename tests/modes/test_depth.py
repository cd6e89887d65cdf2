"""Pictures of 16 bits and of other numbers of channels, from training to decompression."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import newest, refused, run
from PIL import Image

import lmconv
from lmconv.data.image_files import read_image, write_pixels
from lmconv.modes.compress import other_formats

NETWORK = "-q 1 -n 6 -m 2 -k 3 --normalization pono -dp 0 -b 8 -x 1 --disable_wandb --run_dir run"


def pictures(folder, channels, number=12, size=(7, 9)):
    """Files of smooth pictures with noise."""
    random = np.random.default_rng(0)
    folder.mkdir()
    rows, columns = np.mgrid[: size[0], : size[1]]
    for index in range(number):
        slopes = random.integers(0, 3000, (channels, 2, 1, 1))
        pixels = 8000 + slopes[:, 0] * rows + slopes[:, 1] * columns
        noise = random.integers(0, 200, pixels.shape)
        write_pixels((pixels + noise).astype(np.uint16), folder / f"{index:02d}.png")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Directories with pictures and a tiny model of them, by number of channels."""
    places = {}
    for channels, more in ((1, ""), (4, "--local_prediction")):
        place = places[channels] = tmp_path_factory.mktemp("depth")
        pictures(place / "pictures", channels)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            data = f"-d folder -i pictures --image_size 7x9 --channels {channels} --n_bits 16"
            run(f"{data} {NETWORK} {more}")
    return places


@pytest.fixture(params=[1, 4])
def channels(request, trained, tmp_path, monkeypatch):
    """The number of channels of the model in a copy of its directory, which is the current one."""
    shutil.copytree(trained[request.param], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return request.param


def test_compressed_pictures_come_back_with_every_value(channels, capsys):
    run("--mode compress --run_dir run --output all.lmc")
    printed = capsys.readouterr().out
    assert "PNG:" in printed and "WebP" not in printed and "contain more" not in printed
    run("--mode decompress --run_dir run --input all.lmc --output again")
    for index in range(12):
        before, after = (Path(name) / f"{index:02d}.png" for name in ("pictures", "again"))
        pixels = read_image(after, channels, np.uint16)
        assert np.array_equal(pixels, read_image(before, channels, np.uint16))


def test_scores_are_those_of_arrays(channels):
    run("--mode score --run_dir run --likelihood_map")
    with newest("run/scores*.csv").open() as file:
        rows = list(csv.DictReader(file))
    model = lmconv.load("run/best.pth", device="cpu")
    files = [read_image(Path(row["image"]), channels, np.uint16) for row in rows]
    nats = -model.log_prob(np.stack(files))
    assert np.allclose([float(row["nats"]) for row in rows], nats, rtol=1e-5)
    bpd = nats / np.log(2) / (channels * 63)
    assert np.allclose([float(row["bpd"]) for row in rows], bpd, rtol=1e-5)
    assert list(Path("run").glob("likelihood*.png"))


def test_completions_keep_what_is_visible_and_are_files_of_16_bits(channels, capsys):
    hole = Image.new("L", (9, 7))
    hole.paste(255, (2, 2, 5, 5))
    hole.save("hole.png")
    run("--mode sample --run_dir run --images pictures/03.png --hole_mask hole.png --completions 2")
    shown = "each value rounded to 8 bits"
    shown += " and only the first three channels, as colours, of 4" * (channels == 4)
    assert f"grids and other drawings show {shown}; files" in capsys.readouterr().out
    original = read_image(Path("pictures/03.png"), channels, np.uint16)
    is_hidden = np.asarray(hole) > 0
    results = [read_image(path, channels, np.uint16) for path in Path("run").glob("comp*/*.png")]
    assert len(results) == 2
    for pixels in results:
        assert np.array_equal(pixels[:, ~is_hidden], original[:, ~is_hidden])
        assert (pixels[:, is_hidden] != original[:, is_hidden]).mean() > 0.5


def test_samples_are_files_of_16_bits(channels):
    run("--mode sample --run_dir run --num_samples 2 --save_individual --save_animation")
    (folder,) = (path for path in Path("run").glob("samples*") if path.is_dir())
    model = lmconv.load("run/best.pth", device="cpu")
    files = sorted(folder.iterdir())
    drawn = np.stack([read_image(path, channels, np.uint16) for path in files])
    assert drawn.shape == (2, channels, 7, 9)
    assert (drawn % 257 != 0).any(), "the lower bits are empty"
    assert bool(model.log_prob(drawn).isfinite().all())


def test_other_depths_are_scaled_and_a_line_says_so(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained[1], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    grey = np.arange(63, dtype=np.uint8).reshape(7, 9) * 4
    Image.fromarray(grey).save("shallow.png")
    run("--mode compress --run_dir run --images shallow.png pictures/00.png --output all.lmc")
    line = (
        "1 of these files, the first being shallow.png, have 8 bits: their values are scaled to 16"
    )
    assert line in capsys.readouterr().out
    run("--mode decompress --run_dir run --input all.lmc --output again")
    again = read_image(Path("again/shallow.png"), 1, np.uint16)
    assert np.array_equal(again[0], grey.astype(np.uint16) * 257)
    eight = NETWORK.replace("run_dir run", "run_dir eight")
    run(f"-d folder -i pictures --image_size 7x9 --channels 1 {eight}")
    assert (
        "have 16 bits: their values are scaled to 8 (models of more bits keep"
        in capsys.readouterr().out
    )


def test_what_cannot_be_is_refused(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained[1], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    folder = (
        f"-d folder -i pictures --image_size 7x9 {NETWORK.replace('run_dir run', 'run_dir new')}"
    )
    for flags, *words in (
        ("--n_bits 17", "--n_bits must be between 1 and 16, got 17"),
        ("--n_bits 0", "--n_bits must be between 1 and 16, got 0"),
        ("--channels 9", "--channels", "9"),
        ("--channels 5", "--channels must be 1 to 4 for pictures", "got 5"),
    ):
        refused(f"{folder} {flags}", capsys, *words)
    refused("-d digits --n_bits 9 --run_dir new", capsys, "--n_bits 9 is too much for digits")
    refused("--mode score --run_dir run --n_bits 8", capsys, "--n_bits 8 contradicts", "16")
    (tmp_path / "place" / "broken.png").write_bytes(Path("pictures/00.png").read_bytes()[:60])
    refused("--mode score --run_dir run --images broken.png", capsys, "broken.png cannot be read")


def test_only_png_is_compared_where_others_hold_less():
    deep = np.random.default_rng(0).integers(0, 2**16, (2, 3, 6, 5), np.uint16)
    assert set(other_formats(list(deep))) == {"PNG"}
    assert set(other_formats(list(deep.astype(np.uint8)[:, :2]))) == {"PNG"}
    assert other_formats([np.zeros((5, 6, 5), np.uint8)]) == {}
