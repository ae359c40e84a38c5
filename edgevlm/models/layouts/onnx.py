"""ONNX Runtime: the three-file layout of community exports.

`onnx/<part>[_<variant>].onnx` (or the same at the top), configuration as JSON and Jinja at
the top. Of several variants the decoder is taken at 4 bits, the vision encoder and the
token embeddings at 16 or 8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from edgevlm.errors import ModelCorrupt
from edgevlm.models.layouts.base import Layout, ModelPart, missing

# Of a SigLIP tower (random weights, ONNX Runtime on CPU) the fp16 graph came 40 times nearer
# to the fp32 one than dynamic 8-bit quantisation did.
_GENTLE = ("_fp16", "_quantized", "_uint8", "_int8", "", "_q4f16", "_q4", "_bnb4")
_SMALL = ("_q4", "_q4f16", "_bnb4", "_quantized", "_uint8", "_int8", "_fp16", "")
_PARTS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "vision_encoder": ("vision", "vision_encoder", _GENTLE),
    "embed_tokens": ("embeddings", "embed_tokens", _GENTLE),
    "decoder": ("decoder", "decoder_model_merged", _SMALL),
}
_LABELS = {"": "fp32", "_quantized": "uint8"}
_NEEDED = ("config.json", "tokenizer.json")
_HINT = (
    "A model needs config.json, tokenizer.json and onnx/ with vision_encoder,"
    " embed_tokens and decoder_model_merged."
)


def find(paths: Collection[str], parts: Sequence[ModelPart], what: str) -> Layout:
    """Roles `vision_encoder`, `embed_tokens` and `decoder`."""
    for name in _NEEDED:
        if name not in paths:
            raise _missing(name, what)
    roles: dict[str, str] = {}
    quantization: dict[str, str] = {}
    for role, (part, stem, variants) in _PARTS.items():
        if ("vision" if role == "vision_encoder" else "language") not in parts:
            continue
        path, variant = _first(paths, stem, variants, what)
        roles[role] = path
        quantization[part] = _LABELS.get(variant, variant.removeprefix("_"))
    weights = [p for p in paths if any(_belongs(p, path) for path in roles.values())]
    return Layout(roles, tuple(sorted(weights)), quantization)


def _first(
    present: Collection[str], stem: str, variants: tuple[str, ...], what: str
) -> tuple[str, str]:
    for variant in variants:
        for folder in ("onnx/", ""):
            path = f"{folder}{stem}{variant}.onnx"
            if path in present:
                return path, variant
    raise _missing(f"onnx/{stem}.onnx", what)


def _belongs(path: str, model: str) -> bool:
    """Weights too large for one file lie beside it as `<model>_data`, `<model>.data`, ..."""
    return path == model or path.startswith((f"{model}_data", f"{model}.data"))


def _missing(name: str, what: str) -> ModelCorrupt:
    return missing(name, what, _HINT)
