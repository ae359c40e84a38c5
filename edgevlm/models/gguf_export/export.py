"""A Hugging Face folder of a SmolVLM or Idefics3 model to GGUF files for llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from edgevlm.errors import NotSupported, UsageError
from edgevlm.models.progress import Progress, Silent

QUANTIZATIONS = ("q4_k_m", "q4_0", "q4_1", "q8_0", "f16", "f32")
VISION_BITS = (32, 16, 8)
_PACKAGES = {"gguf": "convert", "llama_cpp": "llamacpp"}


@dataclass(frozen=True, slots=True)
class GgufExport:
    """The two files written. `decoder_types` counts the decoder's tensors by their type:
    llama.cpp keeps what a quantization can't hold (norms, rows that don't fill its blocks
    of 256) in wider types."""

    decoder: Path
    vision_encoder: Path
    decoder_types: Mapping[str, int]


def export_gguf(
    source: Path,
    target: Path,
    *,
    quantize: str = "q4_k_m",
    vision_bits: int = 16,
    name: str | None = None,
    progress: Progress | None = None,
) -> GgufExport:
    """Write `target/NAME-<QUANTIZATION>.gguf`, `target/mmproj-NAME-<WIDTH>.gguf`, and copies of
    the configuration files of `source`, whose own name is taken where `name` is None.

    Each file appears when it is whole. A stage that an earlier call has finished from the same
    source is not done again. Raises ModelCorrupt naming the tensor that is missing or misshapen,
    NotSupported (also for a package that is not installed), UsageError for other widths,
    NoSpace, RuntimeFailed.
    """
    if quantize not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise UsageError(f"A decoder can't be written as {quantize!r}: choose from {known}.")
    if vision_bits not in VISION_BITS:
        raise UsageError(
            f"A vision encoder can't be written at {vision_bits} bits: choose from {VISION_BITS}."
        )
    for package, extra in _PACKAGES.items():
        if find_spec(package) is None:
            raise NotSupported(
                f"Writing GGUF files needs the package {package}.",
                hint=f"pip install 'edgevlm[{extra}]'",
            )
    from edgevlm.models.gguf_export.quantizer import tensor_types
    from edgevlm.models.gguf_export.stages import Stages

    stages = Stages(source, target, name or source.resolve().name, progress or Silent())
    vision_encoder = stages.vision_encoder(vision_bits)
    decoder = stages.decoder(quantize)
    stages.copy_configuration()
    return GgufExport(decoder, vision_encoder, tensor_types(decoder))
