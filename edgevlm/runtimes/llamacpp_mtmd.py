"""mtmd, llama.cpp's library for pictures: an mmproj GGUF, its chunks and their embeddings."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings
from edgevlm.errors import ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.runtimes.llamacpp_library import errors, llama, mtmd, reason
from edgevlm.runtimes.llamacpp_weights import Weights

# mtmd looks at a cancel after so many operators. Each look costs a halt of all threads; four
# operators of a large tower hold one or two matrix products, of some 50 ms each.
_OPERATORS_BETWEEN_LOOKS = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of text or of one picture in what mtmd made; `pointer` lives as long as that."""

    pointer: Any
    is_image: bool
    n_tokens: int


class Mtmd:
    """An mmproj file beside the decoder, or the vocabulary, that its layout is written with.

    `d_model` is the width of its embeddings; where `weights` is a decoder, mtmd sees to it
    that they agree. `image_tokens` bounds the tokens of a picture (and with them its tiles),
    where mtmd's own preprocessing knows how; None leaves it to the file. Not safe for two
    calls at once. Raises ModelCorrupt, NotSupported.
    """

    def __init__(
        self,
        path: Path,
        weights: Weights,
        *,
        d_model: int,
        threads: int,
        image_tokens: int | None = None,
    ) -> None:
        self.path = path
        self.d_model = d_model
        self._cancel = Cancel()
        self._asked = 0
        params = mtmd.mtmd_context_params_default()
        params.n_threads = threads
        params.print_timings = False
        params.warmup = False
        # Fused attention would round keys and values to 16 bits.
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.image_max_tokens = image_tokens or -1
        # The callback knows us weakly: C keeps it, and we are to be collected.
        us = weakref.ref(self)
        self._callback = llama.ggml_backend_sched_eval_callback(
            lambda tensor, ask, data: _look(us(), ask)
        )
        params.cb_eval = self._callback
        with errors() as lines:
            pointer = mtmd.mtmd_init_from_file(os.fsencode(path), weights.pointer, params)
        if not pointer:
            raise ModelCorrupt(
                f"{path.name} is not the vision encoder of this model: {reason(lines)}.",
                hint="Fetch the model again; its mmproj and its decoder must belong together.",
            )
        self._opened: _Opened | None = _Opened(pointer, weights, self._callback)
        if not mtmd.mtmd_support_vision(pointer):
            raise NotSupported(f"{path.name} takes no pictures.", hint="Use a vision encoder.")

    @property
    def pointer(self) -> Any:
        """The `mtmd_context`, for use within `chunks`. Raises RuntimeFailed once it is closed."""
        return self._hold().pointer

    @contextmanager
    def chunks(self, rgb: NDArray[np.uint8]) -> Iterator[list[Chunk]]:
        """A picture uint8 [H, W, 3] as mtmd prepares it, for the length of the block.

        Raises RuntimeFailed.
        """
        held = self._hold()
        height, width, _ = rgb.shape
        pixels = np.ascontiguousarray(rgb)
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(width, height, data)
        made = mtmd.mtmd_input_chunks_init()
        try:
            part = mtmd.mtmd_input_part(text=None, bitmap=bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            with errors() as lines:
                status = mtmd.mtmd_tokenize_from_parts(held.pointer, made, parts, 1, False)
            if status != 0:
                raise self._failure(lines)
            count = mtmd.mtmd_input_chunks_size(made)
            yield [_chunk(mtmd.mtmd_input_chunks_get(made, i)) for i in range(count)]
        finally:
            mtmd.mtmd_input_chunks_free(made)
            mtmd.mtmd_bitmap_free(bitmap)

    def encode(self, chunk: Chunk, cancel: Cancel) -> Embeddings:
        """The embeddings float32 [n_tokens, d_model] of a chunk of a picture.

        Raises Interrupted, RuntimeFailed.
        """
        cancel.check()
        held = self._hold()
        self._cancel = cancel
        with errors() as lines:
            status = mtmd.mtmd_encode_chunk(held.pointer, chunk.pointer)
        # It returns 0 after a stop too.
        cancel.check()
        if status != 0:
            raise self._failure(lines)
        row = mtmd.mtmd_get_output_embd(held.pointer)
        embeddings: Embeddings = np.ctypeslib.as_array(row, (chunk.n_tokens, self.d_model)).copy()
        return embeddings

    def close(self) -> None:
        """Let go of the encoder, which another thread may be in the middle of."""
        self._opened = None

    def _hold(self) -> _Opened:
        opened = self._opened
        if opened is None:
            raise RuntimeFailed("The model was closed.", hint="Load it again.")
        opened.weights.check_process()
        return opened

    def _failure(self, lines: list[str]) -> RuntimeFailed:
        return RuntimeFailed(
            f"llama.cpp failed in {self.path.name}: {reason(lines)}.",
            hint="Verify the model's files; if they are whole, please report this.",
        )

    def _goes_on(self, ask: bool) -> bool:
        """Asked before every operator whether to halt after it, then there whether to go on."""
        if not ask:
            return not self._cancel.is_set
        self._asked += 1
        return self._asked % _OPERATORS_BETWEEN_LOOKS == 0


class _Opened:
    """An `mtmd_context`, freed with the last reference to this object."""

    def __init__(self, pointer: Any, weights: Weights, callback: Any) -> None:
        self.pointer, self.weights = pointer, weights
        weakref.finalize(self, _free, pointer, weights, callback).atexit = False


def _look(owner: Mtmd | None, ask: bool) -> bool:
    return owner is not None and owner._goes_on(ask)


def _free(pointer: Any, weights: Weights, callback: Any) -> None:
    """Weights and callback come along so that they outlive the mtmd_context."""
    mtmd.mtmd_free(pointer)


def _chunk(pointer: Any) -> Chunk:
    kind = mtmd.mtmd_input_chunk_get_type(pointer)
    n_tokens = mtmd.mtmd_input_chunk_get_n_tokens(pointer)
    return Chunk(pointer, kind == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE, n_tokens)
