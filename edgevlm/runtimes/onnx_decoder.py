"""Token embeddings and decoder of the three-file layout: `LanguageModel` and its contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, Logits, ModelFiles, Part, length_after
from edgevlm.engine.prompt import BlockEmbeddings
from edgevlm.errors import NotSupported, RuntimeFailed
from edgevlm.runtimes.onnx_adaptable import AdaptableGraph, decoder_inputs
from edgevlm.runtimes.onnx_adapter import AdapterRoom, OnnxAdapter
from edgevlm.runtimes.onnx_kv import ChainedCache, KvCache, SharedCache
from edgevlm.runtimes.onnx_layout import (
    cache_layout,
    check_ports,
    context_length,
    shared_buffer_label,
)
from edgevlm.runtimes.onnx_names import decoder_product
from edgevlm.runtimes.onnx_session import Array, OrtValue, Session, refusal, require_role

# Positions of a prompt run at once: they bound the memory of activations and logits.
_CHUNK = 512


class OnnxLanguageModel:
    """`embed_tokens` and `decoder` of a model; its contexts share the weights.

    `in_place`: the graph writes keys and values into the buffer that it reads them from.
    """

    runtime = "onnx"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        # Looking up a row leaves nothing to share out among threads.
        self._embed_tokens = Session(require_role(files, "embed_tokens"), threads=1)
        self._decoder = Session(require_role(files, "decoder"), threads=options.threads)
        check_ports(self._embed_tokens, self._decoder)
        self._layout = layout = cache_layout(self._decoder)
        self._graph = AdaptableGraph(
            files.name,
            self._decoder,
            options.threads,
            decoder_product,
            lambda decoder: decoder_inputs(decoder, layout),
        )
        self.context_length = context_length(files, options)
        mask = self._decoder.inputs["attention_mask"]
        self._ones = np.ones((1, self.context_length), mask.dtype)
        self.n_vocab, self.d_model, self.in_place = self._try_out()

    def new_context(self) -> OnnxContext:
        return OnnxContext(self, self._new_cache())

    def load_adapter(self, lora: Lora) -> OnnxAdapter:
        """Keep an adapter's matrices for contexts to add (`AdaptableGraph`).

        Raises NotSupported, AdapterMismatch; ModelCorrupt, DoesNotFit, RuntimeFailed.
        """
        return self._graph.load(lora, lora.decoder)

    def adding(
        self, adapters: Adapters, room: AdapterRoom
    ) -> tuple[Session, Mapping[str, OrtValue]]:
        """What runs with these adapters, and what it is fed for them."""
        return self._graph.adding(adapters, room)

    def close(self) -> None:
        self._embed_tokens.close()
        self._graph.close()

    def embed(self, parts: Sequence[Part]) -> Array:
        """Look ids up and join all parts: [n, d_model] in the float type of the decoder."""
        rows = [self._rows(part) for part in parts]
        dtype = self._decoder.inputs["inputs_embeds"].dtype
        return np.concatenate(rows, dtype=dtype, casting="same_kind")

    def run(self, cache: KvCache, embeddings: Array, length: int, cancel: Cancel) -> Logits:
        """Put `embeddings` [n, d_model] after `length` positions; the last one's logits."""
        total = length + len(embeddings)
        feeds = {"inputs_embeds": embeddings[None], "attention_mask": self._ones[:, :total]}
        inputs = self._decoder.inputs
        if "position_ids" in inputs:
            positions = np.arange(length, total, dtype=inputs["position_ids"].dtype)
            feeds["position_ids"] = positions[None]
        if "num_logits_to_keep" in inputs:
            feeds["num_logits_to_keep"] = np.array(1, inputs["num_logits_to_keep"].dtype)
        rows = cache.run(feeds, length, total, cancel)
        # Where the graph gives a row for every position, a copy lets go of the others.
        logits: Logits = rows[0, -1].astype(np.float32, copy=rows.shape[1] > 1)
        return logits

    def _rows(self, part: Part) -> Array:
        if isinstance(part, BlockEmbeddings):
            raise NotSupported(
                "The three-file ONNX layout has no way for pictures with positions of their own.",
                hint="Run this model with llama.cpp or MLX.",
            )
        return self._look_up(part) if part.ndim == 1 else part

    def _look_up(self, ids: Array) -> Array:
        # A session call takes 4 us for a row: a table of our own would save nothing.
        (port,) = self._embed_tokens.inputs.values()
        rows = self._embed_tokens.call({port.name: ids[None].astype(port.dtype, copy=False)})
        return rows.reshape(len(ids), -1)

    def _new_cache(self) -> KvCache:
        if self.in_place:
            return SharedCache(self._decoder, self._layout, self.context_length)
        return ChainedCache(self._decoder, self._layout)

    def _try_out(self) -> tuple[int, int, bool]:
        """Run some tokens: n_vocab, d_model and in_place as they are, whatever is declared.

        What declarations can't show comes out here rather than in a conversation: parts
        that don't belong together, and whether an unlabelled graph may write in place.
        """
        count = min(3, self.context_length)
        try:
            embeddings = self.embed([np.arange(count)])
            chained = self._last_logits(ChainedCache(self._decoder, self._layout), embeddings)
        except RuntimeFailed as error:
            raise refusal(self._decoder.path, f"a first run fails ({error.message})") from error
        in_place = shared_buffer_label(self._decoder)
        if in_place is None:
            in_place = self._agrees_in_place(embeddings, chained)
        return len(chained), embeddings.shape[1], in_place

    def _agrees_in_place(self, embeddings: Array, expected: Logits) -> bool:
        cache = SharedCache(self._decoder, self._layout, self.context_length)
        try:
            return np.allclose(self._last_logits(cache, embeddings), expected, rtol=1e-2, atol=1e-2)
        except RuntimeFailed:
            return False

    def _last_logits(self, cache: KvCache, embeddings: Array) -> Logits:
        """Logits after all of them, the last one run on top of the others."""
        cancel = Cancel()
        if len(embeddings) > 1:
            self.run(cache, embeddings[:-1], 0, cancel)
        return self.run(cache, embeddings[-1:], len(embeddings) - 1, cancel)


