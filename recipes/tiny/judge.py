"""Right, wrong or refused: what an answer says, judged by fixed rules and no model.

Only what is asserted counts: "No, there is no dog" names no dog, and "I can't tell whether it
is a cat" no cat. Words match whole, plurals and articles aside, and the longest name wins, so
that "a hot dog" is no dog. Where an answer says two things at once, it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from typing import Literal

from seen import COLOURS

Verdict = Literal["right", "wrong", "refused"]
Words = tuple[str, ...]

COLOUR_WORDS = {**{name: name for name in (*COLOURS, "teal")}, "violet": "purple"}
SHAPES = {
    "circle": "circle", "disc": "circle", "disk": "circle",
    "rectangle": "rectangle", "square": "rectangle", "triangle": "triangle",
}  # fmt: skip
DIRECTIONS = {
    "left": "left", "right": "right", "above": "above", "over": "above", "higher": "above",
    "top": "above", "below": "below", "under": "below", "beneath": "below",
    "underneath": "below", "lower": "below", "bottom": "below",
}  # fmt: skip
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {
    **{word: i for i, word in enumerate(_UNITS)},
    **{word: 10 * i for i, word in enumerate(_TENS, 2)},
    "none": 0, "single": 1,
}  # fmt: skip
_IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet", "tooth": "teeth", "knife": "knives", "leaf": "leaves",
    "wolf": "wolves", "loaf": "loaves", "shelf": "shelves", "scarf": "scarves", "half": "halves",
    "sheep": "sheep", "fish": "fish", "deer": "deer", "ox": "oxen", "calf": "calves", "doe": "doe",
    "tomato": "tomatoes", "potato": "potatoes", "mosquito": "mosquitoes",
    "superhero": "superheroes",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}

_SPELLING = (
    (r"[\u2018\u2019`]", "'"),
    (r"\bcan'?t\b|\bcannot\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"n't\b", " not"),
    (r"\b(it|there|that|this|what|here)'s\b", r"\1 is"),
    (r"'s\b", ""),
    (r"\bgray", "grey"),
    (r"\bcolor", "colour"),
)
_SUBJECTS = r"(?:it|there|this|that|i|the (?:picture|image|photo))\b"
_BOUNDARY = re.compile(
    rf"[.;:!?]+(?!\d)|,?\s\bbut\b|\b(?:although|though|however|while)\b|,\s*(?:and\s+)?(?={_SUBJECTS})"
    rf"|\s\band\s+(?={_SUBJECTS})|,\s*(?=(?:only|just|maybe|perhaps|probably|possibly|not|no|so)\b)"
    r"|^(?:yes|no|nope|not really)\s*[,.;:!]"
)
_NEGATOR = re.compile(
    r"\b(?:no|not|without|never|nothing|neither|nor|none|unclear|unsure|whether|instead of"
    r"|rather than|(?:hard|difficult|impossible) to)\b"
)
# After a verb and a negator, these deny what came before: "a dog isn't in the picture".
_ABSENT = re.compile(
    r"\b(?:is|are|was|can) not (?:in|on|there|here|visible|shown|present|be seen|to be seen|part)\b"
)
# The verb, which is no can.
_CAN = re.compile(r"(?<=\bi )can\b|(?<=\byou )can\b|\bcan (?=not|be|see|tell|only)")
_DECLINES = re.compile(
    r"\b(?:can|could) not (?:be sure|be told|be certain|tell|say|recogni[sz]e|make out|identify"
    r"|determine|name|read|answer|know)\b|\b(?:do|does) not know\b|\bnot (?:sure|certain|clear"
    r"|possible)\b|\b(?:unsure|unclear|unable|maybe|no idea)\b|\b(?:hard|difficult|impossible) to\b"
)
_DENIES = re.compile(
    r"^(?:no|nope|none|nothing|not)\b|\b(?:there is|there are|i see|shows?|contains?) (?:no|not"
    r"|nothing|none)\b|\b(?:do|does|can|could) not (?:see|show|contain|have|find)\b|\bneither\b"
    r"|\bnothing\b|\bnot that i can\b"
)
_BLANK = re.compile(r"\b(?:blank|empty|plain|noise|nothing)\b")
_YES = re.compile(r"(?:yes|yeah|yep|yup|sure|correct|probably|likely|i think so)\b")
_NO = re.compile(
    r"(?:no|nope|none|not|neither|i do not think|i (?:do|can) not see|probably not"
    r"|(?:there|it) (?:is|are|does) (?:no|not))\b"
)
_UNDONE = re.compile(
    r"(?:yes|yeah|yep|yup)\W+(?:there (?:is|are) (?:no|not)|it is not|i can not)\b"
)
_QUOTED = re.compile(
    r"[\"\u201c\u201d]([^\"\u201c\u201d]+)[\"\u201c\u201d]"
    r"|(?<!\w)['\u2018]([^'\u2019]+)['\u2019](?!\w)"
)
_CONCLUSION = re.compile(r"\bso (yes|no)\W*$")
_AN_UNSURE_NO = re.compile(r"not (?:sure|certain|clear|possible)\b")


def plain(answer: str) -> str:
    """Lower case, one spelling of apostrophes, negations, grey and colour."""
    text = answer.lower().strip()
    for pattern, replacement in _SPELLING:
        text = re.sub(pattern, replacement, text)
    return text


def words_of(text: str) -> Words:
    """The words of plain text; hyphens part them."""
    return tuple(re.findall(r"[a-z]+|\d+(?:\.\d+)?", text))


def asserted(answer: str) -> Iterator[Words]:
    """The words of every clause, up to where it is negated; of "either a or b" only the first."""
    for clause in _BOUNDARY.split(plain(answer)):
        if _ABSENT.search(clause):
            continue
        clause = re.sub(r"\beither\b(.*?)\bor\b.*", r"\1", clause)
        clause = _CAN.sub("", clause)
        negated = _NEGATOR.search(clause)
        words = words_of(clause[: negated.start()] if negated else clause)
        if words:
            yield words


class Lexicon:
    """Names of things, to be found in answers by longest match, in the singular or plural."""

    def __init__(self, names: Iterable[str]) -> None:
        self._forms: dict[Words, str] = {}
        self._add(names)

    def _add(self, names: Iterable[str]) -> None:
        known = {bare(name): name for name in names}
        # An exact name comes before the plural of another one: glasses are no two of glass.
        plurals = {_plural(name): name for name in known if name}
        exact = {name: " ".join(name) for name in known if name}
        for form, name in plurals.items():
            self._forms.setdefault(form, " ".join(name))
        self._forms.update(exact)
        self._longest = max((len(form) for form in self._forms), default=0)

    def including(self, names: Iterable[str]) -> Lexicon:
        wider = Lexicon(())
        wider._forms = dict(self._forms)
        wider._add(names)
        return wider

    def mentions(self, answer: str) -> list[tuple[str, bool]]:
        """What the answer asserts to see, in order, and whether it says "the" before it.

        A colour without an article, or before another name, is none: "an orange cat that is
        orange" is no orange.
        """
        found: list[tuple[str, bool]] = []
        for words in asserted(answer):
            start = 0
            while start < len(words):
                name, end = self._longest_at(words, start)
                before = words[start - 1] if start else ""
                adjective = words[start] in COLOUR_WORDS and (
                    before not in _ARTICLES or self._longest_at(words, end)[0]
                )
                if name and not (adjective and end == start + 1):
                    found.append((name, before == "the"))
                start = end
        return found

    def _longest_at(self, words: Words, start: int) -> tuple[str, int]:
        for end in range(min(len(words), start + self._longest), start, -1):
            if name := self._forms.get(words[start:end]):
                return name, end
        return "", start + 1


@cache
def bare(name: str) -> Words:
    """A name's words without its article."""
    words = words_of(plain(name))
    return words[1:] if words and words[0] in _ARTICLES else words


