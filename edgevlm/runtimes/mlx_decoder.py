"""The language part of an MLX model: `LanguageModel` and its contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, Logits, ModelFiles, Part, length_after
from edgevlm.engine.prompt import BlockEmbeddings
from edgevlm.errors import NotSupported, RuntimeFailed
from edgevlm.runtimes.mlx_adapter import (
    AdaptableModules,
    MlxAdapter,
    StandIns,
    decoder_modules,
    standing_in,
)
from edgevlm.runtimes.mlx_cache import SequenceCache
from edgevlm.runtimes.mlx_config import context_length, rope_fields
from edgevlm.runtimes.mlx_loading import embeddings_owner, load
from edgevlm.runtimes.mlx_positions import Positions
from edgevlm.runtimes.mlx_thread import on_metal, on_mlx_thread, on_mlx_thread_until

# Positions of a prompt run at once. A CPU takes 100 ms for one layer of 32.
_CHUNK = 512 if on_metal() else 32


class MlxLanguageModel:
    """`language_model` of an mlx-vlm model; its contexts share the weights."""

    runtime = "mlx"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        self._name = files.name
        self._language: Any = None
        self._embed_tokens: Any = None
        self._layers: Sequence[Any] = ()
        self._adaptable: AdaptableModules | None = None
        on_mlx_thread(self._load, files, options)

    def new_context(self) -> MlxContext:
        return on_mlx_thread(MlxContext, self)

    def load_adapter(self, lora: Lora) -> MlxAdapter:
        """Raises NotSupported for modules that can't be changed here, and AdapterMismatch for
        modules or shapes that are not the decoder's."""
        return on_mlx_thread(lambda: self.adaptable().load(lora, lora.decoder))

    def close(self) -> None:
        """Drop the weights; they go when no context or adapter holds them any more."""
        self._language = self._embed_tokens = self._adaptable = None
        self._layers = ()

    def new_cache(self) -> SequenceCache:
        return SequenceCache(self.opened())

    def embed(self, parts: Sequence[Part]) -> mx.array:
        """Look ids up and join all parts: [1, n, d_model]."""
        return mx.concatenate([self._rows(part) for part in parts])[None]

    def adaptable(self) -> AdaptableModules:
        """What adapters need to know of the decoder; found out when the first one comes."""
        self.opened()
        if self._adaptable is None:
            self._adaptable = decoder_modules(self._name, self._layers, self._build)
        return self._adaptable

    def forward(
        self,
        cache: SequenceCache,
        embeddings: mx.array,
        positions: Positions,
        stand_ins: StandIns = (),
    ) -> mx.array:
        """Build, but don't compute, the logits [n, n_vocab] of embeddings [1, n, d_model]."""
        count = embeddings.shape[1]
        options: dict[str, Any] = {}
        if self._m_rope:
            rows = positions.rows(cache.length, cache.length + count)
            options["position_ids"] = mx.array(rows)[:, None]
        ids = mx.zeros((1, count), mx.int32)
        language = self.opened()
        with standing_in(stand_ins):
            output = language(ids, inputs_embeds=embeddings, cache=cache.layers, **options)
        return output.logits[0]

    def look_up(self, ids: mx.array) -> mx.array:
        """Embeddings [n, d_model] of ids [n]."""
        self.opened()
        return self._embed_tokens(ids)

    def opened(self) -> Any:
        if self._language is None:
            raise RuntimeFailed("The model was closed.", hint="Load it again.")
        return self._language

    def _load(self, files: ModelFiles, options: LoadOptions) -> None:
        loaded = load(files)
        self._language = loaded.model.language_model
        owner = embeddings_owner(loaded)
        self._embed_tokens = owner.embed_tokens
        self._layers = getattr(owner, "layers", ())
        self.n_embeddings: int = self._embed_tokens.weight.shape[0]
        loaded.materialise(self._language)
        self._m_rope = "mrope_section" in rope_fields(loaded.config)
        limit = context_length(loaded.folder, loaded.config, options)
        self.context_length = self.new_cache().capped(limit)
        # A first run finds what declarations don't say, and compiles the kernels.
        embeddings, logits = self._build()
        mx.eval(logits)
        self._dtype = embeddings.dtype
        self.n_vocab, self.d_model = logits.shape[-1], embeddings.shape[-1]

    def _build(self) -> tuple[mx.array, mx.array]:
        """Embeddings and logits of one token, as yet to be computed."""
        embeddings = self.embed([np.zeros(1, np.int64)])
        return embeddings, self.forward(self.new_cache(), embeddings, Positions())

    def _rows(self, part: Part) -> mx.array:
        rows = part.rows if isinstance(part, BlockEmbeddings) else part
        if rows.ndim == 1:
            return self.look_up(mx.array(rows))
        # One row of float32 would have all layers compute, and keep their keys, in it.
        return mx.array(rows).astype(self._dtype)


