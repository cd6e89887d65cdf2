"""Buckets: images of several sizes, in batches of one size each."""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from lmconv.data.sources import Images, Source
from lmconv.pixel_values import ImageShape

__all__ = ["BucketSource", "nearest_size"]


def nearest_size(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The one of several sizes (height, width) that a picture is brought to.

    It is the one with the nearest proportions: those that differ by the smallest factor, and among
    equals the first. If several sizes have these proportions, it is the largest that the picture
    need not be enlarged for, or else the smallest.
    """
    height, width = size

    def factor(other: tuple[int, int]) -> Fraction:
        ratio = Fraction(height * other[1], width * other[0])
        return max(ratio, 1 / ratio)

    nearest = min(sizes, key=factor)
    alike = sorted(each for each in sizes if each[0] * nearest[1] == each[1] * nearest[0])
    smaller = [each for each in alike if each[0] <= height and each[1] <= width]
    return smaller[-1] if smaller else alike[0]


class BucketSource(Source):
    """Images of several sizes, each size being a bucket: a source of its own.

    A batch has images of one bucket, and the last of each bucket may be smaller. In their own order
    the images come bucket by bucket; shuffled, the batches of all buckets are in random order.

    Args:
        buckets: the source of each bucket, none of them a stream, by the (C, H, W) of its images.

    Attributes:
        image_shapes: (C, H, W) of each image.
    """

    def __init__(self, buckets: Mapping[ImageShape, Source]) -> None:
        self._buckets, self._bounds = buckets, dict[ImageShape, tuple[int, int]]()
        self.image_shapes: list[ImageShape] = []
        for shape, source in buckets.items():
            first = len(self.image_shapes)
            self.image_shapes += [shape] * (source.num_images or 0)
            self._bounds[shape] = first, len(self.image_shapes)
        self.num_images = len(self.image_shapes)

    def bounds(self, image_shape: ImageShape) -> tuple[int, int]:
        return self._bounds.get(image_shape, (0, 0))

    def num_batches(self, batch_size: int, first: int = 0) -> int:
        return sum(
            -(-(end - start) // batch_size) - max(0, first - start) // batch_size
            for start, end in self._bounds.values()
            if first < end
        )

    def batches(
        self, batch_size: int, random: np.random.Generator | None
    ) -> Iterator[tuple[np.ndarray, Images]]:
        turns = self._turns(batch_size)
        if random is not None:
            turns = [turns[place] for place in random.permutation(len(turns))]
        batches = {
            shape: self._buckets[shape].batches(batch_size, random)
            for shape in dict.fromkeys(turns)
        }
        for shape in turns:
            indices, images = next(batches[shape])
            yield indices + self._bounds[shape][0], images

    def name(self, index: int) -> str:
        shape = self.image_shapes[index]
        return self._buckets[shape].name(index - self._bounds[shape][0])

    def _turns(self, batch_size: int) -> list[ImageShape]:
        """The bucket of each batch, in the images' own order."""
        return [
            shape
            for shape, (first, end) in self._bounds.items()
            for _ in range(-(-(end - first) // batch_size))
        ]
