"""PEFT itself: adapters that it saves, and models that it merges them into.

A model is a folder of `smolvlm_factory` in transformers, float32 on CPU; PEFT changes a copy.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from smolvlm_factory import load_reference

from edgevlm.engine.prompt import ImageSlot, Prompt

# How large an update is beside the unit scale of what it is added to.
_STRENGTH = 0.3


@dataclass(frozen=True)
class Saved:
    """What PEFT has saved: a folder, and for every module that it changes by its name in the
    checkpoint the rank and what `B A` is multiplied by."""

    folder: Path
    modules: Mapping[str, tuple[int, float]]


class PeftReference:
    def __init__(self, source: Path) -> None:
        self.base = load_reference(source)

    def save(self, folder: Path, *, seed: int = 0, config: Any = None, **settings: Any) -> Saved:
        """Save an adapter of `LoraConfig(**settings)`, or of another `config`.

        Its updates are random and move the logits clearly.
        """
        with _known_warnings():
            model = get_peft_model(copy.deepcopy(self.base), config or LoraConfig(**settings))
        modules = {}
        generator = torch.Generator().manual_seed(seed)
        for name, layer in _lora_layers(model):
            modules[name] = layer.r["default"], layer.scaling["default"]
            if "default" in layer.lora_A:
                _randomise(layer, generator)
        with _known_warnings():
            model.save_pretrained(folder)
        return Saved(folder, modules)

    def merged(self, adapters: Mapping[Path, float]) -> Any:
        """The transformers model with these folders, times their scales, in its weights.

        `set_scale` multiplies each adapter's own alpha / r, and merging adds one `B A` after
        the other in float32: the exact sum of scale * update, whatever the ranks and modules of
        each. Of `add_weighted_adapter`, `linear` scales A and B apart and has products between
        adapters, `svd` cuts the rank.
        """
        folders = {f"adapter-{index}": folder for index, folder in enumerate(adapters)}
        scales = dict(zip(folders, adapters.values(), strict=True))
        first, *others = folders
        with _known_warnings():
            model = PeftModel.from_pretrained(
                copy.deepcopy(self.base), folders[first], adapter_name=first
            )
            for name in others:
                model.load_adapter(folders[name], adapter_name=name)
        for _, layer in _lora_layers(model):
            for name, scale in scales.items():
                layer.set_scale(name, scale)
        return model.merge_and_unload(adapter_names=list(folders))

    @torch.no_grad()
    def pictures(self, model: Any, prompt: Prompt) -> list[NDArray[Any]]:
        """What the decoder gets of each picture of the prompt, [n_tokens, d_model]."""
        found = []
        for image in prompt.images:
            tiles = torch.from_numpy(image.pixel_values)[None]
            rows = model.model.get_image_features(tiles, return_dict=True).pooler_output
            found.append(torch.cat(list(rows)).reshape(image.n_tokens, -1).numpy())
        return found

    @torch.no_grad()
    def logits(self, model: Any, prompt: Prompt, answer: list[int]) -> NDArray[Any]:
        """[1 + len(answer), n_vocab] at the end of the prompt and of each id behind it."""
        ids: list[int] = []
        for part in prompt.parts:
            slot = isinstance(part, ImageSlot)
            ids += [self.base.config.image_token_id] * part.count if slot else part
        tiles = [torch.from_numpy(image.pixel_values) for image in prompt.images]
        pictures = {"pixel_values": torch.cat(tiles)[None]} if tiles else {}
        rows = model(input_ids=torch.tensor([[*ids, *answer]]), **pictures).logits[0]
        found: NDArray[Any] = rows[len(ids) - 1 :].numpy()
        return found


def _lora_layers(model: Any) -> Iterator[tuple[str, LoraLayer]]:
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


@torch.no_grad()
def _randomise(layer: LoraLayer, generator: torch.Generator) -> None:
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    strength = _STRENGTH / (layer.scaling["default"] * layer.r["default"] ** 0.5)
    a.copy_(torch.randn(a.shape, generator=generator) / a[0].numel() ** 0.5)
    b.copy_(torch.randn(b.shape, generator=generator) * strength)


# PEFT 0.21 asks transformers 5.20 by a name that is to go; the others are of settings that are
# tested for what becomes of them.
_KNOWN_WARNINGS = (
    "`is_gradient_checkpointing` is deprecated",
    ".*save_embedding_layers",
    ".*keys did not match any targeted module",
    ".*have invalid shape: .*lora_B.bias",
)


@contextmanager
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield
