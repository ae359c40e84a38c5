"""Random-weight models of real sizes, for figures that do not depend on what a model says."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from smolvlm_factory import Dims, make_random_model


def random_256m(folder: Path, runtime: str) -> Path:
    """SmolVLM-256M's architecture: SigLIP-B/16 at 512 px, SmolLM2-135M, q4 decoder."""
    dims = Dims(
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=9,
        kv_heads=3,
        vision_layers=12,
        vision_hidden=768,
        vision_intermediate=3072,
        vision_heads=12,
    )
    make_random_model(
        folder / "source",
        seed=0,
        variant="smolvlm",
        image_size=512,
        patch_size=16,
        scale_factor=4,
        longest_edge=512,
        dims=dims,
    )
    return converted(folder / "source", folder / runtime, runtime)


def converted(source: Path, target: Path, runtime: str) -> Path:
    """The source with a 4-bit decoder, as the runtime wants it."""
    if runtime == "onnx":
        from edgevlm.models.onnx_export import export_onnx

        export_onnx(source, target, decoder_bits=4, vision_bits=16)
    elif runtime == "llamacpp":
        from edgevlm.models.gguf_export import export_gguf

        export_gguf(source, target, quantize="q4_0", vision_bits=16)
    else:
        from edgevlm.models.mlx_export import export_mlx

        # float32 beside the 4-bit decoder: MLX on a CPU takes 16 bits ten times slower.
        export_mlx(source, target, bits=4, vision_bits=32 if sys.platform != "darwin" else 16)
    return target
