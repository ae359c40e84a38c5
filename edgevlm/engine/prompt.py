"""A prompt on its way to a runtime: token ids with slots where image embeddings go."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """How a picture's rows go in where they can't be taken apart.

    `positions` int32 [n_tokens, 3] are (time, row, column) from the picture's first position
    on (M-RoPE, Qwen2-VL, arXiv:2409.12191), or None where rows are numbered like text;
    `span` is by how much the position of what follows moves on. Rows that are not `causal`
    attend to one another in both directions (PaliGemma, arXiv:2407.07726).
    """

    span: int
    positions: NDArray[np.int32] | None = None
    causal: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class BlockEmbeddings:
    """Rows float32 [n, d_model] of a picture that go in together, as their block says."""

    rows: NDArray[np.float32]
    block: Block

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False, slots=True)
class ImageInput:
    """A picture as its family prepared it for the vision encoder.

    `pixel_values` float32 [n_tiles, 3, H, W]; `pixel_mask` bool [n_tiles, H, W] or None;
    `grid` is (rows, columns) of the tiles beside the global image, (0, 0) when not split.
    `key` is a SHA-256 over the decoded pixels, their shape and the preprocessing: equal
    keys mean equal embeddings from one encoder. `block` is set where a picture goes in as
    a whole, in one slot; `prepared` is for an encoder whose runtime prepared the picture itself.
    `embeddings` float32 [n_tokens, d_model] are there where an encoder elsewhere has seen it.
    """

    pixel_values: NDArray[np.float32]
    pixel_mask: NDArray[np.bool_] | None
    grid: tuple[int, int]
    n_tokens: int
    key: str
    block: Block | None = None
    prepared: object = None
    embeddings: NDArray[np.float32] | None = None

    @classmethod
    def encoded(
        cls, embeddings: NDArray[np.float32], grid: tuple[int, int], key: str
    ) -> ImageInput:
        """A picture of which there are embeddings float32 [n_tokens, d_model] and no pixels;
        `key` is of them."""
        pixels = np.empty((0, 3, 0, 0), np.float32)
        return cls(pixels, None, grid, len(embeddings), key, embeddings=embeddings)


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Rows `start : start + count` of the embeddings of image `image` of the prompt."""

    image: int
    start: int
    count: int


Part: TypeAlias = tuple[int, ...] | ImageSlot


@dataclass(frozen=True, eq=False, slots=True)
class Prompt:
    """Ids and image slots in reading order."""

    parts: tuple[Part, ...]
    images: tuple[ImageInput, ...] = ()

    @property
    def length(self) -> int:
        return sum(p.count if isinstance(p, ImageSlot) else len(p) for p in self.parts)

    @property
    def image_tokens(self) -> int:
        return sum(p.count for p in self.parts if isinstance(p, ImageSlot))

    def keys(self) -> list[Hashable]:
        """One key a position: the id, or (image key, row). With the same adapters, equal
        prefixes share a KV cache."""
        keys: list[Hashable] = []
        for part in self.parts:
            if isinstance(part, ImageSlot):
                image = self.images[part.image].key
                keys.extend((image, row) for row in range(part.start, part.start + part.count))
            else:
                keys.extend(part)
        return keys
