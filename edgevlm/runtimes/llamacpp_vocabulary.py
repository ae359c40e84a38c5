"""The vocabulary of a GGUF decoder, read by llama.cpp's own tokenizer.

A GGUF file names its tokenizer, and llama.cpp knows some sixty kinds: text becomes ids there,
exactly as it does for whoever else runs the file. The way back, from ids to text, is one of
two and needs only the vocabulary, so a `tokenizers.Tokenizer` does it here as elsewhere. It
also tells a grammar what each token reads, and how what the grammar forces would be cut: there
it knows the merges or scores, and of the sixty ways to part words one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from edgevlm.errors import NotSupported, RuntimeFailed
from edgevlm.families.layout import PieceTokenizer, without_surrogates
from edgevlm.runtimes.llamacpp_header import GgufHeader
from edgevlm.runtimes.llamacpp_library import llama
from edgevlm.runtimes.llamacpp_weights import Weights

_CONTROL = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
_USER_DEFINED = llama.LLAMA_TOKEN_ATTR_USER_DEFINED
# `<tool_call>` and its like: a file may call them text, which people's text must not become.
_LOOKS_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's
_BYTE_LEVEL_SPACE = "\u0120"
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


class Vocabulary(PieceTokenizer):
    """Tokens of the weights' file. Safe from any thread. Raises NotSupported for one that is
    neither byte-level BPE nor SentencePiece."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._vocab: Any = llama.llama_model_get_vocab(weights.pointer)
        tokens = range(weights.n_vocab)
        self._texts = [self._text(id_) for id_ in tokens]
        kinds = [llama.llama_vocab_get_attr(self._vocab, id_) for id_ in tokens]
        self._ids: dict[str, int] = {}
        for id_, text in enumerate(self._texts):
            self._ids.setdefault(text, id_)
        is_bpe = llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_BPE
        self._is_byte_level = is_bpe and _BYTE_LEVEL_SPACE in self._ids
        control = [id_ for id_ in tokens if kinds[id_] & _CONTROL]
        added = [id_ for id_ in tokens if kinds[id_] & _USER_DEFINED]
        marks = [*control, *(id_ for id_ in added if _LOOKS_SPECIAL.fullmatch(self._texts[id_]))]
        super().__init__({self._texts[id_]: id_ for id_ in marks})
        self._marks = frozenset(marks)
        ends = [id_ for id_ in marks if llama.llama_vocab_is_eog(self._vocab, id_)]
        eos = int(llama.llama_vocab_eos(self._vocab))
        self.stop_ids = frozenset(ends if eos < 0 else [*ends, eos])
        self.decoder = self._decoder(control, added)

    @property
    def begin(self) -> int | None:
        """The token that the model expects before everything, if it does."""
        if not llama.llama_vocab_get_add_bos(self._vocab):
            return None
        return int(llama.llama_vocab_bos(self._vocab))

    def named_tokens(self) -> Mapping[str, str]:
        """What a chat template may call `bos_token` and `eos_token`."""
        ids = {
            "bos_token": llama.llama_vocab_bos(self._vocab),
            "eos_token": llama.llama_vocab_eos(self._vocab),
        }
        return {name: self._texts[id_] for name, id_ in ids.items() if id_ >= 0}

    def encode_letters(self, text: str) -> list[int]:
        """Raises RuntimeFailed."""
        data = without_surrogates(text).encode()
        ids = (llama.llama_token * (len(data) + 2))()
        count = llama.llama_tokenize(self._vocab, data, len(data), ids, len(ids), False, False)
        if count < 0:
            raise RuntimeFailed("llama.cpp can't read a text.", hint="Please report this.")
        return [part for id_ in ids[:count] for part in self._spelled(id_)]

    def _spelled(self, id_: int) -> list[int]:
        """The token, and where it looks special those that stand for each of its letters."""
        if id_ not in self._marks:
            return [id_]
        text = self._texts[id_]
        if self._is_byte_level:
            letters = list(_BYTES.pre_tokenize_str(text)[0][0])
        else:
            letters = [
                part
                for letter in text
                for part in ([letter] if letter in self._ids else _byte_tokens(letter))
            ]
        return [self._ids[letter] for letter in letters if letter in self._ids]

    def _text(self, id_: int) -> str:
        return str(llama.llama_vocab_get_text(self._vocab, id_), "utf-8", "replace")

    def _decoder(self, control: Sequence[int], added: Sequence[int]) -> Tokenizer:
        if self._is_byte_level:
            tokenizer = self._byte_level()
        elif llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_SPM:
            tokenizer = self._sentencepiece()
        else:
            raise NotSupported(
                f"The tokenizer of {self._weights.path.name} is of a kind not known here.",
                hint="Known: byte-level BPE and SentencePiece.",
            )
        tokenizer.add_special_tokens([self._added(id_, special=True) for id_ in control])
        tokenizer.add_tokens([self._added(id_, special=False) for id_ in added])
        return tokenizer

    def _byte_level(self) -> Tokenizer:
        with GgufHeader(self._weights.path) as header:
            merges = header.strings("tokenizer.ggml.merges")
        lines = [merge.decode("utf-8", "replace") for merge in merges]
        # A space may be the first letter of a pair.
        pairs = [(line[:at], line[at + 1 :]) for line in lines if (at := line.find(" ", 1)) > 0]
        try:
            tokenizer = Tokenizer(models.BPE(vocab=self._ids, merges=pairs))
        except Exception:  # merges of tokens that there are not, which llama.cpp passes over
            tokenizer = Tokenizer(models.BPE(vocab=self._ids, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _sentencepiece(self) -> Tokenizer:
        scores = [llama.llama_vocab_get_score(self._vocab, i) for i in range(len(self._texts))]
        pieces = list(zip(self._texts, scores, strict=True))
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
        steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self._begins_with_space():
            steps.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(steps)
        return tokenizer

    def _added(self, id_: int, *, special: bool) -> AddedToken:
        return AddedToken(self._texts[id_], special=special, normalized=False)

    def _begins_with_space(self) -> bool:
        """Whether a text is read as if a space were before it."""
        ids = self.encode_letters("a")
        return bool(ids) and self._texts[ids[0]].startswith(_SPACE)


def _byte_tokens(letter: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in letter.encode()]
