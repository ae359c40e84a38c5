"""Adapters of vision encoders on MLX: merged weights on transformers say what they must do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from lora_factory import random_lora
from mlx_factory import OPTIONS, CountedCancel, mlx_files
from mlx_foreign import make_llava, make_qwen25vl
from vision_adapters import (
    MIXTURES,
    changed,
    check_each_picture_has_its_own,
    check_sees_as_merged,
    loaded,
    mixture,
    picture,
    vision_lora,
)

from edgevlm.engine.adapter import Adapters, Lora
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prompt import ImageInput
from edgevlm.errors import AdapterMismatch, Interrupted, NotSupported, RuntimeFailed
from edgevlm.runtimes.mlx_own_vision import MlxOwnVisionEncoder
from edgevlm.runtimes.mlx_vision import MlxVisionEncoder

WEIGHTS = "model.safetensors"
QUERY = "vision_model.encoder.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def encoder(smolvlm_source: Path) -> Iterator[MlxVisionEncoder]:
    encoder = MlxVisionEncoder(mlx_files(smolvlm_source), OPTIONS)
    yield encoder
    encoder.close()


@pytest.fixture(scope="module")
def image(smolvlm_source: Path) -> ImageInput:
    return picture(smolvlm_source)


@pytest.mark.parametrize("name", MIXTURES)
def test_it_sees_as_merged_weights_do(
    encoder: MlxVisionEncoder, image: ImageInput, smolvlm_source: Path, name: str
) -> None:
    check_sees_as_merged(encoder, image, smolvlm_source, mixture(smolvlm_source, name))


def test_each_picture_has_its_own(
    encoder: MlxVisionEncoder, image: ImageInput, smolvlm_source: Path
) -> None:
    check_each_picture_has_its_own(encoder, image, smolvlm_source)


def test_a_picture_that_is_stopped_leaves_the_base(
    encoder: MlxVisionEncoder, image: ImageInput, smolvlm_source: Path
) -> None:
    base = encoder.encode(image, Cancel())
    adapters = loaded(encoder, mixture(smolvlm_source, "all-linear r8"))
    with pytest.raises(Interrupted):
        encoder.encode_with(image, adapters, CountedCancel(4))
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), base)


@pytest.mark.parametrize(
    ("lora", "error", "says"),
    [
        (changed(QUERY, (8, 33), (32, 8)), AdapterMismatch, r"odd .*\(8, 33\).* random takes"),
        (changed(QUERY, (8, 32), (32, 9)), AdapterMismatch, r"\(32, 9\)"),
        (changed(QUERY.replace("1", "2"), (8, 32), (32, 8)), AdapterMismatch, "doesn't have"),
        (changed("vision_model.pooler", (8, 32), (32, 8)), AdapterMismatch, "pooler"),
        (
            changed("vision_model.encoder.layers.0.layer_norm1", (8, 32), (32, 8)),
            NotSupported,
            r"odd changes vision_model\.encoder\.layers\.0\.layer_norm1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    encoder: MlxVisionEncoder, image: ImageInput, lora: Lora, error: type[Exception], says: str
) -> None:
    base = encoder.encode(image, Cancel())
    with pytest.raises(error, match=says):
        encoder.load_adapter(lora)
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), base)


def test_adapters_that_are_closed_or_of_another_model(
    encoder: MlxVisionEncoder, image: ImageInput, smolvlm_source: Path
) -> None:
    adapter = encoder.load_adapter(vision_lora(smolvlm_source, name="every"))
    other = MlxVisionEncoder(mlx_files(smolvlm_source), OPTIONS)
    with pytest.raises(AdapterMismatch, match="every was loaded for another model"):
        other.encode_with(image, {adapter: 1.0}, Cancel())
    adapter.close()
    with pytest.raises(RuntimeFailed, match="every was closed"):
        encoder.encode_with(image, {adapter: 1.0}, Cancel())
    other.close()
    with pytest.raises(RuntimeFailed, match="The model was closed"):
        other.load_adapter(vision_lora(smolvlm_source))


FOREIGN = {
    make_llava: {
        "model.vision_tower.encoder.layers.0.self_attn.q_proj": (32, 32),
        "model.vision_tower.encoder.layers.1.mlp.fc1": (64, 32),
        "model.multi_modal_projector.linear_2": (64, 64),
    },
    make_qwen25vl: {
        "model.visual.blocks.0.attn.qkv": (96, 32),
        "model.visual.blocks.1.mlp.down_proj": (32, 64),
        "model.visual.merger.mlp.2": (64, 128),
    },
}


@pytest.mark.parametrize("make", FOREIGN)
def test_towers_of_other_families(tmp_path: Path, make: Callable[..., Any]) -> None:
    folder = make(tmp_path / "source").folder
    lora = random_lora(folder, targets=[], extra=FOREIGN[make])
    assert len(lora.vision) == 3
    base, found = foreign_features(folder, lora)
    _, expected = foreign_features(merged(folder, tmp_path / "merged", lora))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert np.abs(found - base).max() > 0.1


def foreign_features(folder: Path, *loras: Lora) -> tuple[Any, Any]:
    """Without adapters and with these, float32 [n_tokens, d_model]."""
    files = mlx_files(folder)
    encoder = MlxOwnVisionEncoder(files, OPTIONS)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = encoder.own_family(files).preprocess(pixels)
    base = encoder.encode(image, Cancel())
    adapters: Adapters = {encoder.load_adapter(lora): 1.0 for lora in loras}
    found = encoder.encode_with(image, adapters, Cancel())
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), base)
    encoder.close()
    return base, found


def merged(source: Path, target: Path, lora: Lora) -> Path:
    shutil.copytree(source, target)
    weights = dict(mx.load(str(source / WEIGHTS)))
    for module, update in lora.vision.items():
        end = f"{module.removeprefix('vision_model.')}.weight"
        [name] = [name for name in weights if name.endswith(end)]
        weights[name] = weights[name] + mx.array(update.b @ update.a)
    mx.save_safetensors(str(target / WEIGHTS), weights, {"format": "pt"})
    return target
