"""A vocabulary of nothing, for mtmd, which writes text around pictures and wants words for it.

Where a family of ours writes that text, mtmd's is thrown away, and the decoder whose words
it would be may run elsewhere.
"""

from __future__ import annotations

import ctypes
import functools
import os
import tempfile
from pathlib import Path

from edgevlm.errors import RuntimeFailed
from edgevlm.runtimes.llamacpp_library import ggml
from edgevlm.runtimes.llamacpp_weights import Weights

_FILE, _TEXT = ctypes.c_void_p, ctypes.c_char_p
_INT32 = 5  # enum gguf_type
_KIND = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "default",
}
# Letters that are no token are left out of a byte-level text.
_TOKENS = ("<|endoftext|>", "a")


@functools.cache
def stand_in_vocabulary() -> Weights:
    """A `llama_model` of some bytes that has a vocabulary and no weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        _write(path)
        return Weights(path, vocabulary_only=True)


def _write(path: Path) -> None:
    ggml.gguf_init_empty.restype = _FILE
    file = _FILE(ggml.gguf_init_empty())
    for key, value in _KIND.items():
        ggml.gguf_set_val_str(file, key.encode(), value.encode())
    _set_strings(file, "tokenizer.ggml.tokens", _TOKENS)
    _set_strings(file, "tokenizer.ggml.merges", ("a a",))
    types = (ctypes.c_int32 * len(_TOKENS))(*(1 for _ in _TOKENS))
    count = ctypes.c_size_t(len(_TOKENS))
    ggml.gguf_set_arr_data(file, b"tokenizer.ggml.token_type", _INT32, types, count)
    ggml.gguf_write_to_file.restype = ctypes.c_bool
    written = ggml.gguf_write_to_file(file, os.fsencode(path), ctypes.c_bool(True))
    ggml.gguf_free(file)
    if not written:
        raise RuntimeFailed(f"Can't write {path}.", hint="Make room for temporary files.")


def _set_strings(file: ctypes.c_void_p, key: str, values: tuple[str, ...]) -> None:
    array = (_TEXT * len(values))(*(value.encode() for value in values))
    ggml.gguf_set_arr_str(file, key.encode(), array, ctypes.c_size_t(len(values)))
