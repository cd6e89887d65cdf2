"""Lossless compression of images, in the number of bits that a model promises."""
