"""Caches that can't be cut back exactly are refused, or kept from ever needing it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from mlx_vlm.models.cache import ArraysCache, KVCache, RotatingKVCache

from edgevlm.errors import NotSupported
from edgevlm.runtimes.mlx_cache import SequenceCache
from edgevlm.runtimes.mlx_thread import on_mlx_thread


def decoder(*layers: Any) -> Any:
    return SimpleNamespace(make_cache=lambda: list(layers))


def test_a_sliding_window_ends_the_context_before_it_slides() -> None:
    cache = SequenceCache(decoder(RotatingKVCache(max_size=16), KVCache()))
    assert cache.capped(100) == 16
    assert cache.capped(8) == 8
    assert SequenceCache(decoder(KVCache())).capped(100) == 100


def test_a_window_is_cut_back_exactly_while_it_has_not_slid() -> None:
    def keys_after_a_cut() -> Any:
        rows = mx.arange(16 * 4, dtype=mx.float32).reshape(1, 1, 16, 4)
        cache = SequenceCache(decoder(RotatingKVCache(max_size=16)))
        [layer] = cache.layers
        layer.update_and_fetch(rows[:, :, :12], rows[:, :, :12])
        cache.truncate(5)
        for index in range(5, 16):
            step = rows[:, :, index : index + 1]
            keys, _ = layer.update_and_fetch(step, step)
        return bool(mx.array_equal(keys, rows).item()), cache.length

    assert on_mlx_thread(keys_after_a_cut) == (True, 16)


def test_a_state_space_model_is_refused() -> None:
    with pytest.raises(NotSupported, match="can't forget"):
        SequenceCache(decoder(KVCache(), ArraysCache(2)))
