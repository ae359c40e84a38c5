"""Adapters on llama.cpp: GGUF files of what a decoder can take.

Modules and shapes are compared with the decoder's file before llama.cpp sees anything.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgevlm.engine.adapter import Adapters, LoadedAdapter, Lora, LowRank
from edgevlm.errors import AdapterMismatch, NoSpace, NotSupported, RuntimeFailed
from edgevlm.runtimes.llamacpp_header import GgufHeader
from edgevlm.runtimes.llamacpp_library import llama
from edgevlm.runtimes.llamacpp_lora import LoraGguf, interleave, product_tensor
from edgevlm.runtimes.llamacpp_weights import Adapter, Weights

_ROTATED = ("self_attn.q_proj", "self_attn.k_proj")
_ANOTHER = "Use an adapter that was made for this model."


class LlamaCppAdapter:
    """A `LoadedAdapter` in llama.cpp's memory."""

    def __init__(self, lora: Lora, adapter: Adapter) -> None:
        self.name, self.digest = lora.name, lora.digest
        self._adapter: Adapter | None = adapter

    def on(self, weights: Weights) -> Adapter:
        """Raises RuntimeFailed where it was closed, AdapterMismatch for other weights, which
        llama.cpp does not notice before it multiplies by the wrong sizes."""
        if self._adapter is None:
            raise RuntimeFailed(f"The adapter {self.name} was closed.", hint="Load it again.")
        if self._adapter.weights is not weights:
            raise _foreign(self)
        return self._adapter

    def close(self) -> None:
        """Let its memory go once no context uses it any more."""
        self._adapter = None


def on_weights(adapters: Adapters, weights: Weights) -> dict[Adapter, float]:
    """What a context on these weights adds. Raises RuntimeFailed, AdapterMismatch."""
    chosen = {}
    for loaded, scale in adapters.items():
        if not isinstance(loaded, LlamaCppAdapter):
            raise _foreign(loaded)
        chosen[loaded.on(weights)] = scale
    return chosen


class AdaptableDecoder:
    """The products of a decoder that adapters may change, as the header of its file has them.

    Raises ModelCorrupt.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights, self._file = weights, weights.path.name
        with GgufHeader(weights.path) as header:
            self._architecture = header.string("general.architecture")
            self._shapes = {name: header.shape(name)[-2:] for name in header.tensors()}
        n_heads = llama.llama_model_n_head(weights.pointer)
        n_queries = self._shapes.get("blk.0.attn_q.weight", (0, 0))[0]
        self._head_dim = n_queries // n_heads if n_heads else 0
        rope = llama.llama_model_rope_type(weights.pointer)
        self._rotates_neighbours = rope == llama.LLAMA_ROPE_TYPE_NORM

    def load(self, lora: Lora) -> LlamaCppAdapter:
        """Raises NotSupported, AdapterMismatch, NoSpace, ModelCorrupt."""
        with _file(LoraGguf(self._architecture, self._tensors(lora))) as path:
            return LlamaCppAdapter(lora, self._weights.load_adapter(path))

    def _tensors(self, lora: Lora) -> Mapping[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {}
        for module, update in lora.decoder.items():
            tensor = self._find(lora, module)
            self._check(lora, module, tensor, update)
            b = self._rotated(lora, update.b) if module.endswith(_ROTATED) else update.b
            tensors |= {f"{tensor}.lora_a": update.a, f"{tensor}.lora_b": b}
        return tensors

    def _find(self, lora: Lora, module: str) -> str:
        tensor = product_tensor(module)
        if tensor not in self._shapes:
            raise AdapterMismatch(
                f"The adapter {lora.name} changes {module}, for which {self._file} has no matrix"
                " of its own.",
                hint=_ANOTHER,
            )
        return tensor

    def _check(self, lora: Lora, module: str, tensor: str, update: LowRank) -> None:
        out_features, in_features = self._shapes[tensor]
        wanted = ((update.rank, in_features), (out_features, update.rank))
        if (update.a.shape, update.b.shape) != wanted or not update.rank:
            raise AdapterMismatch(
                f"At {module} the adapter {lora.name} has matrices of {update.a.shape} and"
                f" {update.b.shape}, {self._file} takes {wanted[0]} and {wanted[1]}.",
                hint=_ANOTHER,
            )

    def _rotated(self, lora: Lora, b: NDArray[Any]) -> NDArray[Any]:
        """Rows of queries and keys as the file has them. Other kinds than `llama` that rotate
        neighbours have them in the checkpoint's order or not, each as it was converted."""
        if not self._rotates_neighbours:
            return b
        if self._architecture != "llama" or not self._head_dim or self._head_dim % 2:
            raise NotSupported(
                f"The adapter {lora.name} changes queries or keys, whose order in {self._file}"
                f" is not known: it is of the kind {self._architecture}.",
                hint="Use another runtime, or an adapter of other modules.",
            )
        return interleave(b, self._head_dim)


@contextmanager
def _file(gguf: LoraGguf) -> Iterator[Path]:
    """A file for as long as llama.cpp reads it: an adapter of 10 MB takes 6 ms to write. Raises
    NoSpace."""
    with ExitStack() as stack:
        try:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "adapter.gguf"
            gguf.write(path)
        except OSError as error:
            raise NoSpace(
                f"An adapter can't be written for llama.cpp: {error.strerror}.",
                hint="Free some space, or name a folder for temporary files as TMPDIR.",
            ) from error
        yield path


def _foreign(adapter: LoadedAdapter) -> AdapterMismatch:
    return AdapterMismatch(
        f"The adapter {adapter.name} was loaded for another model.", hint="Load it for this one."
    )
