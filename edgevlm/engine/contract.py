"""What a runtime must do, and nothing else: embeddings for pixels, logits for tokens.

The narrow waist of the design. Sampling, logprobs, stop strings, prefix reuse
and routing live above it, once; a runtime that keeps this contract gets them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.adapter import Adapters, LoadedAdapter, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prompt import BlockEmbeddings, ImageInput
from edgevlm.errors import NotSupported, PromptTooLong

Ids: TypeAlias = NDArray[np.int64]
Embeddings: TypeAlias = NDArray[np.float32]
Logits: TypeAlias = NDArray[np.float32]
Part: TypeAlias = Ids | Embeddings | BlockEmbeddings


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified model on disk: its folder, and the file that plays each role in a runtime.

    `edition` tells weights of one name and shape apart, where its catalog entry counts them.
    Roles: `vision_encoder` and `decoder`, of ONNX Runtime also `embed_tokens`, of llama.cpp
    maybe `lora`; of MLX `weights`, whose folder is the MLX model's. A runtime reads its own.
    """

    name: str
    folder: Path
    roles: Mapping[str, Path]
    quantization: Mapping[str, str] = field(default_factory=dict)
    edition: int | None = None


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Threads are compute threads for one operation; `context_length` caps the model's own.
    `cache` is a folder where a runtime may keep what it makes of a model's files."""

    threads: int
    context_length: int | None = None
    cache: Path | None = None


class VisionEncoder(Protocol):
    """Vision tower and projector together. Not safe for two calls at once."""

    runtime: str

    def encode(self, image: ImageInput, cancel: Cancel) -> Embeddings:
        """Return float32 [image.n_tokens, d_model]. Raises Interrupted, RuntimeFailed."""

    def close(self) -> None: ...


@runtime_checkable
class AdaptableVision(Protocol):
    """What a vision encoder has more where adapters can change it. One that lacks it refuses
    them (`adaptable`), so that none is ever ignored."""

    def load_adapter(self, lora: Lora) -> LoadedAdapter:
        """Bring `lora.vision` into memory; raises what `LanguageModel.load_adapter` does.
        Another thread may be inside `encode`."""

    def encode_with(self, image: ImageInput, adapters: Adapters, cancel: Cancel) -> Embeddings:
        """`encode`, with these adapters added. Raises AdapterMismatch for one that another
        encoder has loaded and RuntimeFailed for a closed one, beside what that raises."""


def adaptable(vision: VisionEncoder, name: str) -> AdaptableVision:
    """`vision`, for the adapter `name` that changes it. Raises NotSupported where it can't."""
    if isinstance(vision, AdaptableVision):
        return vision
    raise NotSupported(
        f"The adapter {name} changes the vision tower, which the runtime {vision.runtime} can't.",
        hint="Run the vision encoder on onnx or mlx (such as --runtime onnx+llamacpp), or use an"
        " adapter of the decoder alone.",
    )


class Context(Protocol):
    """One sequence and its KV cache. Not safe for two calls at once."""

    length: int

    def extend(self, parts: Sequence[Part], cancel: Cancel) -> Logits:
        """Append ids int64 [n] and embeddings float32 [n, d_model] in the order given.

        Returns the logits float32 [n_vocab] of the last position, owned by the
        caller. On Interrupted or RuntimeFailed the context keeps its old length.
        Raises NotSupported for blocks where the runtime has no way to take them.
        """

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on, which is never inside a block. The rest
        stays exact."""

    def use_adapters(self, adapters: Adapters) -> None:
        """Have every later `extend` add these adapters of the same model, and no others.

        What the context holds stays as it was computed: a caller that wants the positions of
        before with other adapters truncates to 0 and extends anew. With none it is the base
        again, bit for bit. Raises AdapterMismatch for one that another model has loaded and
        RuntimeFailed for a closed one; the context then is as it was.
        """

    def close(self) -> None: ...


def length_after(parts: Sequence[Part], length: int, limit: int) -> int:
    """The length of a context of `length` positions with `parts` behind them.

    Raises ValueError where they are empty, and PromptTooLong above `limit`.
    """
    total = length + sum(len(part) for part in parts)
    if total == length:
        raise ValueError("nothing to append")
    if total > limit:
        raise PromptTooLong(
            f"The conversation needs {total} tokens, the context holds {limit}.",
            hint="Ask for less at once, use fewer pictures, or start a new conversation.",
        )
    return total


class LanguageModel(Protocol):
    """Decoder weights, shared by any number of contexts."""

    runtime: str
    n_vocab: int
    d_model: int
    context_length: int

    def new_context(self) -> Context: ...

    def load_adapter(self, lora: Lora) -> LoadedAdapter:
        """Bring `lora.decoder` into memory, beside what is there of other adapters.

        Raises NotSupported where this runtime or these files can't take it, or a module that
        it changes (an adapter is applied whole or not at all), and AdapterMismatch where a
        module or a shape of it is not the decoder's.
        """

    def close(self) -> None: ...


class Runtime(Protocol):
    """The entry point (group `edgevlm.runtimes`): loads the two parts of a model."""

    name: str

    def unavailable(self) -> str | None:
        """None if the runtime can run here, else the reason in one line."""

    def load_vision(self, files: ModelFiles, options: LoadOptions) -> VisionEncoder: ...

    def load_language(self, files: ModelFiles, options: LoadOptions) -> LanguageModel: ...
