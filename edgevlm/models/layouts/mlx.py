"""MLX: a folder of config.json and safetensors, at the top or in `mlx/`, with both parts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgevlm.models.layouts.base import Layout, ModelPart, missing

# Beside a model in its folder, and no part of it: an adapter, and Mistral's own format.
_OTHER_WEIGHTS = ("adapter", "consolidated")
_HINT = "MLX needs config.json and *.safetensors in one folder."


def find(paths: Collection[str], parts: Sequence[ModelPart], what: str) -> Layout:
    """Role `weights`: the first file of weights, whose folder is the MLX model's."""
    for folder in ("mlx/", ""):
        inside = [p for p in paths if p.startswith(folder) and "/" not in p[len(folder) :]]
        weights = [p for p in sorted(inside) if _is_weights(p.rpartition("/")[2])]
        if weights and f"{folder}config.json" in inside:
            others = [p for p in inside if p.endswith((".json", ".jinja", ".txt", ".model"))]
            quantization = {"vision": "mlx"} if "vision" in parts else {}
            if "language" in parts:
                quantization["decoder"] = "mlx"
            return Layout({"weights": weights[0]}, tuple(sorted({*weights, *others})), quantization)
    raise missing("config.json with *.safetensors", what, _HINT)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith(_OTHER_WEIGHTS)