def plural(name: str) -> str:
    return " ".join(_plural(bare(name)))


def _plural(name: Words) -> Words:
    *before, last = name
    if last in _IRREGULAR:
        plural = _IRREGULAR[last]
    elif re.search(r"[^aeiou]y$", last):
        plural = last[:-1] + "ies"
    else:
        plural = last + ("es" if re.search(r"(?:s|x|z|ch|sh)$", last) else "s")
    return (*before, plural)


def same(names: Iterable[str]) -> set[str]:
    """Names as `mentions` gives them."""
    return {" ".join(bare(name)) for name in names}


def refuses(answer: str) -> bool:
    """Says that it can't tell, or that what was asked about isn't there."""
    text = plain(answer)
    return bool(_DECLINES.search(text) or _DENIES.search(text) or _ABSENT.search(text))


def naming(
    answer: str, accepted: Collection[str], lexicon: Lexicon, *, first: bool = False
) -> Verdict:
    """Names one of `accepted`; with `first`, before any other thing of the lexicon."""
    found = [name for name, _ in lexicon.including(accepted).mentions(answer)]
    return _verdict(answer, bool(same(accepted) & set(found[:1] if first else found)))


def yes_no(answer: str, expected: bool) -> Verdict:
    """Begins with the right one of yes and no, or else concludes with it ("..., so no"). "Not
    that I can tell" is a no, "maybe" neither."""
    text = plain(answer)
    says_no = _NO.match(text) and not _AN_UNSURE_NO.match(text)
    says_yes = _YES.match(text) and not says_no and not _UNDONE.match(text)
    if says_no or says_yes:
        return "right" if bool(says_yes) == expected else "wrong"
    if conclusion := _CONCLUSION.search(text):
        return "right" if (conclusion[1] == "yes") == expected else "wrong"
    return "refused" if _DECLINES.search(text) else "wrong"


