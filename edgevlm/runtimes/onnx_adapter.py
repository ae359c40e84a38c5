"""Adapters for a graph that takes updates of low rank as inputs.

For a product `y = x W` it has `lora.{module}.a` [in_features, rank] and `.b` [rank,
out_features], adds `(x a) b`, and has rank 0 where they are left out. Products that are computed
as one share a pair: their `a` lie side by side, and `b` is zero outside of each one's own block.
Several adapters lie along the rank in the same way, their scales multiplied into `b`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.adapter import Adapters, LoadedAdapter, Lora, LowRank, layer_of
from edgevlm.errors import AdapterMismatch, NotSupported, RuntimeFailed
from edgevlm.runtimes.onnx_rewrite import EXPORT_AGAIN
from edgevlm.runtimes.onnx_session import Array, OrtValue, Port, Session, refusal, to_ort

_ALIGNMENT = 64


class OnnxAdapter:
    """A `LoadedAdapter`: the matrices, which cost no memory beside themselves.

    `inputs` are those of the graph that it was loaded for; `updates`, by modules, are None once
    it is closed. Scaled beyond `largest_scale` they have numbers that the inputs can't.
    """

    def __init__(self, lora: Lora, updates: Mapping[str, LowRank], inputs: AdapterInputs) -> None:
        self.name, self.digest = lora.name, lora.digest
        self.inputs = inputs
        self.updates: Mapping[str, LowRank] | None = updates
        self.largest_scale = inputs.largest_scale(updates)

    def close(self) -> None:
        """Let go of the matrices; what a context uses of them it keeps."""
        self.updates = None


@dataclass(frozen=True, eq=False, slots=True)
class Pair:
    """Two inputs, and the modules that they serve with the output features of each."""

    a: Port
    b: Port
    modules: Mapping[str, slice]
    in_features: int
    out_features: int

    def n_bytes(self, rank: int) -> int:
        """Of both tensors, each aligned."""
        return self._aligned(self.in_features * rank) + self._aligned(self.out_features * rank)

    def cut(self, room: NDArray[np.uint8], rank: int) -> tuple[Array, Array]:
        """Both tensors from `n_bytes` of room."""
        size = rank * self.a.dtype.itemsize
        second = self._aligned(self.in_features * rank)
        a = room[: self.in_features * size].view(self.a.dtype)
        b = room[second : second + self.out_features * size].view(self.b.dtype)
        return a.reshape(self.in_features, rank), b.reshape(rank, self.out_features)

    def _aligned(self, count: int) -> int:
        return -(-count * self.a.dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


class AdapterInputs:
    """The pairs of inputs of the graph at `path`, whose layers have modules of these `kinds`."""

    def __init__(self, path: Path, pairs: Sequence[Pair], kinds: Collection[str]) -> None:
        self._path, self._pairs, self._kinds = path, pairs, kinds
        self._of_module = {module: pair for pair in pairs for module in pair.modules}
        self._layers = set(map(layer_of, self._of_module))

    def load(self, lora: Lora, updates: Mapping[str, LowRank], model: str) -> OnnxAdapter:
        """Take these updates of `lora`. Raises NotSupported, AdapterMismatch; either names
        adapter and model."""
        for module, update in updates.items():
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
        return OnnxAdapter(lora, {name: _by_columns(u) for name, u in updates.items()}, self)

    def largest_scale(self, updates: Mapping[str, LowRank]) -> float:
        """What its `b` may be multiplied by before they overflow: soon where inputs are float16.

        0 where an `a` overflows as it is. The updates are checked.
        """
        scale = math.inf
        for module, update in updates.items():
            most = float(np.finfo(self._of_module[module].a.dtype).max)
            if _largest(update.a) > most:
                return 0.0
            scale = min(scale, most / max(_largest(update.b), 1e-30))
        return scale

    def put(self, adapters: Adapters, room: AdapterRoom) -> Mapping[str, OrtValue]:
        """What a run is fed to add these times their scales, which stays in `room`.

        Raises AdapterMismatch for adapters of another model, RuntimeFailed for closed ones, and
        NotSupported for those whose numbers overflow.
        """
        # An order of their own, as the order of summands moves the last bits.
        ordered = sorted(adapters.items(), key=lambda item: item[0].digest)
        scaled = [(self._updates(adapter, scale), scale) for adapter, scale in ordered]
        return room.put(
            [
                _Block(pair, columns, updates[module], scale)
                for pair in self._pairs
                for updates, scale in scaled
                for module, columns in pair.modules.items()
                if module in updates
            ]
        )

    def _updates(self, adapter: LoadedAdapter, scale: float) -> Mapping[str, LowRank]:
        if not isinstance(adapter, OnnxAdapter) or adapter.inputs is not self:
            raise AdapterMismatch(
                f"The adapter {adapter.name} was loaded for another model.",
                hint="Load it for this one.",
            )
        if adapter.updates is None:
            raise RuntimeFailed(f"The adapter {adapter.name} was closed.", hint="Load it again.")
        if abs(scale) > adapter.largest_scale:
            raise NotSupported(
                f"The adapter {adapter.name} times {scale:g} has numbers beyond the floats of"
                f" {self._path.name}.",
                hint="Use a smaller scale, or the model in float32.",
            )
        return adapter.updates

    def _no_place(self, lora: Lora, module: str, model: str) -> AdapterMismatch | NotSupported:
        layer = layer_of(module)
        if layer in self._layers and module.removeprefix(layer) in self._kinds:
            return NotSupported(
                f"The adapter {lora.name} changes {module}, for which {self._path.name} of {model}"
                " has no inputs.",
                hint=EXPORT_AGAIN,
            )
        return AdapterMismatch(
            f"The adapter {lora.name} changes {module}, which {model} doesn't have.",
            hint="Use it with the model that it was made for.",
        )


def _by_columns(update: LowRank) -> LowRank:
    """The same, lying in memory as inputs do, which are the other way round: to turn them at every
    swap took 5 ms where this takes 2."""
    return LowRank(np.asfortranarray(update.a), np.asfortranarray(update.b))


def _largest(matrix: NDArray[np.float32]) -> float:
    return max(float(matrix.max()), -float(matrix.min()))


def find_pair(session: Session, a: Port, split: Callable[[int], Mapping[str, int]]) -> Pair:
    """The input `a` with the one that belongs to it. `split` says, for their output features,
    which modules share them and how many each has. Raises ModelCorrupt for what is no pair."""
    b = session.optional.get(f"{a.name.removesuffix('a')}b")
    if b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.dtype != b.dtype:
        raise refusal(session.path, f"{a.name} has no second half")
    (in_features, _), (_, out_features) = a.shape, b.shape
    if in_features is None or out_features is None:
        raise refusal(session.path, f"{a.name} is of shape {a.shape}")
    widths = split(out_features)
    if min(widths.values()) < 1 or sum(widths.values()) != out_features:
        raise refusal(session.path, f"{b.name} is of shape {b.shape}")
    modules, end = {}, 0
    for module, width in widths.items():
        modules[module] = slice(end, end + width)
        end += width
    return Pair(a, b, modules, in_features, out_features)


class _Block(NamedTuple):
    """One adapter's update of the output features `columns` of a pair."""

    pair: Pair
    columns: slice
    update: LowRank
    scale: float


