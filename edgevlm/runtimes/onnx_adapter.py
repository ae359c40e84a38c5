"""Adapters for a decoder graph that takes updates of low rank as inputs.

For a product `y = x W` it has `lora.layers.{i}.{name}.a` [in_features, rank] and `.b` [rank,
out_features], adds `(x a) b`, and has rank 0 where they are left out. Products that are computed
as one share a pair: their `a` lie side by side, and `b` is zero outside of each one's own block.
Several adapters lie along the rank in the same way, their scales multiplied into `b`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD, LoadedAdapter, Lora, LowRank
from edgevlm.errors import AdapterMismatch, NotSupported, RuntimeFailed
from edgevlm.runtimes.onnx_layout import CacheLayout
from edgevlm.runtimes.onnx_rewrite import EXPORT_AGAIN
from edgevlm.runtimes.onnx_session import Array, OrtValue, Port, Session, refusal, to_ort

_INPUT = re.compile(r"lora\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+_proj)\.a")
_MODULE = re.compile(r"layers\.(\d+)\.(.+)")
_ALIGNMENT = 64
_PACKED = {"self_attn.qkv_proj": ATTENTION[:3], "mlp.gate_up_proj": FEED_FORWARD[:2]}


class OnnxAdapter:
    """A `LoadedAdapter`: the matrices as they came, which cost no memory beside themselves.

    `inputs` are those of the model that has loaded it.
    """

    def __init__(self, lora: Lora, inputs: AdapterInputs) -> None:
        self.lora, self.inputs = lora, inputs
        self.closed = False

    def close(self) -> None:
        """Let go of the matrices; what a context uses of them it keeps."""
        self.lora = replace(self.lora, decoder={}, vision={})
        self.closed = True


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two inputs, and the modules that they serve with the output features of each."""

    a: Port
    b: Port
    modules: Mapping[str, slice]
    in_features: int
    out_features: int

    def n_bytes(self, rank: int) -> int:
        """What tensors of this rank take in a `_Slab`."""
        size = rank * self.a.dtype.itemsize
        return _aligned(self.in_features * size) + _aligned(self.out_features * size)


class JoinedAdapters(dict[str, OrtValue]):
    """What a run is fed to add adapters, by the names of inputs. A dict of its own class, since
    a plain one can't be referred to weakly."""


class AdapterInputs:
    """The pairs of inputs of a decoder graph. Raises ModelCorrupt for what is no pair."""

    def __init__(self, decoder: Session, layout: CacheLayout) -> None:
        self._path = decoder.path
        self._n_layers = len(layout.sizes) // 2
        self._pairs = tuple(
            _pair(decoder, port, int(match[1]), match[2], layout)
            for name, port in decoder.optional.items()
            if (match := _INPUT.fullmatch(name)) and int(match[1]) < self._n_layers
        )
        self._of_module = {module: pair for pair in self._pairs for module in pair.modules}
        # Contexts with the same adapters share what is joined, as long as one uses it.
        self._joined: WeakValueDictionary[Hashable, JoinedAdapters] = WeakValueDictionary()

    def check(self, lora: Lora, model: str) -> None:
        """Raises NotSupported, AdapterMismatch; either names adapter and model."""
        for module, update in lora.decoder.items():
            pair = self._of_module.get(module)
            if pair is None:
                raise self._no_place(lora, module, model)
            rows = pair.modules[module]
            taken = (pair.in_features, rows.stop - rows.start)
            given = (update.a.shape[1], update.b.shape[0])
            if given != taken:
                raise AdapterMismatch(
                    f"The adapter {lora.name} changes {module} from {given[0]} to {given[1]}"
                    f" features; that of {model} goes from {taken[0]} to {taken[1]}.",
                    hint="Use it with the model that it was made for.",
                )

    def join(self, adapters: Mapping[LoadedAdapter, float]) -> JoinedAdapters:
        """Adapters that `check` has passed, times their scales.

        Raises ValueError for those of another model, RuntimeFailed for closed ones.
        """
        key = frozenset(adapters.items())
        joined = self._joined.get(key)
        if joined is None:
            loras = [(self._lora(adapter), scale) for adapter, scale in adapters.items()]
            # An order of their own, as the order of summands moves the last bits.
            loras.sort(key=lambda item: item[0].digest)
            joined = self._joined[key] = self._join(loras)
        return joined

    def _lora(self, adapter: LoadedAdapter) -> Lora:
        if not isinstance(adapter, OnnxAdapter) or adapter.inputs is not self:
            raise ValueError(f"the adapter {adapter.lora.name} was loaded for another model")
        if adapter.closed:
            raise RuntimeFailed(
                f"The adapter {adapter.lora.name} was closed.", hint="Load it again."
            )
        return adapter.lora

    def _join(self, loras: Sequence[tuple[Lora, float]]) -> JoinedAdapters:
        blocks = [(pair, _blocks(pair, loras)) for pair in self._pairs]
        slab = _Slab(sum(pair.n_bytes(sum(b.rank for b in found)) for pair, found in blocks))
        joined = JoinedAdapters()
        for pair, found in blocks:
            if found:
                a, b = _side_by_side(pair, found, slab)
                joined[pair.a.name], joined[pair.b.name] = to_ort(a), to_ort(b)
        return joined

    def _no_place(self, lora: Lora, module: str, model: str) -> AdapterMismatch | NotSupported:
        match = _MODULE.fullmatch(module)
        known = match is not None and match[2] in (*ATTENTION, *FEED_FORWARD)
        if match is not None and known and int(match[1]) < self._n_layers:
            return NotSupported(
                f"The adapter {lora.name} changes {module}, for which {self._path.name} of {model}"
                " has no inputs.",
                hint=EXPORT_AGAIN,
            )
        return AdapterMismatch(
            f"The adapter {lora.name} changes {module}, which {model} doesn't have.",
            hint="Use it with the model that it was made for.",
        )


