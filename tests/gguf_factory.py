"""GGUF pairs made from nothing: small random-weight models as llama.cpp takes them."""

from __future__ import annotations

from pathlib import Path

from edgevlm.models.gguf_export import GgufExport, export_gguf


def make_gguf(
    source: Path, target: Path, *, quantize: str = "f32", vision_bits: int = 32
) -> GgufExport:
    """A SmolVLM folder of `smolvlm_factory` as a model folder for llama.cpp."""
    return export_gguf(source, target, quantize=quantize, vision_bits=vision_bits, name="smolvlm")
