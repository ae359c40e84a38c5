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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids that are not to be read from any text."""

    ids: tuple[int, ...]


Piece: TypeAlias = Markup | Letters | Tokens | ImageSlot

# Private-use characters around a number: no case to change, nothing to strip or to escape.
_STAND_IN = re.compile("\ue000([0-9]{1,9})\ue001")
_HALF_STAND_IN = re.compile("[\ue000\ue001]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_HINT = "The model's chat template does not fit its family: use another model."


def render_turns(
    template: ChatTemplate,
    turns: Sequence[Turn],
    pictures: Iterable[Sequence[Piece]] | None = None,
    *,
    in_parts: bool = True,
) -> list[Piece]:
    """Render `turns` up to where the assistant speaks. Raises TemplateError.

    The template is told where pictures are and writes its own tokens for them. Where
    `pictures` says what each reads instead, it is shown texts in their places. Without
    `in_parts` a turn's content is one string, for templates that know nothing else.
    """
    stand_ins = _StandIns(None if pictures is None else iter(pictures))
    messages: list[dict[str, Any]] = []
    for turn in turns:
        content = stand_ins.content(turn)
        joined = "" if in_parts else "".join(part["text"] for part in content)
        messages.append({"role": turn.role, "content": content if in_parts else joined})
    pieces: list[Piece] = []
    # An odd position is a stand-in's number, the others lie between.
    for position, part in enumerate(_STAND_IN.split(template.render(messages))):
        if position % 2 == 0:
            if _HALF_STAND_IN.search(part):
                raise TemplateError("The chat template cuts texts apart.", hint=_HINT)
            pieces.append(Markup(part))
        elif int(part) < len(stand_ins.given):
            pieces.extend(stand_ins.given[int(part)])
        else:
            raise TemplateError("The chat template makes texts up.", hint=_HINT)
    return pieces


class _StandIns:
    """What a template sees in place of texts, and `given`, what each stands for."""

    def __init__(self, pictures: Iterator[Sequence[Piece]] | None) -> None:
        self.given: list[Sequence[Piece]] = []
        self._pictures = pictures

    def content(self, turn: Turn) -> list[dict[str, Any]]:
        parts = [self._part(part) for part in turn.content]
        # Templates look at the first part without asking whether there is one.
        return parts or [{"type": "text", "text": ""}]

    def _part(self, part: str | ImageInput) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": self._text(part)}
        if self._pictures is None:
            return {"type": "image"}
        return {"type": "text", "text": self._stand_in(next(self._pictures))}

    def _text(self, text: str) -> str:
        """With its outer white space, so that `trim` works as ever."""
        core = text.strip()
        if not core:
            return text
        before, after = text.split(core, 1)
        return before + self._stand_in([Letters(core)]) + after

    def _stand_in(self, pieces: Sequence[Piece]) -> str:
        self.given.append(pieces)
        return f"\ue000{len(self.given) - 1}\ue001"


class PieceTokenizer:
    """Tokenizes pieces, `markup` being the tokens that count in a model's own text. For
    tokenizers whose result does not depend on where a piece starts, which holds for
    byte-level BPE."""

    def __init__(self, markup: Mapping[str, int]) -> None:
        self._markup = {text: id_ for text, id_ in markup.items() if text.strip()}
        # The longest first, as a tokenizer itself prefers.
        longest_first = sorted(self._markup, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def encode_letters(self, text: str) -> list[int]:
        """Ids of a text in which no markup counts. Raises TemplateError."""
        raise NotImplementedError

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
        if isinstance(piece, Tokens):
            return list(piece.ids)
        if isinstance(piece, Letters):
            return [piece.text]
        return [self._markup.get(part, part) for part in self._pattern.split(piece.text)]


class MarkupTokenizer(PieceTokenizer):
    """By a `tokenizers.Tokenizer`, whose added tokens are the markup."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        super().__init__({token.content: token_id for token_id, token in added.items()})
        self._markup_ids = frozenset(self._markup.values())
        # The same model and pre-tokenizer without any added token. (`encode_special_tokens`
        # would be less: it leaves added tokens that are not marked as special.)
        self._letters = Tokenizer(tokenizer.model)
        if tokenizer.normalizer is not None:
            self._letters.normalizer = tokenizer.normalizer
        if tokenizer.pre_tokenizer is not None:
            self._letters.pre_tokenizer = tokenizer.pre_tokenizer

    def encode_letters(self, text: str) -> list[int]:
        ids: list[int] = self._letters.encode(
            without_surrogates(text), add_special_tokens=False
        ).ids
        if not self._markup_ids.isdisjoint(ids):
            raise TemplateError("The tokenizer turns plain text into special tokens.", hint=_HINT)
        return ids


def without_surrogates(text: str) -> str:
    """Lone surrogates are no text, and a tokenizer can't take them."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


class _Run:
    """Collects ids; text waits until a token or a slot ends it."""

    def __init__(self, tokenizer: PieceTokenizer) -> None:
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
