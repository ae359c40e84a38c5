"""GGUF decoders: `LanguageModel` and its contexts on llama.cpp."""

from __future__ import annotations

import threading
from collections.abc import Sequence as SequenceOf

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.adapter import Adapters, LoadedAdapter, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, Logits, ModelFiles, Part, length_after
from edgevlm.engine.prompt import BlockEmbeddings
from edgevlm.errors import ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.runtimes.llamacpp_adapter import AdaptableDecoder, on_weights
from edgevlm.runtimes.llamacpp_layout import PositionMap, lay_out
from edgevlm.runtimes.llamacpp_sequence import Piece, Sequence
from edgevlm.runtimes.llamacpp_weights import (
    Adapter,
    Weights,
    load_weights,
    require_role,
)

# Positions of a prompt computed at once: they bound the memory of activations. With 256 a
# token took 3% less time and the process 4 MB more (135M at 4 bits, 2 threads).
_BATCH = 128
# llama.cpp gives out cells by so many; the room for an answer is a quarter of what is there.
_CELLS, _SMALLEST_ROOM = 256, 128
# The number comes from a file that anyone may have written.
_LONGEST_CONTEXT = 2**20


class LlamaCppLanguageModel:
    """`decoder` of a model, and its `lora` where there is one, which always applies; contexts
    share the weights.

    Keys and values are kept in float16, and in float32 where the file's weights are float32.
    """

    runtime = "llamacpp"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        weights = load_weights(require_role(files, "decoder"))
        if not weights.can_forget:
            raise NotSupported(
                f"{weights.path.name} is a model whose memory can't be cut back, or no decoder.",
                hint="Use a transformer decoder.",
            )
        self.n_vocab, self.d_model = weights.n_vocab, weights.d_model
        self.context_length = _context_length(weights, options)
        self.has_m_rope = weights.has_m_rope
        self._threads = options.threads
        self.own_adapter: dict[Adapter, float] = {}
        if "lora" in files.roles:
            self.own_adapter[weights.load_adapter(files.roles["lora"])] = 1.0
        self._weights: Weights | None = weights
        self._adaptable: AdaptableDecoder | None = None

    def new_context(self) -> LlamaCppContext:
        self.opened()
        return LlamaCppContext(self)

    def load_adapter(self, lora: Lora) -> LoadedAdapter:
        """Bring an adapter into memory, beside those that are there.

        Raises NotSupported, AdapterMismatch, NoSpace, ModelCorrupt, RuntimeFailed.
        """
        weights = self.opened()
        if self._adaptable is None:
            self._adaptable = AdaptableDecoder(weights)
        return self._adaptable.load(lora)

    def open_sequence(self, capacity: int, batch: int) -> Sequence:
        return Sequence(
            self.opened(),
            capacity=capacity,
            batch=min(batch, capacity),
            threads=self._threads,
        )

    def opened(self) -> Weights:
        if self._weights is None:
            raise RuntimeFailed("The model was closed.", hint="Load it again.")
        return self._weights

    def close(self) -> None:
        """Drop the weights; they go when no context holds on to them any more."""
        self._weights = self._adaptable = None
        self.own_adapter = {}


