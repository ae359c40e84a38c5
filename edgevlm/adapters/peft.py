"""Reading a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.

Both come from elsewhere. What leaves `read_peft` is whole: every module has its two matrices,
of the ranks that the configuration says, in finite float32 that this process owns.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.adapters.json_fields import FETCH_AGAIN, corrupt, shown
from edgevlm.adapters.peft_config import MAX_RANK, PeftConfig, read_config
from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD, Lora, LowRank, vision_module
from edgevlm.errors import AdapterCorrupt, ModelCorrupt, NotSupported
from edgevlm.models.safetensors import SafetensorsFile

WEIGHTS_NAME = "adapter_model.safetensors"
MAX_BYTES = 2**30
_MOST_HEADER_BYTES = 2**23
_DTYPES = ("F32", "F16", "BF16")
# torch.save writes a zip archive, once a bare pickle; read as a length both are enormous.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_SAVE_SAFE = "Have PEFT save it as safetensors, its default; a pickle can run code."

_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>[A-Za-z0-9_.]{1,200})\.lora_(?P<side>[AB])"
    r"(?:\.default)?\.weight"
)
# A decoder has lived under all of these, by itself or inside a model that sees.
_DECODER = re.compile(
    r"(?:(?:model|text_model|language_model)\.){0,3}"
    r"(?P<own>layers\.(?:0|[1-9]\d{0,3})\.(?P<part>.+))"
)
# What PEFT keeps beside the two matrices of a linear module, by what stands in its name.
_OTHERS = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_B.bias": "changed biases",
    "lora_B.default.bias": "changed biases",
    "modules_to_save": "modules that are saved whole",
    "token_adapter": "trained token embeddings",
    "embed_tokens": "changed token embeddings",
    "lora_embedding_": "changed embeddings",
    "lm_head": "a changed output head",
}


def read_peft(folder: Path, *, name: str) -> Lora:
    """Read the adapter of a folder, to be called `name`.

    Raises AdapterCorrupt where the files are missing, unsound or contradict each other, and
    NotSupported for what is sound and no plain LoRA of linear modules.
    """
    config = read_config(folder)
    decoder: dict[str, LowRank] = {}
    vision: dict[str, LowRank] = {}
    for module, is_decoder, low_rank in _updates(_open(folder), config):
        kind = decoder if is_decoder else vision
        if module in kind:
            raise corrupt(f"{WEIGHTS_NAME} has two updates of {module}")
        kind[module] = low_rank
    if not decoder and not vision:
        raise corrupt(f"{WEIGHTS_NAME} has no tensors")
    return Lora(name, lora_digest(decoder, vision), decoder, vision)


def lora_digest(decoder: Mapping[str, LowRank], vision: Mapping[str, LowRank]) -> str:
    """SHA-256, in hex, over names, shapes and numbers, in the order of the names."""
    digest = hashlib.sha256()
    for kind, parts in (("decoder", decoder), ("vision", vision)):
        for name in sorted(parts):
            part = parts[name]
            digest.update(f"{kind} {name} {part.a.shape} {part.b.shape}\n".encode())
            digest.update(part.a.data)
            digest.update(part.b.data)
    return digest.hexdigest()


def _open(folder: Path) -> SafetensorsFile:
    path = folder / WEIGHTS_NAME
    try:
        if not path.is_file():
            if (folder / "adapter_model.bin").is_file():
                raise NotSupported(
                    "The adapter's weights are a pickle (adapter_model.bin).", hint=_SAVE_SAFE
                )
            raise corrupt(f"{folder} has no file {WEIGHTS_NAME}")
        if path.stat().st_size > MAX_BYTES:
            raise corrupt(f"{WEIGHTS_NAME} is larger than {MAX_BYTES} bytes")
        with path.open("rb") as file:
            start = file.read(8)
        if int.from_bytes(start, "little") > _MOST_HEADER_BYTES:
            if start.startswith(_PICKLES):
                raise AdapterCorrupt(f"{WEIGHTS_NAME} holds a pickle.", hint=_SAVE_SAFE)
            raise corrupt(f"{WEIGHTS_NAME} is not a sound safetensors file: its header is too long")
        return SafetensorsFile(path)
    except OSError as error:
        raise corrupt(f"{WEIGHTS_NAME} can't be read: {error.strerror}") from error
    except ModelCorrupt as error:
        raise AdapterCorrupt(_printable(error.message), hint=FETCH_AGAIN) from error


def _updates(file: SafetensorsFile, config: PeftConfig) -> Iterator[tuple[str, bool, LowRank]]:
    """Every module by its name in a `Lora`, whether it is the decoder's, and its update."""
    tensors: dict[str, dict[str, str]] = {}
    for tensor in sorted(file):
        module, side = _module_of(tensor)
        if side in tensors.setdefault(module, {}):
            raise corrupt(f"{WEIGHTS_NAME} has lora_{side} of {module} twice")
        tensors[module][side] = tensor
    # Tensors may share bytes: a small file must not become a large adapter.
    if 2 * sum(math.prod(file.shape(tensor)) for tensor in file) > file.path.stat().st_size:
        raise corrupt(f"{WEIGHTS_NAME} has tensors that overlap")
    for module, sides in tensors.items():
        own, is_decoder = _place(module)
        if missing := {"A", "B"} - sides.keys():
            raise corrupt(f"{WEIGHTS_NAME} has no lora_{missing.pop()} of {module}")
        if not config.targets(module):
            raise corrupt(f"{WEIGHTS_NAME} changes {module}, which the configuration does not name")
        yield own, is_decoder, _low_rank(file, module, sides, config)


