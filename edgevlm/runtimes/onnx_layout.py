"""What a decoder graph takes and gives, read from the graph: exports differ, and a wrong
one should be refused when it is loaded, with what is wrong about it."""

from __future__ import annotations

import json
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.engine.contract import LoadOptions, ModelFiles
from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.runtimes.onnx_session import Array, Port, Session, refusal

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_REQUIRED = ("inputs_embeds", "attention_mask")
_OPTIONAL = ("position_ids", "num_logits_to_keep")
# The number comes from a file that anyone may have written, and masks are made of it.
_LONGEST_CONTEXT = 2**20


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Names of past inputs and present outputs, pairwise, and (kv_heads, head_dim) of each
    tensor `dtype` [1, kv_heads, positions, head_dim]."""

    past: tuple[str, ...]
    present: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    dtype: np.dtype[Any]

    def empty(self, positions: int) -> list[Array]:
        """Zeroed arrays; the system gives a page its memory when it is first written."""
        return [np.zeros((1, heads, positions, width), self.dtype) for heads, width in self.sizes]


def cache_layout(decoder: Session) -> CacheLayout:
    """The keys and values of all layers, in order. Raises ModelCorrupt, NotSupported."""
    past = sorted((name for name in decoder.inputs if _PAST.fullmatch(name)), key=_layer_and_kind)
    expected = [f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(past))]
    if not past or len(past) % 2 or past != expected:
        raise refusal(decoder.path, "its past_key_values are not one key and value a layer")
    present = [name.replace("past_key_values", "present") for name in past]
    missing = [name for name in present if name not in decoder.outputs]
    if missing:
        raise refusal(decoder.path, f"it gives no {missing[0]}")
    ports = [decoder.inputs[name] for name in past] + [decoder.outputs[name] for name in present]
    dtypes = {port.dtype for port in ports}
    if len(dtypes) > 1 or ports[0].dtype.kind != "f":
        raise refusal(decoder.path, f"its keys and values are {_listed(dtypes)}")
    sizes = tuple(_head_sizes(decoder.path, port) for port in ports[: len(past)])
    return CacheLayout(tuple(past), tuple(present), sizes, ports[0].dtype)


def check_ports(embed_tokens: Session, decoder: Session) -> None:
    """Names, types and ranks of everything but the cache. Raises ModelCorrupt, NotSupported."""
    if len(embed_tokens.inputs) != 1 or len(embed_tokens.outputs) != 1:
        raise refusal(embed_tokens.path, "it is not one table of embeddings")
    (ids,) = embed_tokens.inputs.values()
    (embeddings,) = embed_tokens.outputs.values()
    _check(embed_tokens.path, ids, "i", 2)
    _check(embed_tokens.path, embeddings, "f", 3)
    for name in _REQUIRED:
        if name not in decoder.inputs:
            raise refusal(decoder.path, f"it takes no {name}")
    if "logits" not in decoder.outputs:
        raise refusal(decoder.path, "it gives no logits")
    strange = [
        name
        for name in decoder.inputs
        if name not in _REQUIRED + _OPTIONAL and not _PAST.fullmatch(name)
    ]
    if strange:
        raise NotSupported(
            f"{decoder.path.name} wants an input {strange[0]!r}, which is not known here.",
            hint=f"Known: {', '.join(_REQUIRED + _OPTIONAL)} and past_key_values.",
        )
    _check(decoder.path, decoder.inputs["inputs_embeds"], "f", 3)
    _check(decoder.path, decoder.inputs["attention_mask"], "ib", 2)
    _check(decoder.path, decoder.outputs["logits"], "f", 3)
    widths = {embeddings.shape[2], decoder.inputs["inputs_embeds"].shape[2]} - {None}
    if len(widths) > 1:
        raise refusal(decoder.path, f"{embed_tokens.path.name} gives embeddings of another width")


def context_length(files: ModelFiles, options: LoadOptions) -> int:
    """The model's own limit from `config.json`, capped by the options. Raises ModelCorrupt."""
    path = files.folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        text = config.get("text_config") or {}
        own = text.get("max_position_embeddings") or config["max_position_embeddings"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelCorrupt(
            f"{path} gives no max_position_embeddings.",
            hint="The model's config.json must lie in its folder; fetch the model again.",
        ) from error
    if type(own) is not int or not 1 <= own <= _LONGEST_CONTEXT:
        raise refusal(path, f"max_position_embeddings is {str(own)[:40]}")
    return min(own, options.context_length or own)


def shared_buffer_label(decoder: Session) -> bool | None:
    """Whether past and present may be one buffer: what our exporter wrote into the graph,
    else False without GroupQueryAttention and None (to be tried) with it."""
    labels = decoder.metadata
    if "edgevlm.attention" in labels:
        return labels.get("edgevlm.shared_kv") == "1"
    with decoder.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
        return None if m.find(b"GroupQueryAttention") >= 0 else False


def _layer_and_kind(name: str) -> tuple[int, str]:
    match = _PAST.fullmatch(name)
    assert match
    return int(match[1]), match[2]


def _head_sizes(path: Path, port: Port) -> tuple[int, int]:
    if len(port.shape) != 4:
        raise refusal(path, f"{port.name} has {len(port.shape)} dimensions, not 4")
    _, heads, positions, width = port.shape
    if heads is None or width is None or positions is not None:
        raise refusal(path, f"{port.name} has shape {port.shape}, not [1, kv_heads, ?, head_dim]")
    return heads, width


def _check(path: Path, port: Port, kinds: str, rank: int) -> None:
    """`kinds` are those of numpy: i integer, f float, b boolean."""
    if port.dtype.kind not in kinds or len(port.shape) != rank:
        raise refusal(path, f"{port.name} is {port.dtype} with {len(port.shape)} dimensions")


def _listed(dtypes: set[np.dtype[Any]]) -> str:
    return " and ".join(sorted(str(dtype) for dtype in dtypes))
