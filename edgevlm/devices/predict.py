"""How much memory a model takes on a device, and how fast it answers, before it is there.

Memory adds up: weights as the runtime holds them, the KV cache at the asked context, what
one tile's run of the vision encoder holds at once, and the runtime itself with interpreter
and tokenizer.

Speed follows the roofline model (Williams, Waterman, Patterson: "Roofline", CACM 52/4,
2009): large products are bound by compute, matrix-vector ones by the bandwidth at which
weights are read, and small models by what each operation costs on its own:

    vision  = tiles x (flops / compute + start)
    prefill = flops(prompt) / compute
    step    = weights / bandwidth + cache(position) / bandwidth + layers x layer

with compute and bandwidth as each runtime makes use of them (`costs`). Covered is one
question by one user on an otherwise idle device, after the model is loaded: not loading,
not the reading and scaling of pictures, not a processor that gets too hot.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from edgevlm.devices.costs import INTERPRETER, VOCABULARY, footprint, speed
from edgevlm.devices.shape import ModelShape, Weights, Workload
from edgevlm.devices.target import Target
from edgevlm.engine.placement import Placement

_HALF = ("fp16", "bf16", "f16")
_PREFILL_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak. `activations` are the vision encoder's or a prompt's, whichever
    are more, as they never live at the same time."""

    weights: int
    cache: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.runtime

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `estimated` where a runtime's share of the device was never measured."""

    vision: float
    prefill: float
    step: float
    new: int
    estimated: bool

    @property
    def first_token(self) -> float:
        return self.vision + self.prefill

    @property
    def tokens_per_second(self) -> float:
        return 1 / self.step

    @property
    def answer(self) -> float:
        """From the question to the last token."""
        return self.first_token + max(0, self.new - 1) * self.step

    def to_dict(self) -> dict[str, float | bool]:
        return {
            "vision_s": round(self.vision, 4),
            "prefill_s": round(self.prefill, 4),
            "first_token_s": round(self.first_token, 4),
            "tokens_per_s": round(self.tokens_per_second, 2),
            "answer_s": round(self.answer, 4),
            "estimated": self.estimated,
        }


def predict_memory(
    shape: ModelShape | None, weights: Weights, placement: Placement, context: int
) -> Memory:
    """Peak bytes of the process (its resident set, touched file pages included) when the
    context is full. Of a model of unknown shape only the weights and the runtime count.

    KV cache: 2 x layers x kv_heads x head_dim x bytes x tokens.
    """
    language = footprint(placement.language, weights.bits.get("decoder", ""))
    vision = footprint(placement.vision)
    half = weights.bits.get("vision", "").lower() in _HALF
    held = (
        weights.decoder * language.decoder
        + weights.embeddings * language.embeddings
        + weights.vision * (vision.vision_fp16 if half else vision.vision)
    )
    # The interpreter is part of both.
    base = language.base
    if placement.vision != placement.language:
        base += vision.base - INTERPRETER
    if shape is None:
        return Memory(int(held), 0, 0, base)
    decoder = shape.decoder
    rows = min(context, _PREFILL_CHUNK)
    # The widest a layer gets: the gated MLP's two inner rows and the residual stream.
    prompt = rows * (2 * decoder.intermediate + 4 * decoder.hidden) * 4 + decoder.vocab * 4
    pictures = shape.vision.activations * vision.activation if shape.vision else 0
    return Memory(
        weights=int(held),
        cache=decoder.cache_width * language.cache_bytes * context,
        activations=max(prompt, pictures),
        runtime=base + VOCABULARY * decoder.vocab,
    )


def predict_timing(
    shape: ModelShape, weights: Weights, placement: Placement, work: Workload, target: Target
) -> Timing:
    """What a question like `work` takes on `target`."""
    seen = target.processor(placement.vision)
    said = target.processor(placement.language)
    sees = speed(placement.vision, seen)
    says = speed(placement.language, said, weights.bits.get("decoder", ""))
    vision = 0.0
    if shape.vision and work.tiles:
        compute = target.gflops[seen] * 1e9 * sees.vision
        vision = work.tiles * (shape.vision.flops / compute + sees.start)
    decoder = shape.decoder
    prefill = decoder.prefill_flops(work.prompt) / (target.gflops[said] * 1e9 * says.prefill)
    bandwidth = 1e9 * (target.gpu_bandwidth if said == "gpu" else target.bandwidth)
    position = work.prompt + work.new / 2
    cache = decoder.cache_width * footprint(placement.language).cache_bytes * position
    step = (
        weights.decoder / (bandwidth * says.decode)
        + cache / (bandwidth * says.cache)
        + decoder.layers * says.layer
    )
    return Timing(vision, prefill + step, step, work.new, not (sees.measured and says.measured))


def largest_context(shape: ModelShape, weights: Weights, placement: Placement, memory: int) -> int:
    """The longest context that fits in `memory` bytes, 0 where not even the weights do."""
    rest = memory - predict_memory(shape, weights, placement, 0).total
    a_token = shape.decoder.cache_width * footprint(placement.language).cache_bytes
    return max(0, min(shape.context_length, int(rest // a_token)))
