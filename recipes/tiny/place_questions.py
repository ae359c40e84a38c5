"""Questions about how the things of a picture lie to each other, and their true answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

import phrasings as ask_for
from asking import Asking, Maker
from projector import Vocabulary
from questions import Exchange
from simulate import Known, SeenThing
from wording import coloured, listing, sentence, several

TRIES = 20
# Centres this much apart, in shares of the side, are beside or above each other.
APART = 0.12
LEFT, RIGHT, ABOVE, BELOW = "to the left of", "to the right of", "above", "below"
SAME_SIDE = {
    LEFT: (LEFT, LEFT, "left of", "on the left of", "farther left than"),
    RIGHT: (RIGHT, RIGHT, "right of", "on the right of", "farther right than"),
    ABOVE: (ABOVE, ABOVE, "over", "higher than"),
    BELOW: (BELOW, BELOW, "under", "lower than", "underneath"),
}
OPPOSITE = {LEFT: RIGHT, RIGHT: LEFT, ABOVE: BELOW, BELOW: ABOVE}
EDGES = {
    "on the left": (0, 1), "on the right": (0, -1), "at the top": (1, 1), "at the bottom": (1, -1),
}  # fmt: skip


class PlaceQuestions(Asking):
    def __init__(
        self, vocabulary: Vocabulary, rng: random.Random, *, held_out: bool = False
    ) -> None:
        super().__init__(vocabulary, rng, held_out=held_out)
        self._about_places: list[tuple[float, Maker]] = [
            (0.16, self._is_related),
            (0.08, self._which_side),
            (0.08, self._which_of_two),
            (0.03, self._where_from),
            (0.05, self._neighbours),
            (0.03, self._at_the_edge),
        ]

    def ask_about_places(self, known: Known) -> Exchange | None:
        """How things lie to each other, or None where none can be told from another."""
        makers = self._about_places
        for _ in range(TRIES):
            (make,) = self._rng.choices([m for _, m in makers], [w for w, _ in makers])
            if exchange := make(known):
                return self._as_typed(exchange)
        return None

    def _pair(self, known: Known, axis: int) -> tuple[SeenThing, str, SeenThing, str] | None:
        """Two things that are apart along x (0) or y (1), and what to call them."""
        if len(known.things) < 2:
            return None
        first, second = self._rng.sample(known.things, 2)
        nouns = [self._reference(t, known) for t in (first, second)]
        if nouns[0] is None or nouns[1] is None:
            return None
        if abs(first.centre[axis] - second.centre[axis]) < APART:
            return None
        return first, nouns[0], second, nouns[1]

    def _is_related(self, known: Known) -> Exchange | None:
        axis = self._rng.randrange(2)
        pair = self._pair(known, axis)
        if pair is None:
            return None
        first, a, second, b = pair
        true = self._relation(first, second, axis)
        asked = true if self._rng.random() < 0.5 else OPPOSITE[true]
        phrase = self._rng.choice(SAME_SIDE[asked])
        question = self._pick(ask_for.IS_RELATED)
        question = question.replace("{a}", a).replace("{b}", b).replace("{r}", phrase)
        # How they lie first: a small decoder concludes from what it has said.
        conclusion = "yes" if asked == true else "no"
        return Exchange(question, f"The {a} is {true} the {b}, so {conclusion}.", "is it left of")

    def _which_side(self, known: Known) -> Exchange | None:
        axis = self._rng.randrange(2)
        return self._relate(known, axis, ask_for.WHICH_SIDE[axis], "left or right")

    def _which_of_two(self, known: Known) -> Exchange | None:
        axis = self._rng.randrange(2)
        pair = self._pair(known, axis)
        if pair is None:
            return None
        first, a, second, b = pair
        end = self._rng.randrange(2)
        is_first = (first.centre[axis] < second.centre[axis]) == (end == 0)
        phrase = self._rng.choice(ask_for.MORE[axis][end])
        question = self._pick(ask_for.WHICH_OF_TWO)
        question = question.replace("{a}", a).replace("{b}", b).replace("{r}", phrase)
        answer = f"The {a} is {self._relation(first, second, axis)} the {b}"
        return Exchange(question, f"{answer}, so the {a if is_first else b}.", "which of two")

    def _where_from(self, known: Known) -> Exchange | None:
        return self._relate(known, self._rng.randrange(2), ask_for.WHERE_FROM, "where from")

    def _relate(
        self, known: Known, axis: int, phrases: Sequence[str], task: str
    ) -> Exchange | None:
        pair = self._pair(known, axis)
        if pair is None:
            return None
        first, a, second, b = pair
        other = abs(first.centre[1 - axis] - second.centre[1 - axis])
        if task == "where from" and abs(first.centre[axis] - second.centre[axis]) < other:
            axis = 1 - axis
        question = self._pick(phrases).replace("{a}", a).replace("{b}", b)
        return Exchange(
            question, f"The {a} is {self._relation(first, second, axis)} the {b}.", task
        )

    @staticmethod
    def _relation(first: SeenThing, second: SeenThing, axis: int) -> str:
        before = first.centre[axis] < second.centre[axis]
        return ((RIGHT, LEFT), (BELOW, ABOVE))[axis][before]

    def _neighbours(self, known: Known) -> Exchange | None:
        if len(known.things) < 2 or any(t.name < 0 for t in known.things):
            return None
        second, b = self._referred(known)
        if second is None:
            return None
        axis = self._rng.randrange(2)
        if any(0 < abs(t.centre[axis] - second.centre[axis]) < APART / 2 for t in known.things):
            return None
        asked = self._rng.choice(((LEFT, RIGHT), (ABOVE, BELOW))[axis])
        others = [t for t in known.things if t is not second]
        found = [t for t in others if self._relation(t, second, axis) == asked]
        question = self._pick(ask_for.NEIGHBOURS).replace("{b}", b).replace("{r}", asked)
        names = [self._names[t.name] for t in found]
        grouped = [several(names.count(n), n, -1) for n in dict.fromkeys(names)]
        answer = sentence(listing(grouped)) if found else f"Nothing is {asked} the {b}."
        return Exchange(question, answer, "what is left of")

    def _at_the_edge(self, known: Known) -> Exchange | None:
        if len(known.things) < 2 or any(t.name < 0 for t in known.things):
            return None
        edge = self._rng.choice(list(EDGES))
        axis, sign = EDGES[edge]
        ordered = sorted(known.things, key=lambda t: sign * t.centre[axis])
        if abs(ordered[0].centre[axis] - ordered[1].centre[axis]) < APART:
            return None
        name = coloured(self._names[ordered[0].name], ordered[0].surface)
        question = self._pick(ask_for.AT_THE_EDGE).replace("{e}", edge)
        return Exchange(question, sentence(name), "what is on the left")
