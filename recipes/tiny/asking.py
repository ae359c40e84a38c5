"""What all questions about known pictures have in common: how things are called, and how people
write.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from projector import CONCEPTS, Vocabulary
from questions import Exchange
from simulate import Known, SeenThing
from wording import described, is_plural, with_article

# How often what is taken for something else, or not known at all, is asked about by its name.
BY_ITS_TRUE_NAME = 0.5
Maker = Callable[[Known], Exchange | None]


class Asking:
    """Seeded by its `random.Random`. `held_out` draws only the phrasings that are kept out of
    training."""

    def __init__(
        self, vocabulary: Vocabulary, rng: random.Random, *, held_out: bool = False
    ) -> None:
        self._vocabulary = vocabulary
        self._names = vocabulary.names
        self._rng = rng
        self._held_out = held_out
        self._synonyms = synonyms()

    def _calls(self, thing: SeenThing) -> set[str]:
        """All that a thing may be called from what is seen of it, with its articles."""
        return self._called({self._names[n] for n in thing.true_names})

    def _truly(self, thing: SeenThing) -> set[str]:
        """All that a thing may be called by one who knows it."""
        return self._called({self._names[n] for n in (thing.exact, *thing.true_names)})

    def _called(self, names: set[str]) -> set[str]:
        return names | {s for n in names for s in self._synonyms.get(n, ())}

    def _referred(
        self, known: Known, *, colours: bool = True
    ) -> tuple[SeenThing, str] | tuple[None, None]:
        """A thing that can be spoken of without doubt, and what to call it."""
        things = [
            (t, noun) for t in known.things if (noun := self._reference(t, known, colours=colours))
        ]
        return self._rng.choice(things) if things else (None, None)

    def _reference(self, thing: SeenThing, known: Known, *, colours: bool = True) -> str | None:
        others = [t for t in known.things if t is not thing]
        called = {c for t in others for c in self._truly(t)}
        if thing.name != thing.exact and self._rng.random() < BY_ITS_TRUE_NAME:
            name = self._names[thing.exact]
            return described(name, -1) if name not in called and not is_plural(name) else None
        if thing.name < 0:
            return None
        name = self._names[thing.name]
        if name not in called and is_plural(name) is False:
            if self._rng.random() < 0.12:
                name = self._rng.choice(sorted(self._calls(thing) - called))
            with_colour = colours and self._rng.random() < 0.12
            return described(name, thing.surface if with_colour else -1)
        same = [t for t in others if name in self._calls(t)]
        if not colours or thing.surface < 0 or is_plural(name):
            return None
        if any(t.surface in (thing.surface, -1) for t in same):
            return None
        return described(name, thing.surface)

    # How people write.

    def _pick(self, phrases: Sequence[str]) -> str:
        phrase = phrases[-1] if self._held_out else self._rng.choice(phrases[:-1])
        return phrase.replace("{p}", self._rng.choice(("picture", "picture", "image", "photo")))

    def _as_typed(self, exchange: Exchange) -> Exchange:
        question = exchange.question
        if self._rng.random() < 0.5:
            question = question.replace("colour", "color")
        if self._rng.random() < 0.5:
            question = question.replace("grey", "gray")
        if self._rng.random() < 0.06:
            question = question.lower().rstrip("?.")
        return Exchange(question, exchange.answer, exchange.task)


@cache
def synonyms(path: Path = CONCEPTS) -> dict[str, tuple[str, ...]]:
    """By name, what else concepts.txt lets a thing be called, with an article."""
    other = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, _, rest = (cell.strip() for cell in line.split("|"))
        article = name.partition(" ")[0] + " " if name.startswith(("a ", "an ")) else ""
        words = [w.strip() for w in rest.split(",") if w.strip()]
        other[name] = tuple(_with_article(w) if article else w for w in words)
    return other


def _with_article(word: str) -> str:
    return word if word.endswith("s") and not word.endswith("ss") else with_article(word)
