"""Adapters for a Core ML decoder: updates of low rank in the state of each context.

For each kind of linear module the program reads two states, `lora_a_{name}` [layers,
in_features, max_rank] and `lora_b_{name}` [layers, max_rank, out_features], and adds `(x a) b` to
`x W`. Core ML makes states of zeros, which is the base. Adapters lie side by side along the rank,
their scales multiplied into `b`; what they leave of it is zero.

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

_MODULE = re.compile(r"layers\.(\d+)\.(.+)")
_OTHER_BASE = "Use it with the model that it was made for."


def state_names(kind: str) -> tuple[str, str]:
    """Those of `a` and `b` for modules such as `self_attn.q_proj`."""
    name = kind.rpartition(".")[2]
    return f"lora_a_{name}", f"lora_b_{name}"


NAMES = {kind: state_names(kind) for kind in (*ATTENTION, *FEED_FORWARD)}
LORA_STATES = frozenset(name for names in NAMES.values() for name in names)


class CoreMLAdapter:
    """A `LoadedAdapter`: the matrices as they came, which cost no memory beside themselves.

    `states` are those of the model that has loaded it; `updates`, by modules, are None once it
    is closed.
    """

    def __init__(self, lora: Lora, states: AdapterStates) -> None:
        self.name, self.digest = lora.name, lora.digest
        self.states = states
        self.updates: Mapping[str, LowRank] | None = lora.decoder

    def close(self) -> None:
        """Let go of the matrices; what a context uses of them is in its state."""
        self.updates = None


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
        for module, update in lora.decoder.items():
            self._check(lora.name, module, update)
        return CoreMLAdapter(lora, self)

    def filled(self, adapters: Adapters) -> States:
        """The states that these adapters times their scales change, float16.

        Raises AdapterMismatch for adapters of another model, RuntimeFailed for closed ones, and
        NotSupported where all of them have more ranks than there is room for, or numbers beyond
        16 bits.
        """
        states: States = {}
        ends: dict[str, int] = {}
        # An order of their own, as the order of summands moves the last bits.
        for adapter, scale in sorted(adapters.items(), key=lambda item: item[0].digest):
            for module, update in self._updates(adapter).items():
                begin = ends.get(module, 0)
                end = ends[module] = begin + update.rank
                if end > self.max_rank:
                    raise self._no_room(sorted(each.name for each in adapters), end)
                layer, kind = self._place(module)
                for name in NAMES[kind]:
                    states.setdefault(name, np.zeros(self._shapes[name], np.float16))
                a, b = (states[name][layer] for name in NAMES[kind])
                with np.errstate(over="ignore"):
                    a[:, begin:end] = update.a.T
                    b[begin:end] = np.float32(scale) * update.b.T
                if not (np.isfinite(a[:, begin:end]).all() and np.isfinite(b[begin:end]).all()):
                    raise NotSupported(
                        f"The adapter {adapter.name} times {scale:g} has numbers that 16 bits can't"
                        " hold.",
                        hint="Use a smaller scale, or another runtime, such as mlx.",
                    )
        return states

    def empty(self, name: str) -> NDArray[np.float16]:
        """A state as the base has it."""
        return np.zeros(self._shapes[name], np.float16)

    def _common_sizes(self, info: PackageInfo) -> tuple[int, int]:
        """(layers, rank) of all states."""
        shapes = [[self._shapes.get(name, ()) for name in names] for names in NAMES.values()]
        if all(len(shape) == 3 for pair in shapes for shape in pair):
            sizes = {size for a, b in shapes for size in ((a[0], a[2]), (b[0], b[1]))}
            if len(sizes) == 1:
                return sizes.pop()
        raise refusal(info.path, "its states for adapters don't go together")

    def _check(self, adapter: str, module: str, update: LowRank) -> None:
        layer, kind = self._place(module)
        if kind not in NAMES or layer >= self._n_layers:
            raise AdapterMismatch(
                f"The adapter {adapter} changes {module}, which {self._model} doesn't have.",
                hint=_OTHER_BASE,
            )
        a, b = (self._shapes[name] for name in NAMES[kind])
        taken, given = (a[1], b[2]), (update.a.shape[1], update.b.shape[0])
        if given != taken:
            raise AdapterMismatch(
                f"The adapter {adapter} changes {module} from {given[0]} to {given[1]}"
                f" features; that of {self._model} goes from {taken[0]} to {taken[1]}.",
                hint=_OTHER_BASE,
            )
        if update.rank > self.max_rank:
            raise self._no_room([adapter], update.rank)

    def _place(self, module: str) -> tuple[int, str]:
        """(layer, kind), of which `_check` finds out whether the decoder has them."""
        match = _MODULE.fullmatch(module)
        return (int(match[1]), match[2]) if match is not None else (0, "")

    def _updates(self, adapter: LoadedAdapter) -> Mapping[str, LowRank]:
        if not isinstance(adapter, CoreMLAdapter) or adapter.states is not self:
            raise AdapterMismatch(
                f"The adapter {adapter.name} was loaded for another model than {self._model}.",
                hint="Load it for this one.",
            )
        if adapter.updates is None:
            raise RuntimeFailed(f"The adapter {adapter.name} was closed.", hint="Load it again.")
        return adapter.updates

    def _no_room(self, names: Sequence[str], rank: int) -> NotSupported:
        return NotSupported(
            f"{self._model} on Core ML has room for adapters of rank {self.max_rank}, and"
            f" {' and '.join(names)} need{'s' if len(names) == 1 else ''} {rank}.",
            hint="Use fewer or smaller ones, or another runtime, such as mlx.",
        )
