"""Graphs that take adapters: which inputs they have for them, or are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock

from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD, Adapters, Lora, LowRank
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.runtimes.onnx_adapter import AdapterInputs, AdapterRoom, OnnxAdapter, find_pair
from edgevlm.runtimes.onnx_layout import CacheLayout
from edgevlm.runtimes.onnx_names import Naming
from edgevlm.runtimes.onnx_rewrite import EXPORT_AGAIN, graph_with_adapter_inputs
from edgevlm.runtimes.onnx_session import OrtValue, Session

_DECODER_INPUT = re.compile(r"lora\.layers\.(\d+)\.((?:self_attn|mlp)\.\w+_proj)\.a")
_INPUT = re.compile(r"lora\.(.+)\.a")
_TOWER = (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
_PACKED = {"self_attn.qkv_proj": ATTENTION[:3], "mlp.gate_up_proj": FEED_FORWARD[:2]}


class AdaptableGraph:
    """A graph of the model called `model`, and what of it runs with adapters.

    One without inputs for them is loaded a second time, with such inputs (`onnx_rewrite`, by
    `naming`), for the first adapter: what adds one runs that, all else the graph as it came.
    `find` reads the inputs, and raises ModelCorrupt. Safe for threads.
    """

    def __init__(
        self,
        model: str,
        plain: Session,
        threads: int,
        naming: Naming,
        find: Callable[[Session], AdapterInputs],
    ) -> None:
        self._model, self._plain, self._threads = model, plain, threads
        self._naming, self._find = naming, find
        self._adapted: tuple[Session, AdapterInputs] | None = None
        self._lock = Lock()

    def load(self, lora: Lora, updates: Mapping[str, LowRank]) -> OnnxAdapter:
        """Take these updates of `lora`. Raises NotSupported, AdapterMismatch; ModelCorrupt,
        DoesNotFit, RuntimeFailed."""
        _, inputs = self._with_inputs()
        return inputs.load(lora, updates, self._model)

    def adding(
        self, adapters: Adapters, room: AdapterRoom
    ) -> tuple[Session, Mapping[str, OrtValue]]:
        """What runs with these adapters, and what it is fed for them. Raises what
        `AdapterInputs.put` does."""
        used = {adapter: scale for adapter, scale in adapters.items() if scale}
        if not used:
            return self._plain, {}
        session, inputs = self._with_inputs()
        return session, inputs.put(used, room)

    def close(self) -> None:
        with self._lock:
            self._plain.close()
            if self._adapted is not None:
                self._adapted[0].close()

    def _with_inputs(self) -> tuple[Session, AdapterInputs]:
        with self._lock:
            self._plain.opened()
            if self._adapted is None:
                session = self._plain if self._plain.optional else self._load_with_inputs()
                self._adapted = session, self._find(session)
            return self._adapted

    def _load_with_inputs(self) -> Session:
        path = self._plain.path
        graph = graph_with_adapter_inputs(path, self._naming)
        try:
            return Session(path, self._threads, graph)
        except ModelCorrupt as error:  # sound before, so it is our change that it can't take
            raise NotSupported(
                f"{path.name} takes no adapters, and can't be changed to.", hint=EXPORT_AGAIN
            ) from error


def decoder_inputs(decoder: Session, layout: CacheLayout) -> AdapterInputs:
    """Those for the layers of a decoder. Raises ModelCorrupt for what is no pair."""
    n_layers = len(layout.sizes) // 2
    pairs = [
        find_pair(decoder, port, partial(_shared, layout, int(match[1]), match[2]))
        for name, port in decoder.optional.items()
        if (match := _DECODER_INPUT.fullmatch(name)) and int(match[1]) < n_layers
    ]
    return AdapterInputs(decoder.path, pairs, (*ATTENTION, *FEED_FORWARD))


def vision_inputs(encoder: Session) -> AdapterInputs:
    """All, by the modules that they name. Raises ModelCorrupt for what is no pair."""
    pairs = [
        find_pair(encoder, port, partial(_alone, match[1]))
        for name, port in encoder.optional.items()
        if (match := _INPUT.fullmatch(name))
    ]
    return AdapterInputs(encoder.path, pairs, _TOWER)


def _shared(layout: CacheLayout, layer: int, name: str, features: int) -> Mapping[str, int]:
    """How the modules of a decoder's layer share the output features of a product."""
    parts = _PACKED.get(name, (name,))
    if name == "self_attn.qkv_proj":
        heads, width = layout.sizes[2 * layer]
        widths = [features - 2 * heads * width, heads * width, heads * width]
    else:
        widths = [features // len(parts)] * len(parts)
    return dict(zip([f"layers.{layer}.{part}" for part in parts], widths, strict=True))


def _alone(module: str, features: int) -> Mapping[str, int]:
    return {module: features}
