"""What a description states of the things in a picture, sentence by sentence, by fixed rules.

"There are two cats: a small red one at the top left and a large one that is left of the dog"
states a phrase of two members, what each of these is, and a relation. What is denied is not
stated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

import beside_tiny  # noqa: F401
import judge
from captions import load_concepts
from judge import COLOUR_WORDS, Words
from projector import load_vocabulary
from seen import MATERIALS, NUMBERS
from tasks import GENERAL

_SIZES = {
    "small": "small", "little": "small", "tiny": "small", "medium": "medium",
    "large": "large", "big": "large", "huge": "large",
}  # fmt: skip
_SURFACE_WORDS = {**COLOUR_WORDS, **{name: name for name in MATERIALS}}
_NUMBERS = {**{word: i for i, word in enumerate(NUMBERS)}, "six": 6, "seven": 7, "single": 1}
_GENERIC = {"thing": 1, "object": 1, "item": 1, "things": 2, "objects": 2, "items": 2}
_PICTURE = frozenset({"picture", "image", "photo", "scene", "photograph", "drawing"})
_ROWS = {"top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
_MIDDLE = frozenset({"middle", "center", "centre"})
_WAYS = {"above": "above", "over": "above", "below": "below", "under": "below",
         "beneath": "below", "underneath": "below"}  # fmt: skip
_THAN = {"higher": "above", "lower": "below", "larger": "larger", "bigger": "larger",
         "smaller": "smaller"}  # fmt: skip
OPPOSITE = {**judge.OPPOSITE, "larger": "smaller", "smaller": "larger"}
_PREPOSITIONS = frozenset({"at", "in", "on", "to", "near", "towards", "along"})
_ADJECTIVES = frozenset({*_SURFACE_WORDS, *_SIZES})
_DETERMINERS = frozenset({"a", "an", "the", "another", "one", *_NUMBERS})
_PASSED_OVER = frozenset({"sized", "dark", "light", "bright", "pale", "probably", "very"})
# What ends a name that no list has.
_STRUCTURE = frozenset({*_PREPOSITIONS, *_DETERMINERS, *_WAYS, *_THAN, "is", "are", "and", "there",
                        "with", "of", "it", "than", "that", "which", "probably"})  # fmt: skip


@dataclass(eq=False, slots=True)
class Phrase:
    """What is said of one thing, or of `number` things in common; "" and None are nothing."""

    name: str = ""
    colour: str = ""
    size: str = ""
    row: str = ""
    column: str = ""
    number: int | None = None
    members: list[Phrase] = field(default_factory=list)  # of several, what is said of each

    def takes(self, other: Phrase) -> None:
        """Add what `other` says to what isn't said yet."""
        for key in ("name", "colour", "size", "row", "column"):
            setattr(self, key, getattr(self, key) or getattr(other, key))

    @property
    def several(self) -> int:
        return max(self.number or 1, 1)


Relation = tuple[Phrase, str, Phrase]


@dataclass(slots=True)
class Statements:
    """`relations` are (phrase, way, phrase); `totals` are numbers of things in all. `unparsed` is
    what the rules don't understand."""

    phrases: list[Phrase] = field(default_factory=list)
    relations: list[Relation] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    unparsed: list[str] = field(default_factory=list)


def read(answer: str) -> Statements:
    """What is stated, in order."""
    reader = _Reader()
    for words in judge.asserted(answer):
        reader.clause(words)
    return reader.found


