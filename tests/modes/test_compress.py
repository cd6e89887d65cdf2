"""Compressing and decompressing through the command line, as users do."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import newest, refused, run
from helpers.paths import ROOT
from PIL import Image

from lmconv.checkpoints import load_checkpoint, save_checkpoint
from lmconv.compression import codec
from lmconv.compression.file_format import CompressedFile
from lmconv.data.datasets import DataConfig, load_test
from lmconv.pixel_values import Preparation
from main import main

NETWORK = "-d digits --binarize -q 1 -n 6 --disable_wandb -b 8"
GREY = "-d digits --n_bits 5 -q 1 -n 6 -m 2 --disable_wandb -b 8"
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Checkpoints of tiny trained networks: binary, and of grey images of 5 bits."""
    folder = tmp_path_factory.mktemp("compression")
    for name, flags in (("binary", NETWORK), ("grey", GREY)):
        run(f"{flags} --max_train_images 128 --max_test_images 8 -x 1 --run_dir {folder / name}")
    return {name: folder / name / "best.pth" for name in ("binary", "grey")}


def flags(weights, kind="binary", variants="--order_variants 0"):
    network = {"binary": NETWORK, "grey": GREY}[kind]
    return f"{network} {variants} --load_params {weights[kind]} --run_dir run"


def compressed(weights, more="--max_test_images 20", kind="binary", **options):
    run(f"{flags(weights, kind, **options)} --mode compress --output all.lmc {more}")
    return json.loads(newest("run/compress_all*.json").read_text())


def decompress(weights, kind="binary", output="out", **options):
    return f"{flags(weights, kind, **options)} --mode decompress --input all.lmc --output {output}"


def test_images(binarize, n_bits, number):
    """The first test images as they are seen: B x H x W, levels from 0."""
    preparation = Preparation(binarize, n_bits)
    config = DataConfig("digits", preparation=preparation, max_test_images=number)
    images = torch.cat(list(load_test(config).batches((1, 8, 8))))[:, 0]
    return ((images + 1) / 2 * (1 if binarize else 2**n_bits - 1)).round().numpy()


test_images.__test__ = False


@pytest.mark.parametrize("kind", ["binary", "grey"])
def test_the_test_set_comes_back_in_the_bits_that_are_reported(weights, kind):
    record = compressed(weights, kind=kind)
    run(decompress(weights, kind))
    largest, expected = 1, test_images(True, 8, 20)
    if kind == "grey":
        largest, expected = 31, test_images(False, 5, 20)
    files = sorted(Path("out").iterdir())
    assert [path.name for path in files] == [f"{index:05d}.png" for index in range(20)]
    for path, levels in zip(files, expected, strict=True):
        pixels = np.asarray(Image.open(path)).astype(int)
        assert np.array_equal(pixels, np.rint(levels * 255 / largest))
    size = Path("all.lmc").stat().st_size
    assert record["bytes"] == size and record["num_images"] == 20
    assert record["bpd"] == pytest.approx(8 * size / (20 * 64))
    assert record["promised_bytes"] < size < record["promised_bytes"] * 1.005 + 64
    assert set(record["other_codecs"]) >= {"PNG", "WebP"}
    run(f"{flags(weights, kind)} --mode test --max_test_images 20")
    promised = json.loads(Path("run/test.json").read_text())["orders"][0]["bpd"]
    assert record["promised_bpd"] == pytest.approx(promised, rel=1e-5)


def test_the_best_order_of_each_image_is_named_by_it(weights, capsys):
    first = compressed(weights, variants="")
    record = compressed(weights, "--max_test_images 20 --compress_order best", variants="")
    assert sum(record["images_of_orders"]) == 20 and len(record["images_of_orders"]) == 8
    assert max(record["images_of_orders"]) < 20
    assert record["promised_bytes"] < first["promised_bytes"]
    run(decompress(weights, variants=""))  # the file has the orders, whatever the flags say
    run(decompress(weights, output="again", variants="--order_variants 3"))
    expected = test_images(True, 8, 20) * 255
    for folder in ("out", "again"):
        pixels = [np.asarray(Image.open(path)) for path in sorted(Path(folder).iterdir())]
        assert np.array_equal(pixels, expected)


