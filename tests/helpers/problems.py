"""Small networks with an order, images and hidden pixels, to compare ways of computing on."""

import numpy as np
import torch

from lmconv.generation.feature_cache import FeatureCache
from lmconv.generation.sampler import pixel_noise, sample_cached, sample_naive
from lmconv.generation.schedule import make_schedule
from lmconv.generation.step_plan import StepPlan
from lmconv.likelihoods import Bernoulli, make_likelihood
from lmconv.pixel_values import to_grid
from masking import generation_orders, get_masks, raster_scan_idx
from model import ModelConfig, build_model

FAMILIES = ("raster_scan", "s_curve", "gilbert2d", "s_curve_center_quarter_last", "random")

# Arguments of `Problem` that cover what networks and likelihoods there are.
VARIETY = {
    "binary": {},
    "grey": {"likelihood": make_likelihood(1, 2), "normalization": "weight_norm"},
    "colour": {"likelihood": make_likelihood(3, 2), "normalization": "pono"},
    "five_bits": {"likelihood": make_likelihood(3, 1, n_bits=5), "normalization": "none"},
    "mask_weight": {"mask_weight": True, "normalization": "none"},
    "mask_weight_normalised": {"mask_weight": True, "normalization": "weight_norm"},
    "order_rescale": {"normalization": "order_rescale", "mask_weight": True},
    "kernel_5": {"kernel_size": 5, "normalization": "pono"},
    "kernel_1": {"kernel_size": 1},
    "no_dilation": {"max_dilation": 1, "normalization": "pono"},
    "dilation_3_no_bias": {"max_dilation": 3, "bias": False, "normalization": "order_rescale"},
    "positions": {"input_positions": True, "normalization": "pono"},
    "predicted_grey": {
        "likelihood": make_likelihood(1, 2, local_prediction=True),
        "normalization": "weight_norm",
    },
    "predicted_colour": {
        "likelihood": make_likelihood(3, 2, n_bits=6, local_prediction=True),
        "kernel_size": 5,
        "normalization": "pono",
    },
    "classes": {"num_classes": 3, "normalization": "pono", "images": 6},
    "classes_many_rows": {"num_classes": 2, "normalization": "weight_norm", "images": 20},
    "positions_many_rows": {"input_positions": True, "images": 20},
    "many_rows": {"images": 60, "normalization": "pono"},
    "rematerialized": {"rematerialize": True, "normalization": "weight_norm"},
    "odd_filters": {"filters": 7, "normalization": "pono"},
}


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
            local_prediction=getattr(self.likelihood, "is_relative", False),
            **settings,
        )
        self.model = build_model(config).to(dtype).eval()
        with torch.no_grad():  # an untrained network's outputs hardly depend on its inputs
            for name, parameter in self.model.named_parameters():
                scale = 1 if name.endswith("classes") else 0.1
                parameter.mul_(1.5).add_(scale * torch.randn_like(parameter))
        # One image of each class, and of no known one.
        self.label = torch.arange(images) % (config.num_classes + 1) if config.num_classes else None
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
        return sample_naive(*self.arguments(), label=self.label)

    def cached(self, **options):
        return sample_cached(*self.arguments(), label=self.label, **options)

    def watch_columns(self):
        """A list that gets the height, width and positions in masks of each call of the network."""
        calls = []

        def watch(network, arguments):
            x, masks = arguments
            calls.append((*x.shape[2:], masks.init.shape[2]))

        self.model.register_forward_pre_hook(watch)
        return calls

    def logits_of_steps(self, images, parallel=True, uniform=False, **cache_options):
        """The network's outputs as finished images are stepped through, and the pixels stepped to.

        ``cache_options`` are those of ``FeatureCache``.
        """
        schedule = make_schedule(self.model, self.order, self.masks, self.hidden.numpy(), parallel)
        plan = StepPlan(schedule, len(images), uniform)
        shape = (len(images), self.likelihood.num_output_channels, *self.hidden.shape)
        with torch.inference_mode(), FeatureCache(self.model, plan, **cache_options) as cache:
            cache.prefill(torch.where(self.hidden, 0.0, images), self.masks, self.label)
            pixels = cache.table(images)
            logits = cache.table(torch.zeros(shape, dtype=images.dtype))

            def step():
                now = cache.now
                columns = cache.columns(pixels, now.rows.new)
                out = self.model(columns, now.masks, label=self.label)
                logits.index_copy_(
                    0, now.rows.current, out.permute(0, 2, 3, 1).flatten(0, 2).to(logits.dtype)
                )

            assert len(list(cache.run(step))) == len(schedule.steps)
            result = torch.zeros(shape, dtype=images.dtype)
            cache.write_back(logits, result)
        return result.flatten(2), np.concatenate(schedule.steps)
