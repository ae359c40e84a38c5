"""Adapters of SmolVLM's vision tower and projector, and what transformers makes of merged ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lora_factory import random_lora
from numpy.typing import NDArray
from smolvlm_factory import load_reference

from edgevlm.engine.adapter import Adapters, Lora, LowRank
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import AdaptableVision, VisionEncoder
from edgevlm.engine.prompt import ImageInput
from edgevlm.families import load_family

PROJECTOR = "model.connector.modality_projection.proj"


def tower_modules(folder: Path) -> dict[str, tuple[int, int]]:
    """Every linear module by its name in the checkpoint, (out, in) features each."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vision, text = config["vision_config"], config["text_config"]
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    sizes = {f"self_attn.{part}_proj": (hidden, hidden) for part in ("q", "k", "v", "out")}
    sizes |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
    layers = range(vision["num_hidden_layers"])
    tower = {
        f"model.vision_model.encoder.layers.{layer}.{name}": size
        for layer in layers
        for name, size in sizes.items()
    }
    return {**tower, PROJECTOR: (text["hidden_size"], hidden * config["scale_factor"] ** 2)}


def vision_lora(folder: Path, *ends: str, **options: Any) -> Lora:
    """An adapter of the modules with names that end so, of all by default."""
    modules = {n: s for n, s in tower_modules(folder).items() if n.endswith(ends or ("",))}
    return random_lora(folder, targets=[], extra=modules, **options)


def mixture(folder: Path, name: str) -> dict[Lora, float]:
    """Adapters and their scales, by a name for them."""
    every = vision_lora(folder, name="every")
    if name == "all-linear r8":
        return {every: 1.0}
    if name == "r16 with a rank pattern":
        pattern = {"layers.1.mlp.fc1": 4, "q_proj": 2, r"modality_projection\.proj": 24}
        return {vision_lora(folder, rank=16, rank_pattern=pattern): 1.0}
    if name == "some modules":
        return {vision_lora(folder, "v_proj", "fc2"): 1.0}
    return {every: 0.8, vision_lora(folder, "q_proj", "fc1", seed=1, name="few"): -0.5}


MIXTURES = ("all-linear r8", "r16 with a rank pattern", "some modules", "two with scales")


def picture(folder: Path, seed: int = 0) -> ImageInput:
    """Of several tiles."""
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 150, 3), dtype=np.uint8)
    return load_family(folder).preprocess(pixels)


@torch.no_grad()
def merged_features(
    folder: Path, image: ImageInput, adapters: Mapping[Lora, float]
) -> NDArray[np.float32]:
    """float32 [n_tokens, d_model], with the adapters in the weights."""
    model = load_reference(folder).model
    for lora, scale in adapters.items():
        for name, update in lora.vision.items():
            weight = model.get_submodule(name).weight
            weight += scale * torch.from_numpy(update.b) @ torch.from_numpy(update.a)
    rows = model.get_image_features(torch.from_numpy(image.pixel_values)[None]).pooler_output
    return np.concatenate([np.asarray(tile) for tile in rows])


class Encoder(VisionEncoder, AdaptableVision, Protocol):
    """Both at once."""


def loaded(encoder: AdaptableVision, loras: Mapping[Lora, float]) -> Adapters:
    return {encoder.load_adapter(lora): scale for lora, scale in loras.items()}


def changed(module: str, a: tuple[int, ...], b: tuple[int, ...]) -> Lora:
    update = LowRank(np.zeros(a, np.float32), np.zeros(b, np.float32))
    return Lora("odd", "0" * 64, {}, {module: update})


def check_sees_as_merged(
    encoder: Encoder, image: ImageInput, source: Path, mixed: Mapping[Lora, float]
) -> None:
    """As merged weights do, and then as the base does, bit for bit."""
    base = encoder.encode(image, Cancel())
    found = encoder.encode_with(image, loaded(encoder, mixed), Cancel())
    expected = merged_features(source, image, mixed)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert np.abs(found - base).max() > 0.1
    np.testing.assert_array_equal(encoder.encode(image, Cancel()), base)


def check_each_picture_has_its_own(encoder: Encoder, image: ImageInput, source: Path) -> None:
    every, few = loaded(encoder, mixture(source, "two with scales"))
    sets: list[Adapters] = [{}, {every: 1.0}, {few: 0.5}, {every: -1.0, few: 0.5}]
    expected = [encoder.encode_with(image, adapters, Cancel()) for adapters in sets]
    for _ in range(2):
        for adapters, features in zip(sets, expected, strict=True):
            found = encoder.encode_with(image, adapters, Cancel())
            np.testing.assert_array_equal(found, features)
    assert len({features.tobytes() for features in expected}) == len(sets)
    found = encoder.encode_with(image, {every: 0.0}, Cancel())
    np.testing.assert_array_equal(found, expected[0])
