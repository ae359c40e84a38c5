"""The built-in model with its decoder on llama.cpp: the GGUF file as it came, and the adapter
that ships with EdgeVLM beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgevlm.models.gguf import GgufFile
from edgevlm.models.gguf_tokenizer import read_tokenizer
from edgevlm.models.llama import LlamaShape
from edgevlm.models.tiny import (
    CONFIGURATION,
    SHIPPED,
    TENSORS,
    Lora,
    check_shape,
    load_lora,
    lora_ranks,
)
from edgevlm.models.tiny_layout import SMOLLM2_135M
from edgevlm.runtimes.llamacpp_lora import LoraGguf, interleave

LORA_NAME = "lora.gguf"


def assemble(gguf: Path, folder: Path) -> None:
    """Make the folder of `edgevlm-tiny` whose decoder runs on llama.cpp and whose vision
    encoder on ONNX Runtime.

    The same file gives the same bytes. Raises ModelCorrupt where it is another model
    or not sound, NotSupported where its version or tokenizer is unknown, and OSError.
    """
    file = GgufFile(gguf)
    check_shape(file, SMOLLM2_135M)
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    read_tokenizer(file).save(str(folder / "tokenizer.json"))
    shutil.copyfile(SHIPPED / "vision_encoder.onnx", folder / "onnx" / "vision_encoder.onnx")
    for name in CONFIGURATION:
        shutil.copyfile(SHIPPED / name, folder / name)
    write_lora(load_lora(), SMOLLM2_135M, folder / LORA_NAME)
    _link(gguf, folder / gguf.name)


def write_lora(lora: Lora, shape: LlamaShape, path: Path) -> None:
    """Write the adapter for a decoder of this shape."""
    tensors: dict[str, NDArray[Any]] = {}
    for name in lora_ranks(lora):
        _, layer, part = name.split(".")
        a, b = lora[f"{name}.A"].T, lora[f"{name}.B"].T
        if part in ("q", "k"):
            b = interleave(b, shape.head_dim)
        weight = f"blk.{layer}.{TENSORS[part]}.weight"
        tensors |= {f"{weight}.lora_a": a, f"{weight}.lora_b": b}
    LoraGguf("llama", tensors).write(path)


def _link(origin: Path, target: Path) -> None:
    """98 MB that need not be there twice."""
    try:
        os.link(origin, target)
    except OSError:
        shutil.copyfile(origin, target)
