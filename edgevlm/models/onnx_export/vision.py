"""The SigLIP tower of SmolVLM with its pixel shuffle and projector as an ONNX graph.

Tiles may be padded: the mask says which pixels are real. Padded patches are hidden
from attention, and the position of a real patch is its fraction of the real part
mapped to the square position table (NaViT, arXiv:2307.06304, as in Idefics2).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.onnx_export.graph import Graph
from edgevlm.models.onnx_export.linear import float_weight, linear
from edgevlm.models.siglip import position_boundaries
from edgevlm.models.vlm_config import VisionConfig

PREFIX = "model.vision_model"
FLOAT, INT64 = 1, 7


def vision_graph(
    config: VisionConfig, checkpoint: Checkpoint, d_model: int, bits: int
) -> tuple[Graph, dict[str, str]]:
    """Build the vision encoder; returns the graph and its metadata.

    `pixel_values` float32 [B, N, channels, H, W] and `pixel_attention_mask` bool
    [B, N, H, W], every tile with at least one real pixel: `image_features` float32
    [B * N, tokens, d_model].
    """
    graph = Graph("vision_encoder")
    channels = config.n_channels
    graph.input("pixel_values", np.float32, ["batch", "tiles", channels, "height", "width"])
    graph.input("pixel_attention_mask", np.bool_, ["batch", "tiles", "height", "width"])
    tower = _Tower(graph, config, checkpoint, bits)
    x = tower.encode()
    features = tower.project(tower.shuffle(x), d_model)
    side = config.image_size // config.patch_size // config.scale_factor
    graph.output(features, "image_features", np.float32, ["images", side * side, d_model])
    return graph, {"edgevlm.bits": str(bits)}


class _Tower:
    def __init__(
        self, graph: Graph, config: VisionConfig, checkpoint: Checkpoint, bits: int
    ) -> None:
        self._graph, self._config = graph, config
        self._checkpoint, self._bits = checkpoint, bits
        self._n_per_side = config.image_size // config.patch_size

    def encode(self) -> str:
        """The last hidden state [B * N, patches, hidden]."""
        graph, config = self._graph, self._config
        patch_mask = self._patch_mask()
        x = graph.node("Add", self._patches(), self._positions(patch_mask))
        bias = self._attention_bias(patch_mask)
        for layer in range(config.n_layers):
            with graph.scope(f"layers.{layer}"):
                prefix = f"{PREFIX}.encoder.layers.{layer}"
                y = self._norm(x, f"{prefix}.layer_norm1")
                x = graph.node("Add", x, self._attend(y, bias, prefix))
                y = self._norm(x, f"{prefix}.layer_norm2")
                y = self._linear(y, f"{prefix}.mlp.fc1", config.intermediate_size)
                y = graph.node("Gelu", y, approximate=config.gelu)
                y = self._linear(y, f"{prefix}.mlp.fc2", config.hidden_size)
                x = graph.node("Add", x, y)
        return self._norm(x, f"{PREFIX}.post_layernorm")

    def _read(self, name: str, *shape: int) -> NDArray[np.float32]:
        return self._checkpoint.read(name, shape)

    def _linear(self, x: str, name: str, out_features: int) -> str:
        config = self._config
        in_features = config.intermediate_size if name.endswith("fc2") else config.hidden_size
        weight = self._read(f"{name}.weight", out_features, in_features)
        bias = self._read(f"{name}.bias", out_features)
        return linear(self._graph, x, name, weight, bias, self._bits)

    def _norm(self, x: str, name: str) -> str:
        size = self._config.hidden_size
        scale = self._graph.weight(f"{name}.weight", self._read(f"{name}.weight", size))
        bias = self._graph.weight(f"{name}.bias", self._read(f"{name}.bias", size))
        return self._graph.node(
            "LayerNormalization", x, scale, bias, epsilon=self._config.layer_norm_eps
        )

    def _patches(self) -> str:
        graph, config = self._graph, self._config
        size, side, channels = config.hidden_size, config.patch_size, config.n_channels
        name = f"{PREFIX}.embeddings.patch_embedding"
        # Kept at 16 bits even in the 8-bit form: it is small, and sees the raw pixels.
        kernel = self._read(f"{name}.weight", size, channels, side, side)
        pixels = self._merge_tiles("pixel_values", [-1, channels])
        x = graph.node(
            "Conv",
            pixels,
            float_weight(graph, f"{name}.weight", kernel, max(self._bits, 16)),
            graph.weight(f"{name}.bias", self._read(f"{name}.bias", size)),
            kernel_shape=[side, side],
            strides=[side, side],
        )
        x = graph.node("Reshape", x, graph.constant([0, 0, -1]))
        return graph.node("Transpose", x, perm=[0, 2, 1])

    def _merge_tiles(self, pixels: str, lead: list[int]) -> str:
        """[B, N, ..., H, W] -> [*lead, H, W]."""
        graph = self._graph
        height_width = graph.node("Shape", pixels, start=-2)
        shape = graph.node("Concat", graph.constant(lead), height_width, axis=0)
        return graph.node("Reshape", pixels, shape)

    def _patch_mask(self) -> str:
        """1.0 for every patch with a real pixel, else 0.0: [B * N, rows, columns]."""
        graph, side = self._graph, self._config.patch_size
        mask = graph.node("Cast", "pixel_attention_mask", to=FLOAT)
        mask = self._merge_tiles(mask, [-1, 1])
        mask = graph.node("MaxPool", mask, kernel_shape=[side, side], strides=[side, side])
        return graph.node("Squeeze", mask, graph.constant([1]))

    def _positions(self, patch_mask: str) -> str:
        graph = self._graph
        rows = self._buckets(patch_mask, along=1)
        columns = self._buckets(patch_mask, along=2)
        rows = graph.node("Unsqueeze", rows, graph.constant([2]))
        columns = graph.node("Unsqueeze", columns, graph.constant([1]))
        scaled = graph.node("Mul", rows, graph.constant(self._n_per_side))
        ids = graph.node("Add", scaled, columns)
        ids = graph.node("Mul", ids, graph.node("Cast", patch_mask, to=INT64))
        ids = graph.node("Reshape", ids, graph.constant([0, -1]))
        name = f"{PREFIX}.embeddings.position_embedding.weight"
        table = self._read(name, self._n_per_side**2, self._config.hidden_size)
        stored = float_weight(graph, name, table, max(self._bits, 16))
        return graph.node("Gather", stored, ids)

    def _buckets(self, patch_mask: str, along: int) -> str:
        """Row (`along` 1) or column (2) of the position table of each patch row or column.

        Every step is the float32 operation that transformers does, since a fraction
        that lies on a boundary must fall to the same side.
        """
        graph = self._graph
        line = graph.node("Gather", patch_mask, graph.constant(0), axis=3 - along)
        real = graph.node("ReduceSum", line, graph.constant([1]), keepdims=1)
        step = graph.node("Div", graph.constant(1, np.float32), real)
        count = graph.node("Gather", graph.node("Shape", patch_mask), graph.constant(along))
        indices = graph.node("Range", graph.constant(0), count, graph.constant(1))
        fractions = graph.node("Mul", graph.node("Cast", indices, to=FLOAT), step)
        fractions = graph.node("Min", fractions, graph.constant(1.0 - 1e-6, np.float32))
        fractions = graph.node("Unsqueeze", fractions, graph.constant([2]))
        boundaries = graph.weight(
            f"position_boundaries.{along}", position_boundaries(self._n_per_side)
        )
        passed = graph.node("GreaterOrEqual", fractions, boundaries)
        passed = graph.node("Cast", passed, to=INT64)
        return graph.node("ReduceSum", passed, graph.constant([2]), keepdims=0)

    def _attention_bias(self, patch_mask: str) -> str:
        """0 for real patches, else the lowest float: [B * N, 1, 1, patches]."""
        graph = self._graph
        flat = graph.node("Reshape", patch_mask, graph.constant([0, 1, 1, -1]))
        hidden = graph.node("Sub", graph.constant(1, np.float32), flat)
        return graph.node("Mul", hidden, graph.constant(np.finfo(np.float32).min, np.float32))

    def _attend(self, x: str, bias: str, prefix: str) -> str:
        graph, config = self._graph, self._config
        size, n_heads = config.hidden_size, config.n_heads
        head_dim = size // n_heads
        shape = graph.constant([0, 0, n_heads, head_dim])
        by_head = {}
        for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            y = self._linear(x, f"{prefix}.self_attn.{part}_proj", size)
            by_head[part] = graph.node("Transpose", graph.node("Reshape", y, shape), perm=perm)
        query = graph.node("Mul", by_head["q"], graph.constant(head_dim**-0.5, np.float32))
        scores = graph.node("Add", graph.node("MatMul", query, by_head["k"]), bias)
        mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), by_head["v"])
        mixed = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = graph.node("Reshape", mixed, graph.constant([0, 0, size]))
        return self._linear(mixed, f"{prefix}.self_attn.out_proj", size)

    def shuffle(self, x: str) -> str:
        """Fold squares of `scale_factor` patches into the features of one token."""
        graph, factor = self._graph, self._config.scale_factor
        side, size = self._n_per_side // factor, self._config.hidden_size
        x = graph.node("Reshape", x, graph.constant([-1, side, factor, side, factor * size]))
        x = graph.node("Transpose", x, perm=[0, 1, 3, 2, 4])
        return graph.node("Reshape", x, graph.constant([0, side * side, factor**2 * size]))

    def project(self, x: str, d_model: int) -> str:
        name = "model.connector.modality_projection.proj"
        in_features = self._config.hidden_size * self._config.scale_factor**2
        weight = self._read(f"{name}.weight", d_model, in_features)
        return linear(self._graph, x, name, weight, bits=max(self._bits, 16))
