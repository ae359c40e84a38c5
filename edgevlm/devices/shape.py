"""The sizes of a model that its memory and its speed follow from, whatever its weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_FLOPS_A_WEIGHT = 2  # one multiplication and one addition


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A Llama-like decoder; `vocab` counts tokens, everything else follows config.json."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' products: query and output, key and value, gated MLP."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, which a prefill runs once and a step every time."""
        return self.vocab * self.hidden

    @property
    def cache_width(self) -> int:
        """Numbers that one position leaves in the KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def prefill_flops(self, tokens: int) -> float:
        """Operations of a prompt: the products, and attention over half of all pairs."""
        attention = 2 * tokens * tokens * self.layers * self.heads * self.head_dim
        products = tokens * self.layer_weights + self.head_weights
        return float(_FLOPS_A_WEIGHT * products + attention)


@dataclass(frozen=True, slots=True)
class VisionShape:
    """A vision tower and its projector, of which `tokens` and `flops` are those of one tile.

    `tile` is the side of a tile in pixels, `weights` a count, `longest_edge` what a
    picture is scaled to before it is cut (None: it isn't cut), `activations` the numbers that
    one tile's run holds at once.
    """

    tile: int
    tokens: int
    weights: int
    flops: float
    activations: int
    longest_edge: int | None = None

    @classmethod
    def transformer(
        cls,
        *,
        tile: int,
        patch: int,
        layers: int,
        hidden: int,
        intermediate: int,
        heads: int,
        scale_factor: int,
        longest_edge: int | None,
    ) -> VisionShape:
        """A ViT with pixel shuffle (Idefics3, arXiv:2408.12637): SigLIP of SmolVLM.

        Activations at their peak are one layer's attention scores and their softmax for all
        heads, or the MLP's inner rows, whichever is more, beside the residual stream.
        """
        patches = (tile // patch) ** 2
        products = layers * (4 * hidden * hidden + 2 * hidden * intermediate)
        attention = 2 * layers * patches * patches * hidden
        scores = 2 * heads * patches * patches
        inner = 2 * patches * intermediate
        return cls(
            tile=tile,
            tokens=patches // scale_factor**2,
            weights=products + 3 * patch * patch * hidden + patches * hidden,
            flops=float(_FLOPS_A_WEIGHT * (patches * products + attention)),
            activations=max(scores, inner) + 4 * patches * hidden,
            longest_edge=longest_edge,
        )


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What is known of a model before it is there. `context_length` in tokens."""

    decoder: DecoderShape
    vision: VisionShape | None
    context_length: int

    @property
    def parameters(self) -> int:
        """Weights, an embedding table apart from the output head not counted."""
        seen = self.vision.weights if self.vision else 0
        return self.decoder.layer_weights + self.decoder.head_weights + seen


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes on disk of each part, as one placement holds them.

    `embeddings` are those of a table apart from the decoder; `bits` says how the decoder's
    are stored ("q4", "q8_0", "fp16"), which decides the kernels that run them.
    """

    decoder: int
    vision: int
    embeddings: int = 0
    bits: Mapping[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.decoder + self.vision + self.embeddings


@dataclass(frozen=True, slots=True)
class Workload:
    """What a prediction is for: a prompt of `prompt` tokens, `tiles` tiles of pictures among
    them, `new` tokens to answer, in a context of `context` tokens."""

    prompt: int
    tiles: int
    new: int
    context: int


def usual_workload(shape: ModelShape) -> Workload:
    """What placements are compared by: a picture and a question of 300 tokens in all, and an
    answer of 60."""
    tiles = max(1, round(256 / shape.vision.tokens)) if shape.vision else 0
    if shape.vision and shape.vision.longest_edge is None:
        tiles = 1
    return Workload(prompt=300, tiles=tiles, new=60, context=min(512, shape.context_length))
