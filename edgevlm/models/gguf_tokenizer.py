"""The tokenizer that a GGUF file carries, as a `tokenizers.Tokenizer`."""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgevlm.errors import ModelCorrupt, NotSupported
from edgevlm.models.gguf import GgufFile

CONTROL = 3
KINDS = (("gpt2", "smollm"),)


def read_tokenizer(gguf: GgufFile) -> Tokenizer:
    """Rebuild the byte-level BPE tokenizer; control tokens become special tokens.

    llama.cpp names a tokenizer by model and pre-tokenizer. "gpt2" with "smollm" is
    what SmolLM's own tokenizer.json says: every digit apart, then GPT-2's words.
    Raises NotSupported for other kinds, ModelCorrupt where the parts don't fit.
    """
    kind = (gguf.metadata.get("tokenizer.ggml.model"), gguf.metadata.get("tokenizer.ggml.pre"))
    if kind not in KINDS:
        raise NotSupported(f"The tokenizer {kind} of a GGUF file can't be read.")
    tokens, merges = _strings(gguf, "tokens"), _strings(gguf, "merges")
    types = gguf.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise ModelCorrupt("The GGUF file does not type each of its tokens.")
    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or any(len(pair) != 2 for pair in pairs):
        raise ModelCorrupt("The GGUF file's tokens or merges are not sound.")
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelCorrupt("The GGUF file's merges name tokens that it lacks.") from error
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    controls = [tokens[id_] for id_ in np.flatnonzero(types == CONTROL)]
    tokenizer.add_special_tokens([AddedToken(c, special=True, normalized=False) for c in controls])
    return tokenizer


def _strings(gguf: GgufFile, name: str) -> list[str]:
    value = gguf.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list):
        raise ModelCorrupt(f"The GGUF file has no list of tokenizer {name}.")
    return value
