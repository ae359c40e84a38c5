"""The tables of a `tokenizer.json` as a GGUF file carries them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.families.config_files import read_tokenizer, special_tokens
from edgevlm.models.gguf_export.writer import Value

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}


def tokenizer_metadata(source: Path, vocab_size: int) -> dict[str, Value]:
    """The keys `tokenizer.*` for a folder with a byte-level BPE `tokenizer.json`.

    Raises ModelCorrupt where the tokenizer and the model don't fit, and NotSupported for one
    that llama.cpp would read otherwise.
    """
    read_tokenizer(source)  # says what is wrong with a broken one
    raw: dict[str, Any] = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = raw["model"]
    if model.get("type", "BPE") != "BPE":
        raise NotSupported(f"Tokenizers of type {model['type']!r} can't be written as GGUF.")
    tokens, types = _tokens(model["vocab"], raw.get("added_tokens") or [], vocab_size)
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_tokenizer(raw.get("pre_tokenizer")),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [_merge(merge) for merge in model["merges"]],
        "tokenizer.ggml.add_bos_token": _adds_bos(raw.get("post_processor")),
        "tokenizer.ggml.add_space_prefix": False,
    }
    ids = {token: id_ for id_, token in enumerate(tokens)}
    for name, token in special_tokens(source).items():
        if token in ids:
            metadata[_SPECIAL[name]] = ids[token]
    return metadata


def _tokens(
    vocabulary: Mapping[str, int], added: list[dict[str, Any]], size: int
) -> tuple[list[str], list[int]]:
    """Tokens and their types in the order of their ids; what no id has, is unused."""
    tokens = [f"[PAD{id_}]" for id_ in range(size)]
    types = [int(gguf.TokenType.UNUSED)] * size
    normal = ((id_, token, gguf.TokenType.NORMAL) for token, id_ in vocabulary.items())
    extra = (
        (
            token["id"],
            token["content"],
            gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED,
        )
        for token in added
    )
    for id_, token, type_ in (*normal, *extra):
        if not 0 <= id_ < size:
            raise ModelCorrupt(
                f"tokenizer.json has a token {id_}, config.json says there are {size}."
            )
        tokens[id_], types[id_] = token, int(type_)
    return tokens, types


def _pre_tokenizer(raw: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for how text is cut into words before it is merged."""
    steps = [] if raw is None else raw.get("pretokenizers", [raw])
    kinds = [step["type"] for step in steps]
    if kinds and steps[-1].items() >= _BYTE_LEVEL.items():
        words = steps[-1].get("use_regex", True)
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and words:
            return "smollm"
        if kinds == ["ByteLevel"] and words:
            return "gpt-2"
        split = steps[0].get("pattern", {}).get("Regex") == _LLAMA_3_WORDS
        if kinds == ["Split", "ByteLevel"] and split and not words:
            return "llama-bpe"
    raise NotSupported(
        f"llama.cpp has no tokenizer that cuts words as this one does ({', '.join(kinds)}).",
        hint="Known: SmolLM's, GPT-2's and Llama 3's.",
    )


def _merge(merge: str | list[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _adds_bos(post_processor: Mapping[str, Any] | None) -> bool:
    """Whether the tokenizer itself puts a token before a text."""
    steps = [] if post_processor is None else post_processor.get("processors", [post_processor])
    return any(
        step["type"] == "TemplateProcessing" and "SpecialToken" in (step.get("single") or [{}])[0]
        for step in steps
    )
