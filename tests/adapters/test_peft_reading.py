"""A PEFT folder is read with the meaning that PEFT gives it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_factory import SMALL, random_lora, read_tensors, write_peft, write_tensors

from edgevlm.adapters.peft import WEIGHTS_NAME, read_peft
from edgevlm.adapters.peft_config import CONFIG_NAME, read_config
from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD, Lora

VISION = {
    "model.vision_model.encoder.layers.0.self_attn.q_proj": (32, 32),
    "model.vision_model.encoder.layers.1.mlp.fc2": (32, 64),
    "model.connector.modality_projection.proj": (64, 512),
}


def assert_same(found: Lora, expected: Lora, tolerance: float = 1e-6) -> None:
    for kind in ("decoder", "vision"):
        one, other = getattr(found, kind), getattr(expected, kind)
        assert one.keys() == other.keys()
        for name in one:
            assert (one[name].a.dtype, one[name].b.dtype) == (np.float32, np.float32)
            np.testing.assert_allclose(one[name].a, other[name].a, rtol=0, atol=tolerance)
            np.testing.assert_allclose(one[name].b, other[name].b, rtol=0, atol=tolerance)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / WEIGHTS_NAME
    write_tensors(path, {k.replace(old, new): v for k, v in read_tensors(path).items()})


def test_all_linear_is_what_was_written(tmp_path: Path) -> None:
    lora = read_peft(write_peft(tmp_path, SMALL), name="random")
    assert lora.name == "random"
    assert lora.decoder.keys() == {
        f"layers.{layer}.{part}" for layer in (0, 1) for part in (*ATTENTION, *FEED_FORWARD)
    }
    assert lora.decoder["layers.1.mlp.down_proj"].a.shape == (8, 128)
    assert lora.decoder["layers.1.mlp.down_proj"].b.shape == (64, 8)
    assert_same(lora, random_lora(SMALL))
    assert lora.digest == random_lora(SMALL).digest


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_float_becomes_float32(tmp_path: Path, dtype: Any) -> None:
    lora = read_peft(write_peft(tmp_path, SMALL, dtype=dtype), name="random")
    assert_same(lora, random_lora(SMALL), {"float32": 0, "float16": 4e-4, "bfloat16": 4e-3}[dtype])


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "text_model.",
        "model.text_model.",
        "language_model.",
        "language_model.model.",
        "model.language_model.",
        "model.language_model.model.",
    ],
)
@pytest.mark.parametrize("wrapped", ["", "base_model.model."])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_a_decoder_is_known_under_all_its_names(
    tmp_path: Path, prefix: str, wrapped: str, adapter: str
) -> None:
    write_peft(tmp_path, SMALL, targets=("q_proj",), prefix=prefix)
    rename(tmp_path, "base_model.model.", wrapped)
    rename(tmp_path, ".weight", f"{adapter}.weight")
    lora = read_peft(tmp_path, name="random")
    assert_same(lora, random_lora(SMALL, targets=("q_proj",)))


def test_the_vision_tower_and_its_connector_stand_apart(tmp_path: Path) -> None:
    folder = write_peft(tmp_path, SMALL, targets=("v_proj",), extra=VISION)
    change_config(folder, target_modules=r".*(v_proj|vision_model.*|modality_projection\.proj)")
    lora = read_peft(folder, name="random")
    assert_same(lora, random_lora(SMALL, targets=("v_proj",), extra=VISION))
    assert "connector.modality_projection.proj" in lora.vision
    assert "vision_model.encoder.layers.1.mlp.fc2" in lora.vision
    assert lora.n_bytes == 4 * sum(v.size for v in read_tensors(folder / WEIGHTS_NAME).values())


@pytest.mark.parametrize(
    "tower", ["vision_model", "vision_tower.vision_model", "model.vision_tower", "model.visual"]
)
def test_a_vision_tower_is_known_under_all_its_names(tmp_path: Path, tower: str) -> None:
    write_peft(tmp_path, SMALL, extra={f"{tower}.blocks.0.attn.qkv": (96, 32)})
    assert list(read_peft(tmp_path, name="random").vision) == ["vision_model.blocks.0.attn.qkv"]


# What PEFT 0.21.2 gives in `module.r` and `module.scaling` for these patterns.
PATTERNS = {
    "r": 8,
    "lora_alpha": 16,
    "rank_pattern": {
        r"^model.text_model.layers.0.self_attn.(q|k)_proj": 4,
        "mlp.down_proj": 2,
        r"layers\.1\..*": 16,
    },
    "alpha_pattern": {
        "attn.q_proj": 99,  # begins inside a name's part: fits nothing
        "self_attn.q_proj": 3,
        r".*0\.mlp.*": 5.5,
        "down_proj": 7,
    },
}
RANKS_AND_SCALES = {
    "layers.0.self_attn.q_proj": (4, 0.75, 1.5),
    "layers.0.self_attn.k_proj": (4, 4.0, 8.0),
    "layers.0.self_attn.v_proj": (8, 2.0, 5.65685424949238),
    "layers.0.mlp.up_proj": (8, 0.6875, 1.9445436482630056),
    "layers.0.mlp.down_proj": (2, 2.75, 3.8890872965260113),
    "layers.1.self_attn.q_proj": (16, 0.1875, 0.75),
    "layers.1.self_attn.k_proj": (16, 1.0, 4.0),
    "layers.1.mlp.up_proj": (16, 1.0, 4.0),
    "layers.1.mlp.down_proj": (2, 3.5, 4.949747468305833),
}


@pytest.mark.parametrize("module", RANKS_AND_SCALES)
def test_patterns_give_the_ranks_and_scales_of_peft(tmp_path: Path, module: str) -> None:
    rank, plain, stabilised = RANKS_AND_SCALES[module]
    write_peft(tmp_path, SMALL)
    for rslora, scaling in ((False, plain), (True, stabilised)):
        change_config(tmp_path, use_rslora=rslora, **PATTERNS)
        config = read_config(tmp_path)
        assert config.rank_of(f"model.text_model.{module}") == rank
        assert config.scaling_of(f"model.text_model.{module}") == pytest.approx(scaling, rel=1e-12)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_folded_into_b(tmp_path: Path, rslora: bool) -> None:
    write_peft(
        tmp_path,
        SMALL,
        rank=16,
        alpha=24,
        rank_pattern={"layers.0.mlp.up_proj": 4},
        alpha_pattern={"v_proj": 6},
        rslora=rslora,
    )
    lora = read_peft(tmp_path, name="random")
    tensors = read_tensors(tmp_path / WEIGHTS_NAME)
    for module, rank, alpha in (
        ("layers.0.self_attn.q_proj", 16, 24),
        ("layers.1.self_attn.v_proj", 16, 6),
        ("layers.0.mlp.up_proj", 4, 24),
    ):
        b = tensors[f"base_model.model.model.text_model.{module}.lora_B.weight"]
        scaling = np.float32(alpha / (math.sqrt(rank) if rslora else rank))
        np.testing.assert_array_equal(lora.decoder[module].b, b * scaling)
        assert lora.decoder[module].rank == rank


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "o_proj"]},
        {"target_modules": ["self_attn.q_proj", "lm_head"]},
        {"target_modules": "all-linear"},
        {"target_modules": "ALL-LINEAR"},
        {"target_modules": None},
        {"target_modules": r".*text_model.*(q|k|v)_proj"},
        {"target_modules": r"^(?!.*vision)(?!lm_head).*q_proj$"},
        {"target_modules": "all-linear", "exclude_modules": ["lm_head", "down_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": r".*vision_model.*"},
        {"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
        {"bias": "none", "loftq_config": {}, "megatron_core": "megatron.core"},
        {"init_lora_weights": "gaussian", "auto_mapping": {"base_model_class": "SmolVLM"}},
        {"modules_to_save": [], "trainable_token_indices": None, "use_dora": False},
    ],
    ids=lambda fields: " ".join(map(str, fields.values()))[:40],
)
def test_targets_and_settings_that_change_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_peft(tmp_path, SMALL, targets=("q_proj",))
    change_config(tmp_path, **fields)
    assert_same(read_peft(tmp_path, name="random"), random_lora(SMALL, targets=("q_proj",)))


def test_the_first_pattern_that_fits_decides(tmp_path: Path) -> None:
    write_peft(tmp_path, SMALL)
    change_config(tmp_path, rank_pattern={"self_attn.q_proj": 3, "q_proj": 5, ".*": 7})
    config = read_config(tmp_path)
    assert [config.rank_of(f"model.layers.0.{m}") for m in ("self_attn.q_proj", "q_proj", "x")] == [
        3,
        5,
        7,
    ]


def test_a_digest_is_of_names_and_numbers(tmp_path: Path) -> None:
    def digest(name: str = "random", **kwargs: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return read_peft(write_peft(folder, SMALL, **kwargs), name=name).digest

    first = digest()
    assert len(first) == 64
    assert digest("other") == digest(prefix="model.") == first
    others = [digest(seed=1), digest(rank=4), digest(targets=("q_proj",)), digest(alpha=15)]
    assert len({first, *others}) == 5


def test_nothing_of_the_file_is_needed_once_it_was_read(tmp_path: Path) -> None:
    lora = read_peft(write_peft(tmp_path, SMALL), name="random")
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(lora, random_lora(SMALL))
