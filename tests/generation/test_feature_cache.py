"""A feature cache computes at the positions of a step what a full forward pass computes there."""

import pytest
import torch
from helpers.problems import FAMILIES, VARIETY, Problem

from lmconv.likelihoods import make_likelihood


@pytest.mark.parametrize("kind", VARIETY)
@pytest.mark.parametrize("variant", range(8))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
def test_logits_of_steps_are_those_of_the_full_forward_pass(kind, variant, dtype, tolerance):
    family = FAMILIES[variant % 5]
    share = 0.5 if variant % 2 else 1.0
    problem = Problem(family, variant, hidden_share=share, dtype=dtype, **VARIETY[kind])
    with torch.inference_mode():
        expected = problem.model(problem.images, problem.masks, label=problem.label).flatten(2)
    for options in ({}, {"parallel": False}, {"uniform": True}):
        logits, pixels = problem.logits_of_steps(problem.images, **options)
        difference = (logits - expected)[:, :, pixels].abs().max()
        assert difference <= tolerance * max(1.0, expected.abs().max())


@pytest.mark.parametrize("family", ["raster_scan", "random"])
def test_steps_are_recorded_from_the_given_number_on(family):
    problem = Problem(family, likelihood=make_likelihood(3, 2), mask_weight=True)
    columns = problem.watch_columns()
    expected, pixels = problem.logits_of_steps(problem.images, min_steps_to_record=10**9)
    sizes = [size for _, _, size in columns]
    for number in (1, 2, 4):
        columns.clear()
        logits, _ = problem.logits_of_steps(problem.images, min_steps_to_record=number)
        torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
        counts = [sizes.count(size) for size in set(sizes)]
        assert len(columns) == sum(1 if count >= number else count for count in counts)
    assert sum(sizes) >= len(pixels)


def test_half_precision_is_that_of_the_network_in_autocast():
    problem = Problem("gilbert2d", dtype=torch.float32, normalization="pono")
    with torch.autocast("cpu", torch.bfloat16):
        with torch.inference_mode():
            expected = (
                problem.model(problem.images, problem.masks, label=problem.label).float().flatten(2)
            )
        logits, pixels = problem.logits_of_steps(problem.images)
    assert (logits - expected)[:, :, pixels].abs().max() < 0.1 * expected.abs().max()


def test_layers_of_another_dilation_than_their_mask_are_refused():
    problem = Problem()
    first = problem.model.up_layers[0].u_stream[0].conv_input
    first.dilation = 2
    with pytest.raises(ValueError, match="dilation 2 was given the mask of dilation 1"):
        problem.logits_of_steps(problem.images)
    first.dilation = 1
    problem.logits_of_steps(problem.images)


def test_layers_under_a_mask_that_is_not_of_the_step_are_refused():
    problem = Problem()
    block = problem.model.up_layers[0].u_stream[0]
    forward = block.conv_input.forward
    hook = block.register_forward_pre_hook(
        lambda _, inputs: (inputs[0], inputs[1] * 1, *inputs[2:])
    )
    with pytest.raises(ValueError, match="another mask"):
        problem.logits_of_steps(problem.images)
    assert block.conv_input.forward == forward
    hook.remove()
    problem.logits_of_steps(problem.images)
