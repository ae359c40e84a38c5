"""The token embeddings as one file that numpy maps into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.coreml_export.decoder import PREFIX
from edgevlm.models.llama import LlamaShape

_BLOCK = 32
_ROWS_AT_ONCE = 4096


def save_embeddings(checkpoint: Checkpoint, text: LlamaShape, path: Path, bits: int) -> None:
    """Write the table as fp16 [n_vocab, d_model], or at 8 bits as [n_vocab] records of int8
    `values` [d_model] and their fp16 `scales`, one for each 32 of a row.

    Where the width is no multiple of 32, a row has one scale. A prompt looks up a few rows
    of it: at 8 bits a table that the output head repeats at 8 bits or more is no loss.
    """
    shape = (text.vocab_size, text.hidden_size)
    table = checkpoint.read(f"{PREFIX}.embed_tokens.weight", shape)
    if bits > 8:
        np.save(path, table.astype(np.float16))
        return
    n_scales = shape[1] // _BLOCK if shape[1] % _BLOCK == 0 else 1
    record = np.dtype([("scales", "<f2", (n_scales,)), ("values", "i1", (shape[1],))])
    rounded = np.zeros(shape[0], record)
    for start in range(0, shape[0], _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        blocks = table[rows].reshape(-1, n_scales, shape[1] // n_scales)
        scales = (np.abs(blocks).max(-1) / 127).astype(np.float16)
        divisors = np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
        values = np.clip(np.rint(blocks / divisors), -127, 127)
        rounded["scales"][rows], rounded["values"][rows] = scales, values.reshape(-1, shape[1])
    np.save(path, rounded)
