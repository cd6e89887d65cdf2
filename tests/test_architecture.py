"""The rules of the house: who may import whom, where argparse lives, and what starting up loads."""

import ast
import json
import subprocess
import sys

import pytest
from helpers.paths import ROOT

CORE = ("locally_masked_convolution", "masking", "layers", "model", "utils")
ENTRIES = ("main", "average_checkpoints")
MODULES = sorted(
    path
    for path in (*ROOT.glob("*.py"), *(ROOT / "lmconv").rglob("*.py"))
    if "__pycache__" not in path.parts
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def level(module):
    """0 for the core, 1 for the package, 2 for the modes, 3 for the entry scripts."""
    if module.split(".")[0] in ENTRIES:
        return 3
    if module == "lmconv.modes" or module.startswith("lmconv.modes."):
        return 2
    return 1 if module.split(".")[0] == "lmconv" else 0


def imports_of(path):
    """The names of modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_upwards(path):
    ours = {*CORE, *ENTRIES, "lmconv"}
    imported = {name for name in imports_of(path) if name.split(".")[0] in ours}
    name = name_of(path)
    if name == "lmconv":  # the face, which imports what is used when it is used
        assert not any(level(other) >= 2 for other in imported)
        return
    higher = sorted(other for other in imported if level(other) > level(name))
    assert not higher, f"{name} imports {higher}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_command_line_stays_at_the_rim(path):
    name = name_of(path)
    if level(name) >= 2:
        return
    assert "argparse" not in imports_of(path)
    names = {
        node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)
    }
    assert "Namespace" not in names


def test_every_mode_checks_and_runs_itself():
    from importlib import import_module

    from lmconv.modes import MODES

    for module in {mode.module for mode in MODES.values()} | {"complete"}:
        mode = import_module(f"lmconv.modes.{module}")
        assert callable(mode.check) and callable(mode.run), module


def test_names_to_choose_from_are_those_of_their_registries():
    from lmconv.data import datasets
    from lmconv.modes import flags
    from masking import ORDERS
    from model import NORMALIZATIONS

    assert flags.ORDERS == ORDERS
    assert flags.NORMALIZATIONS == NORMALIZATIONS
    assert set(flags.DATASETS) == set(datasets.DATASETS)
    known = datasets.STANDARD_SETS.items()
    assert set(flags.BINARY_DATASETS) == {name for name, each in known if each.is_binary}
    assert set(flags.PARTS) == set(datasets.PARTS)


# What takes long to import, and few modes use.
HEAVY = (
    "matplotlib",
    "pyarrow",
    "scipy",
    "sklearn",
    "starlette",
    "sympy",
    "tensorboard",
    "tensorflow",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "uvicorn",
    "wandb",
)


def loaded_by(code, tmp_path):
    """The modules that are there after a program has run."""
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(words):
    return f"import main\nassert main.main({words.split()!r}) == 0"


def test_help_imports_no_torch(tmp_path):
    code = "import main\ntry:\n    main.main(['--help'])\nexcept SystemExit:\n    pass"
    loaded = loaded_by(code, tmp_path)
    assert sorted(loaded & {"torch", "numpy", "PIL", *HEAVY}) == []


MODEL = ROOT / "pretrained" / "binary_mnist_small.pth"
DIGITS = f"--load_params {MODEL} --run_dir run -i {ROOT / 'examples'} --max_test_images 1"


@pytest.mark.parametrize(
    "words",
    [
        f"--mode sample --num_samples 1 --load_params {MODEL} --run_dir run",
        f"--mode test --order_variants 0 {DIGITS}",
        f"--mode score --order_variants 0 {DIGITS}",
        f"--mode compress --order_variants 0 {DIGITS} --output x.lmc",
        f"--mode info --load_params {MODEL}",
        "--mode count_params -q 1 -n 2 --run_dir run",
    ],
    ids=lambda words: words.split()[1],
)
def test_modes_import_nothing_heavy_that_they_do_not_use(words, tmp_path):
    loaded = loaded_by(command(words), tmp_path)
    assert sorted(loaded & {*HEAVY}) == []


def test_the_face_imports_pytorch_when_it_is_used(tmp_path):
    assert "torch" not in loaded_by("import lmconv", tmp_path)
    assert "torch" in loaded_by("import lmconv\nlmconv.ImageModel", tmp_path)
