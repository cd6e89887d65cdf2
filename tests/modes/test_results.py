"""Names of results, which belong to one choice of settings, and the summary of all."""

import csv
import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import newest, run
from helpers.models import tiny_model
from PIL import Image

import lmconv
from lmconv.image_model import ImageModel
from lmconv.modes import score_parts
from lmconv.modes.summary import write_summary
from main import main

RANDOM = np.random.default_rng(0)
BASE = "-d digits --load_params model.pth --run_dir run"


@pytest.fixture(autouse=True)
def _in_a_directory_with_a_model_and_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(binarize=True).save("model.pth")
    for number in range(3):
        Image.fromarray(RANDOM.integers(0, 2, (8, 8), dtype=np.uint8) * 255).save(f"{number}.png")
    for folder, hidden in (("a", slice(2, 4)), ("b", slice(5, 8))):
        Path(folder).mkdir()
        mask = np.zeros((8, 8), dtype=np.uint8)
        mask[hidden, 1:3] = 255
        Image.fromarray(mask).save(f"{folder}/hole.png")


def names(pattern="*.json"):
    return sorted(path.name for path in Path("run").glob(pattern))


@pytest.mark.parametrize(
    ("mode", "changes", "name"),
    [
        (
            "test --max_test_images 4",
            ["--test_masks 0", "--max_test_images 3"],
            "test",
        ),
        (
            "score --images 0.png 1.png",
            ["--images 1.png 0.png", "--max_test_images 4"],
            "scores",
        ),
        (
            "score --images 0.png --hole_mask a/hole.png",
            ["--hole_mask b/hole.png", "--images 1.png"],
            "scores_hole",
        ),
        (
            "sample --images 0.png --hole_mask a/hole.png",
            ["--hole_mask b/hole.png", "--completions 2"],
            "completions_hole_seed1",
        ),
        (
            "sample --num_samples 2 --sample_batch_size 2",
            ["--sample_batch_size 1", "--sample_mixture_temperature 0.5"],
            "samples_seed1",
        ),
        (
            "compress --images 0.png --output x.lmc",
            ["--images 1.png", "--output a/x.lmc"],
            "compress_x",
        ),
    ],
)
def test_results_of_other_settings_get_names_of_their_own(mode, changes, name):
    run(f"{BASE} --mode {mode}")
    assert names() == [f"{name}.json"]
    first = Path(f"run/{name}.json").read_text()
    for number, change in enumerate(changes, start=2):
        flags = mode.partition(" --images")[0] if "max_test" in change else mode
        run(f"{BASE} --mode {flags} {change}")
        assert newest("run/*.json").name == f"{name}_{number}.json"
    model, run_dir = Path("model.pth").resolve(), Path("run").resolve()
    run(f"-d digits --load_params {model} --run_dir {run_dir} -b 3 --mode {mode}")
    assert newest("run/*.json").name == f"{name}.json", "the same settings have the same name"
    assert len(names()) == 1 + len(changes)
    kept, again = json.loads(first), json.loads(Path(f"run/{name}.json").read_text())
    assert kept["settings_id"] == again["settings_id"]


def test_results_of_the_same_checkpoint_are_renewed_when_it_has_been_trained_further():
    run(f"{BASE} --mode test --max_test_images 4")
    checkpoint = torch.load("model.pth", weights_only=True)
    torch.save({**checkpoint, "epoch": 7}, "model.pth")
    run(f"{BASE} --mode test --max_test_images 4")
    assert names() == ["test.json"]
    assert json.loads(Path("run/test.json").read_text())["epoch"] == 7


@pytest.mark.parametrize("contents", ['{"ensemble": 1}', "[]", "not JSON", '{"num_images": 4}'])
def test_files_of_others_are_left_alone(contents):
    Path("run").mkdir()
    for name in ("test.json", "scores.csv", "samples_seed1_2.png"):
        (Path("run") / name).write_text(contents)
    run(f"{BASE} --mode test --max_test_images 4")
    run(f"{BASE} --mode score --max_test_images 4")
    for name in ("test.json", "scores.csv"):
        assert (Path("run") / name).read_text() == contents
    assert {"test_2.json", "scores_2.csv", "scores_2.json"} <= set(names("*"))


def interrupt(monkeypatch, name, number):
    """The function of a model is interrupted at its nth call."""
    calls, original = [], getattr(ImageModel, name)

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(ImageModel, name, interrupted)


