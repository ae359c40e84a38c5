"""Which file of a folder or a repository plays which part: the community ONNX layout.

`onnx/<part>[_<variant>].onnx` (or the same at the top), configuration as JSON and Jinja at
the top. Of several variants the decoder is taken at 4 bits, the vision encoder and the
token embeddings at 16 or 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgevlm.errors import ModelCorrupt, NotSupported

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


@dataclass(frozen=True, slots=True)
class Layout:
    """`roles` maps a role to a path; `paths` are all files that belong to the model."""

    roles: Mapping[str, str]
    paths: tuple[str, ...]
    quantization: Mapping[str, str]


def discover(paths: Iterable[str], runtime: str, what: str) -> Layout:
    """Find the parts among relative `paths` with `/` between their parts.

    Raises ModelCorrupt naming the missing file, and NotSupported for a runtime whose
    layout is not known; `what` is how the message calls the folder or repository.
    """
    if runtime != "onnx":
        raise NotSupported(
            f"{what} is not in the catalog, and runtime {runtime} takes only what is.",
            hint="`edgevlm model list` shows the catalog; runtime onnx takes other models too.",
        )
    present = set(paths)
    for name in _NEEDED:
        if name not in present:
            raise _missing(name, what)
    roles: dict[str, str] = {}
    quantization: dict[str, str] = {}
    for role, (part, stem, variants) in _PARTS.items():
        path, variant = _first(present, stem, variants, what)
        roles[role] = path
        quantization[part] = _LABELS.get(variant, variant.removeprefix("_"))
    weights = [p for p in present if any(_belongs(p, path) for path in roles.values())]
    configuration = [p for p in present if _is_configuration(p)]
    return Layout(roles, tuple(sorted(weights + configuration)), quantization)


def _first(present: set[str], stem: str, variants: tuple[str, ...], what: str) -> tuple[str, str]:
    for variant in variants:
        for folder in ("onnx/", ""):
            path = f"{folder}{stem}{variant}.onnx"
            if path in present:
                return path, variant
    raise _missing(f"onnx/{stem}.onnx", what)


def _belongs(path: str, model: str) -> bool:
    """Weights too large for one file lie beside it as `<model>_data`, `<model>.data`, ..."""
    return path == model or path.startswith((f"{model}_data", f"{model}.data"))


def _is_configuration(path: str) -> bool:
    return (
        "/" not in path
        and path.endswith((".json", ".jinja"))
        and not path.endswith(".index.json")
        and path not in ("manifest.json", "vocab.json")
    )


def _missing(name: str, what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{what} has no {name}.",
        hint="A model needs config.json, tokenizer.json and onnx/ with vision_encoder,"
        " embed_tokens and decoder_model_merged.",
    )
