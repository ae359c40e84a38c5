"""PEFT adapters made from nothing: seeded weights for a decoder of given sizes, without PEFT.

`write_peft` writes the folder that PEFT's `save_pretrained` writes; `random_lora` gives the same
adapter as a runtime gets it. Updates move the logits of `smolvlm_factory`'s models clearly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.adapters.peft import lora_digest
from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD, Lora, LowRank, vision_module
from edgevlm.models.safetensors import SafetensorsFile

Config: TypeAlias = Mapping[str, Any] | Path
Dtype = Literal["float32", "float16", "bfloat16"]

SMOLVLM_PREFIX = "model.text_model."
# The decoder of `smolvlm_factory`'s models, unless they are given other sizes.
SMALL: Config = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# The decoder of `edgevlm-tiny`, as its config.json says.
TINY: Config = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}
# How large an update is beside the unit scale of what it is added to.
_STRENGTH = 0.3
_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_peft(
    folder: Path,
    config: Config,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: Sequence[str] | Literal["all-linear"] = "all-linear",
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    rslora: bool = False,
    dtype: Dtype = "float32",
    seed: int = 0,
    prefix: str = SMOLVLM_PREFIX,
    extra: Mapping[str, tuple[int, int]] | None = None,
    base: str | None = "random/model",
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`, and return the folder.

    `config` is a model's folder, its config.json or the text_config of it. `targets` are last
    parts of module names ("q_proj"). `prefix` is what the checkpoint has before `layers.`;
    `extra` names further modules in full (`model.vision_model...`), (out, in) features each.
    `alpha` is twice the rank unless given.
    """
    alpha = 2 * rank if alpha is None else alpha
    fields: dict[str, Any] = {
        "alpha_pattern": dict(alpha_pattern or {}),
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "r": rank,
        "rank_pattern": dict(rank_pattern or {}),
        "revision": None,
        "target_modules": targets if targets == "all-linear" else sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": rslora,
    }
    tensors = {}
    for name, size in _modules(config, targets, prefix, extra or {}):
        r, scaling = _rank_and_scaling(fields, name)
        a, b = _weights(name, size, r, scaling, seed)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")
    write_tensors(folder / "adapter_model.safetensors", tensors, dtype)
    return folder


def random_lora(
    config: Config,
    *,
    name: str = "random",
    rank: int = 8,
    targets: Sequence[str] | Literal["all-linear"] = "all-linear",
    rank_pattern: Mapping[str, int] | None = None,
    seed: int = 0,
    scaling: float = 2.0,
    extra: Mapping[str, tuple[int, int]] | None = None,
) -> Lora:
    """What a runtime gets: `scaling` (alpha / rank) is in `b`.

    `extra` modules count as the vision tower's.
    """
    fields = {"r": rank, "rank_pattern": rank_pattern or {}}
    parts: dict[bool, dict[str, LowRank]] = {False: {}, True: {}}
    for module, size in _modules(config, targets, "", extra or {}):
        r = _first_match(fields["rank_pattern"], module, rank)
        a, b = _weights(module, size, r, scaling, seed)
        own = vision_module(module)
        parts[own is not None][own or module] = LowRank(a, np.float32(scaling) * b)
    digest = lora_digest(parts[False], parts[True])
    return Lora(name, digest, decoder=parts[False], vision=parts[True])


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: Dtype = "float32"
) -> None:
    """A safetensors file of float32 arrays, rounded to `dtype`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, array in tensors.items():
        begin = len(data)
        data += _encoded(array, dtype)
        place = {"shape": list(array.shape), "data_offsets": [begin, len(data)]}
        header[name] = {"dtype": _DTYPE_NAMES[dtype], **place}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The arrays of a file of `write_tensors`, copied."""
    file = SafetensorsFile(path)
    return {name: np.array(file.read(name), np.float32) for name in file}


def _encoded(array: NDArray[np.float32], dtype: Dtype) -> bytes:
    if dtype == "bfloat16":
        bits = array.view(np.uint32)
        # To the nearest, ties to even: the upper half of a float32 is a bfloat16.
        bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (bits >> np.uint32(16)).astype("<u2").tobytes()
    return array.astype(dtype).tobytes()


def _modules(
    config: Config,
    targets: Sequence[str] | Literal["all-linear"],
    prefix: str,
    extra: Mapping[str, tuple[int, int]],
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every targeted module by its name in the checkpoint, with (out, in) features."""
    text = _text_config(config)
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, text["num_key_value_heads"] * head_dim
    sizes = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    sizes += [(inner, hidden), (inner, hidden), (hidden, inner)]
    for layer in range(text["num_hidden_layers"]):
        for module, size in zip((*ATTENTION, *FEED_FORWARD), sizes, strict=True):
            if targets == "all-linear" or module.rpartition(".")[2] in targets:
                yield f"{prefix}layers.{layer}.{module}", size
    yield from extra.items()


def _text_config(config: Config) -> Mapping[str, Any]:
    if isinstance(config, Path):
        config = json.loads((config / "config.json").read_text(encoding="utf-8"))
    text: Mapping[str, Any] = config.get("text_config", config)  # type: ignore[union-attr]
    return text


def _rank_and_scaling(fields: Mapping[str, Any], module: str) -> tuple[int, float]:
    rank = _first_match(fields["rank_pattern"], module, fields["r"])
    alpha = _first_match(fields["alpha_pattern"], module, fields["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if fields["use_rslora"] else rank)


def _first_match(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT's `get_pattern_key` looks a module up."""
    found = (v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def _weights(
    module: str, size: tuple[int, int], rank: int, scaling: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """a [rank, in] and b [out, rank], so that scaling * b a x is `_STRENGTH` of x's scale.

    They follow from `seed` and the module's own name, whatever stands before `layers.`.
    """
    out_features, in_features = size
    own = module[module.find("layers.") :] if "layers." in module else module
    random = np.random.default_rng([seed, *own.encode()])
    a = random.standard_normal((rank, in_features)) / math.sqrt(in_features)
    b = random.standard_normal((out_features, rank)) * _STRENGTH / (scaling * math.sqrt(rank))
    return a.astype(np.float32), b.astype(np.float32)
