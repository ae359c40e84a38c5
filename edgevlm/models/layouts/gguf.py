"""llama.cpp: a decoder and an `mmproj` beside it, both GGUF.

Of several quantisations the decoder is taken at 4 bits and the vision encoder at 16 or 8.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from edgevlm.models.layouts.base import Layout, ModelPart, missing

_SMALL = ("q4_k_m", "q4_k_s", "q4_0", "q4_1", "iq4_nl", "iq4_xs", "q5_k_m", "q8_0", "f16", "bf16")
_GENTLE = ("f16", "bf16", "q8_0", "f32")
_SHARD = re.compile(r"-(\d{5})-of-\d{5}\.gguf$")
_HINT = "llama.cpp needs the GGUF of a decoder and its mmproj-*.gguf beside it."


def find(paths: Collection[str], parts: Sequence[ModelPart], what: str) -> Layout:
    """Roles `decoder`, `vision_encoder`, and `lora` where `lora.gguf` is there."""
    ggufs = sorted(path for path in paths if path.lower().endswith(".gguf"))
    roles: dict[str, str] = {}
    quantization: dict[str, str] = {}
    if "language" in parts:
        decoders = [path for path in ggufs if not _is_mmproj(path) and not _is_lora(path)]
        roles["decoder"] = _choose(decoders, _SMALL, "decoder (*.gguf)", what)
        quantization["decoder"] = _label(roles["decoder"])
        for lora in filter(_is_lora, ggufs):
            roles["lora"] = lora
    if "vision" in parts:
        encoders = [path for path in ggufs if _is_mmproj(path)]
        roles["vision_encoder"] = _choose(encoders, _GENTLE, "mmproj-*.gguf", what)
        quantization["vision"] = _label(roles["vision_encoder"])
    shards = [path for path in ggufs if any(_same_model(path, chosen) for chosen in roles.values())]
    return Layout(roles, tuple(sorted({*roles.values(), *shards})), quantization)


def _choose(paths: Sequence[str], preferred: Sequence[str], name: str, what: str) -> str:
    first_shards = [p for p in paths if (m := _SHARD.search(p)) is None or m[1] == "00001"]
    if not first_shards:
        raise missing(name, what, _HINT)

    def rank(path: str) -> tuple[int, str]:
        label = _label(path)
        return (preferred.index(label) if label in preferred else len(preferred), path)

    return min(first_shards, key=rank)


def _label(path: str) -> str:
    """The quantisation that a file name ends with, "gguf" where it says none."""
    stem = _SHARD.sub(".gguf", path.lower()).rpartition("/")[2].removesuffix(".gguf")
    found = re.search(r"(?:^|[-._])(i?q\d_[a-z0-9_]+|b?f16|f32)$", stem)
    return found[1] if found else "gguf"


def _same_model(path: str, chosen: str) -> bool:
    return bool(_SHARD.search(path)) and _SHARD.sub("", path) == _SHARD.sub("", chosen)


def _is_mmproj(path: str) -> bool:
    return "mmproj" in path.rpartition("/")[2].lower()


def _is_lora(path: str) -> bool:
    return path.rpartition("/")[2].lower() == "lora.gguf"
