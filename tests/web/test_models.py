"""Which models are found and how they are opened."""

import os

import pytest
import torch
from helpers.models import tiny_model

from lmconv.checkpoints import CheckpointError
from lmconv.web.models import ModelFile, Models, find_models


@pytest.fixture
def checkout(tmp_path):
    for name in (
        "pretrained/b",
        "pretrained/a",
        "runs/one/best",
        "runs/one/0_ep3",
        "runs/two/0_ep7",
    ):
        path = tmp_path / f"{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "runs" / "results").mkdir()
    return tmp_path


def test_shipped_models_come_before_the_best_of_each_run(checkout):
    names = [file.name for file in find_models(folder=checkout)]
    assert names == ["a", "b", "one/best", "two/0_ep7"]


def test_a_chosen_file_comes_first_and_only_once(checkout):
    chosen = checkout / "runs" / ".." / "pretrained" / "b.pth"
    files = find_models([chosen], checkout)
    assert [file.path.resolve().name for file in files[:2]] == ["b.pth", "a.pth"]
    assert len(files) == 4


def test_a_card_is_the_sections_that_name_the_file(tmp_path):
    sections = "# All\n\n## One\n`one.pth` is good.\n\n## Two\n`two.pth` is not.\n"
    (tmp_path / "README.md").write_text(sections)
    assert ModelFile("one", tmp_path / "one.pth").card() == "## One\n`one.pth` is good.\n\n"
    assert ModelFile("three", tmp_path / "three.pth").card() == ""


def test_a_copy_has_the_same_weights_in_another_network(tmp_path):
    path = tmp_path / "tiny.pth"
    tiny_model().save(path)
    models = Models([ModelFile("tiny", path)])
    with torch.inference_mode():  # as inside a long job
        first, second = models.open(0), models.open(0, copy_of_network=True)
    assert first is models.open(0) and first.network is not second.network
    image = torch.full((1, 1, 8, 8), -1.0)
    assert torch.equal(first.log_prob(image), second.log_prob(image))
    assert not next(first.network.parameters()).is_inference()


def test_a_file_that_changes_is_read_again_and_one_that_is_gone_is_an_error(tmp_path):
    path = tmp_path / "tiny.pth"
    tiny_model().save(path)
    models = Models([ModelFile("tiny", path)])
    before = models.open(0)
    tiny_model(nr_filters=6).save(path)
    os.utime(path, ns=(0, 0))
    assert (
        models.open(0).description.network.nr_filters == 6 != before.description.network.nr_filters
    )
    path.unlink()
    with pytest.raises(CheckpointError, match="any more"):
        models.open(0)
    for identifier in (-1, 1):
        with pytest.raises(ValueError, match="no such model"):
            models.open(identifier)
