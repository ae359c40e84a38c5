"""The built-in model's decoder for MLX, on the grid of the GGUF file, with numpy alone.

Q4_1 says weight = scale * level + minimum for blocks of 32, which is MLX's affine grid of
4 bits with groups of 32 to the letter. Q8_0 of the token embeddings is its grid of 8 bits,
with signed levels moved up by 128 and a bias of -128 scales, exact in float16.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.llama import GROUPS, MODULES, LlamaShape
from edgevlm.models.safetensors import write_safetensors
from edgevlm.models.tiny import (
    CONFIGURATION,
    SHIPPED,
    Lora,
    check_shape,
    load_lora,
    lora_ranks,
    read_part,
)
from edgevlm.models.tiny_layout import BLOCK, SMOLLM2_135M

_EMBEDDINGS = "language_model.embed_tokens"


def assemble(gguf: Path, folder: Path) -> None:
    """Make the folder of `edgevlm-tiny` whose decoder runs on MLX and whose vision encoder
    on ONNX Runtime.

    The same file gives the same bytes. Raises ModelCorrupt where it is another model
    or not sound, NotSupported where its version or tokenizer is unknown, and OSError.
    """
    file = GgufFile(gguf)
    for name in ("onnx", "mlx"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    read_tokenizer(file).save(str(folder / "tokenizer.json"))
    shutil.copyfile(SHIPPED / "vision_encoder.onnx", folder / "onnx" / "vision_encoder.onnx")
    for name in CONFIGURATION:
        shutil.copyfile(SHIPPED / name, folder / name)
    config = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))
    write_mlx(file, SMOLLM2_135M, load_lora(), config, folder / "mlx")


def write_mlx(
    file: GgufFile, shape: LlamaShape, lora: Lora, config: dict[str, Any], folder: Path
) -> None:
    """Write `model.safetensors` and `config.json`; `config` is that of the whole model."""
    check_shape(file, shape)
    write_safetensors(folder / "model.safetensors", dict(_tensors(file, shape, lora)))
    described = {
        "model_type": config["model_type"],
        "text_config": config["text_config"],
        "lora_ranks": {_module(name): rank for name, rank in lora_ranks(lora).items()},
        "quantization": {
            "group_size": BLOCK,
            "bits": 4,
            _EMBEDDINGS: {"group_size": BLOCK, "bits": 8},
        },
    }
    (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")


def _tensors(file: GgufFile, shape: LlamaShape, lora: Lora) -> Iterator[tuple[str, NDArray[Any]]]:
    scales, signed = file.read_q8_0("token_embd.weight", (shape.vocab_size, shape.hidden_size))
    # Levels from -128 to 127 become 0 to 255 around 128: the top bit flips.
    levels = signed.view(np.uint8) ^ np.uint8(128)
    yield f"{_EMBEDDINGS}.weight", _words(levels)
    yield f"{_EMBEDDINGS}.scales", scales
    yield f"{_EMBEDDINGS}.biases", scales * np.float16(-128)
    norms = {"language_model.norm": "output_norm"}
    for layer in range(shape.n_layers):
        name = f"language_model.layers.{layer}"
        norms[f"{name}.input_layernorm"] = f"blk.{layer}.attn_norm"
        norms[f"{name}.post_attention_layernorm"] = f"blk.{layer}.ffn_norm"
        for part in (part for parts in GROUPS.values() for part in parts):
            yield from _product(file, shape, lora, f"layers.{layer}.{part}")
    for name, tensor in norms.items():
        weight = file.read_f32(f"{tensor}.weight", (shape.hidden_size,))
        # The decoder computes in the type of its norms.
        yield f"{name}.weight", weight.astype(np.float16)


def _product(
    file: GgufFile, shape: LlamaShape, lora: Lora, name: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """One matrix of a layer, named `layers.{layer}.{part}`."""
    _, layer, part = name.split(".")
    scales, minima, levels = read_part(file, shape, int(layer), part)
    module = _module(name)
    if f"{name}.A" in lora:
        yield f"{module}.lora_a", lora[f"{name}.A"]
        yield f"{module}.lora_b", lora[f"{name}.B"]
        module += ".linear"
    yield f"{module}.weight", _words(levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4)))
    yield f"{module}.scales", scales.astype(np.float16)
    yield f"{module}.biases", minima.astype(np.float16)


def _module(name: str) -> str:
    _, layer, part = name.split(".")
    return f"language_model.layers.{layer}.{MODULES[part]}"


def _words(packed: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Bytes [N, ...] as MLX's words [N, n], the first level in the lowest bits."""
    return np.ascontiguousarray(packed).reshape(len(packed), -1).view("<u4")
