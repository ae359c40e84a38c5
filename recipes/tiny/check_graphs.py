"""The assembled decoder against torch on the same weights, adapter included.

    python recipes/tiny/check_graphs.py

Prints how far the logits of a text are apart: with activations at 32 bits (what is left is
rounding of sums), and with the int8 activations that are in use.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from decoder import PROJECTIONS, load_decoder
from weights import DECODER

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.onnx_export.skeleton import write_skeletons
from edgevlm.models.tiny import WEIGHTS_NAME, load_lora, lora_ranks, write_weights
from edgevlm.models.tiny_layout import SMOLLM2_135M as SHAPE

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
N_TOKENS = 400


def reference_logits(gguf: GgufFile, ids: Any) -> Any:
    model, lora = load_decoder(gguf), load_lora()
    with torch.no_grad():
        for layer in range(SHAPE.n_layers):
            for part, (_, name, _) in PROJECTIONS.items():
                if f"layers.{layer}.{part}.A" in lora:
                    a, b = (
                        torch.from_numpy(lora[f"layers.{layer}.{part}.{ab}"]).float() for ab in "AB"
                    )
                    weight = model.model.layers[layer].get_submodule(name).weight
                    weight += (a @ b).T
        return model(torch.from_numpy(ids)).logits[0].numpy()


def assembled_logits(folder: Path, ids: Any, accuracy_level: int) -> Any:
    ranks = lora_ranks(load_lora())
    write_skeletons(
        SHAPE,
        ranks,
        folder,
        accuracy_level=accuracy_level,
        head_accuracy_level=accuracy_level,
        last_logits_only=False,
    )
    embed = ort.InferenceSession(folder / "embed_tokens.onnx")
    decoder = ort.InferenceSession(folder / "decoder_model_merged.onnx")
    empty = np.zeros((1, SHAPE.n_kv_heads, 0, SHAPE.head_dim), np.float32)
    feeds = {
        "inputs_embeds": embed.run(None, {"input_ids": ids})[0],
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    feeds |= {i.name: empty for i in decoder.get_inputs() if i.name.startswith("past")}
    return decoder.run(["logits"], feeds)[0][0]


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def main() -> None:
    gguf = GgufFile(DECODER.fetch())
    text = TEXT.read_text(encoding="utf-8")
    ids = np.array([read_tokenizer(gguf).encode(text).ids[:N_TOKENS]])
    reference = reference_logits(gguf, ids)
    expected = log_softmax(reference)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(gguf, SHAPE, load_lora(), folder / WEIGHTS_NAME)
        for accuracy_level, what in ((1, "32-bit activations"), (4, "int8 activations")):
            logits = assembled_logits(folder, ids, accuracy_level)
            found = log_softmax(logits)
            same = (logits.argmax(-1) == reference.argmax(-1)).mean()
            divergence = (np.exp(expected) * (expected - found)).sum(-1).mean()
            print(
                f"{what}: largest difference {np.abs(logits - reference).max():.2g},"
                f" same first choice {same:.1%}, KL divergence {divergence:.2g} nats"
            )


if __name__ == "__main__":
    main()
