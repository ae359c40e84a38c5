"""A context that remembers what it holds, so that a longer prompt computes only its new end."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np

from edgevlm.engine.adapter import Adapters, adapters_key, without_zeros
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Context, Embeddings, Logits, Part
from edgevlm.engine.prompt import Block, BlockEmbeddings, ImageSlot, Prompt

_NONE: Adapters = {}


class PrefixContext:
    """A runtime context beside the key of every position in it.

    A position's key is what went in, a token id or a picture's content hash and row, and
    the adapters that it and the pictures were computed with: a changed picture, preprocessing,
    adapter or scale can't meet an old KV entry.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._keys: list[Hashable] = []
        self._adapters: Adapters = {}
        self._adapters_key: Hashable = ((), ())

    @property
    def length(self) -> int:
        return self._context.length

    def use_adapters(self, adapters: Adapters, vision: Adapters = _NONE) -> None:
        """Compute with these adapters, times their scales, and no others from now on; pictures
        come from a vision encoder with the adapters `vision`.

        A prompt then reuses only what was computed with the same contents and scales,
        whatever their order; a scale of 0 is as if the adapter were not there.
        """
        adapters = without_zeros(adapters)
        if adapters != self._adapters:
            self._context.use_adapters(adapters)
            self._adapters = adapters
        self._adapters_key = _key_of(adapters, vision)

    def prefill(
        self, prompt: Prompt, embed: Callable[[int], Embeddings], cancel: Cancel
    ) -> tuple[Logits, int]:
        """Bring the context to `prompt`; return its last logits and how many positions it kept.

        `embed(i)` gives the embeddings [n_tokens, d_model] of image i of the prompt, and is
        called only for pictures that the context does not hold yet.
        """
        keys = self._keys_of(prompt)
        kept = self._common(prompt, keys)
        self._truncate(kept)
        logits = self._context.extend(_parts_from(prompt, kept, embed), cancel)
        self._keys = keys
        return logits, kept

    def shared(self, prompt: Prompt, adapters: Adapters, vision: Adapters = _NONE) -> int:
        """How many positions a prefill of `prompt` with these adapters would keep."""
        return self._common(prompt, _keys(_key_of(adapters, vision), prompt))

    def needs(self, prompt: Prompt) -> set[int]:
        """Which images of the prompt have rows that a prefill would compute."""
        kept = self._common(prompt, self._keys_of(prompt))
        needed = set()
        position = 0
        for part in prompt.parts:
            position += part.count if isinstance(part, ImageSlot) else len(part)
            if isinstance(part, ImageSlot) and position > kept:
                needed.add(part.image)
        return needed

    def extend(self, token_id: int, cancel: Cancel) -> Logits:
        logits = self._context.extend([np.array([token_id], dtype=np.int64)], cancel)
        self._keys.append((self._adapters_key, token_id))
        return logits

    def close(self) -> None:
        self._context.close()
        self._keys, self._adapters = [], {}

    def _keys_of(self, prompt: Prompt) -> list[Hashable]:
        return _keys(self._adapters_key, prompt)

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


def _key_of(adapters: Adapters, vision: Adapters) -> Hashable:
    return adapters_key(without_zeros(adapters)), adapters_key(without_zeros(vision))


def _keys(adapters: Hashable, prompt: Prompt) -> list[Hashable]:
    contents = prompt.keys()
    return [(adapters, content) for content in contents]


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