def test_the_best_view_of_each_image_comes_back_as_the_image(weights):
    first = compressed(weights)
    record = compressed(weights, "--max_test_images 20 --compress_views 8")
    assert sum(record["images_of_views"]) == 20 and len(record["images_of_views"]) == 8
    assert max(record["images_of_views"]) < 20 and first["images_of_views"] == [20]
    assert record["promised_bytes"] < first["promised_bytes"]
    run(decompress(weights))
    pixels = [np.asarray(Image.open(path)) for path in sorted(Path("out").iterdir())]
    assert np.array_equal(pixels, test_images(True, 8, 20) * 255)


def test_images_without_names_are_numbered_and_take_fewer_bytes(weights, capsys):
    images = write_images(["eins.png", "zwei.png", "a/zwei.png"])
    files = f"--images {' '.join(images)}"
    named = compressed(weights, files)
    assert "get other names" in capsys.readouterr().out
    record = compressed(weights, f"{files} --no_names")
    assert "get other names" not in capsys.readouterr().out
    assert record["bytes"] < named["bytes"] and record["promised_bytes"] == named["promised_bytes"]
    run(decompress(weights))
    for number, pixels in enumerate(images.values()):
        assert np.array_equal(np.asarray(Image.open(f"out/0000{number}.png")), pixels)


def write_images(names, shape=(8, 8)):
    images, random = {}, np.random.default_rng(len(names))
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        images[name] = random.integers(0, 2, shape, dtype=np.uint8) * 255
        Image.fromarray(images[name]).save(name)
    return images


def test_files_keep_their_names(weights, capsys):
    images = write_images(["zwei.png", "eins.png", "drei vier.bmp"])
    compressed(weights, "--images zwei.png eins.png 'drei vier.bmp' --sample_batch_size 2")
    assert "more than the model sees" not in capsys.readouterr().out
    run(decompress(weights))
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("drei vier.png", "eins.png", "zwei.png")
    ]
    for name, pixels in images.items():
        path = Path("out") / f"{Path(name).stem}.png"
        assert np.array_equal(np.asarray(Image.open(path)), pixels)


def test_files_of_one_name_are_numbered_and_all_others_keep_theirs(weights, capsys):
    names = ["a/x.png", "b/X.png", "x_2.png", "c/x.bmp", f"a/{'y' * 240}.png", "a/ nul.png"]
    names += ["aux.png", "a/b:c.png", os.fsdecode(b"\xff.png")]
    images = write_images(names)
    compressed(weights, f"--images {' '.join(map(shlex.quote, names))}")
    said = capsys.readouterr().out
    assert "6 of 9 files get other names, the first being b/X.png, stored as X_3" in said
    run(decompress(weights))
    stored = ["x", "X_3", "x_2", "x_4", f"{'y' * 191}~{zlib.crc32(b'y' * 240):08x}", " nul"]
    stored += ["_aux", "b_c", "_xff"]
    for name, pixels in zip(stored, images.values(), strict=True):
        assert np.array_equal(np.asarray(Image.open(f"out/{name}.png")), pixels)


def test_what_a_file_has_beyond_what_the_model_sees_is_said(weights, capsys):
    write_images(["plain.png"])
    picture = Image.open("plain.png").convert("LA")
    picture.putalpha(Image.new("L", (8, 8), 7))
    picture.save("thin.png")
    Image.new("L", (8, 8), 100).save("soft.png")
    frames = [Image.new("L", (8, 8), value) for value in (0, 255, 0, 255)]
    frames[0].save("moving.png", save_all=True, append_images=frames[1:])
    compressed(weights, "--images plain.png thin.png soft.png moving.png")
    said = capsys.readouterr().out
    assert "3 of 4 files, the first being thin.png, contain more than the model sees" in said
    assert "(finer values: 2, transparency: 1, several frames: 1): only what the model" in said


def test_one_image_and_one_at_a_time(weights):
    write_images(["one.png"])
    assert compressed(weights, "--images one.png")["num_images"] == 1
    run(decompress(weights))
    compressed(weights, "--max_test_images 3 --sample_batch_size 1")
    run(decompress(weights, output="three"))
    assert len(list(Path("three").iterdir())) == 3