def test_an_interrupted_scan_keeps_what_is_finished_and_goes_on_from_there(monkeypatch, capsys):
    scan = f"{BASE} --mode score --images 0.png 1.png 2.png -b 1"
    run(scan)
    complete = Path("run/scores.csv").read_bytes()
    summary = json.loads(Path("run/scores.json").read_text())
    for flags, name in (("", "scores_unfinished"), ("--test_masks 0", "scores_unfinished_2")):
        for number, kept in ((2, 1), (2, 2)):
            with monkeypatch.context() as patch:
                interrupt(patch, "maps", number)
                assert main(shlex.split(f"{scan} {flags}")) == 130
            said = capsys.readouterr().out
            assert f"the scores of the first {kept} images are kept in run/{name}" in said
            assert Path("run/scores.csv").read_bytes() == complete
            assert names(f"{name}/*.csv") == [f"{place:05d}.csv" for place in range(kept)]
            assert json.loads(Path(f"run/{name}.json").read_text())["num_images"] == kept
    assert "going on after the first 1 images" in said
    for flags, name, number in (("", "scores", 1), ("--test_masks 0", "scores_2", 1)):
        with monkeypatch.context() as patch:
            interrupt(patch, "maps", number + 1)  # only one image is left
            run(f"{scan} {flags}")
        assert "going on after the first 2 images" in capsys.readouterr().out
        assert not names("scores_unfinished_2*" if flags else "scores_unfinished")
        rows = Path(f"run/{name}.csv").read_bytes()
        assert rows == complete if not flags else rows.count(b"\n") == 4
    again = json.loads(Path("run/scores.json").read_text())
    assert again["ensemble"] == pytest.approx(summary["ensemble"], rel=1e-12)


@pytest.mark.parametrize(
    "change", ["images", "a part", "the JSON", "the weights", "maps", "a number"]
)
def test_scores_of_other_images_and_damaged_ones_are_not_gone_on_from(change, monkeypatch, capsys):
    scan = f"{BASE} --mode score -d folder --image_size 8x8 --channels 1 --data_dir set -b 1"
    Path("set").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        shutil.copy(name, "set")
    with monkeypatch.context() as patch:
        interrupt(patch, "maps", 3)
        assert main(shlex.split(scan)) == 130
    record = Path("run/scores_unfinished.json")
    if change == "images":
        Path("set/1.png").rename("set/3.png")
    elif change == "a part":
        Path("run/scores_unfinished/00000.csv").unlink()
    elif change == "the weights":
        model = lmconv.load("model.pth")
        model.network.nin_out.lin_a.bias.data += 0.1
        model.save("model.pth")
    elif change == "maps":
        scan += " --likelihood_map"
    elif change == "a number":
        contents = json.loads(record.read_text())
        contents["state"]["num_pixels"] = "many"
        record.write_text(json.dumps(contents))
    else:
        contents = json.loads(record.read_text())
        del contents["state"]["summary"]
        record.write_text(json.dumps(contents))
    run(scan)
    assert "scores_unfinished.json is damaged, or its images" in capsys.readouterr().out
    assert Path("run/scores.csv").read_text().count("\n") == 4
    assert not record.exists() and not Path("run/scores_unfinished").exists()


def test_parts_make_the_same_csv_as_no_parts(monkeypatch):
    scan = f"{BASE} --mode score --max_test_images 9 -b 2"
    run(scan)
    complete = Path("run/scores.csv").read_bytes()
    monkeypatch.setattr(score_parts, "_IMAGES_PER_PART", 4)
    most = []
    written = score_parts.ScoreParts._write_part
    monkeypatch.setattr(
        score_parts.ScoreParts,
        "_write_part",
        lambda parts: (most.append(len(parts._rows)), written(parts)),
    )
    run(scan)
    assert Path("run/scores.csv").read_bytes() == complete
    assert most == [4, 4]  # no more rows than these are in memory


def test_an_interrupted_run_does_not_replace_the_record_of_a_complete_one(monkeypatch, capsys):
    for flags, name in (
        ("--num_samples 3 --sample_batch_size 1", "samples_seed1"),
        ("--images 0.png 1.png --hole_mask a/hole.png --sample_batch_size 1", "completions_hole"),
    ):
        run(f"{BASE} --mode sample {flags}")
        path = newest("run/*.json")
        assert path.name.startswith(name)
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            interrupt(patch, "draw", 2)
            assert main(shlex.split(f"{BASE} --mode sample {flags}")) == 130
        assert path.read_bytes() == before
        assert f"{path}, of " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--mode test --part all", "test_all"),
        ("--mode score", "scores"),
        ("--mode sample --hole_mask a/hole.png --part all --num_samples 9", "completions_hole"),
        ("--mode sample --sample_region top --sample_size_h 2 --sample_size_w 8 --part all "
         "--num_samples 9", "completions_top"),
    ],
)  # fmt: skip
def test_fewer_images_replace_all_results_and_a_line_says_so(flags, name, capsys):
    run_all = f"{BASE} -d folder --image_size 8x8 --channels 1 --data_dir set {flags}"
    Path("set").mkdir()
    for number in range(3):
        shutil.copy(f"{number}.png", "set")
    run(run_all)
    assert ("there are only 3 images, not 9" in capsys.readouterr().out) == ("9" in flags)
    Path("set/1.png").unlink()
    run(run_all)
    said = capsys.readouterr().out
    (path,) = Path("run").glob(f"{name}*.json")
    assert f"{path}, like the results beside it, had 3 images and now has 2" in said
    assert json.loads(path.read_text())["num_images"] == 2
    if name == "scores":
        assert Path("run/scores.csv").read_text().count("\n") == 3
    run(run_all)
    assert "was of" not in capsys.readouterr().out


