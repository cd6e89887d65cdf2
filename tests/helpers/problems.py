"""Small networks with an order, images and hidden pixels, to compare ways of computing on."""

import numpy as np
import torch

from lmconv.generation.feature_cache import FeatureCache
from lmconv.generation.sampler import pixel_noise, sample_cached, sample_naive
from lmconv.generation.schedule import generation_steps, map_rows, mask_reads
from lmconv.generation.step_plan import StepPlan
from lmconv.likelihoods import Bernoulli, to_grid
from masking import generation_orders, get_masks, raster_scan_idx
from model import ModelConfig, build_model

FAMILIES = ("raster_scan", "s_curve", "gilbert2d", "s_curve_center_quarter_last", "random")


def make_order(family, variant, height, width):
    if family == "random":
        return np.random.default_rng(variant).permutation(raster_scan_idx(height, width))
    return generation_orders([family], (1, height, width), all_variants=True)[variant]


class Problem:
    """A small trained-like network, an order, images and hidden pixels."""

    def __init__(
        self,
        family="s_curve",
        variant=0,
        size=(5, 6),
        likelihood=None,
        hidden_share=1.0,
        images=3,
        dtype=torch.float64,
        kernel_size=3,
        max_dilation=2,
        filters=6,
        **settings,
    ):
        self.likelihood = likelihood or Bernoulli()
        channels = self.likelihood.num_channels
        config = ModelConfig(
            "lmconv",
            channels,
            self.likelihood.num_output_channels,
            nr_resnet=1,
            nr_filters=filters,
            kernel_size=kernel_size,
            max_dilation=max_dilation,
            **settings,
        )
        self.model = build_model(config).to(dtype).eval()
        with torch.no_grad():  # an untrained network's outputs hardly depend on its inputs
            for parameter in self.model.parameters():
                parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
        self.order = make_order(family, variant, *size)
        self.masks = get_masks(self.order, *size, kernel_size, max_dilation)
        values = torch.rand(images, channels, *size, dtype=dtype) * 2 - 1
        n_bits = getattr(self.likelihood, "n_bits", 1)
        self.images = to_grid(values, n_bits)
        self.hidden = torch.rand(size) < hidden_share
        self.noise = pixel_noise(self.likelihood, images, *size, seed=3)

    def arguments(self):
        return (
            self.model,
            self.likelihood,
            self.order,
            self.masks,
            self.images,
            self.hidden,
            self.noise,
        )

    def naive(self):
        return sample_naive(*self.arguments())

    def cached(self, **options):
        return sample_cached(*self.arguments(), **options)

    def logits_of_steps(self, images, parallel=True, uniform=False):
        """What the network puts out as a finished image is stepped through; and the pixels."""
        reads = mask_reads(self.masks, *self.hidden.shape, self.model.config.max_dilation)
        steps = generation_steps(self.order, reads, self.hidden.numpy(), parallel)
        rows = map_rows(steps, reads)
        plan = StepPlan(self.masks, reads, steps, rows, len(images), uniform)
        shape = (len(images), self.likelihood.num_output_channels, *self.hidden.shape)
        with torch.inference_mode(), FeatureCache(self.model, plan) as cache:
            cache.prefill(torch.where(self.hidden, 0.0, images), self.masks)
            pixels = cache.table(images)
            logits = cache.table(torch.zeros(shape, dtype=images.dtype))

            def step():
                now = cache.now
                out = self.model(cache.columns(pixels, now.rows.new), now.masks)
                logits.index_copy_(
                    0, now.rows.current, out.permute(0, 2, 3, 1).flatten(0, 2).to(logits.dtype)
                )

            assert len(list(cache.run(step))) == len(steps)
            result = torch.zeros(shape, dtype=images.dtype)
            cache.write_back(logits, result)
        return result.flatten(2), np.concatenate(steps)