@pytest.mark.slow
def test_a_folder_of_colours_comes_back(capsys):
    network = "-d folder -i photos --image_size 5x6 -q 1 -n 5 -m 2 -k 3 -nm pono --disable_wandb"
    images = {}
    for part in ("train", "test"):
        for number in range(4):
            path = Path("photos") / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[path.name] = RANDOM.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            Image.fromarray(images[path.name]).save(path)
    run(f"{network} -x 1 --run_dir run -dp 0 --order gilbert2d -tt 9 -ts 9")
    model = f"{network} --order gilbert2d --run_dir run"
    run(f"{model} --mode compress --output photos.lmc --compress_order best --randomize_order")
    assert "4 images of 3x5x6 in photos.lmc" in capsys.readouterr().out
    run(f"{model} --mode decompress --input photos.lmc --output out")
    for name, pixels in images.items():
        assert np.array_equal(np.asarray(Image.open(Path("out") / name)), pixels)


@pytest.fixture
def pictures():
    """A folder of 20 pictures, one of them twice, beside hidden copies, and flags for it."""
    for number in range(19):
        pixels = RANDOM.integers(0, 2, (8, 8), dtype=np.uint8) * 255
        for folder in (Path("pictures"), Path("pictures/.ipynb_checkpoints")):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    shutil.copy("pictures/03.png", "pictures/03 copy.png")
    return "-d folder -i pictures --channels 1 --image_size 8"


@pytest.mark.parametrize(
    ("part", "number", "said"),
    [
        ("", 20, "20 images of pictures as a whole; left out: 19 hidden"),
        ("--part all", 20, "as a whole"),
        ("--part test", 1, "1 image of pictures for testing, drawn from 19 with seed 0; left out"),
        ("--part train", 18, "18 images of pictures for training, drawn from 19 with seed 0"),
        ("--max_test_images 1", 1, "1 image of pictures for testing, drawn from 19"),
    ],
)
def test_all_of_a_folder_is_compressed_and_scored_unless_a_part_is_chosen(
    weights, pictures, part, number, said, capsys
):
    record = compressed(weights, f"{pictures} {part}")
    assert record["num_images"] == number
    assert said in capsys.readouterr().out
    run(decompress(weights))
    assert len(list(Path("out").iterdir())) == number
    run(f"{flags(weights)} {pictures} --mode score {part}")
    assert said in capsys.readouterr().out
    assert len(Path("run/scores.csv").read_text().splitlines()) == number + 1


def test_a_folder_with_two_parts_keeps_its_test_part(weights, pictures):
    for number, part in enumerate(("train", "test")):
        Path("pictures", part).mkdir()
        for place in (2 * number + 8, 2 * number + 9):
            Path(f"pictures/{place:02d}.png").rename(f"pictures/{part}/{place:02d}.png")
    assert compressed(weights, pictures)["num_images"] == 2
    assert compressed(weights, f"{pictures} --part all")["num_images"] == 20


def test_training_images_are_tested_and_completed(weights, pictures):
    run(f"{flags(weights)} {pictures} --mode test --part train")
    assert json.loads(Path("run/test_train.json").read_text())["num_images"] == 18
    run(f"{flags(weights)} {pictures} --mode test")
    assert json.loads(Path("run/test.json").read_text())["num_images"] == 1
    hole = "--sample_region top --sample_size_h 4 --sample_size_w 8 --num_samples 3"
    for more in ("--completions 1", ""):
        run(f"{flags(weights)} {pictures} --mode sample --part train {hole} {more}")
        images = json.loads(newest("run/completions_*.json").read_text())[
            "images" if more else "num_images"
        ]
        assert (len(images) if more else images) == 3


