"""Folders that PEFT saves are read with PEFT's own meaning, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config
from peft_reference import PeftReference

from edgevlm.adapters.peft import read_peft
from edgevlm.adapters.peft_config import read_config
from edgevlm.errors import NotSupported

# Settings of `LoraConfig`.
READ: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "all-linear but": {
        "target_modules": "all-linear",
        "exclude_modules": ["out_proj", "vision_model.encoder.layers.0.mlp.fc1"],
    },
    "all-linear but a pattern": {
        "target_modules": "all-linear",
        "exclude_modules": r".*(vision_model|connector).*",
    },
    "names": {"target_modules": ["self_attn.q_proj", "proj", "fc2"]},
    "names, none of a pattern": {"target_modules": ["q_proj"], "exclude_modules": r".*vision.*"},
    "a whole name": {"target_modules": ["model.text_model.layers.1.mlp.up_proj"]},
    "a pattern": {"target_modules": r"model\.text_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"},
    "a pattern that looks ahead": {"target_modules": r"^(?!.*(vision|connector)).*_proj$"},
    "a pattern that looks behind": {
        "target_modules": r".*(?<!vision_model\.encoder\.)layers.*_proj"
    },
    "90 alternatives": {
        "target_modules": "|".join(
            rf".*text_model\.layers\.{layer}\..*\.{part}_proj"
            for layer in range(30)
            for part in "qkv"
        )
    },
    "one layer": {"target_modules": ["q_proj", "proj", "fc1"], "layers_to_transform": 1},
    "layers by a name": {
        "target_modules": ["q_proj", "fc1"],
        "layers_to_transform": [0, 5],
        "layers_pattern": ["blocks", "layers"],
    },
    "layers by another name": {
        "target_modules": ["q_proj", "proj"],
        "layers_to_transform": [1],
        "layers_pattern": "encoder.layers",
    },
    # The first pattern that fits counts. PEFT sorts them when it saves, so these are sorted.
    "patterns of ranks": {
        "target_modules": "all-linear",
        "r": 6,
        "lora_alpha": 9,
        "rank_pattern": {r".*1\.mlp.*": 5, "^model.text_model.layers.0.*": 3, "fc1": 2, "proj": 4},
        "alpha_pattern": {
            "(k|v)_proj": 8,
            ".*vision.*": 7,
            "attn.q_proj": 99,
            "self_attn.q_proj": 3,
        },
    },
    "patterns of ranks with rsLoRA": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "use_rslora": True,
        "rank_pattern": {"layers.1.self_attn.(q|v)_proj": 3},
        "alpha_pattern": {r"(text|vision)_model\..*v_proj": 5},
    },
    "another start": {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"},
    "dropout": {"target_modules": ["q_proj"], "lora_dropout": 0.1, "task_type": "CAUSAL_LM"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "DoRA"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "saved whole"),
    "every bias": ({"bias": "all"}, "biases"),
    "biases of its modules": ({"bias": "lora_only"}, "biases"),
    "biases of its own": ({"lora_bias": True, "target_modules": ["fc1"]}, "biases"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "trained token embeddings"),
    "all tokens": ({"target_modules": ["q_proj", "embed_tokens"]}, "changed token embeddings"),
    "places": ({"target_modules": ["position_embedding"]}, "changed embeddings"),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, "changed output head"),
    "a convolution": ({"target_modules": ["patch_embedding"]}, "a convolution"),
    "parameters": (
        {"target_modules": [], "target_parameters": ["q_proj.weight"]},
        "parameters that are no linear module",
    ),
    "PiSSA": ({"init_lora_weights": "pissa"}, "'pissa'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "'olora'"),
    "activated LoRA": (
        {"alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"},
        "activated LoRA",
    ),
    "a pattern of layers": (
        {"layers_to_transform": [1], "layers_pattern": "(encoder|text_model).layers"},
        "layers_pattern",
    ),
    "IA3": (
        {"config": IA3Config(target_modules=["k_proj"], feedforward_modules=[])},
        "type 'IA3'",
    ),
}


@pytest.fixture(scope="module")
def reference(smolvlm_source: Path) -> PeftReference:
    return PeftReference(smolvlm_source)


@pytest.mark.parametrize("case", READ)
def test_modules_ranks_and_scales_are_those_of_peft(
    reference: PeftReference, tmp_path: Path, case: str
) -> None:
    saved = reference.save(tmp_path, **READ[case])
    lora, config = read_peft(tmp_path, name="random"), read_config(tmp_path)
    decoder = {f"model.text_model.{name}": update for name, update in lora.decoder.items()}
    vision = {f"model.{name}": update for name, update in lora.vision.items()}
    found = decoder | vision
    assert {name: update.rank for name, update in found.items()} == {
        name: rank for name, (rank, _) in saved.modules.items()
    }
    linear = [
        name for name, layer in reference.base.named_modules() if isinstance(layer, torch.nn.Linear)
    ]
    assert saved.modules
    assert {name for name in linear if config.targets(name)} == saved.modules.keys()
    for name, (rank, scaling) in saved.modules.items():
        assert config.rank_of(name) == rank
        assert config.scaling_of(name) == pytest.approx(scaling, rel=1e-12)


@pytest.mark.parametrize("case", REFUSED)
def test_other_adapters_are_refused_by_name(
    reference: PeftReference, tmp_path: Path, case: str
) -> None:
    settings, says = REFUSED[case]
    reference.save(tmp_path, **{"target_modules": ["q_proj"], **settings})
    with pytest.raises(NotSupported, match=says):
        read_peft(tmp_path, name="random")
