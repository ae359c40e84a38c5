"""A picture as mtmd prepares it: how many tokens it costs, what stands around them, and where
in the decoder's positions they go."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings
from edgevlm.engine.prompt import Block, ImageInput, ImageSlot
from edgevlm.errors import NotSupported, RuntimeFailed
from edgevlm.families.layout import Piece, Tokens
from edgevlm.media.image import pixels_key
from edgevlm.runtimes.llamacpp_library import mtmd as library
from edgevlm.runtimes.llamacpp_mtmd import Chunk, Mtmd


@dataclass(frozen=True, eq=False, slots=True)
class MtmdPicture:
    """`rgb` uint8 [H, W, 3] and what mtmd makes of it: runs of token ids, and between them
    of so many rows of embeddings. It is made again to be encoded, which costs a resize and
    leaves no memory of mtmd's with the conversation."""

    rgb: NDArray[np.uint8]
    runs: tuple[tuple[int, ...] | int, ...]
    block: Block | None

    @property
    def n_tokens(self) -> int:
        """Rows of embeddings."""
        return sum(run for run in self.runs if isinstance(run, int))

    def as_input(self) -> ImageInput:
        return ImageInput(
            pixel_values=np.empty((0, 3, 0, 0), np.float32),
            pixel_mask=None,
            grid=(0, 0),
            n_tokens=self.n_tokens,
            key=pixels_key(self.rgb),
            block=self.block,
            prepared=self,
        )

    def lay_out(self, index: int) -> list[Piece]:
        """As image `index` of a prompt."""
        pieces: list[Piece] = []
        start = 0
        for run in self.runs:
            if isinstance(run, int):
                pieces.append(ImageSlot(index, start, run))
                start += run
            else:
                pieces.append(Tokens(run))
        return pieces

    def encode(self, mtmd: Mtmd, cancel: Cancel) -> Embeddings:
        """Embeddings float32 [n_tokens, d_model]. Raises Interrupted, RuntimeFailed."""
        with mtmd.chunks(self.rgb) as chunks:
            return np.concatenate([mtmd.encode(c, cancel) for c in chunks if c.is_image])


def prepare(mtmd: Mtmd, rgb: NDArray[np.uint8]) -> MtmdPicture:
    """Prepare RGB uint8 [H, W, 3]. Raises NotSupported, RuntimeFailed."""
    with mtmd.chunks(rgb) as chunks:
        runs = tuple(chunk.n_tokens if chunk.is_image else _ids(mtmd, chunk) for chunk in chunks)
        pictures = [chunk for chunk in chunks if chunk.is_image]
        block = _block(mtmd, pictures)
    return MtmdPicture(rgb, runs, block)


def _ids(mtmd: Mtmd, chunk: Chunk) -> tuple[int, ...]:
    count = ctypes.c_size_t()
    tokens = library.mtmd_input_chunk_get_tokens_text(chunk.pointer, ctypes.byref(count))
    ids = tuple(tokens[i] for i in range(count.value))
    if min(ids, default=0) < 0:
        raise NotSupported(
            f"{mtmd.path.name} puts tokens around a picture that its decoder lacks.",
            hint="Its vision encoder does not belong to its decoder.",
        )
    return ids


def _block(mtmd: Mtmd, pictures: list[Chunk]) -> Block | None:
    """How the rows go in, None where they do as text does."""
    m_rope = library.mtmd_decode_use_mrope(mtmd.pointer)
    causal = not library.mtmd_decode_use_non_causal(mtmd.pointer, pictures[0].pointer)
    if causal and not m_rope:
        return None
    if len(pictures) != 1:
        raise NotSupported(
            f"{mtmd.path.name} cuts pictures into tiles with positions of their own.",
            hint="Show a smaller picture, or use another model.",
        )
    (chunk,) = pictures
    if not m_rope:
        return Block(chunk.n_tokens, None, causal)
    return Block(library.mtmd_input_chunk_get_n_pos(chunk.pointer), _positions(mtmd, chunk), causal)


def _positions(mtmd: Mtmd, chunk: Chunk) -> NDArray[np.int32]:
    """(time, row, column) int32 [n_tokens, 3], from the picture's first position on."""
    image = library.mtmd_input_chunk_get_tokens_image(chunk.pointer)
    if not image:
        raise RuntimeFailed("mtmd made a picture without tokens.", hint="Please report this.")
    places = [library.mtmd_image_tokens_get_decoder_pos(image, 0, i) for i in range(chunk.n_tokens)]
    if any(place.z for place in places):
        raise NotSupported(
            f"{mtmd.path.name} numbers the pictures of a conversation.",
            hint="Such models are not supported here: use another one.",
        )
    return np.array([(place.t, place.y, place.x) for place in places], np.int32)
