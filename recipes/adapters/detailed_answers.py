"""A long description of what edgevlm-tiny's words tell of a picture, as `detailed` is to give it.

It says most of what the words are nearly always right about: how many things there are, where
each is, how large and of which colour, and which is left of or above which. Names are said where
they are clear; where they are only probable, "probably" goes before them, or the kind that name
and runner-up have in common is said, or, where they have none, "a thing".
"""

from __future__ import annotations

from collections.abc import Sequence

import beside_tiny  # noqa: F401
from projector import CLEAR, Vocabulary
from seen import NUMBERS, SIZES, SURFACES, Slot, Spatial
from wording import bare, counts, is_plural, listing, plural, where, with_article

SIZE_WORDS = dict(zip(SIZES, ("small", "medium-sized", "large"), strict=True))
THING = "a thing"


class Describer:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._names = vocabulary.names
        table = vocabulary.concepts
        self._kinds = {
            int(row): [int(kind) for kind in kinds if kind >= 0]
            for row, *kinds in zip(table.rows, table.kind_of, table.broad_of, strict=True)
        }

    def describe(self, spatial: Spatial) -> str:
        """Several sentences about a picture of things, one at least."""
        slots = spatial.slots
        called = [self._called(slot) for slot in slots]
        said = [f"There {_are(len(slots), 'thing')} in this picture."]
        for group in self._groups(slots, called):
            said.append(_introduced([slots[i] for i in group], called[group[0]]))
        return " ".join([*said, *_relations(slots, called)])

    def _called(self, slot: Slot) -> str:
        if slot.name < 0:
            return THING
        if slot.certainty == CLEAR or slot.second < 0:
            return self._names[slot.name]
        name, second = (self._kinds.get(n, [n]) for n in (slot.name, slot.second))
        return next((self._names[kind] for kind in name if kind in second), THING)

    def _groups(self, slots: Sequence[Slot], called: Sequence[str]) -> list[list[int]]:
        """What is spoken of together: all of one name, if there can be several of it. Of a kind
        there may be more that are called by their names."""
        groups: dict[tuple[str, int], list[int]] = {}
        for i, (slot, name) in enumerate(zip(slots, called, strict=True)):
            exact = slot.name in self._kinds and name == self._names[slot.name]
            groups.setdefault((name, -1 if exact and counts(name) else i), []).append(i)
        return list(groups.values())


def _are(number: int, noun: str, adverb: str = "") -> str:
    """ "are probably two cats"."""
    said = f"{NUMBERS[number]} {noun if number == 1 else plural(noun)}"
    return " ".join(word for word in ("is" if number == 1 else "are", adverb, said) if word)


def _introduced(slots: Sequence[Slot], name: str) -> str:
    probably = name != THING and any(slot.certainty != CLEAR for slot in slots)
    if len(slots) > 1:
        each = [_with_adjectives(slot, "a one") + _where(slot) for slot in slots]
        there = _are(len(slots), bare(name), "probably" if probably else "")
        return f"There {there}: {listing(each)}."
    (slot,) = slots
    noun, is_or_are = _with_adjectives(slot, name), "are" if is_plural(name) else "is"
    if probably:
        return f"There {is_or_are} probably {noun}{_where(slot)}."
    return f"{noun[0].upper()}{noun[1:]} {is_or_are}{_where(slot)}."


def _where(slot: Slot) -> str:
    return f" {where(slot.row, slot.column)}"


def _with_adjectives(slot: Slot, name: str) -> str:
    """ "an apple" as "a small red apple"."""
    noun = f"{SIZE_WORDS[SIZES[slot.size]]} {_coloured(slot, name)}"
    return with_article(noun) if counts(name) else noun


def _coloured(slot: Slot, name: str) -> str:
    """ "an apple" as "red apple"; an orange is not called orange."""
    told = slot.surface >= 0 and SURFACES[slot.surface] not in name.split()
    return f"{SURFACES[slot.surface]} {bare(name)}" if told else bare(name)


def _relations(slots: Sequence[Slot], called: Sequence[str]) -> list[str]:
    """How each thing stands to the next one on its right, where it is plain which ones are meant
    and that they stand so."""
    nouns = [_reference(i, slots, called) for i in range(len(slots))]
    said = []
    for i in range(len(slots) - 1):
        ways = _ways(slots[i], slots[i + 1])
        if nouns[i] and nouns[i + 1] and ways:
            second = f" and {ways[1]} it" if len(ways) > 1 else ""
            said.append(f"The {nouns[i]} is {ways[0]} the {nouns[i + 1]}{second}.")
    return said


def _reference(i: int, slots: Sequence[Slot], called: Sequence[str]) -> str:
    """What a thing can be called without doubt after "the", or ""."""
    alike = [slot for k, slot in enumerate(slots) if k != i and called[k] == called[i]]
    if is_plural(called[i]):
        return ""
    if called[i] != THING and not alike:
        return bare(called[i])
    if slots[i].surface < 0 or any(slot.surface in (slots[i].surface, -1) for slot in alike):
        return ""
    return _coloured(slots[i], called[i])


def _ways(left: Slot, right: Slot) -> list[str]:
    """How the left one stands to the right one."""
    ways = ["to the left of"] if left.column < right.column else []
    if left.row != right.row:
        ways.append("above" if left.row < right.row else "below")
    return ways
