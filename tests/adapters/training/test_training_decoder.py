"""The graph that is trained is the decoder that is deployed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_factory import make_gguf
from smolvlm_factory import Dims, make_random_model
from training_parts import TAUGHT, write_lines

from edgevlm import Model, load_model
from edgevlm.adapters.training.decoder import load_decoder
from edgevlm.adapters.training.job import train
from edgevlm.adapters.training.recipe import Recipe
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import ModelFiles
from edgevlm.families.base import Turn
from edgevlm.media import load_image
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.settings import Settings


def test_the_graph_that_is_trained_is_the_one_that_is_deployed(
    recipe: Recipe, base: Path, data: Path, home: Path
) -> None:
    """Its loss, without an adapter, is that of the logits which llama.cpp gives."""
    lines = [TAUGHT[0], {**TAUGHT[2], "images": ["two.png"]}]
    recipe = replace(recipe, data=write_lines(data.parent / "judged.jsonl", lines), steps=1)
    report = train(replace(recipe, eval_share=0.5), Settings(home=home))
    with load_model(str(base), runtime="llamacpp") as model:
        losses = [loss_of(model, line, data.parent) for line in lines]
    assert (report.examples, report.held_out) == (1, 1)
    assert report.base_eval_loss in [pytest.approx(loss, abs=1e-3) for loss in losses]


def loss_of(model: Model, line: dict[str, Any], folder: Path) -> float:
    """Nats for each token of the answers, by the runtime's own logits."""
    said = line.get("messages") or [
        {"role": "user", "content": line["question"]},
        {"role": "assistant", "content": line["answer"]},
    ]
    shown = [line["image"]] if "image" in line else line["images"]
    turns: list[Turn] = []
    nats: list[float] = []
    for message in said:
        if message["role"] == "user":
            paths = () if turns else shown
            images = [model.family.preprocess(load_image(folder / path)) for path in paths]
            turns.append(Turn("user", (*images, message["content"])))
            continue
        prompt = model.family.render(turns)
        context = model.language.new_context()
        parts: list[Any] = []
        for part in prompt.parts:
            if isinstance(part, tuple):
                parts.append(np.array(part))
            else:
                rows = model.embed(prompt.images[part.image], Cancel())
                parts.append(rows[part.start : part.start + part.count])
        logits = context.extend(parts, Cancel())
        answer = model.family.tokenizer.encode(" " + message["content"]).ids
        answer.append(model.family.tokenizer.token_to_id("<end_of_utterance>"))
        for token in answer:
            nats.append(float(np.log(np.exp(logits - logits.max()).sum()) + logits.max()))
            nats[-1] -= float(logits[token])
            logits = context.extend([np.array([token])], Cancel())
        context.close()
        turns.append(Turn("assistant", (message["content"],)))
    return float(np.mean(nats))


def test_a_decoder_of_mixed_types_is_dequantised(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "gguf"
    make_random_model(source, dims=Dims(layers=1, hidden=256, intermediate=256))
    export = make_gguf(source, folder, quantize="q4_k_m")
    assert {"Q4_K", "Q6_K", "F32"} <= set(export.decoder_types)
    decoder = load_decoder(ModelFiles("small", folder, {"decoder": export.decoder}))
    checkpoint = Checkpoint(source)
    for name, weight in decoder.model.named_parameters():
        tensor = f"model.text_model.{name}"
        expected = checkpoint.read(tensor, tuple(weight.shape))
        assert np.abs(weight.numpy() - expected).mean() < 0.1 * np.abs(expected).mean(), name