def test_the_summary_has_a_line_for_each_result():
    run(f"{BASE} --mode test --max_test_images 4")
    run(f"{BASE} --mode test --max_test_images 4 --resize_sizes 8 6")
    run(f"{BASE} --mode score --images 0.png 1.png --hole_mask a/hole.png")
    run(f"{BASE} --mode sample --num_samples 2")
    run(f"{BASE} --mode sample --images 0.png --hole_mask a/hole.png --completions 3")
    run(f"{BASE} --mode compress --images 0.png --output 'x|y.lmc'")
    Path("run/args.json").write_text('{"seed": 1}')
    Path("run/damaged.json").write_text('{"ensemble": {"nats": "many"}}')
    write_summary(Path("run"))
    text = Path("run/summary.md").read_text()
    tables = [part.splitlines() for part in text.split("## ")[1:]]
    assert [table[0] for table in tables] == [
        *("Likelihoods", "Completions given all visible pixels", "Compression", "Samples")
    ]
    rows = [line for table in tables for line in table[4:] if line]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table[2:] if line}) == 1
    assert [row.split(" | ")[0] for row in rows] == [
        *("| scores_hole.json", "| test.json", "| test_2.json", "| test_2.json"),
        *("| completions_hole_seed1.json", "| compress_x\\|y.json", "| samples_seed1.json"),
    ]
    result = json.loads(Path("run/test.json").read_text())["ensemble"]
    assert rows[1] == (
        f"| test.json | model.pth | 4 of 1x8x8 | 64 | 8 | {result['bpd']:.4f} | "
        f"{result['nats']:.3f} ± {result['nats_stderr']:.3f} |"
    )
    assert rows[0].startswith("| scores_hole.json | model.pth | 2 of 1x8x8 | 4 | 8 | ")
    (best,) = json.loads(Path("run/completions_hole_seed1.json").read_text())["images"]
    assert f"| 4 | 3 | {best['completions'][0]['bpd']:.4f} |" in rows[4]


def test_a_summary_that_somebody_else_wrote_stays(capsys):
    Path("run").mkdir()
    Path("run/summary.md").write_text("My results")
    run(f"{BASE} --mode test --max_test_images 4")
    assert Path("run/summary.md").read_text() == "My results"
    assert "run/summary.md was not written by this program" in capsys.readouterr().out


HOSTILE = [os.fsdecode(b"caf\xe9.png"), "two\nlines.png", f"{'x' * 245}.png", '$_{|,".png']
HOSTILE += [f"{'ü' * 120}.png", "a/0.png", "-.png", " .png"]


def test_any_name_of_a_file_is_scored_completed_and_compressed():
    for name in HOSTILE:
        Image.open("0.png").save(name)
    mask = os.fsdecode(b"b/h\xff" + b"o" * 240 + b".png")
    Path("b/hole.png").rename(mask)
    images = [f"./{name}" for name in HOSTILE]
    flags = [*shlex.split(BASE), "--images", *images]
    assert main([*flags, "--mode", "score", "--likelihood_map"]) == 0
    with Path("run/scores.csv").open(encoding="utf-8", newline="") as file:
        listed = [row["image"] for row in csv.DictReader(file)]
    assert listed == [
        *("caf\\xe9.png", "two\\x0alines.png", *HOSTILE[2:]),
    ]
    assert main([*flags, "--mode", "sample", "--hole_mask", mask]) == 0
    record = json.loads(newest("run/completions_*.json").read_text())
    assert [entry["image"] for entry in record["images"]] == [str(Path(n)) for n in HOSTILE]
    files = [entry["completions"][0]["file"] for entry in record["images"]]
    assert all((Path("run") / file).is_file() for file in files)
    kept = [Path(file).name[6:-6] for file in files]
    assert [kept[i] == Path(HOSTILE[i]).stem for i in range(8)] == [i != 2 for i in range(8)]
    assert main([*flags, "--mode", "compress", "--output", "x.lmc"]) == 0
    again = ["--mode", "decompress", "--input", "x.lmc", "--output", "out"]
    assert main([*shlex.split(BASE), *again]) == 0
    assert len(list(Path("out").iterdir())) == len(HOSTILE)
    assert {f"{'x' * 191}~", "caf_xe9", "0"} <= {p.stem[:192] for p in Path("out").iterdir()}
