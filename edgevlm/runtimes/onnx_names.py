"""Which module of a model a product of an ONNX graph is, as far as names tell.

Exports name products after the modules of transformers; weights may carry the name instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

# From the name of a node or a weight to that of a module in a `Lora`, if it is one's.
Naming: TypeAlias = Callable[[str], str | None]

_END = r"(?:[./]MatMul\w*)?(?:[./]q?weight\w*)?$"
# onnxruntime-genai's builder calls `self_attn` `attn`.
_DECODER = re.compile(
    r"layers[./](\d+)[./](?:self_attn|attn|mlp)[./](q|k|v|o|qkv|gate|up|down|gate_up)_proj" + _END
)
# EdgeVLM's own exports, before they had such inputs, and the built-in model.
_OWN_DECODER = re.compile(r"layers\.(\d+)\.(qkv|o|gate_up|down)\.(?:weight|(?:weight\.)?levels)$")
_FEED_FORWARD = ("gate", "up", "down", "gate_up")
# SigLIP's tower and SmolVLM's projector. EdgeVLM calls a weight of few bits `levels`.
_VISION = re.compile(
    r"(?:(encoder[./]layers[./]\d+[./](?:self_attn[./](?:q|k|v|out)_proj|mlp[./]fc[12]))"
    r"|(connector[./]modality_projection[./]proj))(?:\.weight\.levels|" + _END + ")"
)


def decoder_product(name: str) -> str | None:
    """`layers.{i}.self_attn.q_proj` and its like; `qkv_proj` and `gate_up_proj` are several."""
    match = _DECODER.search(name) or _OWN_DECODER.match(name)
    if match is None:
        return None
    kind = "mlp" if match[2] in _FEED_FORWARD else "self_attn"
    return f"layers.{match[1]}.{kind}.{match[2]}_proj"


def vision_product(name: str) -> str | None:
    """`vision_model.encoder.layers.{i}.self_attn.q_proj` and its like, and the projector."""
    match = _VISION.search(name)
    if match is None:
        return None
    module = f"vision_model.{match[1]}" if match[1] else match[2]
    return module.replace("/", ".")
