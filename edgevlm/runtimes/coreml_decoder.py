"""The decoder as a Core ML package with its KV cache as state, and its token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LoadOptions, Logits, ModelFiles, Part, length_after
from edgevlm.engine.prompt import BlockEmbeddings
from edgevlm.errors import NotSupported, RuntimeFailed
from edgevlm.runtimes import coreml_predict
from edgevlm.runtimes.coreml_adapter import LORA_STATES, AdapterStates, CoreMLAdapter, States
from edgevlm.runtimes.coreml_embeddings import EmbeddingTable
from edgevlm.runtimes.coreml_package import PackageInfo, read_package, refusal, require_role

_EMBEDS = "inputs_embeds"
_MASK = "causal_mask"
_LOGITS = "logits"
# Added to the score of a position that must not be seen. No score that fp16 holds brings the
# sum beyond it, as the lowest number would.
_HIDDEN = np.float16(-3e4)


class CoreMLLanguageModel:
    """`decoder` of a model and the table of its token embeddings; contexts share both.

    On the GPU: the Neural Engine takes no shapes that change from call to call.
    """

    runtime = "coreml"

    def __init__(self, files: ModelFiles, options: LoadOptions) -> None:
        info = read_package(require_role(files, "decoder"))
        self.chunk, self.d_model, capacity = _sizes(info)
        self.adapters = AdapterStates(info, files.name)
        self.context_length = min(capacity, options.context_length or capacity)
        self._table = EmbeddingTable(require_role(files, "embed_tokens"), self.d_model)
        self._package = coreml_predict.Package(info.path, "CPU_AND_GPU", options.cache)
        try:
            self.n_vocab = self._try_out(info)
        except BaseException:
            self.close()
            raise

    def new_context(self) -> CoreMLContext:
        return CoreMLContext(self, self._package.new_state())

    def load_adapter(self, lora: Lora) -> CoreMLAdapter:
        """Raises NotSupported, AdapterMismatch; NotSupported also for packages that were
        converted without states for adapters, or with less rank."""
        return self.adapters.load(lora)

    def close(self) -> None:
        self._package.close()

    def embed(self, parts: Sequence[Part]) -> NDArray[np.float16]:
        """Look ids up and join all parts: [n, d_model]."""
        return np.concatenate([self._rows(part) for part in parts])

    def run(self, state: Any, embeddings: NDArray[np.float16], length: int) -> Logits:
        """Put at most `chunk` rows after `length` positions of the state; the last one's logits."""
        mask = causal_mask(length, len(embeddings))
        outputs = self._package.predict({_EMBEDS: embeddings[None], _MASK: mask}, state)
        # A copy: the array may be a buffer of Core ML's.
        return np.array(outputs[_LOGITS].reshape(-1), np.float32)

    def write_state(self, state: Any, name: str, value: NDArray[np.float16]) -> None:
        self._package.write_state(state, name, value)

    def _rows(self, part: Part) -> NDArray[np.float16]:
        if isinstance(part, BlockEmbeddings):
            raise NotSupported(
                "The Core ML decoder has no way for pictures with positions of their own.",
                hint="Run this model with llama.cpp or MLX.",
            )
        if part.ndim == 1:
            return self._table.look_up(part.astype(np.int64, copy=False))
        return part.astype(np.float16)

    def _try_out(self, info: PackageInfo) -> int:
        """Run a token: what declarations can't show comes out here rather than in a
        conversation. Returns n_vocab."""
        logits = self.run(self._package.new_state(), self._table.look_up(np.zeros(1, np.int64)), 0)
        if not np.isfinite(logits).all():
            raise refusal(info.path, "its first logits are not finite")
        return len(logits)


class CoreMLContext:
    """One sequence on a model. `length` counts the positions that count.

    What lies beyond them in the state is never read, so it may be anything.
    """

    def __init__(self, model: CoreMLLanguageModel, state: Any) -> None:
        self.length = 0
        self._model = model
        self._state = state
        # States that the adapters change, and those that are yet to be written for it.
        self._adapted: set[str] = set()
        self._unwritten: States = {}

    def extend(self, parts: Sequence[Part], cancel: Cancel) -> Logits:
        """Append ids int64 [n] and embeddings float32 [n, d_model] in the order given.

        Returns logits float32 [n_vocab] of the last position, owned by the caller; stops
        between chunks. Raises PromptTooLong, NotSupported, Interrupted, RuntimeFailed,
        ValueError for nothing to append; after each of them the context is as it was.
        """
        state = self._open_state()
        total = length_after(parts, self.length, self._model.context_length)
        embeddings = self._model.embed(parts)
        for name in list(self._unwritten):
            self._model.write_state(state, name, self._unwritten[name])
            del self._unwritten[name]
        for start in range(0, len(embeddings), self._model.chunk):
            cancel.check()
            chunk = embeddings[start : start + self._model.chunk]
            logits = self._model.run(state, chunk, self.length + start)
        cancel.check()
        self.length = total
        return logits

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on; the rest stays exact."""
        if not 0 <= length <= self.length:
            raise ValueError(f"can't cut {self.length} positions to {length}")
        self.length = length

    def use_adapters(self, adapters: Adapters) -> None:
        """Have every later `extend` add these adapters, and no others.

        The next one brings them into the state, so that a write that fails leaves none half
        done. Raises AdapterMismatch, NotSupported and RuntimeFailed; the context then is as it
        was.
        """
        self._open_state()
        states = self._model.adapters.filled(adapters)
        adapted = set(states)
        states |= {name: self._model.adapters.empty(name) for name in self._adapted - adapted}
        self._unwritten |= states
        self._adapted = adapted

    def close(self) -> None:
        self._state = None

    def _open_state(self) -> Any:
        if self._state is None:
            raise RuntimeFailed("The context was closed.", hint="Open a new one.")
        return self._state


def causal_mask(length: int, count: int) -> NDArray[np.float16]:
    """What is added to the scores of `count` new positions after `length`, float16
    [1, 1, count, length + count]: nothing for a position and those before it."""
    positions = np.arange(length + count)
    hidden = positions > positions[length:, None]
    return np.where(hidden, _HIDDEN, np.float16(0))[None, None]


def _sizes(info: PackageInfo) -> tuple[int, int, int]:
    """(positions a call takes at most, d_model, positions that the cache holds)."""
    if set(info.inputs) != {_EMBEDS, _MASK} or _LOGITS not in info.outputs:
        raise refusal(info.path, f"it does not make {_LOGITS} from {_EMBEDS} and {_MASK}")
    embeds, mask = info.inputs[_EMBEDS].shape, info.inputs[_MASK].shape
    caches = [port.shape for name, port in info.states.items() if name not in LORA_STATES]
    if len(caches) != 2 or any(len(shape) != 5 for shape in caches):
        raise refusal(info.path, "its states are not one cache of keys and one of values")
    if len(embeds) != 3 or len(mask) != 4 or embeds[2][0] != embeds[2][1]:
        raise refusal(info.path, f"{_EMBEDS} or {_MASK} has another shape")
    if embeds[1][0] != 1 or mask[2] != embeds[1] or mask[3][0] != 1:
        raise refusal(info.path, "it does not take positions one by one and in chunks")
    chunk, capacity = embeds[1][1], min(mask[3][1], *(shape[3][0] for shape in caches))
    if not 1 <= chunk <= capacity:
        raise refusal(info.path, f"it takes {chunk} positions at once and holds {capacity}")
    return chunk, embeds[2][0], capacity
