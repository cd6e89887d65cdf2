"""What the documentation shows runs as it stands, and gives what it says it gives."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import subprocess
import sys
import tempfile

import nbformat
import pytest
from helpers.paths import EXAMPLES, ROOT
from nbclient import NotebookClient

import lmconv

MODULES = ["lmconv", *(each.name for each in pkgutil.walk_packages(lmconv.__path__, "lmconv."))]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# A block of code, and the block without a language right after it: what the code prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@pytest.fixture
def in_the_root(tmp_path, monkeypatch):
    """The root of the repository, for what only reads there: what is written goes elsewhere."""
    for name in ("pretrained", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def assert_same_text(text, expected):
    """The same words, and numbers that are the same but for the rounding of sums."""
    assert NUMBER.sub("#", text) == NUMBER.sub("#", expected)
    numbers = [float(each) for each in NUMBER.findall(text)]
    assert numbers == pytest.approx([float(e) for e in NUMBER.findall(expected)], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name, in_the_root):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    source = module.__loader__.get_source(name)
    assert result.attempted == len(re.findall(r"^\s*>>> ", source, re.MULTILINE))


def test_the_documented_python_runs_from_top_to_bottom_and_prints_what_it_shows(in_the_root):
    blocks = BLOCK.findall((ROOT / "docs" / "python.md").read_text())
    assert len(blocks) > 10
    namespace = {"__name__": "documentation"}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"docs/python.md: {code.splitlines()[0]}", "exec"), namespace)
        assert_same_text(printed.getvalue(), expected)


def outputs(notebook):
    """What the cells of a notebook show as text, pictures aside."""
    texts = []
    for cell in notebook.cells:
        parts = []
        for output in cell.get("outputs", ()):
            parts.append(output["text"] if "text" in output else output["data"]["text/plain"])
        texts.append("".join(parts))
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_run_from_top_to_bottom_and_hold_their_outputs(path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert path.stat().st_size < 300_000
    stored = nbformat.read(path, as_version=4)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    notebook = nbformat.from_dict(stored)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    stored = nbformat.read(path, as_version=4)
    for text, expected in zip(outputs(notebook), outputs(stored), strict=True):
        assert_same_text(text, expected)


def test_every_public_name_is_there_and_none_is_loaded_before_it_is_used():
    for name in lmconv.__all__:
        assert getattr(lmconv, name).__name__ == name
    assert sorted(lmconv.__all__) == dir(lmconv) == sorted(lmconv._MODULES)
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = lmconv.nothing_like_this
    code = "import lmconv, sys; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
