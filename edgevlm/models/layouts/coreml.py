"""Core ML: `coreml/vision_encoder.mlpackage` and `coreml/decoder.mlpackage`, each a folder,
and `coreml/embed_tokens.npy`, which the decoder's input is looked up in."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgevlm.models.layouts.base import Layout, ModelPart, missing

_EMBEDDINGS = "coreml/embed_tokens.npy"
_HINT = "`edgevlm model convert MODEL --runtime coreml` makes the packages."


def find(paths: Collection[str], parts: Sequence[ModelPart], what: str) -> Layout:
    """Roles `vision_encoder` and `decoder` name each package's Manifest.json; `embed_tokens`."""
    roles: dict[str, str] = {}
    quantization: dict[str, str] = {}
    if "vision" in parts:
        roles["vision_encoder"] = _package(paths, "vision_encoder", what)
        quantization["vision"] = "coreml"
    if "language" in parts:
        roles["decoder"] = _package(paths, "decoder", what)
        quantization["decoder"] = "coreml"
        if _EMBEDDINGS not in paths:
            raise missing(_EMBEDDINGS, what, _HINT)
        roles["embed_tokens"] = _EMBEDDINGS
    packages = [path.rpartition("/")[0] + "/" for path in roles.values() if path != _EMBEDDINGS]
    inside = {path for path in paths if path.startswith(tuple(packages))}
    return Layout(roles, tuple(sorted(inside | set(roles.values()))), quantization)


def _package(paths: Collection[str], name: str, what: str) -> str:
    manifest = f"coreml/{name}.mlpackage/Manifest.json"
    if manifest not in paths:
        raise missing(f"coreml/{name}.mlpackage", what, _HINT)
    return manifest
