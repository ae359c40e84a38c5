"""A context that remembers what it holds, so that a longer prompt computes only its new end."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Context, Embeddings, Logits, Part
from edgevlm.engine.prompt import Block, BlockEmbeddings, ImageSlot, Prompt


class PrefixContext:
    """A runtime context beside the key of every position in it.

    A position's key is its token id, or its picture's content hash and row: a
    changed picture or preprocessing can't meet an old KV entry.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._keys: list[Hashable] = []

    @property
    def length(self) -> int:
        return self._context.length

    def prefill(
        self, prompt: Prompt, embed: Callable[[int], Embeddings], cancel: Cancel
    ) -> tuple[Logits, int]:
        """Bring the context to `prompt`; return its last logits and how many positions it kept.

        `embed(i)` gives the embeddings [n_tokens, d_model] of image i of the prompt, and is
        called only for pictures that the context does not hold yet.
        """
        keys = prompt.keys()
        kept = self._common(prompt, keys)
        self._truncate(kept)
        logits = self._context.extend(_parts_from(prompt, kept, embed), cancel)
        self._keys = keys
        return logits, kept

    def needs(self, prompt: Prompt) -> set[int]:
        """Which images of the prompt have rows that a prefill would compute."""
        kept = self._common(prompt, prompt.keys())
        needed = set()
        position = 0
        for part in prompt.parts:
            position += part.count if isinstance(part, ImageSlot) else len(part)
            if isinstance(part, ImageSlot) and position > kept:
                needed.add(part.image)
        return needed

    def extend(self, token_id: int, cancel: Cancel) -> Logits:
        logits = self._context.extend([np.array([token_id], dtype=np.int64)], cancel)
        self._keys.append(token_id)
        return logits

    def close(self) -> None:
        self._context.close()
        self._keys = []

    def _common(self, prompt: Prompt, keys: list[Hashable]) -> int:
        # The last position is always computed: its logits are what a prefill is for.
        limit = min(len(self._keys), len(keys) - 1)
        kept = 0
        while kept < limit and self._keys[kept] == keys[kept]:
            kept += 1
        return _outside_blocks(prompt, kept)

    def _truncate(self, length: int) -> None:
        self._context.truncate(length)
        del self._keys[length:]


def _outside_blocks(prompt: Prompt, length: int) -> int:
    """`length`, or where the block begins that it would cut."""
    position = 0
    for part in prompt.parts:
        count = part.count if isinstance(part, ImageSlot) else len(part)
        if position < length < position + count and _block_of(prompt, part) is not None:
            return position
        position += count
    return length


def _block_of(prompt: Prompt, part: object) -> Block | None:
    return prompt.images[part.image].block if isinstance(part, ImageSlot) else None


def _parts_from(prompt: Prompt, start: int, embed: Callable[[int], Embeddings]) -> list[Part]:
    parts: list[Part] = []
    position = 0
    for part in prompt.parts:
        count = part.count if isinstance(part, ImageSlot) else len(part)
        skip = max(0, start - position)
        position += count
        if skip >= count:
            continue
        if not isinstance(part, ImageSlot):
            parts.append(np.array(part[skip:], dtype=np.int64))
            continue
        rows = embed(part.image)[part.start + skip : part.start + count]
        block = _block_of(prompt, part)
        parts.append(rows if block is None else BlockEmbeddings(rows, block))
    return parts