class AdapterRoom:
    """The tensors that a context is fed.

    Adapters of the same modules and ranks as those before are written over them, and nothing is
    bound anew: 2 ms for 210 modules of rank 8, of 7 with tensors to be made.
    """

    def __init__(self) -> None:
        self._shape: list[tuple[str, int, int]] = []
        self._places: list[tuple[Array, Array]] = []
        self._tensors: Mapping[str, OrtValue] = {}

    def put(self, blocks: Sequence[_Block]) -> Mapping[str, OrtValue]:
        """Blocks of one pair follow each other. Other tensors are other objects."""
        shape = [(pair.a.name, columns.start, up.rank) for pair, columns, up, _ in blocks]
        if shape != self._shape:
            self._tensors, self._places = _make(blocks)
            self._shape = shape
        for (_, _, update, scale), (a, b) in zip(blocks, self._places, strict=True):
            a[...] = update.a.T
            np.multiply(update.b.T, np.float32(scale), out=b, casting="same_kind")
        return self._tensors


def _make(
    blocks: Sequence[_Block],
) -> tuple[dict[str, OrtValue], list[tuple[Array, Array]]]:
    """Tensors of zeros by the names of inputs, and the place of each block in them."""
    by_pair = [(pair, list(found)) for pair, found in groupby(blocks, lambda block: block.pair)]
    ranks = [sum(block.update.rank for block in found) for _, found in by_pair]
    # numpy has large allocations put on huge pages where the system has them, which saves as
    # much time as the writing takes.
    sizes = [pair.n_bytes(rank) for (pair, _), rank in zip(by_pair, ranks, strict=True)]
    slab = np.empty(sum(sizes), np.uint8)
    slab[...] = 0
    tensors, places, start = {}, [], 0
    for (pair, found), rank, size in zip(by_pair, ranks, sizes, strict=True):
        a, b = pair.cut(slab[start : start + size], rank)
        tensors[pair.a.name], tensors[pair.b.name] = to_ort(a), to_ort(b)
        start += size
        row = 0
        for _, columns, update, _ in found:
            rows = slice(row, row + update.rank)
            places.append((a[:, rows], b[rows, columns]))
            row = rows.stop
    return tensors, places
