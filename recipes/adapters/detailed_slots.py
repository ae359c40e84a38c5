"""Reads back the words that edgevlm-tiny's vision encoder writes into the prompt, as slots.

The rows that it gives are the decoder's embeddings of these words, so the nearest embedding
tells which they are.
"""

from __future__ import annotations

from dataclasses import fields

import beside_tiny  # noqa: F401
import numpy as np
from numpy.typing import NDArray
from projector import GLOBAL_TOKENS, Vocabulary, said_rows
from seen import MAX_THINGS, NUMBERS, SLOT_WIDTH, SORTS, WORD, Slot, Spatial
from spatial_projector import slot_tables, thing_rows
from tokenizers import Tokenizer

_NUMBER_AT = GLOBAL_TOKENS
_SLOTS_AT = _NUMBER_AT + 1 + 1 + WORD


class SlotReader:
    """`embeddings` float32 [n_vocab, d] are the decoder's."""

    def __init__(
        self, vocabulary: Vocabulary, tokenizer: Tokenizer, embeddings: NDArray[np.float32]
    ) -> None:
        self._sorts = _meanings(said_rows(SORTS, tokenizer))
        self._numbers = _meanings(said_rows(NUMBERS, tokenizer))
        tables = slot_tables(thing_rows(vocabulary, tokenizer), tokenizer)
        self._widths = [table.shape[1] for table in tables]
        self._fields = [_meanings(table) for table in tables]
        numbers, sorts = (said_rows(words, tokenizer) for words in (NUMBERS, SORTS))
        said = [table.ravel() for table in (*tables, numbers, sorts)]
        self._ids = np.unique(np.concatenate(said))
        self._rows = embeddings[self._ids]
        self._halves = (self._rows**2).sum(axis=1) / 2

    def read(self, rows: NDArray[np.float32]) -> Spatial:
        """The sort and the slots that rows [102, d] tell; what is printed isn't read."""
        nearest = (rows @ self._rows.T - self._halves).argmax(axis=1)
        ids = [int(i) for i in self._ids[nearest]]
        number = self._numbers[(ids[_NUMBER_AT],)]
        slots = [self._slot(ids[_SLOTS_AT + i * SLOT_WIDTH :]) for i in range(max(number, 0))]
        return Spatial(self._sorts[(ids[_NUMBER_AT - 1],)], slots=tuple(slots[:MAX_THINGS]))

    def _slot(self, ids: list[int]) -> Slot:
        values: dict[str, int] = {}
        at = 0
        named = zip(fields(Slot), self._widths, self._fields, strict=True)
        for field, width, meanings in named:
            values[field.name] = meanings[tuple(ids[at : at + width])]
            at += width
        return Slot(**values)


def _meanings(table: NDArray[np.int64]) -> dict[tuple[int, ...], int]:
    """What the rows of a table [n + 1, width] stand for: its index, or -1 for the last.

    Of equal rows, as long runners-up may have, the first counts.
    """
    rows = [tuple(int(i) for i in row) for row in table]
    meanings = {row: index for index, row in reversed(list(enumerate(rows[:-1])))}
    return meanings | {rows[-1]: -1}
