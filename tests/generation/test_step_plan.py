"""Schedules as rows of memory: every step finds what it reads where it was written."""

import numpy as np
import pytest
import torch

from lmconv.generation.schedule import Schedule, generation_steps, mask_reads
from lmconv.generation.step_plan import StepPlan
from masking import generation_orders, get_generation_order_idx, get_masks


def plan_of(order, size, hidden=None, batch=2, uniform=False):
    masks = get_masks(order, *size, 3, 2)
    reads = mask_reads(masks, *size, 2)
    hidden = np.ones(size, bool) if hidden is None else hidden
    steps = generation_steps(order, reads, hidden)
    schedule = Schedule(masks, reads, steps, size)
    return StepPlan(schedule, batch, uniform), steps, masks, reads


@pytest.mark.parametrize("uniform", [False, True])
def test_taps_read_what_was_written_for_their_pixel(uniform):
    size, batch = (5, 6), 2
    order = get_generation_order_idx("raster_scan", *size)
    hidden = np.zeros(size, bool)
    hidden[2:] = True
    plan, steps, _, reads = plan_of(order, size, hidden, batch, uniform)
    # A map that holds the number of the pixel and image of each row, -1 for zeros.
    held = torch.full((plan.num_rows, batch), -1)
    number = torch.arange(30)[:, None] * batch + torch.arange(batch)
    held[plan.visible_rows] = number[plan.visible]
    for step, pixels in zip(plan, steps, strict=True):
        written = step.rows.current_in_maps.view(batch, -1)[:, : len(pixels)]
        held.view(-1)[written] = number[torch.from_numpy(pixels)].t()
        order_of_taps = plan.tap_orders[1]
        taps = torch.cat([order_of_taps[first:end] for first, end in step.reads[1].runs])
        table = torch.from_numpy(reads.undilated[pixels])[:, taps]  # P x T
        got = held.view(-1)[step.reads[1].rows].view(batch, -1, len(taps))[:, : len(pixels)]
        for image in range(batch):
            expected = torch.where(table < 0, -1, table * batch + image)
            assert torch.equal(got[image], expected)
        assert set(np.flatnonzero((reads.undilated[pixels] >= 0).any(0))) <= set(taps.tolist())


def test_new_values_are_those_of_the_step_before():
    order = get_generation_order_idx("raster_scan", 4, 6)
    plan, steps, masks, _ = plan_of(order, (4, 6))
    most = max(map(len, steps))
    before = np.empty(0, int)
    for step, pixels in zip(plan, steps, strict=True):
        new = step.rows.new.view(2, most)
        assert (new // 2)[:, : len(before)].tolist() == [before.tolist()] * 2
        assert (new // 2 == len(plan.stepped))[:, len(before) :].all(), "the rest is padding"
        current = step.rows.current.view(2, -1)[:, : len(pixels)] // 2
        assert plan.stepped[current[0]].tolist() == pixels.tolist()
        assert torch.equal(step.masks.init[:, :, : len(pixels)], masks.init[:, :, pixels])
        before = current[0].numpy()


def test_uniform_steps_have_one_shape():
    order = np.random.default_rng(0).permutation(get_generation_order_idx("s_curve", 6, 6))
    plan, steps, _, _ = plan_of(order, (6, 6), uniform=True)
    shapes = {
        tuple(tensor.shape for tensor in (*step.rows, *step.masks, *(r.rows for r in step.reads)))
        for step in plan
    }
    assert len(steps) > 3 and len(shapes) == 1


@pytest.mark.parametrize("variant", range(8))
def test_the_taps_of_s_curves_are_neighbours_in_their_order(variant):
    order = generation_orders(["s_curve"], (1, 12, 12), all_variants=True)[variant]
    plan, _, _, _ = plan_of(order, (12, 12))
    inner = [step for step in list(plan)[40:100] if len(step.reads[1].rows) == 2 * 5]
    assert len(inner) > 40
    assert all(len(step.reads[1].runs) == 1 for step in inner)
