"""One sequence in llama.cpp: a `llama_context` with its KV cells, threads and adapters."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Logits
from edgevlm.errors import RuntimeFailed
from edgevlm.runtimes.llamacpp_library import errors, llama, reason
from edgevlm.runtimes.llamacpp_stop import StopFlag
from edgevlm.runtimes.llamacpp_weights import Adapter, Weights, apply_adapters

_INT32, _FLOAT = ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_float)
_INT8 = ctypes.POINTER(ctypes.c_int8)
_ABORTED, _NO_MEMORY = 2, -2  # of llama_decode
_EVERYTHING_AFTER = -1


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """Tokens int32 [n] or rows float32 [n, d_model], and where they go.

    `positions` int32 [n] for tokens, [1 or 4, n] for rows: of M-RoPE (time, row, column, 0).
    """

    content: NDArray[np.int32] | NDArray[np.float32]
    positions: NDArray[np.int32]
    causal: bool = True

    def __len__(self) -> int:
        return len(self.content)

    def cut(self, start: int, stop: int) -> Piece:
        positions = np.ascontiguousarray(self.positions[..., start:stop])
        return Piece(self.content[start:stop], positions, self.causal)


class Sequence:
    """A llama_context for `capacity` positions that takes `batch` of them at once.

    Not safe for two calls at once, which llama.cpp answers by ending the process. Raises
    RuntimeFailed where there is not enough memory.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        capacity: int,
        batch: int,
        threads: int,
    ) -> None:
        self.capacity, self.batch = capacity, batch
        self._weights = weights
        params = llama.llama_context_default_params()
        params.n_ctx = capacity
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        # Pinned, as `auto` is another arithmetic on another device. Fused attention takes a
        # tenth off a step, and rounds keys and values to 16 bits, as this cache does anyway.
        if weights.is_f32:
            params.type_k = params.type_v = llama.GGML_TYPE_F32
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        else:
            params.type_k = params.type_v = llama.GGML_TYPE_F16
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        with weights.adapter_list, errors() as lines:
            self._pointer: Any = llama.llama_init_from_model(weights.pointer, params)
        if not self._pointer:
            raise RuntimeFailed(
                f"llama.cpp can't hold a conversation of {capacity} tokens: {reason(lines)}.",
                hint="Use a smaller model or a shorter context.",
            )
        # The finalizer holds on to the weights and to what is in use: they must outlive the
        # context.
        self._adapters: dict[Adapter, float] = {}
        self._free = weakref.finalize(self, _free, self._pointer, weights, self._adapters)
        self._free.atexit = False
        self._must_plan = True

    def use(self, adapters: Mapping[Adapter, float]) -> None:
        """Add these, of the same weights, in every later `run`, and no others."""
        self._weights.check_process()
        self._adapters.update(adapters)
        apply_adapters(self._pointer, adapters)
        self._must_plan = True
        # Those of before may go now, as llama.cpp does not know them any more.
        for adapter in self._adapters.keys() - adapters.keys():
            del self._adapters[adapter]

    def run(self, pieces: list[Piece], cancel: Cancel) -> Logits:
        """Append pieces of `batch` positions at most; the logits float32 [n_vocab] of the
        last, owned by the caller. Raises Interrupted, RuntimeFailed; some pieces may then
        have gone in."""
        self._weights.check_process()
        flag = StopFlag()
        flag.watch(self._pointer)
        with cancel.calling(flag.raise_):
            for piece in pieces[:-1]:
                self._decode(piece, cancel, wants_logits=False)
            self._decode(pieces[-1], cancel, wants_logits=True)
        # Looked at from here on, by nobody: the flag of this call may go.
        row = llama.llama_get_logits_ith(self._pointer, -1)
        if not row:
            raise RuntimeFailed("llama.cpp gave no logits.", hint="Please report this.")
        logits: Logits = np.ctypeslib.as_array(row, (self._weights.n_vocab,)).copy()
        return logits

    def forget(self, position: int) -> None:
        """Drop everything from `position` on."""
        memory = llama.llama_get_memory(self._pointer)
        if not llama.llama_memory_seq_rm(memory, 0, position, _EVERYTHING_AFTER):
            raise RuntimeFailed("llama.cpp can't cut its cache back.", hint="Please report this.")

    def save(self) -> NDArray[np.uint8]:
        """Keys, values and positions as they are in memory."""
        state = np.empty(llama.llama_state_seq_get_size(self._pointer, 0), np.uint8)
        written = llama.llama_state_seq_get_data(self._pointer, _bytes(state), state.size, 0)
        if written != state.size:
            raise RuntimeFailed("llama.cpp can't save its cache.", hint="Please report this.")
        return state

    def restore(self, state: NDArray[np.uint8]) -> None:
        if not llama.llama_state_seq_set_data(self._pointer, _bytes(state), state.size, 0):
            raise RuntimeFailed("llama.cpp can't restore its cache.", hint="Please report this.")

    def close(self) -> None:
        self._free()

    def _decode(self, piece: Piece, cancel: Cancel, *, wants_logits: bool) -> None:
        cancel.check()
        content, n = np.ascontiguousarray(piece.content), len(piece)
        is_rows = content.ndim == 2
        none = None if wants_logits else np.zeros(n, np.int8)
        # Without sequence numbers all is sequence 0; without a choice, logits of the last.
        batch = llama.llama_batch(
            n_tokens=n,
            token=None if is_rows else content.ctypes.data_as(_INT32),
            embd=content.ctypes.data_as(_FLOAT) if is_rows else None,
            pos=piece.positions.ctypes.data_as(_INT32),
            logits=None if none is None else none.ctypes.data_as(_INT8),
        )
        with self._attending(piece), self._planning(), errors() as lines:
            status = llama.llama_decode(self._pointer, batch)
        if status == 0:
            self._must_plan = not piece.causal
        if status == _ABORTED:
            cancel.check()
        if status == _NO_MEMORY:
            raise RuntimeFailed(
                "llama.cpp ran out of memory.",
                hint="Use a smaller model, a shorter conversation or pictures of fewer tiles.",
            )
        if status != 0:
            raise RuntimeFailed(
                f"llama.cpp failed in {self._weights.path.name}: {reason(lines)}.",
                hint="Verify the model's files; if they are whole, please report this.",
            )

    @contextmanager
    def _attending(self, piece: Piece) -> Iterator[None]:
        if piece.causal:
            yield
            return
        llama.llama_set_causal_attn(self._pointer, False)
        self._must_plan = True
        try:
            yield
        finally:
            llama.llama_set_causal_attn(self._pointer, True)

    def _planning(self) -> AbstractContextManager[object]:
        """Held while llama.cpp plans a graph anew, which it does within the next step after
        another set of adapters or another direction of attention."""
        return self._weights.adapter_list if self._must_plan else nullcontext()


def _free(pointer: Any, weights: Weights, adapters: dict[Adapter, float]) -> None:
    """The weights and adapters come along so that they are freed after the context."""
    llama.llama_free(pointer)


def _bytes(array: NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
