"""Adapters of SmolVLM's decoder, and what transformers makes of merged ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lora_factory import random_lora
from numpy.typing import NDArray
from smolvlm_factory import load_reference

from edgevlm.engine.adapter import Lora, LowRank
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Context, LanguageModel

IDS = np.random.default_rng(0).integers(3, 300, 40)
Scaled = Sequence[tuple[Lora, float]]


def logits(context: Context, ids: NDArray[np.int64] = IDS) -> NDArray[np.float32]:
    """Those of the last of `ids`, prefilled and then decoded one by one, from nothing."""
    context.truncate(0)
    context.extend([ids[:-3]], Cancel())
    return [context.extend([ids[i : i + 1]], Cancel()) for i in range(len(ids) - 3, len(ids))][-1]


def use(model: LanguageModel, context: Context, adapters: Scaled) -> None:
    context.use_adapters({model.load_adapter(lora): scale for lora, scale in adapters})


@torch.no_grad()
def merged_logits(
    source: Path, adapters: Scaled, prepare: Callable[[Any], None] = lambda model: None
) -> NDArray[np.float32]:
    """transformers in float32 with the adapters in its weights, which are prepared before."""
    model = load_reference(source)
    prepare(model)
    for lora, scale in adapters:
        for name, update in lora.decoder.items():
            weight = model.model.text_model.get_submodule(name).weight
            weight += scale * torch.from_numpy(update.b) @ torch.from_numpy(update.a)
    found: NDArray[np.float32] = model(input_ids=torch.from_numpy(IDS)[None]).logits[0, -1].numpy()
    return found


def mixtures(source: Path) -> dict[str, Scaled]:
    """Adapters and their scales, by a name for them."""
    rank_8 = random_lora(source, name="rank-8")
    # Two layers of the text, so that `layers.1` has ranks of its own.
    pattern = {r"layers\.1\.self_attn\.q_proj": 4, "up_proj": 2, "down_proj": 24}
    rank_16 = random_lora(source, name="rank-16", rank=16, rank_pattern=pattern, seed=1)
    values = random_lora(source, name="values", targets=["v_proj", "gate_proj"], seed=2)
    return {
        "rank 8": [(rank_8, 1.0)],
        "rank 16 with exceptions": [(rank_16, 1.0)],
        "some modules": [(values, 1.0)],
        "two with scales": [(rank_8, 0.75), (rank_16, -0.5)],
        "three": [(rank_8, 0.3), (rank_16, 0.6), (values, 2.0)],
    }


def changed(lora: Lora, module: str, update: LowRank) -> Lora:
    return Lora("strange", "0" * 64, {**lora.decoder, module: update}, {})


def update(in_features: int, out_features: int) -> LowRank:
    return LowRank(np.ones((2, in_features), np.float32), np.ones((out_features, 2), np.float32))


# A module, an update that the random SmolVLM has no place for, and what is said of it.
MISFITS = [
    ("layers.0.self_attn.q_proj", update(96, 64), "from 96 to 64 .* random goes from 64 to 64"),
    ("layers.0.self_attn.k_proj", update(64, 64), "from 64 to 64 .* random goes from 64 to 32"),
    ("layers.1.mlp.down_proj", update(64, 128), "from 64 to 128 .* from 128 to 64"),
    ("layers.2.mlp.up_proj", update(64, 128), r"strange changes layers\.2\.mlp\.up_proj,"),
    ("layers.0.mlp.experts.0.up_proj", update(64, 128), "random doesn't have"),
]
