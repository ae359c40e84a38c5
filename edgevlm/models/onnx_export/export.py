"""A Hugging Face folder of a SmolVLM or Idefics3 model to the three-file ONNX layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgevlm.errors import UsageError
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.llama import LlamaShape
from edgevlm.models.onnx_export.checkpoint import CheckpointDecoder
from edgevlm.models.onnx_export.decoder import Attention, decoder_graph
from edgevlm.models.onnx_export.graph import Graph, Shape
from edgevlm.models.onnx_export.linear import embedding
from edgevlm.models.onnx_export.vision import vision_graph
from edgevlm.models.progress import Progress
from edgevlm.models.vlm_config import read_config

COPIED = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
BITS = {"decoder": (32, 16, 8, 4), "vision": (32, 16, 8)}
# How community exports end the names of files whose weights have so many bits.
_SUFFIXES = {32: "", 16: "_fp16", 8: "_int8", 4: "_q4"}


def export_onnx(
    source: Path,
    target: Path,
    *,
    attention: Attention = "gqa",
    decoder_bits: int = 32,
    vision_bits: int = 32,
    last_logits_only: bool = True,
    exact: bool = False,
    suffixes: bool = False,
    adapters: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write `target/onnx/{vision_encoder,embed_tokens,decoder_model_merged}.onnx`
    and copy the configuration and tokenizer files of `source`.

    `decoder_bits` 32, 16, 8 or 4 and `vision_bits` 32, 16 or 8 are the widths of the
    weights. At 4 bits `exact` keeps activations at 32 bits, which moves no first choice and
    decodes at about 0.75 of the speed. `suffixes` says the widths in the files' names, and
    goes on where an earlier call has ended: what has its name is whole. With `adapters` the
    decoder takes some as inputs, and computes the same bits without.

    Raises ModelCorrupt, NotSupported, and UsageError for other widths.
    """
    for part, bits in (("decoder", decoder_bits), ("vision", vision_bits)):
        if bits not in BITS[part]:
            raise UsageError(f"A {part} can't be written at {bits} bits: choose from {BITS[part]}.")
    config = read_config(source)
    checkpoint = Checkpoint(source)
    onnx = target / "onnx"
    onnx.mkdir(parents=True, exist_ok=True)
    decoder = CheckpointDecoder(checkpoint, config, decoder_bits, exact=exact)
    table_bits = max(decoder_bits, 8)
    files: list[tuple[str, int, Callable[[], tuple[Graph, dict[str, str]]]]] = [
        (
            "decoder_model_merged",
            decoder_bits,
            lambda: decoder_graph(
                config.text,
                decoder,
                attention=attention,
                last_logits_only=last_logits_only,
                adapters=adapters,
            ),
        ),
        ("embed_tokens", table_bits, lambda: (_embed_graph(config.text, decoder, table_bits), {})),
        (
            "vision_encoder",
            vision_bits,
            lambda: vision_graph(config.vision, checkpoint, config.text.hidden_size, vision_bits),
        ),
    ]
    for name, bits, build in files:
        path = onnx / f"{name}{_SUFFIXES[bits] if suffixes else ''}.onnx"
        if suffixes and path.is_file():
            continue
        if progress is not None:
            progress.note(f"Writing {path.name}")
        graph, metadata = build()
        graph.save(path, {**metadata, "edgevlm.bits": str(bits)})
    if not target.samefile(source):
        for name in COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)


def _embed_graph(text: LlamaShape, decoder: CheckpointDecoder, bits: int) -> Graph:
    """`input_ids` int64 [B, S] to `inputs_embeds` float32 [B, S, D]."""
    graph = Graph("embed_tokens")
    ids = graph.input("input_ids", np.int64, ["batch", "sequence"])
    rows = embedding(graph, ids, "embed_tokens", decoder.embeddings(), bits)
    shape: Shape = ["batch", "sequence", text.hidden_size]
    graph.output(rows, "inputs_embeds", np.float32, shape)
    return graph
