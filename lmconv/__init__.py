"""Locally masked convolution: exact-likelihood image models in any order."""
