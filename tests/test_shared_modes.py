"""All modes on several processes: the same files for any number, and what goes wrong ends all."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.forked_runs import Forks
from helpers.models import tiny_model
from helpers.paths import ROOT
from PIL import Image

from lmconv.checkpoints import load_checkpoint
from lmconv.compression.file_format import CompressedCollection
from lmconv.orders import OrderConfig
from main import main

# One after the other, so that the runs that all of them look at are done only once.
pytestmark = pytest.mark.slow
HELPERS = ROOT / "tests" / "helpers"
MAIN = HELPERS / "double_precision_main.py"
SINGLE = {"LMCONV_TEST_SINGLE_PRECISION": "1"}
TWO_ORDERS = OrderConfig(all_variants=True, variants=(0, 6))
# Not the same in two runs of one process either.
VARIES = ("seconds", "args", "settings_id", "output")
FOLDER = "-d folder --image_size 8x8 --channels 1 --data_dir set -b 2"
TABLE = "-d parquet --channels 1 --data_dir table -b 2"
MODES = {
    "test": "--mode test -d digits --max_test_images 13 -b 2",
    "scores": f"--mode score {FOLDER} --likelihood_map",
    "own_sizes": "--mode score -d digits -b 2 --images sizes/*.png",
    "samples": "--mode sample -d digits --num_samples 11 --sample_batch_size 3 --save_individual "
    "--save_animation",
    "boxes": "--mode sample -d digits --sample_region top --sample_size_h 3 --sample_size_w 8 "
    "--sample_batch_size 3 --num_samples 7",
    "completions": "--mode sample -d digits --images sizes/*.png --sample_region top "
    "--sample_size_h 3 --sample_size_w 5 --completions 2 --sample_batch_size 4",
    "compressed": f"--mode compress {FOLDER} --compress_order best --compress_views 2 "
    "--sample_batch_size 3 --output {run_dir}/set.lmc",
    "table": f"--mode score {TABLE} --image_size 8x8",
    "table_boxes": f"--mode sample {TABLE} --image_size 8x8 --part all --sample_region top "
    "--sample_size_h 3 --sample_size_w 8 --sample_batch_size 3 --num_samples 11",
    "table_pieces": f"--mode test {TABLE} --crop 4x4 --part all",
    "table_sizes": f"--mode compress {TABLE} --image_size any --output {{run_dir}}/set.lmc",
    "array_sizes": "--mode score -d array --data_dir set.npy -b 2 --image_size any",
    "compressed_sizes": "--mode compress -d digits --images sizes/*.png --sample_batch_size 1 "
    "--output {run_dir}/set.lmc",
    "decompressed": "--mode decompress --input compressed_sizes1/set.lmc --output {run_dir}/set",
    "classes": "--mode classify -d digits --max_test_images 7 -b 2 --visible all left",
    "classes_of_files": "--mode classify --images set/*.png -b 3 --visible all",
}


# These take turns with batches as the others do, so fewer numbers of processes will do.
FEWER = {"own_sizes": (1, 3), "boxes": (1, 2), "compressed_sizes": (1, 2)}
FEWER |= {"table": (1, 3), "table_boxes": (1, 2), "table_pieces": (1, 3), "table_sizes": (1, 2)}
FEWER |= {"array_sizes": (1, 2), "classes_of_files": (1, 2)}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder with a model and images, in which all tests of this file work."""
    folder, before = tmp_path_factory.mktemp("shared"), Path.cwd()
    os.chdir(folder)
    tiny_model(binarize=True, orders=TWO_ORDERS).save("model.pth")
    classes = {"classes": tuple("0123456789"), "dataset": "digits"}
    tiny_model(binarize=True, orders=TWO_ORDERS, **classes).save("classes.pth")
    random = np.random.default_rng(0)
    several = [(8, 8), (6, 9), (6, 9), (8, 8), (6, 9)]
    for place, sizes in {"set": [(8, 8)] * 13, "sizes": several}.items():
        Path(place).mkdir()
        for number, size in enumerate(sizes):
            pixels = random.integers(0, 2, size, dtype=np.uint8) * 255
            Image.fromarray(pixels).save(f"{place}/{number:02d}.png")
    table_of_pictures(random)
    np.save("set.npy", random.integers(0, 2, (5, 6, 9), dtype=np.uint8) * 255)
    yield folder
    os.chdir(before)


