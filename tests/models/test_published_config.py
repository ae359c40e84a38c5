"""config.json as the released repositories write it: what it leaves out is what transformers
takes for it, whoever of us reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_factory import OPTIONS, MlxParts, mlx_files
from smolvlm_factory import Dims, make_random_model
from transformers import AutoConfig

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import ModelCorrupt
from edgevlm.families import load_family
from edgevlm.models.shapes import local_shape
from edgevlm.models.vlm_config import read_config
from edgevlm.runtimes import mlx_config
from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

# HuggingFaceTB/SmolVLM2-500M-Video-Instruct: neither layers nor width of the vision tower's MLP.
SMOLVLM2_500M: dict[str, Any] = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "image_token_id": 49190,
    "model_type": "smolvlm",
    "scale_factor": 4,
    "text_config": {
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 64,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 15,
        "num_hidden_layers": 32,
        "num_key_value_heads": 5,
        "pixel_shuffle_factor": 4,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "torch_dtype": "bfloat16",
        "vocab_size": 49280,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "max_image_size": {"longest_edge": 512},
        "model_type": "smolvlm_vision",
        "num_attention_heads": 12,
        "patch_size": 16,
        "size": {"longest_edge": 2048},
    },
}
OMITTED = [None] + [
    (part, name)
    for part in ("text_config", "vision_config")
    for name in sorted(SMOLVLM2_500M[part])
    if (part, name) != ("text_config", "hidden_size")
    and name not in ("head_dim", "architectures", "max_image_size", "size")
]
TEXT = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
}
VISION = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "layer_norm_eps": "layer_norm_eps",
}


@pytest.fixture(params=OMITTED, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = json.loads(json.dumps(SMOLVLM2_500M))
    # Its size follows from the others, one of which may be the one left out.
    del config["text_config"]["head_dim"]
    if request.param is not None:
        part, name = request.param
        del config[part][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_conversion_reads_it_as_transformers_does(folder: Path) -> None:
    expected, found = AutoConfig.from_pretrained(folder), read_config(folder)
    for ours, theirs in TEXT.items():
        assert getattr(found.text, ours) == getattr(expected.text_config, theirs), ours
    for ours, theirs in VISION.items():
        assert getattr(found.vision, ours) == getattr(expected.vision_config, theirs), ours
    assert found.text.head_dim == expected.text_config.head_dim
    assert found.text.rope_theta == expected.text_config.rope_parameters["rope_theta"]


def test_mlx_reads_it_as_transformers_does(folder: Path) -> None:
    expected, found = AutoConfig.from_pretrained(folder), mlx_config.read_config(folder)
    for name in (*TEXT.values(), "model_type"):
        assert found["text_config"][name] == getattr(expected.text_config, name), name
    for name in VISION.values():
        known = found["vision_config"].get(name, 1e-6)
        assert known == getattr(expected.vision_config, name), name
    theta = expected.text_config.rope_parameters["rope_theta"]
    assert found["text_config"]["rope_theta"] == theta


def test_a_plan_knows_its_sizes(folder: Path) -> None:
    expected, shape = AutoConfig.from_pretrained(folder), local_shape(folder)
    assert shape is not None
    assert shape.decoder.layers == expected.text_config.num_hidden_layers
    assert shape.decoder.kv_heads == expected.text_config.num_key_value_heads
    assert shape.context_length == expected.text_config.max_position_embeddings
    assert shape.vision is not None
    assert shape.vision.tile == expected.vision_config.image_size


def test_heads_that_only_transformers_knows_of(tmp_path: Path) -> None:
    """As in SmolVLM2-2.2B: 16 heads, where mlx-vlm would take one for every 64 features."""
    dims = Dims(vision_hidden=128, vision_intermediate=128, vision_heads=16)
    whole = make_random_model(tmp_path / "whole", seed=2, dims=dims)
    short = Path(shutil.copytree(whole, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    del config["vision_config"]["num_attention_heads"]
    (short / "config.json").write_text(json.dumps(config))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = load_family(whole).preprocess(pixels)
    expected = MlxParts(whole).vision.encode(image, Cancel())
    found = MlxVisionEncoder(mlx_files(short), OPTIONS).encode(image, Cancel())
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [0, -1, 10**12, "12", True, 2.0])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("text_config", "num_attention_heads"),
        ("text_config", "num_hidden_layers"),
        ("vision_config", "num_hidden_layers"),
        ("vision_config", "patch_size"),
    ],
)
def test_numbers_that_no_model_has(tmp_path: Path, part: str, name: str, value: Any) -> None:
    config = {**SMOLVLM2_500M, part: {**SMOLVLM2_500M[part], name: value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelCorrupt, match=name):
        read_config(tmp_path)
    assert local_shape(tmp_path) is None