class MlxContext:
    """One sequence on a model. `length` counts the positions that count."""

    def __init__(self, model: MlxLanguageModel) -> None:
        self.length = 0
        self._model = model
        self._cache: SequenceCache | None = model.new_cache()
        self._positions = Positions()
        self._stand_ins: StandIns = ()
        self._guess: _Guess | None = None
        self._chosen = -1

    def extend(self, parts: Sequence[Part], cancel: Cancel) -> Logits:
        """Append ids int64 [n] and embeddings float32 [n, d_model] in the order given.

        Returns logits float32 [n_vocab] of the last position, owned by the caller.
        Raises PromptTooLong, NotSupported, Interrupted, RuntimeFailed, ValueError for
        nothing to append; after each of them the context is as it was.
        """
        total = length_after(parts, self.length, self._model.context_length)
        for part in parts:
            self._check(part)
        logits = on_mlx_thread_until(cancel, self._extend, parts, cancel)
        # Only here: a call that was given up may have come to its end.
        self.length = total
        return logits

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; the rest stays exact."""
        if not 0 <= length <= self.length:
            raise ValueError(f"can't cut {self.length} positions to {length}")
        on_mlx_thread(self._cut, length)
        self.length = length

    def use_adapters(self, adapters: Adapters) -> None:
        """Have every later `extend` add these adapters of the same model, and no others.

        Raises AdapterMismatch for one in another model's memory, and RuntimeFailed for one
        that was closed; the context then is as it was.
        """
        on_mlx_thread(self._use, adapters)

    def close(self) -> None:
        self._cache = self._guess = None
        self._stand_ins = ()

    def _use(self, adapters: Adapters) -> None:
        stand_ins = self._model.adaptable().stand_ins(adapters) if adapters else ()
        # A step that was begun ahead has the adapters of before.
        self._cut(self.length)
        self._stand_ins = stand_ins

    def _extend(self, parts: Sequence[Part], cancel: Cancel) -> Logits:
        cache = self._opened()
        token_id = _single_id(parts)
        try:
            if token_id is not None:
                return self._step(cache, token_id)
            self._cut(self.length)
            return self._prefill(cache, parts, cancel)
        except BaseException:
            self._cut(self.length)
            raise

    def _step(self, cache: SequenceCache, token_id: int) -> Logits:
        """One token. While the likeliest token keeps being chosen, the next step is begun on
        it before this one's logits are handed over, as a GPU that waits for Python does half
        the work. A guess that fails costs a step of the GPU and changes nothing."""
        guess, self._guess = self._guess, None
        if guess is not None and (guess.position, guess.token_id) == (self.length, token_id):
            step = guess.step
        else:
            self._cut(self.length)
            step = self._begin(cache, mx.array([token_id]))
        ahead = None
        if token_id == self._chosen and cache.length < self._model.context_length:
            ahead = self._begin(cache, step.likeliest[None])
        row = _to_numpy(step.logits)
        self._chosen = int(step.likeliest)
        if ahead is not None:
            self._guess = _Guess(self.length + 1, self._chosen, ahead)
        return row

    def _begin(self, cache: SequenceCache, ids: mx.array) -> _Step:
        """Have one token computed. What is read of it is queued with it: an operation of its
        own would wait behind the step that is begun ahead."""
        logits = self._forward(cache, self._model.look_up(ids)[None])[-1]
        step = _Step(logits.astype(mx.float32), mx.argmax(logits))
        mx.async_eval(step.logits, step.likeliest)
        return step

    def _prefill(self, cache: SequenceCache, parts: Sequence[Part], cancel: Cancel) -> Logits:
        """All but the last position in chunks, whose logits nobody computes, then the last."""
        embeddings = self._model.embed(parts)
        self._positions.extend(self.length, parts)
        last = embeddings.shape[1] - 1
        for start in range(0, last, _CHUNK):
            chunk = embeddings[:, start : min(start + _CHUNK, last)]
            before = cache.snapshot()
            self._forward(cache, chunk)
            cache.compute(before, cancel)
        logits = self._forward(cache, embeddings[:, last:])[-1]
        row = _to_numpy(logits)
        self._chosen = int(row.argmax())
        mx.clear_cache()
        return row

    def _forward(self, cache: SequenceCache, embeddings: mx.array) -> mx.array:
        return self._model.forward(cache, embeddings, self._positions, self._stand_ins)

    def _cut(self, length: int) -> None:
        self._guess = None
        self._opened().truncate(length)
        self._positions.truncate(length)

    def _check(self, part: Part) -> None:
        if isinstance(part, BlockEmbeddings):
            if not part.block.causal:
                raise NotSupported(
                    "Pictures whose rows see one another both ways are not known to this runtime.",
                    hint="Run this model with llama.cpp.",
                )
        elif part.ndim == 1:
            # MLX reads beyond a table as if it went on.
            strange = part[(part < 0) | (part >= self._model.n_embeddings)]
            if len(strange):
                raise RuntimeFailed(
                    f"The decoder has no token {strange[0]}.",
                    hint="Its tokenizer belongs to another model: fetch the model again.",
                )

    def _opened(self) -> SequenceCache:
        if self._cache is None:
            raise RuntimeFailed("The context was closed.", hint="Open a new one.")
        return self._cache


@dataclass(frozen=True, eq=False, slots=True)
class _Step:
    """Logits float32 [n_vocab] and their maximum's index, under way."""

    logits: mx.array
    likeliest: mx.array


@dataclass(frozen=True, eq=False, slots=True)
class _Guess:
    """A step that runs already, on a token that was not chosen yet."""

    position: int
    token_id: int
    step: _Step


def _single_id(parts: Sequence[Part]) -> int | None:
    if len(parts) > 1 or isinstance(parts[0], BlockEmbeddings) or parts[0].shape != (1,):
        return None
    return int(parts[0][0])


def _to_numpy(logits: mx.array) -> Logits:
    # numpy would see MLX's own memory; the caller owns a copy.
    return np.array(logits.astype(mx.float32), dtype=np.float32)
