"""Made-up conversations about readings: what people ask, and the short honest answers.

No picture is involved. The projector turns class scores into words, so a random score vector
stands for a picture, and the right answer to a question follows from the reading alone:
name what is named, hedge where it hedges, and refuse what the encoder cannot know.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from photo_phrasings import (
    CATEGORY,
    CHOICE,
    DESCRIBING,
    DETAIL,
    KINDS,
    NAMING,
    NO_TEXT,
    NOT_SEEN,
    OTHER_THINGS,
    PRESENCE,
    SURE,
    SYNONYMS,
    TEXT,
    UNKNOWABLE,
    UNKNOWN,
)
from projector import CLEAR, EITHER, PROBABLY, UNCLEAR, Reading, Vocabulary


@dataclass(frozen=True, slots=True)
class Exchange:
    """`task` says what sort of question it is, for reports."""

    question: str
    answer: str
    task: str = "photo"


class Questioner:
    """Draws questions about readings. Seeded by its `random.Random`.

    `with_choices` adds questions of the form "a cat or a dog?".
    """

    def __init__(
        self, vocabulary: Vocabulary, rng: random.Random, *, with_choices: bool = False
    ) -> None:
        self._names = vocabulary.names
        self._rng = rng
        kinds = {*vocabulary.kind_of.tolist(), *vocabulary.broad_of.tolist()} - {-1}
        self._kinds = [self._names[i] for i in sorted(kinds)]
        self._with_choices = with_choices

    def ask(self, reading: Reading) -> Exchange:
        """One question out of all sorts, with its answer."""
        sorts: list[tuple[float, Callable[[Reading], Exchange]]] = [
            (0.24, self.naming),
            (0.12, self._description),
            (0.24, self._presence),
            (0.20, self._unknowable),
            (0.10, self._kind),
            (0.05, self._detail),
            (0.04, self._sure),
            (0.03, self._category),
        ]
        if self._with_choices:
            sorts.append((0.10, self._choice))
        weights = [weight for weight, _ in sorts]
        return self._rng.choices([ask for _, ask in sorts], weights)[0](reading)

    def naming(self, reading: Reading) -> Exchange:
        return Exchange(self._rng.choice(NAMING), self._describe(reading))

    def _description(self, reading: Reading) -> Exchange:
        """Who asks what it is gets the guess; a description keeps to the kind of what is only
        probable, where it has one."""
        kind = reading.kind if reading.kind >= 0 else reading.broad
        if reading.certainty == PROBABLY and kind >= 0:
            reading = replace(reading, name=kind)
        return Exchange(self._rng.choice(DESCRIBING), self._describe(reading))

    def about_several(self, clauses: Sequence[str]) -> Exchange:
        """A question about two or three pictures at once, each of which `shows` something."""
        ordinals = ("first", "second", "third")
        if self._rng.random() < 0.4:
            index = self._rng.randrange(len(clauses))
            question = self._rng.choice(
                ("What is in the {} picture?", "What does the {} image show?", "And the {} one?")
            )
            answer = f"The {ordinals[index]} picture {clauses[index]}."
            return Exchange(question.format(ordinals[index]), answer, "several")
        told = [
            f"the {ordinal} {'picture ' if not i else ''}{clause}"
            for i, (ordinal, clause) in enumerate(zip(ordinals, clauses, strict=False))
        ]
        joined = ", ".join(told[:-1]) + f" and {told[-1]}."
        question = self._rng.choice(
            (
                "What do these pictures show?",
                "Describe these images.",
                "Describe the pictures.",
                "What is in the pictures?",
                "What is the difference between these pictures?",
                "Compare the two pictures." if len(clauses) == 2 else "Compare the pictures.",
            )
        )
        return Exchange(question, joined[0].upper() + joined[1:], "several")

    def shows(self, reading: Reading) -> str:
        """As a clause: "probably shows a minibus"."""
        if reading.certainty == UNCLEAR:
            return "is unclear"
        adverb = "probably " if reading.certainty == PROBABLY else ""
        return f"{adverb}shows {self._thing(reading)}"

    def _thing(self, reading: Reading) -> str:
        if reading.certainty == EITHER:
            return f"either {self._names[reading.name]} or {self._names[reading.second]}"
        return self._names[reading.name]

    def _describe(self, reading: Reading) -> str:
        if reading.certainty == UNCLEAR:
            return self._rng.choice(UNKNOWN)
        return f"The picture {self.shows(reading)}."

    def _hedged(self, reading: Reading) -> str:
        """As a clause: "it looks like a minibus"."""
        if reading.certainty == CLEAR:
            return f"it looks like {self._thing(reading)}"
        if reading.certainty == PROBABLY:
            return f"it is probably {self._thing(reading)}"
        return f"it is {self._thing(reading)}"

    def _detail(self, reading: Reading) -> Exchange:
        question = self._rng.choice(DETAIL)
        if reading.certainty == UNCLEAR:
            return Exchange(question, self._rng.choice(UNKNOWN))
        return Exchange(
            question, f"The picture {self.shows(reading)}; I can't tell more than that."
        )

    def _unknowable(self, reading: Reading) -> Exchange:
        what = self._rng.choice(list(UNKNOWABLE))
        question = self._rng.choice(UNKNOWABLE[what])
        question = question.format(n=self._bare(self._subject(reading)))
        if what == TEXT:
            return Exchange(question, NO_TEXT)
        return Exchange(question, f"I can't tell {what}.")

    def _subject(self, reading: Reading) -> str:
        """What a person would call the thing when asking about it."""
        if reading.certainty == UNCLEAR or self._rng.random() < 0.1:
            return self._rng.choice(self._kinds)
        known = [i for i in (reading.name, reading.kind, reading.broad) if i >= 0]
        return self._names[self._rng.choice(known)]

    @staticmethod
    def _bare(name: str) -> str:
        return name.removeprefix("a ").removeprefix("an ")

    def _presence(self, reading: Reading) -> Exchange:
        true = self._true_things(reading)
        if true and self._rng.random() < 0.5:
            asked = self._rng.choice(true)
        else:
            asked = self._rng.choice(
                (self._rng.choice(self._kinds), self._rng.choice(self._names), *OTHER_THINGS[:1])
                if self._rng.random() < 0.7
                else OTHER_THINGS
            )
        question = self._rng.choice(PRESENCE).format(t=asked)
        return Exchange(question, self._presence_answer(reading, asked, asked in true))

    def _true_things(self, reading: Reading) -> list[str]:
        """Words that are certainly right for what is named, so far as it is right."""
        indices = [i for i in (reading.name, reading.kind, reading.broad) if i >= 0]
        if reading.certainty in (UNCLEAR, EITHER):
            indices = []
        things = {self._names[i] for i in indices}
        for thing in list(things):
            things.update(SYNONYMS.get(thing, ()))
        return sorted(things)

    def _presence_answer(self, reading: Reading, asked: str, true: bool) -> str:
        if reading.certainty == UNCLEAR:
            return self._rng.choice(NOT_SEEN)
        if reading.certainty == EITHER and asked in (
            self._names[reading.name],
            self._names[reading.second],
        ):
            return f"Maybe; {self._hedged(reading)}."
        if true:
            adverb = "probably " if reading.certainty == PROBABLY else ""
            return f"Yes, there is {adverb}{self._names[reading.name]}."
        return f"No, there is no {self._bare(asked)}."

    def _kind(self, reading: Reading) -> Exchange:
        true = [i for i in (reading.kind, reading.broad) if i >= 0]
        if true and self._rng.random() < 0.75:
            index = self._rng.choice(true)
            asked = self._names[index]
        else:
            index, asked = -1, self._rng.choice(self._kinds)
            if asked in self._true_things(reading):
                return self.naming(reading)
        question = self._rng.choice(KINDS).format(k=self._bare(asked))
        if reading.certainty == UNCLEAR:
            return Exchange(question, self._rng.choice(UNKNOWN))
        if index < 0:
            return Exchange(question, f"There is no {self._bare(asked)} in the picture.")
        thing = self._thing(reading)
        if reading.certainty == PROBABLY:
            thing = f"probably {thing}"
        ending = ", but I can't tell which kind" if reading.name == index else ""
        return Exchange(question, f"{thing[0].upper()}{thing[1:]}{ending}.")

    def _category(self, reading: Reading) -> Exchange:
        question = self._rng.choice(CATEGORY)
        if reading.certainty == UNCLEAR:
            return Exchange(question, self._rng.choice(UNKNOWN))
        wider = reading.broad if reading.broad >= 0 else reading.kind
        hedged = self._hedged(reading)
        answer = f"{hedged[0].upper()}{hedged[1:]}"
        if wider >= 0 and wider != reading.name:
            answer += f", which is {self._names[wider]}"
        return Exchange(question, answer + ".")

    def _choice(self, reading: Reading) -> Exchange:
        """Two kinds to choose from, one of them right or neither."""
        true = [i for i in (reading.kind, reading.broad) if i >= 0 and i != reading.name]
        wrong = [k for k in self._kinds if k not in self._true_things(reading)]
        asked = self._rng.sample(wrong, 2)
        right = None
        if true and self._rng.random() < 0.7:
            right = self._names[self._rng.choice(true)]
            asked[self._rng.randrange(2)] = right
        question = self._rng.choice(CHOICE).format(a=asked[0], b=asked[1])
        if reading.certainty == UNCLEAR:
            return Exchange(question, self._rng.choice(UNKNOWN))
        hedged = self._hedged(reading)
        if right is None:
            return Exchange(question, f"Not that I can tell; {hedged}.")
        return Exchange(question, f"{hedged[0].upper()}{hedged[1:]}, which is {right}.")

    def _sure(self, reading: Reading) -> Exchange:
        question = self._rng.choice(SURE)
        if reading.certainty == UNCLEAR:
            return Exchange(question, "No, I can't tell what this is.")
        if reading.certainty == CLEAR:
            return Exchange(question, f"Fairly sure: {self._hedged(reading)}.")
        return Exchange(question, f"No, but {self._hedged(reading)}.")