class OnnxContext:
    """One sequence on a model. `length` counts the positions that count."""

    def __init__(self, model: OnnxLanguageModel, cache: KvCache) -> None:
        self.length = 0
        self._model = model
        self._cache: KvCache | None = cache
        self._room = AdapterRoom()

    def extend(self, parts: Sequence[Part], cancel: Cancel) -> Logits:
        """Append ids int64 [n] and embeddings float32 [n, d_model] in the order given.

        Returns logits float32 [n_vocab] of the last position, owned by the caller.
        Raises PromptTooLong, NotSupported, Interrupted, RuntimeFailed, ValueError for
        nothing to append; after each of them the context is as it was.
        """
        cache = self._opened()
        total = length_after(parts, self.length, self._model.context_length)
        try:
            logits = self._run_in_chunks(cache, self._model.embed(parts), cancel)
        except BaseException as error:
            cache.truncate(self.length)
            if isinstance(error, MemoryError):
                raise RuntimeFailed(
                    f"Not enough memory for a conversation of {total} tokens.",
                    hint="Use fewer pictures, a new conversation or a smaller model.",
                ) from error
            raise
        self.length = total
        return logits

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; the rest stays exact."""
        if not 0 <= length <= self.length:
            raise ValueError(f"can't cut {self.length} positions to {length}")
        self._opened().truncate(length)
        self.length = length

    def use_adapters(self, adapters: Adapters) -> None:
        """Add these of the same model from the next `extend` on; with none it is the base.

        The memory of what was added is kept for the next, until the context is closed.
        Raises AdapterMismatch for those of another model, RuntimeFailed for closed ones,
        NotSupported for numbers beyond a graph's float16; the context then is as it was.
        """
        self._opened().feed(*self._model.adding(adapters, self._room))

    def close(self) -> None:
        self._cache, self._room = None, AdapterRoom()

    def _run_in_chunks(self, cache: KvCache, embeddings: Array, cancel: Cancel) -> Logits:
        *firsts, last = range(0, len(embeddings), _CHUNK)
        for start in firsts:
            self._model.run(cache, embeddings[start : start + _CHUNK], self.length + start, cancel)
        return self._model.run(cache, embeddings[last:], self.length + last, cancel)

    def _opened(self) -> KvCache:
        if self._cache is None:
            raise RuntimeFailed("The context was closed.", hint="Open a new one.")
        return self._cache
