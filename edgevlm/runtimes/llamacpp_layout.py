"""Where the parts of a prompt lie in a sequence of llama.cpp.

Elsewhere a position is a row of the KV cache. In llama.cpp it is what the row's rotary
embedding turned by, and with M-RoPE (arXiv:2409.12191) a picture of a hundred rows moves
what follows it on by ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.contract import Part
from edgevlm.engine.prompt import Block, BlockEmbeddings
from edgevlm.errors import NotSupported
from edgevlm.runtimes.llamacpp_sequence import Piece


@dataclass(frozen=True, slots=True)
class PositionMap:
    """`blocks`: (first row, row after the last, by how much rows after it are turned on
    beyond their number)."""

    blocks: tuple[tuple[int, int, int], ...] = ()

    def position(self, row: int) -> int:
        """Of a row outside of blocks, or the first of one."""
        shift = 0
        for _, stop, after in self.blocks:
            if stop > row:
                break
            shift = after
        return row + shift

    def cut(self, length: int) -> PositionMap:
        """The first `length` rows. Raises ValueError where that is inside a block."""
        if any(start < length < stop for start, stop, _ in self.blocks):
            raise ValueError(f"can't cut to {length} positions: a picture lies across it")
        return PositionMap(tuple(block for block in self.blocks if block[1] <= length))

    def with_block(self, start: int, stop: int, span: int) -> PositionMap:
        shift = self.position(start) + span - stop
        return PositionMap((*self.blocks, (start, stop, shift)))


def lay_out(
    parts: Sequence[Part], length: int, positions: PositionMap, *, m_rope: bool
) -> tuple[list[Piece], PositionMap]:
    """The parts as pieces from row `length` on, and the map with them in it.

    Raises NotSupported for positions of their own in a model that has none.
    """
    pieces: list[Piece] = []
    for part in parts:
        if not len(part):
            continue
        start = positions.position(length)
        stop = length + len(part)
        if isinstance(part, BlockEmbeddings):
            pieces.append(_block(part, start, m_rope))
            positions = positions.with_block(length, stop, part.block.span)
        elif part.ndim == 1:
            pieces.append(Piece(part.astype(np.int32), _counted(start, len(part))))
        else:
            pieces.append(_rows(part, _counted(start, len(part)), m_rope=m_rope))
        length = stop
    return pieces, positions


def _block(part: BlockEmbeddings, start: int, m_rope: bool) -> Piece:
    block, n = part.block, len(part)
    if not m_rope and (block.positions is not None or block.span != n):
        raise NotSupported(
            "This decoder numbers positions one by one, the picture has some of its own.",
            hint="Its vision encoder does not belong to its decoder.",
        )
    if block.positions is None:
        return _rows(part.rows, _counted(start, n), m_rope=m_rope, causal=block.causal)
    return _rows(part.rows, start + _own(block), m_rope=m_rope, causal=block.causal)


def _rows(
    rows: NDArray[Any], positions: NDArray[np.int32], *, m_rope: bool, causal: bool = True
) -> Piece:
    """With `positions` [n], or [3, n] of time, row and column."""
    if m_rope:
        # The fourth is what llama.cpp keeps for other axes.
        fourth = np.zeros((1, len(rows)), np.int32)
        three = np.broadcast_to(positions, (3, len(rows)))
        positions = np.concatenate([three, fourth], dtype=np.int32)
    return Piece(np.asarray(rows, np.float32), positions, causal)


def _own(block: Block) -> NDArray[np.int32]:
    assert block.positions is not None
    return block.positions.T.astype(np.int32)


def _counted(start: int, n: int) -> NDArray[np.int32]:
    return np.arange(start, start + n, dtype=np.int32)