def test_a_file_survives_other_threads_and_instructions(weights):
    """In processes of their own: PyTorch decides much from the threads that it starts with."""
    environment = {**os.environ, "MKL_DYNAMIC": "FALSE"}

    def script(threads, command):
        result = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *shlex.split(command)],
            env={**environment, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    compress = f"{flags(weights, 'grey')} --mode compress --output all.lmc --max_test_images 50"
    plain = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    expected = np.rint(test_images(False, 5, 50) * 255 / 31)
    number = 0
    for threads, others in ((1, [(2, {})]), (2, [(1, {}), (1, plain)])):
        script(threads, compress)
        for other, variables in others:
            number += 1
            environment.update(variables)
            said = script(other, decompress(weights, "grey", output=f"out{number}"))
            assert f"all.lmc was made with {threads} thread" in said or variables
            assert f"(here {other})" in said
            files = sorted(Path(f"out{number}").iterdir())
            pixels = [np.asarray(Image.open(path)) for path in files]
            assert np.array_equal(pixels, expected)
    assert "another processor" in said


def reseal(change):
    """Change the file as someone would who knows its format, and can make checksums."""
    file = CompressedFile.from_bytes(Path("all.lmc").read_bytes())
    Path("all.lmc").write_bytes(CompressedFile(**{**vars(file), **change(file)}).to_bytes())


def test_images_that_come_out_wrong_are_named_and_nothing_is_written(weights, capsys):
    names = [f"picture{number}.png" for number in range(6)]
    write_images(names)
    compressed(weights, f"--images {' '.join(names)} --sample_batch_size 3")

    def flip_late(file):
        """The words of the last batch."""
        return {
            "bits": file.bits[:-12]
            + bytes(byte ^ 255 for byte in file.bits[-12:-8])
            + file.bits[-8:]
        }

    reseal(flip_late)
    refused(
        decompress(weights), capsys, "all.lmc", "picture", "nothing was written", is_started=True
    )
    assert not Path("out").exists()


def test_the_environment_is_named_where_images_come_out_wrong(weights, capsys, monkeypatch):
    compressed(weights)
    reseal(lambda file: {"digest": b"wrong!!!"})
    refused(
        decompress(weights),
        capsys,
        "00000",
        "to 00019",
        "is damaged, and nothing",
        is_started=True,
    )
    monkeypatch.setattr(
        codec.Environment, "differences", lambda self, here: ["torch 1.2.3 (here 4.5.6)"]
    )
    refused(
        decompress(weights),
        capsys,
        "made with torch 1.2.3 (here 4.5.6): decompress it in that environment",
        is_started=True,
    )


def test_another_model_is_refused(weights, capsys):
    compressed(weights)
    checkpoint = load_checkpoint(weights["binary"])
    for name, weight in checkpoint["model_state_dict"].items():
        if name.endswith("nin_out.lin_a.bias"):
            weight += 1e-6
    checkpoint.pop("ema_state_dict", None)
    save_checkpoint(Path("other.pth"), checkpoint)
    other = {"binary": "other.pth"}
    words = "all.lmc: it was made with another model: give the one that made it"
    refused(decompress(other), capsys, words)


def test_flags_and_files_of_another_model_are_refused(weights, capsys):
    compressed(weights)
    for more, words in (
        ("-k 5", "--kernel_size 5 contradicts"),
        ("-md 1", "--max_dilation 1 contradicts"),
    ):
        refused(f"{decompress(weights)} {more}", capsys, words)
    refused(decompress(weights, "grey"), capsys, "number of pixel values is 2, not 32")


@pytest.mark.slow
def test_hostile_files_end_with_an_error(weights, capsys):
    """Whatever the bits are, and however many images they are said to be of."""
    compressed(weights)
    for number, change in enumerate(
        (
            lambda file: {"bits": RANDOM.bytes(400)},
            lambda file: {"bits": b"\xff" * 400},
            lambda file: {"bits": bytes(400)},
            lambda file: {"bits": file.bits[:-9]},
            lambda file: {"bits": b"\xff" * 4000, "num_images": 10_000, "images_per_check": 20},
            lambda file: {
                "batch_size": 5000,
                "num_images": 4_000_000,
                "images_per_check": 5000,
                "bits": RANDOM.bytes(2**16),
            },
            lambda file: {
                "batch_size": 2**16,
                "num_images": 4_000_000,
                "images_per_check": 2**16,
                "bits": RANDOM.bytes(2**16),
            },
        )
    ):
        reseal(change)
        refused(decompress(weights), capsys, "all.lmc", is_started=True)
        assert not Path("out").exists(), number
        compressed(weights)


def test_a_hundred_changed_files_never_give_wrong_images(weights, capsys):
    compressed(weights, "--max_test_images 4")
    data = Path("all.lmc").read_bytes()
    for _ in range(100):
        hostile = bytearray(data)
        hostile[RANDOM.integers(5, len(data) - 4)] = RANDOM.integers(256)
        Path("all.lmc").write_bytes(hostile[:-4] + zlib.crc32(hostile[:-4]).to_bytes(4, "little"))
        if main(shlex.split(decompress(weights))) == 0:
            pixels = [np.asarray(Image.open(path)) for path in sorted(Path("out").iterdir())]
            assert np.array_equal(pixels, test_images(True, 8, 4) * 255)
            shutil.rmtree("out")
        else:
            assert not Path("out").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_an_interrupted_run_leaves_no_folder(weights, monkeypatch, capsys):
    compressed(weights, "--max_test_images 20 --sample_batch_size 5")
    calls = []
    code_images = codec.code_images

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return code_images(*arguments)

    monkeypatch.setattr(codec, "code_images", interrupted)
    assert main(shlex.split(decompress(weights))) == 130
    assert sorted(path.name for path in Path().iterdir()) == ["all.lmc", "run"]
    before = Path("all.lmc").read_bytes()
    calls.clear()
    command = f"{flags(weights)} --mode compress --output all.lmc --sample_batch_size 5"
    assert main(shlex.split(command)) == 130
    assert Path("all.lmc").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--mode compress", "--mode compress needs --output: a file"),
        ("--mode decompress --output out", "needs --input"),
        ("--mode decompress --input all.lmc", "needs --output: a folder"),
        ("--mode decompress --input none.lmc --output out", "none.lmc: No such file"),
        (
            "--mode decompress --input text.lmc --output out",
            "text.lmc: it is not a file of compressed",
        ),
        ("--mode decompress --input all.lmc --output full", "full exists"),
        ("--mode decompress --input all.lmc --output text.lmc", "text.lmc exists"),
        ("--mode decompress --input all.lmc --output .", "run directory or above"),
        (
            "--mode decompress --input all.lmc --output elsewhere",
            "elsewhere is the run directory or above",
        ),
        ("--mode compress --output full", "full already exists and is not a compressed file"),
        ("--mode compress --output text.lmc", "text.lmc already exists and is not a compressed"),
        ("--mode compress --output x.lmc --images none.png", "none.png"),
        ("--mode compress --output x.lmc --precision bf16", "leave out --precision bf16"),
        ("--mode compress --output x.lmc --model pixelcnnpp", "--model pixelcnnpp contradicts"),
        ("--mode compress --output x.lmc --resize_sizes 8 9", "one size"),
        (
            "--mode compress --output x.lmc --compress_views 9",
            "--compress_views must be from 1",
        ),
        ("--mode train --part test", "--part needs --mode"),
        ("--mode compress --output x.lmc --part all", "no --part all: choose one of train, test"),
        (
            "--mode score --part all --max_test_images 2",
            "--part all takes every image",
        ),
        ("--mode score --images x.png --part test", "--part chooses images"),
        ("--mode test --output x.lmc", "--output needs --mode compress or decompress"),
        ("--mode sample --compress_order best", "--compress_order needs --mode compress"),
        ("--mode sample --compress_views 2", "--compress_views needs --mode compress"),
        ("--mode decompress --no_names", "--no_names needs --mode compress"),
        ("--mode compress --input x --output y", "--input needs --mode decompress"),
    ],
)
def test_mistakes_end_with_one_line_and_nothing_written(weights, command, words, capsys):
    compressed(weights)
    Path("text.lmc").write_text("no images")
    Path("full").mkdir()
    (Path("full") / "kept").touch()
    base = f"{NETWORK} --load_params {weights['binary']} --run_dir elsewhere"
    if "pixelcnnpp" in command:
        base = base.replace("--order_variants 0", "")
    refused(f"{base} {command}", capsys, words)
    assert not Path("elsewhere").exists()


