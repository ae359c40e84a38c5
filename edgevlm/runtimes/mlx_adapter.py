"""LoRA on MLX: low-rank updates beside the linear modules of a decoder or a vision encoder.

A graph is built wholly inside one call on the MLX thread. For that long, modules that add the
updates of one context, or for one picture, stand in for the model's own, and at any other time
the model is the base: calls with other adapters, or with none, never meet them, and no weight is
written to. Call this on the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import mlx.nn as nn

from edgevlm.engine.adapter import (
    ATTENTION,
    FEED_FORWARD,
    Adapters,
    Lora,
    LowRank,
    layer_of,
    vision_module,
)
from edgevlm.errors import AdapterMismatch, NotSupported, RuntimeFailed

Module: TypeAlias = Callable[[mx.array], mx.array]
# A [in, rank] and B [rank, out].
Matrices: TypeAlias = tuple[mx.array, mx.array]
_LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """Where a module hangs in the tree of a model: in a dictionary, or in a list."""

    parent: Any
    key: str | int
    module: Module


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """A module that maps [..., in_features] to [..., out_features]."""

    place: Place
    in_features: int
    out_features: int
    dtype: mx.Dtype


StandIns: TypeAlias = Sequence[tuple[Place, Module]]


@contextmanager
def standing_in(stand_ins: StandIns) -> Iterator[None]:
    """Have a graph that is built meanwhile go through these modules."""
    try:
        for place, stand_in in stand_ins:
            place.parent[place.key] = stand_in
        yield
    finally:
        for place, _ in stand_ins:
            place.parent[place.key] = place.module


class MlxAdapter:
    """A `LoadedAdapter`: `matrices` by the names of the modules that they change."""

    def __init__(
        self, lora: Lora, owner: AdaptableModules, matrices: Mapping[str, Matrices]
    ) -> None:
        self.name, self.digest = lora.name, lora.digest
        self.owner: AdaptableModules | None = owner
        self.matrices = matrices

    def close(self) -> None:
        """Let its memory go once no context uses it any more."""
        self.owner, self.matrices = None, {}


class AdaptableModules:
    """The linear modules of one part of a model that adapters may change, by a `Lora`'s names.

    They are those of `places` that a forward pass, built by `build`, calls: beside a module whose
    weights the model reads in some other way an update would be ignored in silence. Raises
    NotSupported where it reads them so of any of them.
    """

    def __init__(
        self,
        model: str,
        places: Mapping[str, Place],
        build: Callable[[], object],
    ) -> None:
        self._model = model
        self._layers = set(map(layer_of, places))
        self._linears: dict[str, Linear] = {}
        noting = [(place, self._noting(name, place)) for name, place in places.items()]
        try:
            with standing_in(noting):
                build()
        except AttributeError as error:
            raise NotSupported(
                f"MLX can't add adapters to {model}, which goes past its modules.",
                hint="Use another runtime, or a model whose adapter is merged into it.",
            ) from error

    def load(self, lora: Lora, updates: Mapping[str, LowRank]) -> MlxAdapter:
        """Bring these updates of `lora` into memory. Raises NotSupported, AdapterMismatch."""
        matrices = {}
        for name, update in updates.items():
            linear = self._find(lora, name)
            self._check(lora, name, linear, update)
            matrices[name] = _matrices(update, linear.dtype)
        mx.eval(matrices)
        return MlxAdapter(lora, self, matrices)

    def stand_ins(self, adapters: Adapters) -> StandIns:
        """Modules that add what these adapters do, each times its scale.

        Raises AdapterMismatch for an adapter in another model's memory, and RuntimeFailed for
        one that was closed.
        """
        terms: dict[str, list[tuple[Matrices, float]]] = {}
        for adapter, scale in adapters.items():
            if not isinstance(adapter, MlxAdapter) or adapter.owner not in (self, None):
                raise AdapterMismatch(
                    f"The adapter {adapter.name} was loaded for another model than {self._model}.",
                    hint="Load it for this one.",
                )
            if adapter.owner is None:
                raise RuntimeFailed(
                    f"The adapter {adapter.name} was closed.", hint="Load it again."
                )
            for module, matrices in adapter.matrices.items():
                terms.setdefault(module, []).append((matrices, scale))
        places = {module: self._linears[module].place for module in terms}
        return [(at, _adding(at.module, terms[module])) for module, at in places.items()]

    def _noting(self, name: str, place: Place) -> Module:
        def module(x: mx.array) -> mx.array:
            y = place.module(x)
            self._linears[name] = Linear(place, x.shape[-1], y.shape[-1], x.dtype)
            return y

        return module

    def _find(self, lora: Lora, name: str) -> Linear:
        if name in self._linears:
            return self._linears[name]
        if layer_of(name) in self._layers:
            raise NotSupported(
                f"The adapter {lora.name} changes {name}, which {self._model} has no module of"
                " its own for on MLX.",
                hint="Use another runtime, or an adapter of fewer modules.",
            )
        raise AdapterMismatch(
            f"The adapter {lora.name} changes {name}, which {self._model} doesn't have.",
            hint="Use an adapter that was made for this model.",
        )

    def _check(self, lora: Lora, name: str, linear: Linear, update: LowRank) -> None:
        rank = update.rank
        wanted = ((rank, linear.in_features), (linear.out_features, rank))
        if (update.a.shape, update.b.shape) != wanted:
            raise AdapterMismatch(
                f"At {name} the adapter {lora.name} has matrices of {update.a.shape} and"
                f" {update.b.shape}, {self._model} takes {wanted[0]} and {wanted[1]}.",
                hint="Use an adapter that was made for this model.",
            )
        if linear.dtype == mx.float16:
            largest = max(float(abs(each).max()) for each in (update.a, update.b))
            if largest > _LARGEST_FLOAT16:
                raise NotSupported(
                    f"At {name} the adapter {lora.name} has numbers up to {largest:.2g}, beyond"
                    f" the float16 of {self._model}.",
                    hint="Use a model in bfloat16 or float32.",
                )


def decoder_modules(
    model: str, layers: Sequence[Any], build: Callable[[], object]
) -> AdaptableModules:
    """Those of a decoder's layers. Raises what `AdaptableModules` does."""
    return AdaptableModules(model, dict(_decoder_places(layers)), build)


