"""``--mode sample``: which pixels are hidden, and batches that do not change the images."""

import pytest
import torch

from lmconv.modes import UsageError
from lmconv.modes.options import parse, settle
from lmconv.modes.regions import hidden_region
from lmconv.modes.run import make_run
from lmconv.modes.sample import Sampler
from masking import get_masks
from utils import ProgressBar


def arguments(flags):
    return settle(parse(["-d", "mnist", "--mode", "sample", *flags.split()]))


@pytest.mark.parametrize(
    ("flags", "rows", "cols"),
    [
        ("--sample_region center --sample_size_h 5 --sample_size_w 4", (11, 16), (12, 16)),
        ("--sample_region top --sample_size_h 14 --sample_size_w 28", (0, 14), (0, 28)),
        (
            "--sample_region custom --sample_offset1 -14 --sample_offset2 2 "
            "--sample_size_h 3 --sample_size_w 12",
            (0, 3),
            (16, 28),
        ),
    ],
)
def test_hidden_boxes_start_where_the_published_ones_do(flags, rows, cols):
    hidden = hidden_region(arguments(flags), (1, 28, 28))
    expected = torch.zeros(28, 28, dtype=torch.bool)
    expected[slice(*rows), slice(*cols)] = True
    assert torch.equal(hidden, expected)


def test_the_full_region_hides_everything():
    assert hidden_region(arguments("--sample_region full"), (1, 28, 28)).all()


@pytest.mark.parametrize("seed", range(20))
def test_random_boxes_stay_inside_the_image(seed):
    flags = f"--sample_region random_near_center --sample_size_h 27 --sample_size_w 9 -s {seed}"
    assert hidden_region(arguments(flags), (1, 28, 28)).sum() == 27 * 9


@pytest.mark.parametrize(
    "flags",
    [
        "--sample_region center --sample_size_h 29",
        "--sample_region custom --sample_offset1 12 --sample_offset2 0",
        "--sample_region custom --sample_offset1 0 --sample_offset2 -15",
    ],
)
def test_boxes_outside_the_image_are_refused(flags):
    with pytest.raises(UsageError, match="28x28"):
        hidden_region(arguments(flags), (1, 28, 28))


def test_runs_work_in_the_orders_of_the_command_line():
    run = make_run(parse(["--mode", "count_params", "--order", "s_curve", "hilbert"]))
    orders = run.model.orders((1, 8, 8))
    assert len(orders) == 16
    for order in orders:
        expected = get_masks(order.pixels, 8, 8, 3, 2)
        assert torch.equal(order.masks.dilated, expected.dilated)


def sampled(flags, number):
    run = make_run(parse(["--mode", "count_params", "-n", "4", *flags.split()]))
    sampler = Sampler(run, run.model, (1, 8, 8), epoch=0)
    with ProgressBar("sampling", number, 64) as bar:
        originals, images = zip(*sampler.batches(number, bar), strict=True)
    return torch.cat(originals), torch.cat(images)


@pytest.mark.parametrize("region", ["full", "center"])
def test_image_i_depends_on_the_seed_and_i_alone(region):
    flags = f"--sample_region {region} --max_test_images 7"
    _, all_at_once = sampled(f"{flags} --sample_batch_size 7", 7)
    _, in_parts = sampled(f"{flags} --sample_batch_size 3 -b 2", 7)
    _, fewer = sampled(f"{flags} --sample_batch_size 2", 5)
    _, other_seed = sampled(f"{flags} --sample_batch_size 7 -s 2", 7)
    assert torch.equal(in_parts, all_at_once)
    assert torch.equal(fewer, all_at_once[:5])
    assert not torch.equal(other_seed, all_at_once)
    assert len(all_at_once.flatten(1).unique(dim=0)) == 7


def test_completions_end_with_the_test_set(caplog):
    flags = "--sample_region top --sample_size_w 8 --max_test_images 7 --sample_batch_size 3"
    originals, images = sampled(flags, 12)
    assert len(originals) == len(images) == 7
    assert torch.equal(images[:, :, 4:], originals[:, :, 4:])
    assert not torch.equal(images, originals)
