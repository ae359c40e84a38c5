"""The weights of a folder as mlx-vlm names them, quantised when they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from edgevlm.errors import NotSupported
from edgevlm.runtimes.mlx_loading import load_folder
from edgevlm.runtimes.mlx_thread import on_mlx_thread

_HEADS = ("embed_tokens", "lm_head")


class MlxWeights:
    """`sizes` are in bytes, by tensor; `config` is what config.json is to say.

    Until a tensor is saved it is a recipe over bytes in the source's files. Raises
    ModelCorrupt, NotSupported.
    """

    config: dict[str, Any]
    sizes: dict[str, int]

    def __init__(self, source: Path, *, bits: int, vision_bits: int, group_size: int) -> None:
        self._bits, self._vision_bits, self._group_size = bits, vision_bits, group_size
        self._quantized: dict[str, dict[str, int]] = {}
        on_mlx_thread(self._prepare, source)

    @property
    def n_bytes(self) -> int:
        return sum(self.sizes.values())

    def save(self, names: Sequence[str], path: Path) -> None:
        """Compute these tensors, write them, and let go of them."""
        on_mlx_thread(self._save, names, path)

    def _prepare(self, source: Path) -> None:
        loaded = load_folder(source)
        if loaded.config.get("quantization") is not None:
            raise NotSupported(
                f"{source} is quantised already.", hint="Convert the original model instead."
            )
        half = _half_type(loaded.model)
        loaded.model.set_dtype(mx.float32)
        nn.quantize(loaded.model, class_predicate=self._choose)
        self._arrays = {
            name: self._narrowed(name, array, half)
            for name, array in tree_flatten(loaded.model.parameters())
        }
        self.sizes = {name: array.nbytes for name, array in self._arrays.items()}
        self.config = self._described(loaded.config)

    def _save(self, names: Sequence[str], path: Path) -> None:
        chosen = {name: self._arrays.pop(name) for name in names}
        mx.save_safetensors(str(path), chosen, metadata={"format": "mlx"})
        mx.clear_cache()

    def _choose(self, path: str, module: Any) -> bool | dict[str, int]:
        """How a module is quantised, as `nn.quantize` asks."""
        if not hasattr(module, "to_quantized"):
            return False
        bits = self._vision_bits
        if _in_decoder(path):
            bits = self._bits if not path.endswith(_HEADS) else max(self._bits, 8)
        elif not isinstance(module, nn.Linear):
            return False
        fitting = [g for g in (self._group_size, 32) if module.weight.shape[-1] % g == 0]
        if bits > 8 or not fitting:
            return False
        self._quantized[path] = {"group_size": fitting[0], "bits": bits}
        return self._quantized[path]

    def _narrowed(self, name: str, array: mx.array, half: mx.Dtype) -> mx.array:
        width = self._bits if _in_decoder(name) else self._vision_bits
        if width == 32 or not mx.issubdtype(array.dtype, mx.floating):
            return array
        return array.astype(half)

    def _described(self, config: dict[str, Any]) -> dict[str, Any]:
        """With what mlx-vlm reads of quantised models, under both names that it knows."""
        if not self._quantized:
            return config
        bits = min(self._bits, 8)
        usual = {"group_size": self._group_size, "bits": bits}
        others = {path: own for path, own in self._quantized.items() if own != usual}
        quantization = {**usual, **others}
        return {**config, "quantization": quantization, "quantization_config": quantization}


def _in_decoder(path: str) -> bool:
    return path.startswith("language_model.")


def _half_type(model: Any) -> mx.Dtype:
    """bfloat16 for weights that were trained in it: what they reach may be out of float16's
    range."""
    dtypes = {array.dtype for _, array in tree_flatten(model.parameters())}
    return mx.bfloat16 if mx.bfloat16 in dtypes else mx.float16
