"""Which rotary positions the rows of a sequence have, where pictures have positions of their
own (M-RoPE, Qwen2-VL, arXiv:2409.12191)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.contract import Part
from edgevlm.engine.prompt import BlockEmbeddings


@dataclass(frozen=True, slots=True)
class _Placed:
    """A block of rows `start : end`, the first of them at rotary position `first`."""

    start: int
    end: int
    first: int
    embeddings: BlockEmbeddings


class Positions:
    """Positions of everything that a context holds or is about to hold."""

    def __init__(self) -> None:
        self._blocks: list[_Placed] = []

    def extend(self, length: int, parts: Sequence[Part]) -> None:
        """Note the blocks among parts that come after `length` rows."""
        for part in parts:
            end = length + len(part)
            if isinstance(part, BlockEmbeddings):
                self._blocks.append(_Placed(length, end, length + self._shift(length), part))
            length = end

    def truncate(self, length: int) -> None:
        self._blocks = [block for block in self._blocks if block.end <= length]

    def rows(self, start: int, end: int) -> NDArray[np.int32]:
        """(time, row, column) int32 [3, end - start] of the rows `start : end`."""
        found = np.empty((3, end - start), np.int32)
        indices = np.arange(start, end)
        shifts = np.zeros_like(indices)
        for block in self._blocks:
            shifts[indices >= block.end] += block.embeddings.block.span - (block.end - block.start)
        found[:] = indices + shifts
        for block in self._blocks:
            own = block.embeddings.block.positions
            inside = (indices >= block.start) & (indices < block.end)
            if own is not None and inside.any():
                found[:, inside] = block.first + own[indices[inside] - block.start].T
        return found

    def _shift(self, index: int) -> int:
        """How far the position of row `index`, which no block holds, is from its index."""
        return sum(
            block.embeddings.block.span - (block.end - block.start)
            for block in self._blocks
            if block.end <= index
        )