def colour(answer: str, expected: str) -> Verdict:
    """Says this colour and no other."""
    return _verdict(answer, _said(answer, COLOUR_WORDS) == {COLOUR_WORDS[plain(expected)]})


def shape(answer: str, expected: str) -> Verdict:
    """Says this shape of easy-VQA's three, or a usual name of it, and no other."""
    return _verdict(answer, _said(answer, SHAPES) == {expected})


def number(answer: str, expected: float) -> Verdict:
    """Says this number, in digits or words, and no other; "there is a dog" says one."""
    said = {value for words in asserted(answer) for value in _numbers(words)}
    if not said and re.search(r"\bthere is (?:only |just )?an? ", plain(answer)):
        said = {1}
    return _verdict(answer, said == {expected})


def _numbers(words: Words) -> Iterator[float]:
    before = ""
    for word, after in zip(words, (*words[1:], ""), strict=True):
        if word[0].isdigit():
            yield float(word)
        elif before in _TENS and word in _UNITS[1:10]:
            pass  # was said with its tens
        elif word in _TENS:
            yield _NUMBERS[word] + (_UNITS.index(after) if after in _UNITS[1:10] else 0)
        elif word in _NUMBERS and not (word == "one" and before in {"the", "this", "that"}):
            yield _NUMBERS[word]
        before = word


def direction(
    answer: str, expected: str, subject: Collection[str], other: Collection[str]
) -> Verdict:
    """Says that `subject` is left, right, above or below, or that `other` is opposite."""
    said = _said(answer, DIRECTIONS)
    if len(said) == 1 and _first(answer, subject, other) == "other":
        said = {OPPOSITE[way] for way in said}
    return _verdict(answer, said == {expected})


def which(answer: str, asked: str, subject: Collection[str], other: Collection[str]) -> Verdict:
    """Names `subject` as the one that is on the side asked about, or `other` as opposite."""
    said, first = _said(answer, DIRECTIONS), _first(answer, subject, other)
    if said == {OPPOSITE[asked]}:
        return _verdict(answer, first == "other")
    return _verdict(answer, first == "subject" and said <= {asked})


def _first(answer: str, subject: Collection[str], other: Collection[str]) -> str:
    for name, _ in Lexicon((*subject, *other)).mentions(answer):
        return "subject" if name in same(subject) else "other"
    return ""


def reading(answer: str, word: str) -> Verdict:
    """Says this word: in quotes, where there are any, and else anywhere."""
    quoted = _QUOTED.findall(answer)
    if quoted:
        said = {"".join(pair).strip(" .,!").lower() for pair in quoted}
        return _verdict(answer, said == {word.lower()})
    return _verdict(answer, any(word.lower() in words for words in asserted(answer)))


def honesty(answer: str, absent: Collection[str] = (), lexicon: Lexicon | None = None) -> Verdict:
    """Says that it can't tell or isn't there, and doesn't see `absent`.

    With a `lexicon`, of a picture of nothing, no thing at all may be seen, and calling the
    picture blank, empty, plain or noise is right, too.
    """
    honest = refuses(answer) or number(answer, 0) == "right"
    if lexicon is not None:
        honest = (honest or bool(_BLANK.search(plain(answer)))) and not lexicon.mentions(answer)
    # "The dog" repeats the question, "a dog" claims one.
    claimed = Lexicon(absent).mentions(answer)
    return "right" if honest and all(repeated for _, repeated in claimed) else "wrong"


def _said(answer: str, meanings: dict[str, str]) -> set[str]:
    return {meanings[word] for words in asserted(answer) for word in words if word in meanings}


def _verdict(answer: str, right: bool) -> Verdict:
    if right:
        return "right"
    return "refused" if refuses(answer) else "wrong"
