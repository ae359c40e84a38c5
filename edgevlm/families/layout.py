"""From turns to token ids, with a wall between what the model's files say and what people say.

A template's own text may hold special tokens; a person's text (or a model's earlier answer)
never does, whatever it spells. Two things make that hold:

- a template never sees the text: it gets a stand-in, and where that comes out again is where
  the text belongs, so no filter and no neighbour can turn letters into a token;
- the tokenizer that reads the text does not know any special tokens. Those of the template
  are found before, and everything between two of them is tokenized in one go, since a
  byte-level BPE may merge across the border of template and text as the reference does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tokenizers import Tokenizer

from edgevlm.engine.prompt import ImageInput, ImageSlot, Part
from edgevlm.errors import TemplateError
from edgevlm.families.base import Turn
from edgevlm.families.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Markup:
    """Text of the model's own files, in which special tokens count."""

    text: str


@dataclass(frozen=True, slots=True)
class Letters:
    """Text of anyone else, which stays letters."""

    text: str


Piece: TypeAlias = Markup | Letters | ImageSlot

# Private-use characters around a number: no case to change, nothing to strip or to escape.
_STAND_IN = re.compile("\ue000([0-9]{1,9})\ue001")
_HALF_STAND_IN = re.compile("[\ue000\ue001]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_HINT = "The model's chat template does not fit its family: use another model."


def render_turns(template: ChatTemplate, turns: Sequence[Turn]) -> list[Piece]:
    """Render `turns` up to where the assistant speaks. Raises TemplateError."""
    texts: list[str] = []
    messages = [{"role": turn.role, "content": _content(turn, texts)} for turn in turns]
    pieces: list[Piece] = []
    # An odd position is a stand-in's number, the others lie between.
    for position, part in enumerate(_STAND_IN.split(template.render(messages))):
        if position % 2 == 0:
            if _HALF_STAND_IN.search(part):
                raise TemplateError("The chat template cuts texts apart.", hint=_HINT)
            pieces.append(Markup(part))
        elif int(part) < len(texts):
            pieces.append(Letters(texts[int(part)]))
        else:
            raise TemplateError("The chat template makes texts up.", hint=_HINT)
    return pieces


def _content(turn: Turn, texts: list[str]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": _stand_in(part, texts)}
        if isinstance(part, str)
        else {"type": "image"}
        for part in turn.content
    ]
    # Templates look at the first part without asking whether there is one.
    return parts or [{"type": "text", "text": ""}]


def _stand_in(text: str, texts: list[str]) -> str:
    """What a template sees of `text`: its outer white space, so that `trim` works as ever."""
    core = text.strip()
    if not core:
        return text
    before, after = text.split(core, 1)
    texts.append(core)
    return f"{before}\ue000{len(texts) - 1}\ue001{after}"


class MarkupTokenizer:
    """Tokenizes pieces. For tokenizers whose result does not depend on where a piece starts,
    which holds for byte-level BPE."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._markup = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.content.strip()
        }
        # The longest first, as the tokenizer itself prefers.
        longest_first = sorted(self._markup, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._markup_ids = frozenset(self._markup.values())
        # The same model and pre-tokenizer without any added token. (`encode_special_tokens`
        # would be less: it leaves added tokens that are not marked as special.)
        self._letters = Tokenizer(tokenizer.model)
        if tokenizer.normalizer is not None:
            self._letters.normalizer = tokenizer.normalizer
        if tokenizer.pre_tokenizer is not None:
            self._letters.pre_tokenizer = tokenizer.pre_tokenizer

    def encode(
        self,
        pieces: Iterable[Piece],
        *,
        image_id: int | None = None,
        images: Sequence[Sequence[Piece]] = (),
    ) -> tuple[Part, ...]:
        """Return ids and slots, adjacent ids in one tuple.

        Each `image_id` of the markup gives way to the next of `images`, whose slots stand for
        embeddings. Raises TemplateError unless there are as many of one as of the other.
        """
        run = _Run(self)
        rest = iter(images)
        found = 0
        for piece in pieces:
            for part in self._split(piece):
                if part != image_id:
                    run.add(part)
                    continue
                found += 1
                for inner in next(rest, ()):
                    for inner_part in self._split(inner):
                        run.add(inner_part)
        if found != len(images):
            raise TemplateError(
                f"The chat template has room for {found} pictures, not {len(images)}.", hint=_HINT
            )
        return run.parts()

    def _split(self, piece: Piece) -> list[str | int | ImageSlot]:
        """Markup's special tokens as ids, and the text between them."""
        if isinstance(piece, ImageSlot):
            return [piece]
        if isinstance(piece, Letters):
            return [piece.text]
        return [self._markup.get(part, part) for part in self._pattern.split(piece.text)]

    def encode_letters(self, text: str) -> list[int]:
        # Lone surrogates are no text, and a tokenizer can't take them.
        text = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
        ids: list[int] = self._letters.encode(text, add_special_tokens=False).ids
        if not self._markup_ids.isdisjoint(ids):
            raise TemplateError("The tokenizer turns plain text into special tokens.", hint=_HINT)
        return ids


class _Run:
    """Collects ids; text waits until a token or a slot ends it."""

    def __init__(self, tokenizer: MarkupTokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts: list[Part] = []
        self._ids: list[int] = []
        self._text: list[str] = []

    def add(self, part: str | int | ImageSlot) -> None:
        if isinstance(part, str):
            self._text.append(part)
            return
        self._end_text()
        if isinstance(part, int):
            self._ids.append(part)
        else:
            self._end_ids()
            self._parts.append(part)

    def parts(self) -> tuple[Part, ...]:
        self._end_text()
        self._end_ids()
        return tuple(self._parts)

    def _end_text(self) -> None:
        text = "".join(self._text)
        self._text.clear()
        if text:
            self._ids.extend(self._tokenizer.encode_letters(text))

    def _end_ids(self) -> None:
        if self._ids:
            self._parts.append(tuple(self._ids))
            self._ids = []


def images_of(turns: Sequence[Turn]) -> tuple[ImageInput, ...]:
    """The pictures of a conversation in reading order."""
    return tuple(part for turn in turns for part in turn.content if not isinstance(part, str))
