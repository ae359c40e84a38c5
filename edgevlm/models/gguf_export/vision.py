"""A SigLIP tower with Idefics3's projector as llama.cpp's `mmproj` of type `idefics3`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from edgevlm.families.config_files import ConfigFile
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.gguf_export.writer import TensorPlan, Value, Width, matrix_width
from edgevlm.models.vlm_config import ModelConfig, VisionConfig

ARCH = "clip"
_PREFIX = "model.vision_model"
# llama.cpp's name in a layer: the checkpoint's.
_PRODUCTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_NORMS = {"ln1": "layer_norm1", "ln2": "layer_norm2"}


def vision_metadata(source: Path, config: ModelConfig) -> dict[str, Value]:
    """The keys that mtmd reads, the preprocessing of `source` among them. Raises ModelCorrupt."""
    vision = config.vision
    processor = _image_processor(source)
    return {
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "idefics3",
        # The tanh form, which is all that llama.cpp has; the exact one is within 5e-4 of it.
        "clip.use_gelu": True,
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.preproc_image_size": _longest_edge(processor, vision),
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.n_layers,
        "clip.vision.attention.head_count": vision.n_heads,
        "clip.vision.attention.layer_norm_epsilon": vision.layer_norm_eps,
        "clip.vision.projection_dim": config.text.hidden_size,
        "clip.vision.projector.scale_factor": vision.scale_factor,
        "clip.vision.image_mean": processor.numbers("image_mean", 3, 0.5),
        "clip.vision.image_std": processor.numbers("image_std", 3, 0.5),
    }


def vision_tensors(checkpoint: Checkpoint, config: ModelConfig, width: Width) -> list[TensorPlan]:
    """Every tensor of the tower and the projector in the order in which it is written.

    The patch and position embeddings stay at 32 bits, as llama.cpp's own converter has them.
    """
    vision = config.vision
    size, n_patches = vision.hidden_size, (vision.image_size // vision.patch_size) ** 2
    kernel = (size, vision.n_channels, vision.patch_size, vision.patch_size)
    embeddings = f"{_PREFIX}.embeddings"
    tensors: dict[str, tuple[str, tuple[int, ...], Width]] = {
        "v.patch_embd.weight": (f"{embeddings}.patch_embedding.weight", kernel, "f32"),
        "v.patch_embd.bias": (f"{embeddings}.patch_embedding.bias", (size,), "f32"),
        "v.position_embd.weight": (
            f"{embeddings}.position_embedding.weight",
            (n_patches, size),
            "f32",
        ),
    }
    for layer in range(vision.n_layers):
        tensors |= _layer(vision, layer, width)
    for part in ("weight", "bias"):
        tensors[f"v.post_ln.{part}"] = (f"{_PREFIX}.post_layernorm.{part}", (size,), "f32")
    tensors["mm.model.fc.weight"] = (
        "model.connector.modality_projection.proj.weight",
        (config.text.hidden_size, size * vision.scale_factor**2),
        width,
    )
    return [_plan(checkpoint, name, *tensor) for name, tensor in tensors.items()]


def _layer(
    vision: VisionConfig, layer: int, width: Width
) -> Mapping[str, tuple[str, tuple[int, ...], Width]]:
    source, target = f"{_PREFIX}.encoder.layers.{layer}", f"v.blk.{layer}"
    size, inner = vision.hidden_size, vision.intermediate_size
    shapes = {"ffn_up": (inner, size), "ffn_down": (size, inner)}
    tensors: dict[str, tuple[str, tuple[int, ...], Width]] = {}
    for name, norm in _NORMS.items():
        for part in ("weight", "bias"):
            tensors[f"{target}.{name}.{part}"] = (f"{source}.{norm}.{part}", (size,), "f32")
    for name, product in _PRODUCTS.items():
        shape = shapes.get(name, (size, size))
        tensors[f"{target}.{name}.weight"] = (f"{source}.{product}.weight", shape, width)
        tensors[f"{target}.{name}.bias"] = (f"{source}.{product}.bias", shape[:1], width)
    return tensors


def _plan(
    checkpoint: Checkpoint, name: str, source: str, shape: tuple[int, ...], width: Width
) -> TensorPlan:
    checkpoint.check(source, shape)
    read = partial(checkpoint.read, source, shape)
    return TensorPlan(name, shape, read, matrix_width(shape, width))


def _image_processor(source: Path) -> ConfigFile:
    # transformers 5 writes it into processor_config.json, and prefers it there.
    processor = ConfigFile.read_if_there(source, "processor_config.json")
    if "image_processor" in processor.fields:
        return processor.nested("image_processor")
    return ConfigFile.read_if_there(source, "preprocessor_config.json")


def _longest_edge(processor: ConfigFile, vision: VisionConfig) -> int:
    if "size" not in processor.fields:
        return vision.image_size
    return processor.nested("size").positive("longest_edge")
