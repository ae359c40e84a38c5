"""Core ML: `coreml/vision_encoder.mlpackage` and `coreml/decoder.mlpackage`, each a folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgevlm.models.layouts.base import Layout, ModelPart, missing

_HINT = "`edgevlm model convert MODEL --runtime coreml` makes the packages."


def find(paths: Collection[str], parts: Sequence[ModelPart], what: str) -> Layout:
    """Roles `vision_encoder` and `decoder` name each package's Manifest.json."""
    roles: dict[str, str] = {}
    if "vision" in parts:
        roles["vision_encoder"] = _package(paths, "vision_encoder", what)
    if "language" in parts:
        roles["decoder"] = _package(paths, "decoder", what)
    packages = [manifest.rpartition("/")[0] + "/" for manifest in roles.values()]
    inside = [path for path in paths if path.startswith(tuple(packages))]
    others = [p for p in paths if p.startswith("coreml/") and p.count("/") == 1]
    return Layout(roles, tuple(sorted({*inside, *others})), {})


def _package(paths: Collection[str], name: str, what: str) -> str:
    manifest = f"coreml/{name}.mlpackage/Manifest.json"
    if manifest not in paths:
        raise missing(f"coreml/{name}.mlpackage", what, _HINT)
    return manifest
