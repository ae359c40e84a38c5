"""Token embeddings of a Core ML model, looked up with numpy in a file mapped into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import RuntimeFailed
from edgevlm.runtimes.coreml_package import refusal

# Unlike `np.load` it opens nothing but an array of plain numbers.
_open_memmap: Any = np.lib.format.open_memmap


class EmbeddingTable:
    """`embed_tokens.npy`: fp16 [n_vocab, d_model], or [n_vocab] records of int8 `values`
    [d_model] and their fp16 `scales`, each for an equal share of a row."""

    def __init__(self, path: Path, d_model: int) -> None:
        """Raises ModelCorrupt."""
        try:
            table: NDArray[Any] = _open_memmap(path, mode="r")
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise refusal(path, "it is not a whole table of numbers") from error
        if not _is_table(table, d_model):
            raise refusal(path, f"it has no rows of {d_model} numbers")
        self._table = table

    def look_up(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """The rows [n, d_model] of ids [n]. Raises RuntimeFailed for an id beyond the table."""
        try:
            rows = np.asarray(self._table[ids])
        except IndexError as error:
            raise RuntimeFailed(
                f"A token has the id {ids.max()}, and there are {len(self._table)} embeddings.",
                hint="The tokenizer does not belong to the decoder: fetch the model again.",
            ) from error
        if rows.dtype.names is None:
            return rows
        values, scales = rows["values"].astype(np.float32), rows["scales"].astype(np.float32)
        blocks = values.reshape(*scales.shape, -1) * scales[..., None]
        return blocks.reshape(values.shape).astype(np.float16)


def _is_table(table: NDArray[Any], d_model: int) -> bool:
    if not table.size:
        return False
    if table.dtype.names is None:
        return table.dtype == np.float16 and table.shape[1:] == (d_model,)
    if set(table.dtype.names) != {"values", "scales"} or table.ndim != 1:
        return False
    fields = [table.dtype[name] for name in ("values", "scales")]
    (values, width), (scales, shares) = [(f.base, f.shape) for f in fields]
    return (
        (values, scales) == (np.dtype(np.int8), np.dtype(np.float16))
        and width == (d_model,)
        and len(shares) == 1
        and shares[0] > 0
        and d_model % shares[0] == 0
    )