def vision_modules(
    model: str, parts: Mapping[str, Any], build: Callable[[], object]
) -> AdaptableModules:
    """Those of a vision encoder's `parts`, by the names that a checkpoint gives these. Raises
    what `AdaptableModules` does."""
    places = {}
    for name, place in _linear_places("", parts):
        if (module := vision_module(name)) is not None:
            places[module] = place
    return AdaptableModules(model, places, build)


def _decoder_places(layers: Sequence[Any]) -> Iterator[tuple[str, Place]]:
    for index, layer in enumerate(layers):
        for name in (*ATTENTION, *FEED_FORWARD):
            group, _, key = name.rpartition(".")
            # A module of MLX is the dictionary of what it holds.
            parent = layer.get(group)
            if isinstance(parent, dict) and key in parent:
                yield f"layers.{index}.{name}", Place(parent, key, parent[key])


def _linear_places(prefix: str, parent: Any) -> Iterator[tuple[str, Place]]:
    """Every linear module below `parent`, by its path."""
    children = parent.items() if isinstance(parent, Mapping) else enumerate(parent)
    for key, child in children:
        if isinstance(child, (nn.Linear, nn.QuantizedLinear)):
            yield f"{prefix}{key}", Place(parent, key, child)
        elif isinstance(child, (dict, list)):
            yield from _linear_places(f"{prefix}{key}.", child)


def _matrices(update: LowRank, dtype: mx.Dtype) -> Matrices:
    """In the type of what they are multiplied with. At 16 bits that rounds an update no more
    than the layer rounds its own result, and half as much is read for every token."""
    a, b = (mx.contiguous(mx.array(each.T).astype(dtype)) for each in (update.a, update.b))
    return a, b


def _adding(linear: Module, terms: Sequence[tuple[Matrices, float]]) -> Module:
    def module(x: mx.array) -> mx.array:
        y = linear(x)
        for (a, b), scale in terms:
            y = mx.addmm(y, x @ a, b, alpha=scale)
        return y

    return module