def _pair(decoder: Session, a: Port, layer: int, name: str, layout: CacheLayout) -> _Pair:
    b = decoder.optional.get(f"{a.name.removesuffix('a')}b")
    if b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.dtype != b.dtype:
        raise refusal(decoder.path, f"{a.name} has no second half")
    (in_features, _), (_, out_features) = a.shape, b.shape
    if in_features is None or out_features is None:
        raise refusal(decoder.path, f"{a.name} is of shape {a.shape}")
    parts = _PACKED.get(name, (name,))
    if name == "self_attn.qkv_proj":
        heads, width = layout.sizes[2 * layer]
        widths = [out_features - 2 * heads * width, heads * width, heads * width]
    else:
        widths = [out_features // len(parts)] * len(parts)
    if min(widths) < 1 or sum(widths) != out_features:
        raise refusal(decoder.path, f"{b.name} is of shape {b.shape}")
    ends = np.cumsum(widths).tolist()
    columns = [slice(end - size, end) for end, size in zip(ends, widths, strict=True)]
    modules = [f"layers.{layer}.{part}" for part in parts]
    return _Pair(a, b, dict(zip(modules, columns, strict=True)), in_features, out_features)


class _Block(NamedTuple):
    """One adapter's update of one module, for the output features `columns` of a pair."""

    update: LowRank
    columns: slice
    scale: float

    @property
    def rank(self) -> int:
        return self.update.rank


def _blocks(pair: _Pair, loras: Sequence[tuple[Lora, float]]) -> list[_Block]:
    return [
        _Block(lora.decoder[module], columns, scale)
        for lora, scale in loras
        for module, columns in pair.modules.items()
        if module in lora.decoder
    ]


class _Slab:
    """One allocation that arrays are cut from. numpy has large ones put on huge pages where the
    system has them: without their faults, joining 210 modules of rank 8 took 7 ms and not 12."""

    def __init__(self, n_bytes: int) -> None:
        self._bytes = np.empty(n_bytes, np.uint8)
        self._used = 0

    def cut(self, rows: int, columns: int, dtype: np.dtype[Any]) -> Array:
        start, size = self._used, rows * columns * dtype.itemsize
        self._used += _aligned(size)
        return self._bytes[start : start + size].view(dtype).reshape(rows, columns)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _side_by_side(pair: _Pair, blocks: Sequence[_Block], slab: _Slab) -> tuple[Array, Array]:
    """`a` [in_features, sum of ranks] and `b` [sum of ranks, out_features]."""
    rank = sum(block.rank for block in blocks)
    a = slab.cut(pair.in_features, rank, pair.a.dtype)
    b = slab.cut(rank, pair.out_features, pair.b.dtype)
    if len(pair.modules) > 1:
        b[...] = 0
    start = 0
    for update, columns, scale in blocks:
        rows = slice(start, start + update.rank)
        a[:, rows] = update.a.T
        np.multiply(update.b.T, np.float32(scale), out=b[rows, columns], casting="same_kind")
        start = rows.stop
    return a, b
