"""What each runtime makes of a processor: the constants of `predict`, and where they are from.

Those of ONNX Runtime and llama.cpp on a CPU were measured with `tests/bench/plan_accuracy.py`
and by hand on an x86-64 with AVX-512 VNNI (ONNX Runtime 1.31, llama-cpp-python 0.3.36,
numpy 2.3), on two threads of a quiet machine. MLX, Core ML and graphics processors could not
be measured: their shares are estimates, marked so, and the plan marks what follows from them.

Speeds are shares of what `measure` (or a device's profile) says the processor can do: a
share above 1 means kernels in 8 bits that beat float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Processor = Literal["cpu", "gpu", "npu"]

_MB = 10**6
VOCABULARY = 650  # bytes of a token in the tokenizer, its merges included
INTERPRETER = 45 * _MB  # Python with EdgeVLM and numpy, which is part of every `base`


@dataclass(frozen=True, slots=True)
class Speed:
    """Of the decoder: `prefill` is a share of the compute, `decode` and `cache` of the
    bandwidth when weights and when KV cache are read, `layer` the seconds that one layer's
    operations cost in a step beside their reading. `vision` is a share of the compute,
    `start` the seconds that each run of the vision encoder costs."""

    prefill: float
    decode: float
    cache: float
    layer: float
    vision: float
    start: float = 0.0
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of each part how many bytes it holds for a byte on disk, once loaded.

    `vision_fp16` counts where it differs from `vision`. `cache_bytes` is what a number in
    the KV cache takes, `base` the interpreter with this runtime loaded and nothing else,
    `activation` the bytes of a number in the vision encoder's activations.
    """

    base: int
    decoder: float
    embeddings: float
    vision: float
    vision_fp16: float
    cache_bytes: int
    activation: int
    measured: bool = False


# By runtime, processor and how the decoder's weights are stored; "" is for any other way.
_SPEEDS: dict[tuple[str, Processor], dict[str, Speed]] = {
    ("onnx", "cpu"): {
        "": Speed(1.06, 0.48, cache=0.36, layer=30e-6, vision=0.94, start=2e-3, measured=True),
        # From other figures for the same graphs, relative to those at 4 bits.
        "fp32": Speed(0.90, 0.80, cache=0.30, layer=30e-6, vision=0.75, start=2e-3),
        "fp16": Speed(0.80, 0.40, cache=0.30, layer=60e-6, vision=0.75, start=2e-3),
        "int8": Speed(1.20, 0.45, cache=0.30, layer=40e-6, vision=0.75, start=2e-3),
    },
    ("llamacpp", "cpu"): {
        "": Speed(0.69, 0.40, cache=0.23, layer=30e-6, vision=0.69, start=5e-3, measured=True),
        # Q4_0 is packed anew for kernels of 8 rows at once, Q4_1 has none of these.
        "q4_0": Speed(0.90, 0.58, cache=0.23, layer=30e-6, vision=0.69, start=5e-3, measured=True),
        "q4_1": Speed(0.36, 0.31, cache=0.23, layer=30e-6, vision=0.69, start=5e-3, measured=True),
        "q8_0": Speed(0.78, 0.68, cache=0.23, layer=30e-6, vision=0.69, start=5e-3, measured=True),
    },
    # MLX's CPU backend on Linux multiplies with a reference BLAS 70 times slower than OpenBLAS.
    ("mlx", "cpu"): {"": Speed(0.014, 0.05, cache=0.05, layer=300e-6, vision=0.014, measured=True)},
    # Estimates: half of the graphics processor's nominal speed for large products, three
    # quarters of its bandwidth for matrix-vector ones, and some kernel launches a layer.
    ("mlx", "gpu"): {"": Speed(0.5, 0.75, cache=0.6, layer=80e-6, vision=0.5)},
    ("llamacpp", "gpu"): {"": Speed(0.45, 0.7, cache=0.6, layer=90e-6, vision=0.3)},
    # Estimates: a transformer seldom fills the Neural Engine.
    ("coreml", "npu"): {"": Speed(0.1, 0.4, cache=0.4, layer=100e-6, vision=0.3)},
}

_FOOTPRINTS = {
    "onnx": Footprint(
        base=65 * _MB,
        # The graph's constants, and beside them those packed anew for the kernels.
        decoder=1.5,
        embeddings=1.0,
        vision=2.2,
        # fp16 has no kernels on a CPU: the constants stay, and float32 copies run.
        vision_fp16=3.3,
        cache_bytes=4,
        activation=4,
        measured=True,
    ),
    "llamacpp": Footprint(
        base=115 * _MB,
        decoder=1.0,
        embeddings=1.0,
        vision=1.0,
        vision_fp16=1.0,
        cache_bytes=2,
        activation=4,
        measured=True,
    ),
    "mlx": Footprint(
        base=250 * _MB,
        decoder=1.0,
        embeddings=1.0,
        vision=1.0,
        vision_fp16=1.0,
        cache_bytes=2,
        activation=2,
    ),
    "coreml": Footprint(
        base=150 * _MB,
        decoder=1.0,
        embeddings=1.0,
        vision=1.0,
        vision_fp16=1.0,
        cache_bytes=2,
        activation=2,
    ),
}
# llama.cpp packs these anew for its processor, beside the file's mapped pages of which some
# are still held at the peak: 1.2 and 1.6 times the file were measured.
_REPACKED, _REPACKED_TAKES = ("q4_0", "q4_k", "iq4_nl"), 1.35
# Runtimes of other packages: as careful as ours on the processor.
_UNKNOWN_SPEED = Speed(0.4, 0.3, cache=0.3, layer=60e-6, vision=0.3)
_UNKNOWN_FOOTPRINT = Footprint(100 * _MB, 1.5, 1.0, 2.0, 3.0, 4, 4)


def speed(runtime: str, processor: Processor, bits: str = "") -> Speed:
    """`bits` is how the decoder's weights are stored: "q4", "q4_0", "fp16"."""
    kinds = _SPEEDS.get((runtime, processor), {"": _UNKNOWN_SPEED})
    return kinds.get(bits.lower(), kinds[""])


def footprint(runtime: str, bits: str = "") -> Footprint:
    """`bits` is how the decoder's weights are stored."""
    found = _FOOTPRINTS.get(runtime, _UNKNOWN_FOOTPRINT)
    if runtime == "llamacpp" and bits.lower().startswith(_REPACKED):
        return replace(found, decoder=_REPACKED_TAKES)
    return found