def _module_of(tensor: str) -> tuple[str, str]:
    match = _TENSOR.fullmatch(tensor)
    if match is not None and not match["module"].startswith("lm_head"):
        return match["module"], match["side"]
    for mark, what in _OTHERS.items():
        if mark in tensor:
            raise NotSupported(
                f"The adapter has {what}, which no runtime here can use: {shown(tensor)}.",
                hint="Train it with LoRA on the linear modules of the layers alone.",
            )
    raise corrupt(f"{WEIGHTS_NAME} has the tensor {shown(tensor)}, which belongs to no LoRA")


def _place(module: str) -> tuple[str, bool]:
    """The module's name as a `Lora` has it, and whether it is the decoder's."""
    if match := _DECODER.fullmatch(module):
        if match["part"] not in (*ATTENTION, *FEED_FORWARD):
            raise NotSupported(
                f"The adapter changes {module}, which no runtime here can change.",
                hint=f"Those it may change: {', '.join((*ATTENTION, *FEED_FORWARD))}.",
            )
        return match["own"], True
    if (own := vision_module(module)) is not None:
        return own, False
    raise NotSupported(
        f"The adapter changes {module}, which belongs to no model that is known here.",
        hint="Train it on the layers of the decoder.",
    )


def _low_rank(
    file: SafetensorsFile, module: str, sides: Mapping[str, str], config: PeftConfig
) -> LowRank:
    if all(len(file.shape(tensor)) > 2 for tensor in sides.values()):
        raise NotSupported(
            f"The adapter changes {module}, a convolution, which no runtime here can change.",
            hint="Train it on linear modules alone.",
        )
    a, b = _shape(file, sides["A"]), _shape(file, sides["B"])
    rank = config.rank_of(module)
    if a[0] > MAX_RANK or not a[0] == b[1] == rank:
        raise corrupt(
            f"{module} has the ranks {a[0]} (lora_A) and {b[1]} (lora_B),"
            f" and the configuration says {rank}"
        )
    scaling = np.float32(config.scaling_of(module))
    with np.errstate(over="ignore", invalid="ignore"):
        folded = _read(file, sides["B"]) * scaling
    low_rank = LowRank(_read(file, sides["A"]), folded)
    if not (np.isfinite(low_rank.a).all() and np.isfinite(low_rank.b).all()):
        raise corrupt(f"{module} has numbers that are not finite")
    return low_rank


def _shape(file: SafetensorsFile, tensor: str) -> tuple[int, int]:
    if file.dtype(tensor) not in _DTYPES:
        raise corrupt(f"{shown(tensor)} is of the type {file.dtype(tensor)}, not one of {_DTYPES}")
    shape = file.shape(tensor)
    if len(shape) != 2 or 0 in shape:
        raise corrupt(f"{shown(tensor)} has the shape {shape}, not that of a matrix")
    return shape[0], shape[1]


def _read(file: SafetensorsFile, tensor: str) -> NDArray[np.float32]:
    """A copy: the file may change once it is closed."""
    array: NDArray[Any] = file.read(tensor)
    return np.array(array, np.float32, order="C")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
