"""Which files of a folder are an MLX model."""

from __future__ import annotations

import pytest

from edgevlm.errors import ModelCorrupt
from edgevlm.models.layouts.mlx import find

BOTH = ("vision", "language")


def test_the_shards_of_a_folder_with_what_describes_them() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    described = ["config.json", "model.safetensors.index.json", "tokenizer.json"]
    others = ["README.md", "modeling.py", "onnx/model.onnx", "sub/other.safetensors"]
    layout = find([*others, *shards, *described], BOTH, "it")
    assert layout.roles == {"weights": shards[0]}
    assert layout.paths == tuple(sorted([*shards, *described]))
    assert set(layout.quantization) == {"vision", "decoder"}


def test_a_folder_of_its_own_comes_first() -> None:
    paths = ["config.json", "model.safetensors", "mlx/config.json", "mlx/model.safetensors"]
    layout = find(paths, ("language",), "it")
    assert layout.roles == {"weights": "mlx/model.safetensors"}
    assert "model.safetensors" not in layout.paths


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_weights_that_are_no_model(name: str) -> None:
    with pytest.raises(ModelCorrupt, match=r"it has no config\.json with \*\.safetensors"):
        find(["config.json", name], BOTH, "it")
    layout = find(["config.json", name, "model.safetensors"], BOTH, "it")
    assert layout.roles == {"weights": "model.safetensors"}
    assert name not in layout.paths