def test_weights_that_are_no_numbers_are_refused(weights, capsys):
    checkpoint = load_checkpoint(weights["binary"])
    for weight in checkpoint["model_state_dict"].values():
        weight.fill_(float("nan"))
    checkpoint.pop("ema_state_dict", None)
    save_checkpoint(Path("nan.pth"), checkpoint)
    Path("run").mkdir()
    for mode in ("compress --output x.lmc", "test", "sample", "score", "train"):
        command = f"{flags({'binary': 'nan.pth'})} --mode {mode}"
        refused(command, capsys, "nan.pth has weights that are not finite")


@pytest.mark.parametrize("mode", ["compress", "decompress --input all.lmc"])
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("runs/here", "is the run directory or above it"),
        ("runs", "is the run directory or above it"),
        ("./runs/../runs/here/", "is the run directory or above it"),
        ("text.txt/x", "Not a directory"),
        ("text.txt/new/x", "Not a directory"),
        ("new/" + "x" * 256, "name too long"),
        ("x" * 256, "name too long"),
        ("ü" * 128, "name too long"),
        ("x" * 250 + "/x.lmc/" + "y" * 256, "name too long"),
        ("deep/" * 900 + "x", "name too long"),
        ("loop", "symbolic links"),
        ("loop/x", "symbolic links"),
        ("/proc/new/x.lmc", "cannot be written"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_at_the_start(
    weights, mode, output, words, capsys
):
    compressed(weights, "--max_test_images 2")
    Path("text.txt").touch()
    Path("loop").symlink_to("loop")
    command = f"{flags(weights)} --run_dir runs/here --mode {mode} --output {output}"
    assert main(shlex.split(command)) == 2
    error = capsys.readouterr().err
    assert words.lower() in error.lower() and error.count("\n") == 1 and "--output" in error
    assert not Path("runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folders_that_may_not_be_written_are_refused_at_the_start(weights, capsys):
    Path("locked").mkdir(mode=0o500)
    refused(f"{flags(weights)} --mode compress --output locked/x.lmc", capsys, "locked/x.lmc")


def test_the_longest_name_that_is_possible_can_be_written(weights):
    name = "x" * 251 + ".lmc"
    run(f"{flags(weights)} --max_test_images 2 --mode compress --output {name}")
    run(f"{flags(weights)} --mode decompress --input {name} --output {'y' * 255}")
    assert len(list(Path("y" * 255).iterdir())) == 2


def test_outputs_are_written_through_symbolic_links(weights):
    Path("disk").mkdir()
    for name, target in (("old.lmc", "disk/old.lmc"), ("new.lmc", "disk/new.lmc")):
        Path(name).symlink_to(target)
    compress = f"{flags(weights)} --mode compress --max_test_images 2 --output"
    run(f"{compress} disk/old.lmc")
    before = Path("disk/old.lmc").read_bytes()
    for name in ("old.lmc", "new.lmc"):
        run(f"{compress} {name} --order_variants 3")
        assert Path(name).is_symlink()
        assert Path("disk", name).read_bytes() != before
    assert len(list(Path("disk").iterdir())) == 2


def test_more_orders_than_a_file_can_hold_are_refused_at_the_start(weights, capsys):
    np.save("orders.npy", RANDOM.permutation(64))
    for number in range(33):
        np.save(f"{number}.npy", RANDOM.permutation(64))
    orders = " ".join(f"{number}.npy" for number in range(33))
    command = f"{flags(weights, variants='')} --order_file {orders} --randomize_order"
    command += " --mode compress --output x.lmc --max_test_images 2"
    words = "264 orders", "at most 256", "--order_variants"
    refused(f"{command} --compress_order best", capsys, *words)
    run(command)


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "folder", "huge.lmc"])
def test_inputs_that_never_end_are_refused(weights, name, capsys):
    os.mkfifo("pipe")
    Path("folder").mkdir()
    with Path("huge.lmc").open("wb") as file:
        file.write(b"\x89LMC\x02")
        file.truncate(2**40)
    command = f"{flags(weights)} --mode decompress --input {name} --output out"
    refused(command, capsys, "--input", name)
