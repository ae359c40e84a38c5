"""The door for embeddings: a .npy file in base64, read by hand and never unpickled.

Such files take the place that a tensor of torch's, which is a pickle, has in vLLM's `image_embeds`.
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnreadableMedia
from edgevlm.media.describe import shown

# Untyped in numpy's stubs.
_npy: Any = np.lib.format
_DTYPES = (np.dtype("<f4"), np.dtype("<f2"))
_HEADER_BYTES = 10_000
_MOST_ROWS = 65_536
# Far above what projectors give, far below where a decoder's float16 overflows.
_LARGEST = 1e4


def pack_embeddings(rows: NDArray[np.float32]) -> str:
    """A .npy file of float32 [n_tokens, d_model], in base64."""
    out = io.BytesIO()
    _npy.write_array(out, np.ascontiguousarray(rows, dtype="<f4"), version=(1, 0))
    return base64.b64encode(out.getvalue()).decode("ascii")


def unpack_embeddings(text: str, d_model: int) -> NDArray[np.float32]:
    """float32 [n_tokens, d_model], all finite, of float32 or float16. Raises UnreadableMedia."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong("are not base64", d_model) from error
    shape, dtype, body = _header(data, d_model)
    if len(shape) != 2 or shape[1] != d_model or not 0 < shape[0] <= _MOST_ROWS:
        raise _wrong("have another shape", d_model)
    if len(body) != shape[0] * shape[1] * dtype.itemsize:
        raise _wrong(f"have {len(body)} bytes of numbers, which is not their shape's", d_model)
    rows = np.frombuffer(body, dtype).reshape(shape).astype(np.float32)
    if not (np.abs(rows) <= _LARGEST).all():  # false for what is not a number, too
        raise _wrong(f"hold numbers that are not finite, or beyond {_LARGEST:g}", d_model)
    return rows


def _header(data: bytes, d_model: int) -> tuple[tuple[int, ...], np.dtype[np.floating], bytes]:
    file = io.BytesIO(data)
    try:
        version = _npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        shape, by_columns, dtype = _npy.read_array_header_1_0(file, max_header_size=_HEADER_BYTES)
    except Exception as error:  # a header is a Python literal, and much can be wrong with one
        raise _wrong("are not a .npy file of version 1.0", d_model) from error
    if dtype not in _DTYPES or by_columns:
        raise _wrong(f"are {shown(dtype)}{', by columns' if by_columns else ''}", d_model)
    return shape, dtype, data[file.tell() :]


def _wrong(why: str, d_model: int) -> UnreadableMedia:
    return UnreadableMedia(
        f"The embeddings {why}.",
        hint=f"Send a .npy file of float32 or float16 [n_tokens, {d_model}] in base64.",
    )
