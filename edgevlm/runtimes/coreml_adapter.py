"""Adapters for a Core ML decoder: updates of low rank in the state of each context.

For each kind of linear module the program reads two states, `lora_a_{name}` [layers, max_rank,
in_features] and `lora_b_{name}` [layers, max_rank, out_features], and adds `(x a^T) b` to what the
module gives. Core ML makes states of zeros, which is the base. Adapters lie one after the other
along the rank, their scales multiplied into `b`; what they leave of it is zero.

States rather than inputs, since coremltools widens inputs to float32 and Core ML narrows them
again for every token; a state is written once for each change of adapters. Its shape is fixed, so
the rows that no adapter uses are read too: for a decoder of 500M parameters at rank 32, 35 MB a
token beside some 230 MB of weights at 4 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.adapter import (
    ATTENTION,
    FEED_FORWARD,
    Adapters,
    LoadedAdapter,
    Lora,
    LowRank,
)
from edgevlm.errors import AdapterMismatch, NotSupported, RuntimeFailed
from edgevlm.runtimes.coreml_package import PackageInfo, refusal

States: TypeAlias = dict[str, NDArray[np.float16]]
# `a` [layers, rank, in_features] and `b` [layers, rank, out_features] of all modules of a kind,
# zero beyond the rank of a module and where there is no update.
Rows: TypeAlias = tuple[NDArray[np.float16], NDArray[np.float16]]

_MODULE = re.compile(r"layers\.(\d+)\.(.+)")
_OTHER_BASE = "Use it with the model that it was made for."


def state_names(kind: str) -> tuple[str, str]:
    """Those of `a` and `b` for modules such as `self_attn.q_proj`."""
    name = kind.rpartition(".")[2]
    return f"lora_a_{name}", f"lora_b_{name}"


NAMES = {kind: state_names(kind) for kind in (*ATTENTION, *FEED_FORWARD)}
LORA_STATES = frozenset(name for names in NAMES.values() for name in names)


class CoreMLAdapter:
    """A `LoadedAdapter`: its rows by the kinds of modules, at 16 bits as the states want them.

    `states` are those of the model that has loaded it; `rows` are None once it is closed.
    """

    def __init__(self, lora: Lora, states: AdapterStates, rows: Mapping[str, Rows]) -> None:
        self.name, self.digest = lora.name, lora.digest
        self.states = states
        self.rows: Mapping[str, Rows] | None = rows

    def close(self) -> None:
        """Let go of the rows; what a context uses of them is in its state."""
        self.rows = None


class AdapterStates:
    """The states of a package that adapters lie in. `max_rank` is 0 where it has none.

    Raises ModelCorrupt for states that don't go together.
    """

    def __init__(self, info: PackageInfo, model: str) -> None:
        self._model = model
        self._shapes = {
            name: tuple(size for size, _ in port.shape)
            for name, port in info.states.items()
            if name in LORA_STATES
        }
        self._n_layers = self.max_rank = 0
        if self._shapes:
            self._n_layers, self.max_rank = self._common_sizes(info)

    def load(self, lora: Lora) -> CoreMLAdapter:
        """Raises NotSupported, AdapterMismatch."""
        if not self.max_rank:
            raise NotSupported(
                f"The Core ML package of {self._model} has no room for the adapter {lora.name}.",
                hint="Convert the model again, or use another runtime, such as mlx.",
            )
        ranks: dict[str, int] = {}
        for module, update in lora.decoder.items():
            kind = self._check(lora.name, module, update)
            ranks[kind] = max(update.rank, ranks.get(kind, 0))
        rows: dict[str, Rows] = {
            kind: (self._empty(a, rank), self._empty(b, rank))
            for kind, rank in ranks.items()
            for a, b in (NAMES[kind],)
        }
        for module, update in lora.decoder.items():
            layer, kind = _place(module)
            a, b = (each[layer, : update.rank] for each in rows[kind])
            _put(update.a, a, lora.name)
            _put(update.b.T, b, lora.name)
        return CoreMLAdapter(lora, self, rows)

    def filled(self, adapters: Adapters) -> States:
        """The states that these adapters times their scales change.

        Raises AdapterMismatch for adapters of another model, RuntimeFailed for closed ones, and
        NotSupported where all of them have more rank than there is room for, or numbers beyond
        16 bits.
        """
        states: States = {}
        ends = dict.fromkeys(NAMES, 0)
        # An order of their own, as the order of summands moves the last bits.
        for adapter, scale in sorted(adapters.items(), key=lambda item: item[0].digest):
            for kind, (a, b) in self._rows(adapter).items():
                place = slice(ends[kind], ends[kind] + a.shape[1])
                if place.stop > self.max_rank:
                    raise self._no_room(sorted(each.name for each in adapters), place.stop)
                ends[kind] = place.stop
                for name in NAMES[kind]:
                    states.setdefault(name, self.empty(name))
                state_a, state_b = (states[name][:, place] for name in NAMES[kind])
                state_a[...] = a
                _put(b * np.float32(scale), state_b, f"{adapter.name} times {scale:g}")
        return states

    def empty(self, name: str) -> NDArray[np.float16]:
        """A state as the base has it."""
        return self._empty(name, self.max_rank)

    def _empty(self, name: str, rank: int) -> NDArray[np.float16]:
        layers, _, features = self._shapes[name]
        return np.zeros((layers, rank, features), np.float16)

    def _common_sizes(self, info: PackageInfo) -> tuple[int, int]:
        """(layers, rank) of all states."""
        shapes = [self._shapes.get(name, ()) for name in sorted(LORA_STATES)]
        sizes = {shape[:2] for shape in shapes if len(shape) == 3}
        if len(sizes) != 1 or any(len(shape) != 3 for shape in shapes):
            raise refusal(info.path, "its states for adapters don't go together")
        n_layers, rank = sizes.pop()
        return n_layers, rank

    def _check(self, adapter: str, module: str, update: LowRank) -> str:
        """The kind of a module that the decoder has."""
        layer, kind = _place(module)
        if kind not in NAMES or layer >= self._n_layers:
            raise AdapterMismatch(
                f"The adapter {adapter} changes {module}, which {self._model} doesn't have.",
                hint=_OTHER_BASE,
            )
        taken = tuple(self._shapes[name][2] for name in NAMES[kind])
        given = (update.a.shape[1], update.b.shape[0])
        if given != taken:
            raise AdapterMismatch(
                f"The adapter {adapter} changes {module} from {given[0]} to {given[1]}"
                f" features; that of {self._model} goes from {taken[0]} to {taken[1]}.",
                hint=_OTHER_BASE,
            )
        if update.rank > self.max_rank:
            raise self._no_room([adapter], update.rank)
        return kind

    def _rows(self, adapter: LoadedAdapter) -> Mapping[str, Rows]:
        if not isinstance(adapter, CoreMLAdapter) or adapter.states is not self:
            raise AdapterMismatch(
                f"The adapter {adapter.name} was loaded for another model than {self._model}.",
                hint="Load it for this one.",
            )
        if adapter.rows is None:
            raise RuntimeFailed(f"The adapter {adapter.name} was closed.", hint="Load it again.")
        return adapter.rows

    def _no_room(self, names: Sequence[str], rank: int) -> NotSupported:
        return NotSupported(
            f"{self._model} on Core ML has room for adapters of rank {self.max_rank}, and"
            f" {' and '.join(names)} need{'s' if len(names) == 1 else ''} {rank}.",
            hint="Use fewer or smaller ones, or another runtime, such as mlx.",
        )


def _place(module: str) -> tuple[int, str]:
    """(layer, kind) of a module, which the decoder needn't have."""
    match = _MODULE.fullmatch(module)
    return (int(match[1]), match[2]) if match is not None else (0, "")


def _put(values: NDArray[np.float32], place: NDArray[np.float16], whose: str) -> None:
    with np.errstate(over="ignore"):
        place[...] = values
    if not np.isfinite(place).all():
        raise NotSupported(
            f"The adapter {whose} has numbers that 16 bits can't hold.",
            hint="Use a smaller scale, or another runtime, such as mlx.",
        )
