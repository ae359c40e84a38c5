"""Whether two pictures differ by less than anything that could be asked about.

Nobody knows from a question which pixels its answer hangs on, so all of them are the key region:
two pictures are near only where every part of them agrees. What may differ is what a still
camera's noise and flicker, or saving a photograph again at high quality, do to a picture.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_SIDE = 32
_MOST_PIXELS = 2_000_000
_CELL = 2
# How many of 255 grey levels the means over squares may differ by, in any channel, at any place,
# beside the change of the whole: by the side of the square in cells. They are what the noise of
# a still camera (1 level) reaches; a stroke one pixel wide and 20 levels deep goes beyond.
_LIMITS = {1: 4.5, 2: 2.25, 4: 1.1, 8: 0.7}
_WHOLE_LIMIT = 2.0
_HASH_SIDE = 8
_MOST_HASH_BITS = 6
_CLEARLY = 4.0  # grey levels, so that noise on an even wall is none


@dataclass(frozen=True, eq=False, slots=True)
class Sketch:
    """Means of 2 x 2 pixels of a picture, uint8 [H // 2, W // 2, 3], and a perceptual hash: each
    bit says whether one of 64 parts is clearly brighter than the one to its right (dHash)."""

    cells: NDArray[np.uint8]
    dhash: int

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Sketch | None:
        """Of RGB uint8 [H, W, 3]; None where the picture is too small to tell noise from
        content, or above 2 megapixels, whose sketch would be large to keep."""
        height, width = pixels.shape[:2]
        if min(height, width) < _LEAST_SIDE or height * width > _MOST_PIXELS:
            return None
        cells = _means(_padded(pixels, _CELL), _CELL)
        return cls(cells, _dhash(cells))

    def near(self, other: Sketch) -> bool:
        """Whether whoever sees one sees the other."""
        if self.cells.shape != other.cells.shape:
            return False
        if (self.dhash ^ other.dhash).bit_count() > _MOST_HASH_BITS:
            return False
        difference = self.cells.astype(np.int32) - other.cells
        if int(np.abs(difference).max()) > _LIMITS[1] + _WHOLE_LIMIT:
            return False  # as most end: here, before any sums
        whole = difference.mean(axis=(0, 1))
        if float(np.abs(whole).max()) > _WHOLE_LIMIT:
            return False
        sums = _summed(difference)
        return all(_largest(sums, side, whole) <= limit for side, limit in _LIMITS.items())

    def packed(self) -> bytes:
        height, width = self.cells.shape[:2]
        header = height.to_bytes(4, "big") + width.to_bytes(4, "big")
        packed: bytes = header + self.dhash.to_bytes(8, "big")
        return packed + zlib.compress(self.cells.data, 1)

    @classmethod
    def unpacked(cls, data: bytes) -> Sketch:
        """Raises ValueError."""
        height, width = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        size = 3 * height * width
        if not 0 < size <= 3 * _MOST_PIXELS:
            raise ValueError("no sketch is so large")
        inflate = zlib.decompressobj()
        try:
            raw = inflate.decompress(data[16:], size)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        cells = np.frombuffer(raw, np.uint8).reshape(height, width, 3)
        return cls(cells, int.from_bytes(data[8:16], "big"))


def _padded(array: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """With the last row and column again until both sides are multiples of `step`."""
    height, width = array.shape[:2]
    missing = ((0, -height % step), (0, -width % step), (0, 0))
    return np.pad(array, missing, mode="edge") if height % step or width % step else array


def _means(array: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    total = np.zeros((array.shape[0] // step, array.shape[1] // step, 3), np.uint16)
    for row in range(step):
        for column in range(step):
            total += array[row::step, column::step]
    total += np.uint16(step * step // 2)
    total //= np.uint16(step * step)
    return total.astype(np.uint8)


def _summed(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sums of all that is above and to the left (Crow 1984), [H + 1, W + 1, 3]."""
    height, width = values.shape[:2]
    sums = np.zeros((height + 1, width + 1, 3), np.int32)
    np.cumsum(values, axis=0, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    return sums


def _largest(sums: NDArray[np.int32], side: int, whole: NDArray[np.float64]) -> float:
    """By how much the mean over any square differs from that over the whole, at the most."""
    squares = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    area = side * side
    highest, lowest = squares.max(axis=(0, 1)) / area, squares.min(axis=(0, 1)) / area
    return float(max((highest - whole).max(), (whole - lowest).max()))


def _dhash(cells: NDArray[np.uint8]) -> int:
    grey = cells.mean(axis=2)
    rows = np.array_split(grey, _HASH_SIDE, axis=0)
    means = np.array(
        [[part.mean() for part in np.array_split(row, _HASH_SIDE + 1, axis=1)] for row in rows]
    )
    bits = np.packbits(means[:, :-1] > means[:, 1:] + _CLEARLY)
    return int.from_bytes(bits.tobytes(), "big")
