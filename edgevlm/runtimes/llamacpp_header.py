"""The header of a GGUF file, read by llama.cpp's own reader, which checks it as it goes."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import ModelCorrupt
from edgevlm.runtimes.llamacpp_library import errors, ggml, reason

_UINT32, _FLOAT32, _STRING, _ARRAY = 4, 6, 8, 9  # enum gguf_type


class _InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]


def _function(name: str, arguments: list[Any], result: Any) -> Any:
    function = getattr(ggml, name)
    function.argtypes, function.restype = arguments, result
    return function


_FILE, _KEY = ctypes.c_void_p, ctypes.c_int64
_open = _function("gguf_init_from_file", [ctypes.c_char_p, _InitParams], _FILE)
_close = _function("gguf_free", [_FILE], None)
_find = _function("gguf_find_key", [_FILE, ctypes.c_char_p], _KEY)
_type = _function("gguf_get_kv_type", [_FILE, _KEY], ctypes.c_int)
_u32 = _function("gguf_get_val_u32", [_FILE, _KEY], ctypes.c_uint32)
_f32 = _function("gguf_get_val_f32", [_FILE, _KEY], ctypes.c_float)
_text = _function("gguf_get_val_str", [_FILE, _KEY], ctypes.c_char_p)
_item = _function("gguf_get_arr_str", [_FILE, _KEY, ctypes.c_size_t], ctypes.c_char_p)
_item_type = _function("gguf_get_arr_type", [_FILE, _KEY], ctypes.c_int)
_count = _function("gguf_get_arr_n", [_FILE, _KEY], ctypes.c_size_t)
_items = _function("gguf_get_arr_data", [_FILE, _KEY], ctypes.c_void_p)
_find_tensor = _function("gguf_find_tensor", [_FILE, ctypes.c_char_p], _KEY)
_n_tensors = _function("gguf_get_n_tensors", [_FILE], ctypes.c_int64)
_data_start = _function("gguf_get_data_offset", [_FILE], ctypes.c_size_t)
_start = _function("gguf_get_tensor_offset", [_FILE, _KEY], ctypes.c_size_t)
_n_bytes = _function("gguf_get_tensor_size", [_FILE, _KEY], ctypes.c_size_t)
_kind = _function("gguf_get_tensor_type", [_FILE, _KEY], ctypes.c_int)
_name = _function("gguf_get_tensor_name", [_FILE, _KEY], ctypes.c_char_p)
_sizes = _function("gguf_get_tensor_ne", [_FILE, _KEY], ctypes.POINTER(ctypes.c_int64))


class GgufHeader:
    """Open for the length of a `with` block. Raises ModelCorrupt.

    llama.cpp asserts what it takes for granted, and an assertion that fails ends the process:
    each getter looks at the type of what is there first.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise missing(path)
        self.path = path
        with errors() as lines:
            self._file: Any = _open(os.fsencode(path), _InitParams(no_alloc=True))
        if not self._file:
            raise self.corrupt(reason(lines))

    def __enter__(self) -> GgufHeader:
        return self

    def __exit__(self, *error: object) -> None:
        _close(self._file)

    def corrupt(self, what: str) -> ModelCorrupt:
        return ModelCorrupt(
            f"{self.path.name} is broken or incomplete: {what}.", hint="Fetch the model again."
        )

    def string(self, key: str) -> str:
        return str(_text(self._file, self._key(key, _STRING)), "utf-8", "replace")

    def count(self, key: str) -> int:
        """A number above 0."""
        value = int(_u32(self._file, self._key(key, _UINT32)))
        if value == 0:
            raise self.corrupt(f"{key} is 0")
        return value

    def check_epsilon(self, key: str) -> None:
        """Raises ModelCorrupt where what norms add is there and is no number from 0 on."""
        index = int(_find(self._file, key.encode()))
        if index >= 0 and not _f32(self._file, self._key(key, _FLOAT32)) >= 0:
            raise self.corrupt(f"{key} is no number from 0 on")

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """An array of `count` finite float32."""
        index = self._key(key, _ARRAY)
        if _item_type(self._file, index) != _FLOAT32 or _count(self._file, index) != count:
            raise self.corrupt(f"{key} is not {count} numbers")
        values = tuple((ctypes.c_float * count).from_address(_items(self._file, index)))
        if not all(map(math.isfinite, values)):
            raise self.corrupt(f"{key} is not {count} numbers")
        return values

    def strings(self, key: str) -> list[bytes]:
        """An array of strings, each up to its first zero byte, as llama.cpp reads them."""
        index = self._key(key, _ARRAY)
        if _item_type(self._file, index) != _STRING:
            raise self.corrupt(f"{key} is not a list of words")
        return [_item(self._file, index, i) for i in range(_count(self._file, index))]

    def check_extents(self) -> None:
        """Raises ModelCorrupt where a tensor is empty or reaches beyond the end of the file."""
        room = self.path.stat().st_size - _data_start(self._file)
        for index in range(_n_tensors(self._file)):
            n_bytes = _n_bytes(self._file, index)
            if not 0 < n_bytes <= room - _start(self._file, index):
                raise self.corrupt("a tensor is not within the file")

    def tensors(self) -> set[str]:
        """The name of every tensor."""
        count = _n_tensors(self._file)
        return {str(_name(self._file, index), "utf-8", "replace") for index in range(count)}

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for tensor, shape in shapes.items():
            found = self.shape(tensor)
            if found != (1,) * (len(found) - len(shape)) + shape:
                raise self.corrupt(f"{tensor} is {found}, not {shape}")

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The four sizes of a tensor in numpy's order, 1 where it has fewer."""
        sizes = _sizes(self._file, self._tensor(tensor))
        return tuple(int(sizes[axis]) for axis in (3, 2, 1, 0))

    def kind(self, tensor: str) -> int:
        """How its numbers are kept: an enum ggml_type."""
        return int(_kind(self._file, self._tensor(tensor)))

    def _tensor(self, name: str) -> int:
        index = int(_find_tensor(self._file, name.encode()))
        if index < 0:
            raise self.corrupt(f"it has no {name}")
        return index

    def _key(self, key: str, type_: int) -> int:
        index = int(_find(self._file, key.encode()))
        if index < 0:
            raise self.corrupt(f"it has no {key}")
        if _type(self._file, index) != type_:
            raise self.corrupt(f"{key} is of another type than it should be")
        return index


def missing(path: Path) -> ModelCorrupt:
    return ModelCorrupt(f"{path} is missing.", hint="Fetch the model again.")