def table_of_pictures(random):
    """A table of 30 pictures of two sizes, in row groups of 4."""
    contents = []
    for number in range(30):
        content, size = io.BytesIO(), (6, 9) if number % 5 == 3 else (8, 8)
        pixels = random.integers(0, 2, size, dtype=np.uint8) * 255
        Image.fromarray(pixels).save(content, "PNG")
        contents.append(content.getvalue())
    Path("table").mkdir()
    pq.write_table(pa.table({"image": contents}), "table/a.parquet", row_group_size=4)


def command(mode, run_dir):
    flags = MODES[mode].format(run_dir=run_dir)
    for pattern in ("sizes/*.png", "set/*.png"):
        flags = flags.replace(pattern, " ".join(map(str, sorted(Path().glob(pattern)))))
    model = "classes.pth" if mode.startswith("classes") else "model.pth"
    return f"{flags} --load_params {model} --run_dir {run_dir}"


def start(flags, *launcher, **variables):
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(MAIN)]
    return subprocess.Popen(
        [*command, *shlex.split(flags)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | SINGLE | variables,
    )


def files_of(run_dir):
    """What a run has written, by name, without what differs between two equal runs."""
    contents = {}
    for path in sorted(Path(run_dir).rglob("*")):
        if path.is_dir() or path.suffix in (".log", ".md"):
            continue
        contents[str(path.relative_to(run_dir))] = path.read_bytes()
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            contents[str(path.relative_to(run_dir))] = {
                key: value for key, value in record.items() if key not in VARIES
            }
    return contents


@pytest.fixture(scope="module")
def forks(folder):
    """What starts runs on several processes in that folder."""
    with Forks(**SINGLE) as forks:
        yield forks


@pytest.fixture(scope="module")
def written(forks):
    """The files of each mode for 1, 2 and 3 processes, and the pictures that each one opened."""
    opened = Path("opened").resolve()
    opened.mkdir()
    runs = [
        (n, command(mode, f"{mode}{n}")) for n in (1, 2, 3) for mode in MODES if n in numbers(mode)
    ]
    code, _, errors = forks.run(*runs)
    assert code == 0, errors[-3000:]
    code, _, errors = forks.run((3, command("scores", "noted")), LMCONV_TEST_OPENED=str(opened))
    assert code == 0, errors[-3000:]
    return {mode: [files_of(f"{mode}{n}") for n in numbers(mode)] for mode in MODES}


def numbers(mode):
    return FEWER.get(mode, (1, 2, 3))


@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_processes_writes_the_same_files(mode, written):
    one, *others = written[mode]
    assert one and others and all(other == one for other in others)
    assert not list(Path().rglob(".unfinished*"))


def test_a_picture_is_opened_by_the_process_that_works_on_it_alone(written):
    opened = {path.name: set(path.read_text().split()) for path in Path("opened").iterdir()}
    opened = {rank: {name for name in names if "set/" in name} for rank, names in opened.items()}
    assert len(opened) == 3 and all(opened.values())
    readers = Counter(name for names in opened.values() for name in names)
    assert len(readers) == 13 and set(readers.values()) == {1}


def test_a_file_that_one_process_cannot_read_ends_all_with_one_line(forks):
    Path("broken.png").write_text("no picture")
    images = f"{' '.join(f'set/{number:02d}.png' for number in range(5))} broken.png"
    flags = (
        f"--mode score -d digits -b 2 --images {images} --load_params model.pth --run_dir broken"
    )
    code, _, errors = forks.run((3, flags))
    assert code == 1
    lines = [line for line in errors.splitlines() if "main.py" in line]
    assert len(lines) == 1 and "error: broken.png cannot be read" in lines[0], errors
    assert "Traceback" not in errors and not Path("broken").exists()


def test_a_process_that_fails_later_ends_all_with_one_line(forks):
    """One that cannot write its pictures: a folder is in the way of those of the third batch."""
    Path("full/likelihood_images4-5.png").mkdir(parents=True)
    code, _, errors = forks.run((3, command("scores", "full")))
    assert code == 1
    lines = [line for line in errors.splitlines() if "main.py" in line]
    assert len(lines) == 1 and "likelihood_images4-5.png" in lines[0], errors
    assert "Traceback" not in errors and not list(Path("full").rglob(".unfinished*"))
    assert not Path("full/scores.csv").exists()


def test_sizes_are_decompressed_by_different_processes(forks, written):
    """A wrong digest of the smaller size ends all with one line; nothing is left behind."""
    data = Path("compressed_sizes1/set.lmc").read_bytes()
    first, second = CompressedCollection.from_bytes(data).files
    places = CompressedCollection.from_bytes(data).places
    wrong = CompressedCollection([replace(first, digest=bytes(8)), second], places)
    Path("wrong.lmc").write_bytes(wrong.to_bytes())
    flags = "--mode decompress --load_params model.pth --run_dir wrong --output wrong/set"
    code, out, errors = forks.run((3, f"{flags} --input wrong.lmc"))
    assert code == 1
    lines = [line for line in errors.splitlines() if "main.py" in line]
    assert len(lines) == 1 and "--input wrong.lmc: one of the 2 images " in lines[0], errors
    assert "wrong.lmc has 2, so no more than 2 of the 3 processes can work" in out
    assert not Path("wrong/set").exists() and not list(Path("wrong").glob(".unfinished*"))


def test_a_process_that_dies_ends_the_others_and_scores_are_gone_on_from(forks, written):
    flags = f"--mode score {FOLDER} --load_params model.pth --run_dir died"
    code, _, errors = forks.run((2, flags), LMCONV_TEST_RANK_THAT_DIES="1")
    assert code == 1
    assert "process 0 has lost contact with the others" in errors
    assert len(list(Path("died/scores_unfinished").iterdir())) == 1
    assert json.loads(Path("died/scores_unfinished.json").read_text())["num_images"] == 4
    code, out, errors = forks.run((3, flags))
    assert code == 0 and "going on after the first 4 images" in out, errors
    died = files_of("died")
    assert died["scores.csv"] == written["scores"][0]["scores.csv"]
    assert set(died) == {"scores.csv", "scores.json", "score_orderings_obs1x8x8.png"}


def test_a_signal_to_torchrun_keeps_the_scores_for_any_number_of_processes(written):
    flags = f"--mode score {FOLDER} --likelihood_map --load_params model.pth --run_dir stopped"
    launcher = start(
        flags, "--standalone", "--nproc-per-node", "2", LMCONV_TEST_SECONDS_PER_STEP="0.5"
    )
    while not Path("stopped/likelihood_images2-3.png").exists():
        assert launcher.poll() is None
        time.sleep(0.1)
    time.sleep(0.7)
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0 and "SIGTERM" in errors
    record = json.loads(Path("stopped/scores_unfinished.json").read_text())
    assert 0 < record["num_images"] < 13
    assert not list(Path("stopped").rglob(".unfinished*"))
    assert main(shlex.split(flags)) == 0
    assert Path("stopped/scores.csv").read_text().count("\n") == 14


def test_two_hosts_work_as_one_process(written):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launcher = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "lmconv"]
    flags = command("scores", "scores_hosts")
    hosts = [
        start(flags, *launcher, "--local-addr", "127.0.0.1", "--node-rank", str(rank))
        for rank in range(2)
    ]
    errors = [host.communicate(timeout=120)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], errors[0][-3000:]
    assert files_of("scores_hosts") == written["scores"][0]


def test_processes_train_on_pieces_of_a_table_and_end_together_at_a_damaged_picture(forks):
    network = "-q 1 -n 4 -k 3 --normalization pono -dp 0 --nr_logistic_mix 2 --disable_wandb"
    flags = f"{TABLE} --crop 4x4 --max_train_images 30 {network} --sample_interval 9"
    code, out, errors = forks.run((2, f"{flags} -x 1 --run_dir trained"))
    assert code == 0 and "30 pieces of 4x4 from these pictures" in out, errors
    assert load_checkpoint(Path("trained/0_ep0.pth"))["global_batch_size"] == 4
    Path("bad").mkdir()
    table = pq.read_table("table/a.parquet").to_pydict()["image"]
    pq.write_table(pa.table({"image": [*table[:25], b"no picture"]}), "bad/a.parquet")
    code, _, errors = forks.run((2, f"{flags} --data_dir bad --split_seed 1 --run_dir bad_run"))
    assert code == 1
    lines = [line for line in errors.splitlines() if "main.py" in line]
    assert len(lines) == 1 and "row 25 of bad/a.parquet cannot be read" in lines[0], errors
