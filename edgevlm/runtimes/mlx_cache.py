"""Keys and values of one sequence, cut and cancelled without touching what stays."""

from __future__ import annotations

from typing import Any, TypeAlias

import mlx.core as mx

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import NotSupported

# The attributes of one of mlx-vlm's caches at a time.
State: TypeAlias = dict[str, Any]


class SequenceCache:
    """mlx-vlm's cache of each layer, all of one length.

    Raises NotSupported for a decoder whose memory of the past can't be cut back (state space
    models and their like).
    """

    def __init__(self, language_model: Any) -> None:
        from mlx_vlm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

        self.layers: list[Any] = make_prompt_cache(language_model)
        self._windows: list[int] = [c.max_size for c in self.layers if type(c) is RotatingKVCache]
        if not all(type(cache) in (KVCache, RotatingKVCache) for cache in self.layers):
            raise NotSupported(
                "This model's decoder can't forget a part of what it has read.",
                hint="Use a model with plain attention in every layer.",
            )

    @property
    def length(self) -> int:
        offset: int = self.layers[0].offset
        return offset

    def capped(self, limit: int) -> int:
        """`limit`, or the window of the layers that would overwrite their oldest keys."""
        return min([limit, *self._windows])

    def truncate(self, length: int) -> None:
        """Keep the first `length` positions."""
        for layer in self.layers:
            if layer.offset > length:
                layer.trim(layer.offset - length)

    def snapshot(self) -> list[State | None]:
        """What `compute` needs to go back."""
        return [dict(vars(layer)) for layer in self.layers]

    def compute(self, before: list[State | None], cancel: Cancel) -> None:
        """Compute the keys and values that a forward pass since `before` has built, a layer
        at a time, the next one queued behind it.

        On Interrupted some layers hold the new positions and the others are as they were:
        `truncate` then makes them one length.
        """
        before[0] = None
        mx.async_eval(_arrays(self.layers[0]))
        for index, layer in enumerate(self.layers):
            if cancel.is_set:
                self._go_back(before, index + 1)
                cancel.check()
            if index + 1 < len(self.layers):
                # Held on to, the old arrays would be copied rather than written into.
                before[index + 1] = None
                mx.async_eval(_arrays(self.layers[index + 1]))
            mx.eval(_arrays(layer))

    def _go_back(self, before: list[State | None], index: int) -> None:
        """The layers from `index` on would be computed with the next question's."""
        for layer, state in zip(self.layers[index:], before[index:], strict=True):
            assert state is not None
            vars(layer).update(state)


def _arrays(layer: Any) -> list[mx.array]:
    return [layer.keys, layer.values]