class LlamaCppContext:
    """One sequence on a model. `length` counts the positions that count.

    Calls of several threads take turns: two at once in llama.cpp would end the process.
    """

    def __init__(self, model: LlamaCppLanguageModel) -> None:
        self.length = 0
        self._model: LlamaCppLanguageModel | None = model
        self._sequence: Sequence | None = None
        self._adapters = dict(model.own_adapter)
        self._map = PositionMap()
        self._turn = threading.Lock()

    def extend(self, parts: SequenceOf[Part], cancel: Cancel) -> Logits:
        """Append ids int64 [n] and embeddings float32 [n, d_model] in the order given.

        Returns logits float32 [n_vocab] of the last position, owned by the caller.
        Raises PromptTooLong, NotSupported, ModelCorrupt, Interrupted, RuntimeFailed,
        ValueError for nothing to append; after each of them the context is as it was.
        """
        with self._turn:
            model = self._opened()
            model.opened()
            total = length_after(parts, self.length, model.context_length)
            _check_widths(parts, model.d_model)
            pieces, after = lay_out(parts, self.length, self._map, m_rope=model.has_m_rope)
            sequence = self._reserve(model, total, _widest(pieces))
            try:
                logits = sequence.run(_in_batches(pieces, sequence.batch), cancel)
            except BaseException:
                sequence.forget(self._map.position(self.length))
                raise
            self._map, self.length = after, total
            return logits

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; the rest stays exact."""
        with self._turn:
            self._opened()
            if not 0 <= length <= self.length:
                raise ValueError(f"can't cut {self.length} positions to {length}")
            if length == self.length:
                return
            shorter = self._map.cut(length)
            assert self._sequence is not None
            self._sequence.forget(shorter.position(length))
            self._map, self.length = shorter, length

    def use_adapters(self, adapters: Adapters) -> None:
        """Have every later `extend` add these, beside the model's own, and no others.

        Raises RuntimeFailed for a closed one, AdapterMismatch for one of another model.
        """
        with self._turn:
            model = self._opened()
            chosen = {**model.own_adapter, **on_weights(adapters, model.opened())}
            if self._sequence is not None:
                self._sequence.use(chosen)
            self._adapters = chosen

    def close(self) -> None:
        with self._turn:
            self._model = None
            self._adapters = {}
            if self._sequence is not None:
                self._sequence.close()
                self._sequence = None

    def _reserve(self, model: LlamaCppLanguageModel, total: int, widest: int) -> Sequence:
        """The sequence, with cells for `total` positions and batches of `widest`.

        The cells' memory is written when they are made, so a context does not begin with
        all that the model can hold. A larger one takes over the bytes of a smaller one.
        """
        sequence = self._sequence
        if sequence and sequence.capacity >= total and sequence.batch >= widest:
            return sequence
        room = max(_SMALLEST_ROOM, total // 4)
        capacity = min(-(-(total + room) // _CELLS) * _CELLS, model.context_length)
        batch = max(_BATCH, widest)
        if sequence is None:
            self._sequence = self._new_sequence(model, capacity, batch)
        else:
            self._sequence = self._regrown(model, sequence, capacity, batch)
        return self._sequence

    def _regrown(
        self, model: LlamaCppLanguageModel, old: Sequence, capacity: int, batch: int
    ) -> Sequence:
        state = old.save()
        # Closed until it holds a sequence again, whatever happens on the way.
        self._model = self._sequence = None
        # Before the new one is made: there is not room for three.
        old.close()
        try:
            sequence = self._filled(model, capacity, batch, state)
        except RuntimeFailed:
            self._sequence = self._filled(model, old.capacity, old.batch, state)
            self._model = model
            raise
        self._model = model
        return sequence

    def _filled(
        self, model: LlamaCppLanguageModel, capacity: int, batch: int, state: NDArray[np.uint8]
    ) -> Sequence:
        sequence = self._new_sequence(model, capacity, batch)
        sequence.restore(state)
        return sequence

    def _new_sequence(self, model: LlamaCppLanguageModel, capacity: int, batch: int) -> Sequence:
        sequence = model.open_sequence(capacity, batch)
        if self._adapters:
            sequence.use(self._adapters)
        return sequence

    def _opened(self) -> LlamaCppLanguageModel:
        if self._model is None:
            raise RuntimeFailed("The context was closed.", hint="Open a new one.")
        return self._model


def _context_length(weights: Weights, options: LoadOptions) -> int:
    own = weights.n_ctx_train
    if not 1 <= own <= _LONGEST_CONTEXT:
        raise ModelCorrupt(
            f"{weights.path.name} says that its context holds {own} tokens.",
            hint="Fetch the model again.",
        )
    return min(own, options.context_length or own)


def _check_widths(parts: SequenceOf[Part], d_model: int) -> None:
    """llama.cpp reads `d_model` numbers a row, whatever there is."""
    for part in parts:
        rows = part.rows if isinstance(part, BlockEmbeddings) else part
        if rows.ndim == 2 and rows.shape[1] != d_model:
            raise ModelCorrupt(
                f"The decoder takes embeddings of {d_model} numbers, not {rows.shape[1]}.",
                hint="Its vision encoder does not belong to its decoder.",
            )


def _widest(pieces: list[Piece]) -> int:
    """Positions that must go in at once, since they attend to one another."""
    return max((len(piece) for piece in pieces if not piece.causal), default=1)


def _in_batches(pieces: list[Piece], batch: int) -> list[Piece]:
    return [
        piece.cut(start, start + batch) for piece in pieces for start in range(0, len(piece), batch)
    ]
