"""Which concept a picture's caption names, or none.

Emoji and icons carry a plain name, which must match whole. A stamp's caption is a sentence and a
clip art's file name ends in its author's, so there the longest match counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

CONCEPTS = Path(__file__).with_name("concepts.txt")
CAPTIONS = Path(__file__).with_name("captions.txt")

SHAPE = "a shape"
# What a file name may say before it names the thing.
QUALIFIERS = frozenset(
    word
    for line in (
        "a an the some pair of simple small little large big old new vintage cartoon stylized",
        "happy wrapped wooden colorful red green blue yellow orange purple pink brown black white",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class Concept:
    """A thing's name with its article; `kind` and `broad` are "" where there is none.

    `synonyms` are other words that count as right.
    """

    name: str
    kind: str
    broad: str
    synonyms: tuple[str, ...]


def load_concepts(path: Path = CONCEPTS) -> list[Concept]:
    concepts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name, kind, broad, synonyms = (cell.strip() for cell in line.split("|"))
        words = tuple(word.strip() for word in synonyms.split(",") if word.strip())
        concepts.append(Concept(name, kind, broad, words))
    return concepts


class Captions:
    """Looks captions up among the concepts' names and the further captions of captions.txt.

    There, a line is `concept: caption, caption`. A caption with a slash is the key of a picture
    whose own caption says something else than what it shows; the concept `-` holds patterns for
    the keys of such pictures to leave out.
    """

    def __init__(self, concepts: list[Concept]) -> None:
        rows = {concept.name: row for row, concept in enumerate(concepts)}
        self._rows: dict[str, int] = {}
        self._phrases: set[str] = set()
        self._left_out: set[str] = set()
        self._by_key: dict[str, int] = {}
        # A shape's name is also a card's suit or a gem; shapes are drawn elsewhere.
        for concept in concepts:
            if concept.kind != SHAPE:
                self._add(_without_article(concept.name), rows[concept.name])
        for line in CAPTIONS.read_text(encoding="utf-8").splitlines():
            name, _, captions = line.partition(":")
            for caption in filter(None, (part.strip() for part in captions.split(","))):
                if name == "-":
                    self._left_out.add(caption)
                elif "/" in caption:
                    self._by_key[caption] = rows[name]
                else:
                    self._add(caption, rows[name])

    def _add(self, phrase: str, row: int) -> None:
        self._phrases.add(" ".join(words(phrase)))
        self._rows[_squeezed(phrase)] = row

    def by_key(self, key: str) -> int | None:
        """The concept of a picture whose caption is known to be of no use; -1 to leave it out."""
        if any(fnmatchcase(key, pattern) for pattern in self._left_out):
            return -1
        return self._by_key.get(key)

    def whole(self, caption: str) -> int | None:
        plain = re.sub(r"[ -]face$", "", caption)
        for phrase in (caption, plain):
            row = self._rows.get(_squeezed(phrase))
            if row is not None:
                return row
        return None

    def leading(self, caption: str) -> int | None:
        """The longest match at the start, after qualifiers: for file names."""
        rest = words(caption)
        while rest:
            for phrase in _prefixes(rest):
                if phrase in self._phrases:
                    return self._rows[_squeezed(phrase)]
            if rest[0] not in QUALIFIERS:
                return None
            rest = rest[1:]
        return None

    def head(self, caption: str) -> int | None:
        """The longest match at the end: for noun phrases."""
        rest = words(caption)
        for start in range(len(rest)):
            phrase = " ".join(rest[start:])
            if phrase in self._phrases:
                return self._rows[_squeezed(phrase)]
        return None


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z0-9]+", " ", re.sub("['\u2019]", "", text.lower())).split()


def _prefixes(tokens: list[str]) -> Iterator[str]:
    for end in range(min(len(tokens), 6), 0, -1):
        phrase = " ".join(tokens[:end])
        yield phrase
        # "apple1", "apple 01" and "apple_bw" are more pictures of the same.
        yield re.sub(r"\d+$", "", phrase).strip()


def _without_article(name: str) -> str:
    return re.sub(r"^(an?|the) ", "", name)


def _squeezed(phrase: str) -> str:
    return "".join(words(phrase))
