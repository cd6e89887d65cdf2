"""Tiny models, with random weights."""

import torch

from lmconv.description import ModelDescription
from lmconv.image_model import ImageModel
from lmconv.orders import OrderConfig
from lmconv.pixel_values import Preparation

ALL_VARIANTS = OrderConfig(all_variants=True)


def tiny_model(
    image_shape=(1, 8, 8), binarize=False, n_bits=8, orders=ALL_VARIANTS, num_mixtures=10, **network
):
    """A model of small images, on the CPU; one with ``classes`` treats each of them differently."""
    sizes = {"nr_resnet": 1, "nr_filters": 4, "kernel_size": 3, "normalization": "pono"}
    description = ModelDescription.of(
        (image_shape,),
        Preparation(binarize, n_bits),
        orders,
        num_mixtures,
        **{"architecture": "lmconv", "dropout_prob": 0.0, **sizes, **network},
    )
    model = ImageModel(description, device="cpu")
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if name.endswith(".classes"):
                parameter.normal_()
    return model