class _Reader:
    """Reads clauses one after the other; "the cat" and "it" are what was spoken of before."""

    def __init__(self) -> None:
        self.found = Statements()
        self._group: list[Phrase] = []  # of several just named, those not yet told apart
        self._last: Phrase | None = None

    def clause(self, words: Words) -> None:
        self._words, self._at = words, 0
        self._subject: Phrase | None = None
        self._object: Phrase | None = None
        self._renamed = False  # "it is ...": what follows is about what "it" is
        self._way, self._place = "", Phrase()
        self._alone: list[int] = []
        before = self._size()
        while self._at < len(words):
            self._step()
        if self._subject is None and len(self._alone) == 1:
            self.found.totals += self._alone
        if self._subject is not None:
            self._subject.takes(self._place)
            self._last = self._subject
        if self._size() == before and not self._alone and len(words) > 2 and not self._subject:
            self.found.unparsed.append(" ".join(words))

    def _size(self) -> int:
        found = self.found
        lists = found.phrases, found.relations, found.totals, found.unparsed
        return sum(len(statements) for statements in lists)

    def _step(self) -> None:
        rest = self._words[self._at :]
        if taken := _relation(rest):
            self._way, self._at = taken[0], self._at + taken[1]
        elif place := _place(rest):
            self._places(place[0])
            self._at += place[1]
        elif rest[0] in ("it", "this") and not _PICTURE & {*rest[1:2]}:
            self._pronoun()
            self._at += 1
        else:
            self._noun_phrase()

    def _places(self, place: Phrase) -> None:
        if self._subject is None:
            self._place = place
        else:
            (self._object or self._subject).takes(place)

    def _pronoun(self) -> None:
        if self._way:
            self._relate(self._object or self._last)
        elif self._subject is None and self._last is not None:
            self._subject, self._renamed = self._last, True

    def _relate(self, other: Phrase | None) -> None:
        """`other` is what the way is from, if there is something on the way."""
        if other is not None and self._subject is not None:
            self.found.relations.append((self._subject, self._way, other))
        self._object, self._way = other, ""

    def _noun_phrase(self) -> None:
        """Adjectives and a noun, adjectives alone, or a word that says nothing."""
        start, phrase, definite, opened = self._at, Phrase(), False, False
        while self._at < len(self._words):
            word, rest = self._words[self._at], self._words[self._at :]
            noun = _noun(rest, several=phrase.several > 1)
            if word == "one" and opened:
                self._at += 1
                self._member(phrase)
                return
            if word in _DETERMINERS:
                if phrase.colour or phrase.size:
                    break
                opened, definite = True, word == "the"
                phrase.number = _NUMBERS.get(word, phrase.number)
            elif noun and not (noun[1] == 1 and _is_adjective(word, rest[1:])):
                self._at += noun[1]
                phrase.name = noun[0]
                self._noun(phrase, definite)
                return
            elif word in _GENERIC or word in ("something", "ones"):
                self._at += 1
                self._thing(phrase, definite)
                return
            elif word in _PICTURE:
                self._at += 1
                return
            elif word in _SURFACE_WORDS:
                phrase.colour = _SURFACE_WORDS[word]
            elif word in _SIZES:
                phrase.size = _SIZES[word]
            elif word not in _PASSED_OVER and not (
                word == "and" and (phrase.colour or phrase.size) and _ADJECTIVES & {*rest[1:2]}
            ):
                break
            self._at += 1
        if opened and not definite and self._unknown():
            self._new(phrase)
        elif self._subject is not None and not opened and not self._after_preposition(start):
            self._subject.takes(phrase)
        self._at += self._at == start

    def _after_preposition(self, at: int) -> bool:
        return self._words[at - 1 : at] != () and self._words[at - 1] in _PREPOSITIONS

    def _unknown(self) -> bool:
        """Passes over a name that no list has, if that is what comes."""
        start = self._at
        while self._at < len(self._words) and self._words[self._at] not in _STRUCTURE:
            self._at += 1
        name = " ".join(self._words[start : self._at])
        if name in GENERAL or not name:
            return False
        self.found.unparsed.append(name)
        return True

    def _noun(self, phrase: Phrase, definite: bool) -> None:
        if not definite:
            self._new(phrase)
        elif (known := self._known(phrase)) is not None:
            self._speak_of(known)
        else:
            self._new(phrase)

    def _thing(self, phrase: Phrase, definite: bool) -> None:
        """Something without a name: "a red thing", "four things"."""
        if definite and (known := self._known(phrase)) is not None:
            self._speak_of(known)
        elif definite:
            pass
        elif phrase.number is not None and not phrase.colour and not phrase.size:
            self._alone.append(phrase.number)
        else:
            self._new(phrase)

    def _member(self, phrase: Phrase) -> None:
        """ "a small one": of several just named, the next."""
        phrase.number = None
        if not self._group:
            self._new(phrase)
            return
        member = self._group.pop(0)
        member.takes(phrase)
        self._speak_of(member)

    def _known(self, phrase: Phrase) -> Phrase | None:
        """What was spoken of before by this name, and in this colour."""
        for known in self.found.phrases:
            for one in known.members or [known]:
                same = (one.name or known.name) == phrase.name
                if same and phrase.colour in ("", one.colour):
                    return one
        return None

    def _new(self, phrase: Phrase) -> None:
        named, self._renamed = self._renamed and not self._way, False
        if named and self._subject is not None and not self._subject.name:
            self._subject.takes(phrase)
            return
        self.found.phrases.append(phrase)
        if phrase.several > 1:
            phrase.members = [Phrase() for _ in range(phrase.several)]
            self._group = list(phrase.members)
        self._speak_of(phrase)

    def _speak_of(self, phrase: Phrase) -> None:
        if self._way and self._subject is None:  # "left of the cat is a dog"
            self._object = phrase
            self._subject_after(phrase)
        elif self._way:
            self._relate(phrase)
        else:
            self._subject, self._object = phrase, None
            phrase.takes(self._place)
            self._place = Phrase()

    def _subject_after(self, other: Phrase) -> None:
        way, self._way = self._way, ""
        while self._at < len(self._words) and self._subject is None:
            self._step()
        if self._subject is not None:
            self.found.relations.append((self._subject, way, other))


