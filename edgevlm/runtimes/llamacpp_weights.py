"""A GGUF model in memory, shared by whatever holds on to it."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import DoesNotFit, ModelCorrupt, NotSupported, RuntimeFailed
from edgevlm.runtimes.llamacpp_checks import check_adapter, check_decoder
from edgevlm.runtimes.llamacpp_header import GgufHeader, missing
from edgevlm.runtimes.llamacpp_library import errors, has_amx, llama, reason

_ALL_F32 = 0  # enum llama_ftype
_M_ROPE = (llama.LLAMA_ROPE_TYPE_MROPE, llama.LLAMA_ROPE_TYPE_IMROPE)
_NO_MEMORY = ("unable to allocate", "failed to allocate", "bad_alloc")
_loading = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[Path, int, int], Weights]
_loaded = weakref.WeakValueDictionary()
_TOO_NEW = ("unknown model architecture", "unknown pre-tokenizer", "unsupported model")


class Weights:
    """The `llama_model` of a file. It is freed with the last reference to this object, and
    with it the adapters loaded onto it.

    Raises ModelCorrupt, NotSupported, DoesNotFit.
    """

    def __init__(self, path: Path, *, vocabulary_only: bool = False) -> None:
        self.path = path
        params = llama.llama_model_default_params()
        params.vocab_only = vocabulary_only
        params.use_extra_bufts = not has_amx()
        with errors() as lines:
            pointer = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not pointer:
            raise _load_failure(path, reason(lines))
        self._pointer: Any = pointer
        # llama.cpp lists the adapters of a model, and looks through the list, which nothing
        # guards, when it plans a graph. A finalizer may run on the thread that holds this.
        self.adapter_list = threading.RLock()
        self._process = os.getpid()
        # Not at exit: a daemon thread may still be computing with it.
        weakref.finalize(self, llama.llama_model_free, pointer).atexit = False
        vocabulary = llama.llama_model_get_vocab(self.pointer)
        self.n_vocab: int = llama.llama_vocab_n_tokens(vocabulary)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self.pointer)
        self.d_model: int = llama.llama_model_n_embd_inp(self.pointer)

    @property
    def pointer(self) -> Any:
        """The `llama_model`. Raises RuntimeFailed in a fork of the process that loaded it."""
        self.check_process()
        return self._pointer

    def check_process(self) -> None:
        """Raise RuntimeFailed in a fork: OpenMP would wait for threads that stayed behind."""
        if os.getpid() != self._process:
            raise RuntimeFailed(
                "llama.cpp does not outlive a fork of the process.",
                hint="Load models in the process that asks, and start it with `spawn`.",
            )

    @property
    def is_f32(self) -> bool:
        return bool(llama.llama_model_ftype(self.pointer) == _ALL_F32)

    @property
    def has_m_rope(self) -> bool:
        """Whether a position is (time, row, column)."""
        return llama.llama_model_rope_type(self.pointer) in _M_ROPE

    @property
    def can_forget(self) -> bool:
        """Whether the memory of a sequence can be cut back to a position, as that of
        recurrent models can't, and the model answers token by token from it."""
        odd = (
            llama.llama_model_has_encoder,
            llama.llama_model_is_recurrent,
            llama.llama_model_is_hybrid,
            llama.llama_model_is_diffusion,
        )
        return not any(trait(self.pointer) for trait in odd)

    def load_adapter(self, path: Path) -> Adapter:
        """Raises ModelCorrupt where the file is no adapter for this model."""
        with GgufHeader(path) as header:
            check_adapter(header)
        with self.adapter_list, errors() as lines:
            pointer = llama.llama_adapter_lora_init(self.pointer, os.fsencode(path))
        if not pointer:
            raise ModelCorrupt(
                f"{path.name} is no adapter for {self.path.name}: {reason(lines)}.",
                hint="It must be a GGUF LoRA of the same base.",
            )
        return Adapter(self, pointer)


def load_weights(path: Path) -> Weights:
    """The weights of a file, loaded once however many ask while they are in memory: mtmd
    wants the decoder that a vision encoder belongs to. Raises what `Weights` does."""
    if not path.is_file():
        raise missing(path)
    status = path.stat()
    key = (path.resolve(), status.st_size, status.st_mtime_ns)
    with _loading:
        weights = _loaded.get(key)
        if weights is None:
            with GgufHeader(path) as header:
                check_decoder(header)
            weights = _loaded[key] = Weights(path)
        return weights


class Adapter:
    """A LoRA on the model that it belongs to; freed with this object, or with the model."""

    def __init__(self, weights: Weights, pointer: Any) -> None:
        self.weights, self.pointer = weights, pointer
        # The finalizer holds on to the weights: freeing an adapter after its model crashes.
        weakref.finalize(self, _free_adapter, pointer, weights).atexit = False


def _free_adapter(pointer: Any, weights: Weights) -> None:
    with weights.adapter_list:
        llama.llama_adapter_lora_free(pointer)


def apply_adapters(context: int, adapters: Mapping[Adapter, float]) -> None:
    """Have a llama_context add these, each times its scale, and no others. What is in its
    KV cache already stays as it was computed. Raises RuntimeFailed."""
    count = len(adapters)
    pointers = (llama.llama_adapter_lora_p_ctypes * count)(*(a.pointer for a in adapters))
    scales = (ctypes.c_float * count)(*adapters.values())
    if llama.llama_set_adapters_lora(context, pointers, count, scales) != 0:
        raise RuntimeFailed("llama.cpp did not take the adapter.", hint="Please report this.")


def require_role(files: ModelFiles, role: str) -> Path:
    """The file that plays `role`. Raises ModelCorrupt where there is none."""
    path = files.roles.get(role)
    if path is None:
        raise ModelCorrupt(
            f"{files.name} has no {role} for llama.cpp.",
            hint="A model for this runtime is a decoder GGUF and an mmproj GGUF beside it.",
        )
    return path


def _load_failure(path: Path, why: str) -> ModelCorrupt | NotSupported | DoesNotFit:
    if any(mark in why for mark in _NO_MEMORY):
        return DoesNotFit(
            f"Not enough memory to load {path.name}.", hint="Use a smaller model, or close others."
        )
    if any(mark in why for mark in _TOO_NEW):
        return NotSupported(
            f"llama.cpp can't run {path.name}: {why}.",
            hint="Update it: pip install --upgrade 'edgevlm[llamacpp]'",
        )
    return ModelCorrupt(f"{path.name} is broken or incomplete: {why}.", hint="Fetch it again.")
