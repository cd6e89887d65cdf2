"""Data sets as batches of images."""