def _is_adjective(word: str, rest: Words) -> bool:
    """Whether a word that may be a name too stands before another name: "an orange cat"."""
    if word not in _SURFACE_WORDS:
        return False
    return bool(rest) and (
        bool(_noun(rest)) or rest[0] in _GENERIC or rest[0] in ("one", "ones", *_SURFACE_WORDS)
    )


def _relation(words: Words) -> tuple[str, int] | None:
    """The way, and how many words say it."""
    text = " ".join(words)
    if found := re.match(r"(?:on |to |at )?(?:the )?(left|right)(?: side)? of (?!(?:the|this) "
                         rf"(?:{'|'.join(_PICTURE)})\b)", text):  # fmt: skip
        return found[1], len(found[0].split())
    if found := re.match(r"further (?:to the )?(left|right) than ", text):
        return found[1], len(found[0].split())
    if words[:3] == ("on", "top", "of"):
        return "above", 3
    if words[0] in _WAYS:
        return _WAYS[words[0]], 1
    if words[0] in _THAN and "than" in words[1:3]:
        return _THAN[words[0]], words.index("than") + 1
    return None


def _place(words: Words) -> tuple[Phrase, int] | None:
    """Where something is said to be, and how many words say it."""
    at = 0
    while at < len(words) and (words[at] in _PREPOSITIONS or (at and words[at] == "the")):
        at += 1
    if not at:
        return None
    row = column = ""
    start = at
    while at < len(words) and at < start + 2:
        word = words[at]
        if word in _ROWS and not row:
            row = _ROWS[word]
        elif word in ("left", "right") and not column:
            column = word
        elif word in _MIDDLE:
            row, column = (row, "center") if row else ("middle", column)
        else:
            break
        at += 1
    if at == start:
        return None
    if row == "middle" and not column:
        column = "center"
    while at < len(words) and words[at] in ("corner", "side", "part", "half", "edge"):
        at += 1
    return Phrase(row=row, column=column), at


@cache
def _names() -> tuple[dict[Words, str], dict[Words, str]]:
    """All names of things, and by their plurals; "a sign" is one in scenes alone.

    A red wolf is a wolf that is red, whatever ImageNet calls so, but a red envelope is itself.
    """
    concepts = load_concepts()
    scenes = {judge.bare(name) for c in concepts for name in (c.name, c.kind, c.broad)}
    others = {*load_vocabulary().names, *(word for c in concepts for word in c.synonyms)}
    known = scenes | {n for n in map(judge.bare, others) if " ".join(n) not in GENERAL}
    coloured = {name for name in known if name[:1] and name[0] in _ADJECTIVES and name[1:] in known}
    kept = sorted((known - coloured | scenes) - {()})
    plurals = {judge.words_of(judge.plural(" ".join(name))): " ".join(name) for name in kept}
    return {name: " ".join(name) for name in kept}, plurals


@cache
def _longest() -> int:
    return max(len(form) for forms in _names() for form in forms)


def _noun(words: Words, *, several: bool = False) -> tuple[str, int] | None:
    """The longest name that the words begin with, and how many words it has. Glasses are to see
    with, and `several` of them to drink from."""
    names, plurals = _names()
    for length in range(min(_longest(), len(words)), 0, -1):
        for forms in (plurals, names) if several else (names, plurals):
            if name := forms.get(words[:length]):
                return name, length
    return None
