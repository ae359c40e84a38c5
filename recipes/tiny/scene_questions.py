"""Questions about made-up pictures, and the short true answers, from what is known of them.

Every answer follows from a `Known`: the truth, as far as the slots tell of it. What is not in
the picture is said not to be there, and what no slot can tell is declined.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import phrasings as ask_for
from asking import Maker
from photo_phrasings import NO_TEXT, UNKNOWABLE, UNKNOWN, UNREAD
from place_questions import OPPOSITE, PlaceQuestions
from projector import CLEAR, PROBABLY, Vocabulary
from questions import Exchange
from seen import COLOURS, NUMBERS, SIZES, SURFACES
from simulate import CHART, NOTHING, PHOTO, TEXT, Known, SeenThing
from wording import (
    bare,
    coloured,
    counts,
    described,
    is_material,
    is_plural,
    listing,
    made_of,
    plural,
    sentence,
    several,
    where,
)

SEES_NOTHING = "I can't see anything in this picture."
SORT_ANSWERS = ("It is a photo.", "It is a drawing.", "It is text.", "It is a chart.", SEES_NOTHING)
# What slots of things can't tell: keys of UNKNOWABLE.
STILL_UNKNOWABLE = (
    "what is happening", "where this was taken", "when this was taken", "who is in the picture",
    "what is in the background", "what the weather is like", "how it feels",
    "that from this picture",
)  # fmt: skip
NO_COLOUR = (
    "I can't tell what colour it is.",
    "I'm not sure what colour it is.",
    "Its colour isn't clear to me.",
    "It is hard to say what colour it is.",
)


class SceneQuestions(PlaceQuestions):
    """Draws questions about what is known of pictures. Seeded by its `random.Random`.

    `held_out` draws only the phrasings that are kept out of training.
    """

    def __init__(
        self, vocabulary: Vocabulary, rng: random.Random, *, held_out: bool = False
    ) -> None:
        super().__init__(vocabulary, rng, held_out=held_out)
        table = vocabulary.concepts
        self._things = [int(row) for row in table.rows]
        self._groups = sorted({*table.kind_of.tolist(), *table.broad_of.tolist()} - {-1})
        shape = self._names.index("a shape")
        self._shapes = [
            int(r) for r, k in zip(table.rows, table.kind_of, strict=True) if k == shape
        ]
        self._shape = shape
        self._makers: list[tuple[float, Maker]] = [
            (0.18, self.describe),
            (0.05, self._detail),
            (0.28, self._is_there),
            (0.11, self._colour),
            (0.03, self._is_colour),
            (0.03, self._which_is),
            (0.05, self._what_kind),
            (0.13, self._count),
            (0.03, self._count_all),
            (0.02, self._size),
            (0.05, self._where),
            *self._about_places,
            (0.05, self._about_absent),
            (0.03, self._unknowable),
            (0.02, self.read),
            (0.01, self._highest),
            (0.02, self._sort),
        ]

    def ask(self, known: Known) -> Exchange:
        """One question out of all sorts, with its answer."""
        if not known.things and self._rng.random() < 0.5:
            first = {TEXT: self.read, CHART: self._highest}.get(known.sort, self.describe)
            exchange = first(known)
        else:
            exchange = None
        while exchange is None:
            weights = [weight for weight, _ in self._makers]
            (make,) = self._rng.choices([maker for _, maker in self._makers], weights)
            exchange = make(known)
        return self._as_typed(exchange)

    # What is there.

    def shows(self, known: Known, *, careful: bool = False) -> str:
        """As a clause: "shows a red apple and two cats". The careful one doesn't say what those of
        several sorts of things are that are only probable, or, where all are, says their kinds."""
        if known.sort == NOTHING:
            return "shows nothing that I can see"
        if known.sort == TEXT:
            return "shows text"
        if known.sort == CHART:
            return "shows a chart"
        if all(thing.name < 0 for thing in known.things) and len(known.things) < 2:
            return "is unclear"
        groups: dict[int, list[SeenThing]] = {}
        sorts = {thing.name for thing in known.things}
        sure = any(thing.certainty == CLEAR and thing.name >= 0 for thing in known.things)
        for thing in known.things:
            vague = careful and len(sorts) > 1 and thing.certainty == PROBABLY
            name = thing.name if not vague else -1 if sure else self._kind_of(thing)
            groups.setdefault(name, []).append(thing)
        items, hedges = [], []
        for name, group in groups.items():
            surfaces = {thing.surface for thing in group}
            surface = surfaces.pop() if len(surfaces) == 1 else -1
            noun = self._names[name] if name >= 0 else "a thing"
            items.append(several(len(group), noun, surface))
            hedges.append(name >= 0 and any(thing.certainty == PROBABLY for thing in group))
        if all(hedges):
            return f"probably shows {listing(items)}"
        hedged = [f"probably {i}" if hedge else i for i, hedge in zip(items, hedges, strict=True)]
        return f"shows {listing(hedged)}"

    def _kind_of(self, thing: SeenThing) -> int:
        """The name of what kind of thing it is, or -1. Some concepts are their own kind."""
        table = self._vocabulary.concepts
        wider = sorted(thing.true_names - {thing.exact})
        kinds = (n for kind in (table.kind_of, table.broad_of) for n in wider if n in kind)
        return next(kinds, thing.name)

    def describe(self, known: Known) -> Exchange:
        if self._rng.random() < 0.4:
            return Exchange(self._pick(ask_for.DESCRIBE), self._careful(known), "description")
        question = self._pick(ask_for.NAME)
        if len(known.things) == 1 and self._rng.random() < 0.12:
            (thing,) = known.things
            if thing.name >= 0:
                question += self._pick(ask_for.IN_ONE_WORD)
                return Exchange(question, sentence(bare(self._names[thing.name])), "naming")
        return Exchange(question, self._description(known), "naming")

    def _careful(self, known: Known) -> str:
        """A description, of a lone thing that is only probable by its kind."""
        if len(known.things) == 1 and known.things[0].certainty == PROBABLY:
            (thing,) = known.things
            known = replace(known, things=(replace(thing, name=self._kind_of(thing)),))
        return self._description(known, careful=True)

    def _description(self, known: Known, *, careful: bool = False) -> str:
        if known.sort == NOTHING:
            return SEES_NOTHING
        if known.sort == TEXT:
            return self._says(known)
        clause = self.shows(known, careful=careful)
        if clause == "is unclear":
            return self._rng.choice(UNKNOWN)
        if known.sort == CHART and known.word:
            return f"The picture {clause}. {self._highest_value(known)}"
        return f"The picture {clause}."

    def _detail(self, known: Known) -> Exchange:
        question = self._pick(ask_for.DETAIL)
        if not known.things:
            return Exchange(question, self._description(known), "detail")
        items = []
        for thing in known.things:
            adverb = "probably " if thing.certainty == PROBABLY and thing.name >= 0 else ""
            name = self._names[thing.name] if thing.name >= 0 else "a thing"
            noun = coloured(name, thing.surface)
            items.append(f"{adverb}{noun} {where(thing.row, thing.column)}")
        return Exchange(question, f"The picture shows {listing(items)}.", "detail")

    def _is_there(self, known: Known) -> Exchange | None:
        # What is drawn as absent and isn't is dropped, so that it comes about as often.
        wanted = self._rng.random() < 0.45 and any(t.name >= 0 for t in known.things)
        asked, surface = self._present(known) if wanted else self._absent(known)
        named = [t for t in known.things if asked in self._calls(t)]
        if any(asked in self._truly(t) for t in known.things if t not in named):
            return None
        found = [t for t in named if surface in (-1, t.surface)]
        if surface >= 0 and any(t.surface < 0 for t in named) and not found:
            return None
        if wanted != bool(found):
            return None
        thing = coloured(asked, surface)
        denied = self._rng.random() < 0.08
        noun = bare(thing)
        plural_noun = plural(noun) if counts(asked) else noun
        phrases = ask_for.IS_THERE_NOT if denied else ask_for.IS_THERE
        if not counts(asked) and not asked.startswith("the "):
            phrases = ("Is there {t} in the {p}?", "Do you see {t}?", "Can you see {t}?")
        question = self._pick(phrases).replace("{t}", thing).replace("{n}", noun)
        question = question.replace("{s}", plural_noun)
        if is_plural(asked):
            question = question.replace("Is there", "Are there")
        task = "presence" if surface < 0 else "presence by colour"
        if found:
            short, answer = ("No" if denied else "Yes"), self._there_is(found)
        else:
            short, answer = "No", f"there {'are' if is_plural(asked) else 'is'} no {noun}"
            if denied:
                # "Yes, there is no dog" is hard to hear.
                short, answer = "Yes", f"the picture has no {noun} in it"
        if self._rng.random() < 0.08:
            return Exchange(question + self._pick(ask_for.IN_ONE_WORD), f"{short}.", task)
        return Exchange(question, f"{short}, {answer}.", task)

    def _present(self, known: Known) -> tuple[str, int]:
        thing = self._rng.choice([t for t in known.things if t.name >= 0])
        asked = self._rng.choice(sorted(self._calls(thing)))
        if self._rng.random() < 0.5:
            asked = self._names[thing.name]
        coloured_too = thing.surface >= 0 and self._rng.random() < 0.35
        return asked, thing.surface if coloured_too else -1

    def _absent(self, known: Known) -> tuple[str, int]:
        """Something that is not there: sometimes only its colour is not."""
        draw, rng = self._rng.random(), self._rng
        surface = rng.randrange(len(COLOURS))
        named = [t for t in known.things if t.name >= 0]
        if named and draw < 0.25:
            return rng.choice(sorted(self._calls(rng.choice(named)))), surface
        shapely = any(self._shape in t.true_names for t in named)
        if draw < 0.35 or (shapely and draw < 0.75):
            name = self._names[rng.choice((*self._shapes, self._shape))]
            return name, surface if rng.random() < 0.5 else -1
        if named and draw < 0.5:
            return self._sibling(rng.choice(named)), -1
        pool = self._groups if draw < 0.65 else self._things
        return self._names[rng.choice(pool)], -1

    def _sibling(self, thing: SeenThing) -> str:
        """A concept of the same kind, or of the same broad kind."""
        table = self._vocabulary.concepts
        wider = [n for n in sorted(thing.true_names) if n != thing.name] or [thing.name]
        group = self._rng.choice(wider)
        rows = table.rows[(table.kind_of == group) | (table.broad_of == group)]
        return self._names[int(self._rng.choice(rows if len(rows) else table.rows))]

    def _there_is(self, found: Sequence[SeenThing]) -> str:
        first = found[0]
        same = [t for t in found if t.name == first.name]
        surfaces = {t.surface for t in same}
        surface = surfaces.pop() if len(surfaces) == 1 else -1
        name = self._names[first.name]
        verb = "are" if len(same) > 1 or is_plural(name) else "is"
        adverb = "probably " if any(t.certainty == PROBABLY for t in same) else ""
        return f"there {verb} {adverb}{several(len(same), name, surface)}"

    def _not_there(self, noun: str) -> str:
        return f"There is no {noun} in the picture."

    # One thing.

    def _colour(self, known: Known) -> Exchange | None:
        if len(known.things) == 1 and self._rng.random() < 0.4:
            thing, noun, question = known.things[0], "it", self._pick(ask_for.COLOUR_OF_IT)
        else:
            thing, noun = self._referred(known, colours=False)
            if thing is None:
                return None
            material = thing.surface >= 0 and is_material(thing.surface)
            ask_material = self._rng.random() < (0.5 if material else 0.06)
            phrases = ask_for.MATERIAL if ask_material else ask_for.COLOUR
            question = self._pick(phrases).replace("{n}", noun)
            if ask_material and not material:
                return Exchange(question, "I can't tell what it is made of.", "material")
        if thing.surface < 0:
            return Exchange(question, self._rng.choice(NO_COLOUR), "no colour")
        if is_material(thing.surface):
            return Exchange(question, f"It is made of {made_of(thing.surface)}.", "material")
        if self._rng.random() < 0.12:
            question += self._pick(ask_for.IN_ONE_WORD)
            return Exchange(question, sentence(SURFACES[thing.surface]), "colour")
        return Exchange(question, f"It is {SURFACES[thing.surface]}.", "colour")

    def _is_colour(self, known: Known) -> Exchange | None:
        thing, noun = self._referred(known, colours=False)
        if thing is None or thing.surface < 0 or is_material(thing.surface):
            return None
        asked = thing.surface if self._rng.random() < 0.5 else self._rng.randrange(len(COLOURS))
        question = self._pick(ask_for.IS_COLOUR).replace("{n}", noun)
        short = "Yes" if asked == thing.surface else "No"
        question = question.replace("{c}", COLOURS[asked])
        return Exchange(question, f"{short}, it is {COLOURS[thing.surface]}.", "colour yes/no")

    def _which_is(self, known: Known) -> Exchange | None:
        """What is the red thing?"""
        surfaces = sorted({t.surface for t in known.things} - {-1})
        asked = self._rng.choice(surfaces) if surfaces else -1
        if asked < 0 or self._rng.random() < 0.15:
            asked = self._rng.randrange(len(COLOURS))
        question = self._pick(ask_for.WHICH_IS).replace("{c}", SURFACES[asked])
        found = [t for t in known.things if t.surface == asked]
        if not found:
            if any(t.surface < 0 for t in known.things):
                return None
            return Exchange(question, self._not_there(f"{SURFACES[asked]} thing"), "absent")
        if any(t.name < 0 for t in found):
            return None
        names = dict.fromkeys(self._names[t.name] for t in found)
        return Exchange(question, sentence(listing(list(names))), "which is red")

    def _what_kind(self, known: Known) -> Exchange | None:
        """What shape is it?"""
        group = self._rng.choice(self._groups)
        kinds = sorted({n for t in known.things for n in t.true_names if n in self._groups})
        if kinds and self._rng.random() < 0.85:
            group = self._rng.choice(kinds)
        noun = bare(self._names[group])
        question = self._pick(ask_for.WHAT_KIND).replace("{k}", noun)
        found = [t for t in known.things if group in t.true_names]
        if not found:
            if group in known.missed or any(t.name < 0 for t in known.things):
                return None
            return Exchange(question, self._not_there(noun), "absent")
        if any(t.name == group for t in found):
            return None
        names = [self._names[t.name] for t in found]
        grouped = [several(names.count(n), n, -1) for n in dict.fromkeys(names)]
        return Exchange(question, sentence(listing(grouped)), "what kind")

    def _size(self, known: Known) -> Exchange | None:
        thing, noun = self._referred(known)
        if thing is None:
            return None
        question = self._pick(ask_for.SIZE).replace("{n}", noun)
        return Exchange(question, f"It is {SIZES[thing.size]}.", "size")

    def _where(self, known: Known) -> Exchange | None:
        thing, noun = self._referred(known)
        if thing is None:
            return None
        question = self._pick(ask_for.WHERE).replace("{n}", noun)
        return Exchange(question, f"The {noun} is {where(thing.row, thing.column)}.", "where")

    # Numbers.

    def _count(self, known: Known) -> Exchange | None:
        named = [t for t in known.things if t.name >= 0]
        if not named or known.missed:
            return None
        thing = self._rng.choice(named)
        # Where there are several of one, they are what people count.
        repeated = [t for t in named if sum(o.name == t.name for o in named) > 1]
        if repeated and self._rng.random() < 0.6:
            thing = self._rng.choice(repeated)
        name = self._names[thing.name]
        if self._rng.random() < 0.2:
            name = self._rng.choice(sorted(self._calls(thing)))
        surface = thing.surface if self._rng.random() < 0.15 else -1
        found = [t for t in known.things if name in self._calls(t) and surface in (-1, t.surface)]
        if not counts(name):
            return None
        noun = described(name, surface)
        question = self._pick(ask_for.COUNT).replace("{s}", plural(noun))
        return self._number(question, len(found), noun, "count")

    def _count_all(self, known: Known) -> Exchange | None:
        if not known.things:
            return None
        question = self._pick(ask_for.COUNT_ALL)
        return self._number(question, known.n_things, "thing", "count all")

    def _number(self, question: str, number: int, noun: str, task: str) -> Exchange:
        if self._rng.random() < 0.15:
            question += self._pick(ask_for.IN_ONE_WORD)
            return Exchange(question, sentence(NUMBERS[number]), task)
        if number == 1:
            return Exchange(question, f"There is one {noun}.", task)
        return Exchange(question, f"There are {NUMBERS[number]} {plural(noun)}.", task)

    # What is not there, and what can't be told.

    def _about_absent(self, known: Known) -> Exchange | None:
        if known.missed or any(t.name < 0 for t in known.things):
            return None
        asked, surface = self._absent(known)
        there = {name for t in known.things for name in self._truly(t)}
        if asked in there or not counts(asked):
            return None
        noun = described(asked, surface if self._rng.random() < 0.3 else -1)
        choices = [ask_for.COLOUR, ask_for.WHERE, ask_for.SIZE, ask_for.MATERIAL, ask_for.COUNT]
        if known.things:
            choices += [ask_for.IS_RELATED, ask_for.WHICH_SIDE[0]]
        phrase = self._pick(self._rng.choice(choices))
        others = [n for t in known.things if (n := self._reference(t, known))]
        if "{b}" in phrase and not others:
            return None
        pair = [noun, self._rng.choice(others)] if others else [noun, noun]
        self._rng.shuffle(pair)
        question = phrase.replace("{a}", pair[0]).replace("{b}", pair[1])
        question = question.replace("{r}", self._rng.choice(list(OPPOSITE)))
        question = question.replace("{n}", noun).replace("{s}", plural(noun))
        return Exchange(question, self._not_there(noun), "absent")

    def _unknowable(self, known: Known) -> Exchange:
        what = self._rng.choice(STILL_UNKNOWABLE)
        questions = UNKNOWABLE[what]
        _, noun = self._referred(known)
        if noun is None:
            questions = tuple(q for q in questions if "{n}" not in q)
        question = self._rng.choice(questions).replace("{n}", noun or "")
        return Exchange(question, f"I can't tell {what}.", "unknowable")

    # Print, charts, sorts.

    def read(self, known: Known) -> Exchange:
        return Exchange(self._pick(ask_for.READ), self._says(known), "read")

    def _says(self, known: Known) -> str:
        if not known.word:
            return self._rng.choice(UNREAD) if known.sort == TEXT else NO_TEXT
        adverb = "" if known.word_certainty == CLEAR else "probably "
        return f"It {adverb}says: {known.word}."

    def _highest(self, known: Known) -> Exchange:
        question = self._pick(ask_for.HIGHEST)
        if known.sort != CHART:
            return Exchange(question, "There is no chart in the picture.", "absent")
        return Exchange(question, self._highest_value(known), "chart")

    @staticmethod
    def _highest_value(known: Known) -> str:
        if not known.word:
            return "I can't tell what the highest value is."
        adverb = "" if known.word_certainty == CLEAR else "probably "
        return f"The highest value is {adverb}{known.word}."

    def _sort(self, known: Known) -> Exchange | None:
        if known.sort == PHOTO:
            return None
        return Exchange(self._pick(ask_for.SORT), SORT_ANSWERS[known.sort], "sort")
