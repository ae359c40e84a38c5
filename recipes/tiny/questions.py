"""Made-up conversations about readings: what people ask, and the short honest answers.

No picture is involved. The projector turns class scores into words, so a random score vector
stands for a picture, and the right answer to a question follows from the reading alone:
name what is named, hedge where it hedges, and refuse what the encoder cannot know.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from projector import CLEAR, EITHER, PROBABLY, UNCLEAR, Reading, Vocabulary

NO_TEXT = "There is no text that I can read."
# What isn't known is said in several ways, as often each: such an answer's probability is low,
# and with it the confidence that others go by.
UNKNOWN = (
    "I can't tell what this is.",
    "I don't know what this is.",
    "It isn't clear to me what this is.",
    "Hard to say what this is.",
    "I'm not sure what this is.",
)
UNREAD = (
    NO_TEXT,
    "I can't read the text.",
    "It isn't clear to me what the text says.",
    "I'm not sure what it says.",
    "Hard to say: the text isn't clear to me.",
)
NOT_SEEN = (
    "Not that I can tell.",
    "No, not as far as I can see.",
    "I don't think so, but the picture isn't clear to me.",
)
TEXT = "what the text says"

NAMING = (
    "What is in this picture?",
    "What is in the picture?",
    "What's in this image?",
    "what is in this photo",
    "What is this?",
    "What's this?",
    "what is it",
    "What do you see?",
    "What do you see in this image?",
    "What can you see in the photo?",
    "What does this picture show?",
    "What does the image show?",
    "What is shown here?",
    "What am I looking at?",
    "Name the main object.",
    "What is the main object in this picture?",
    "What object is this?",
    "Which thing is in the picture?",
    "Identify this.",
    "Can you tell me what this is?",
    "Tell me what you see.",
    "What is the subject of this photo?",
    "",
)
DESCRIBING = (
    "Describe this image.",
    "Describe the image.",
    "Describe this picture.",
    "Describe the photo.",
    "Can you describe this image?",
    "Tell me about this picture.",
    "Write a caption for this image.",
    "Caption this photo.",
    "Give a short description of this image.",
    "Describe this image in one sentence.",
    "Please describe the picture briefly.",
)
DETAIL = (
    "Describe this image in detail.",
    "Describe everything you see.",
    "Give a detailed description of the picture.",
    "What else do you see?",
    "Tell me more about the picture.",
    "What else is in the picture?",
    "Is there anything else in the picture?",
)
# What the encoder cannot know: the end of "I can't tell ..." and questions for it.
UNKNOWABLE: dict[str, tuple[str, ...]] = {
    "what colour it is": (
        "What colour is it?",
        "What color is it?",
        "And what colour is it?",
        "What is the colour of the {n}?",
        "What color is the {n}?",
        "Which colours do you see?",
        "Is it red?",
        "Is the {n} blue?",
        "Is it black or white?",
    ),
    "how many there are": (
        "How many are there?",
        "How many {n}s are there?",
        "How many do you see?",
        "How many objects are in the picture?",
        "Count them.",
        "How many people are in the picture?",
        "Is there more than one?",
    ),
    "where it is in the picture": (
        "Where is it?",
        "Where in the picture is the {n}?",
        "Is it on the left or on the right?",
        "Where is the {n}?",
        "What is on the left?",
    ),
    "how big it is": ("How big is it?", "How large is the {n}?", "Is it big or small?"),
    "what is happening": (
        "What is it doing?",
        "What is the {n} doing?",
        "What is happening here?",
        "What is going on in the picture?",
        "Is it moving?",
        "Is the {n} sleeping?",
    ),
    "where this was taken": (
        "Where was this taken?",
        "Where is this place?",
        "Which city is this?",
        "What country is this?",
        "Is this indoors or outdoors?",
    ),
    "when this was taken": (
        "When was this taken?",
        "What time of day is it?",
        "Is it day or night?",
        "What season is it?",
    ),
    "who is in the picture": (
        "Who is this?",
        "Who is in the picture?",
        "What is the name of this person?",
        "Is the person a man or a woman?",
        "How old is the person?",
    ),
    TEXT: (
        "What does the text say?",
        "Read the text.",
        "What is written here?",
        "What does the sign say?",
        "Is there any text in the picture?",
    ),
    "what it is made of": ("What is it made of?", "Is it made of wood?", "What material is it?"),
    "what is in the background": (
        "What is in the background?",
        "What is behind the {n}?",
        "What is next to it?",
        "What is it standing on?",
    ),
    "what the weather is like": (
        "What is the weather like?",
        "Is it raining?",
        "Is it sunny?",
        "Is the sky blue?",
    ),
    "how it feels": ("Is it happy?", "How does it feel?", "Is the {n} sad?", "Is it friendly?"),
    "that from this picture": (
        "What brand is it?",
        "How old is it?",
        "How much does it cost?",
        "Is it a good photo?",
        "Who took this photo?",
        "Is it real?",
        "Is it broken?",
        "Which camera took it?",
        "What is the mood of the picture?",
        "Is it healthy?",
        "What is she wearing?",
        "What style is it?",
        "Is this a photo or a drawing?",
        "Who does it belong to?",
        "How heavy is it?",
        "What will happen next?",
        "Why is it there?",
        "How warm is it there?",
        "Where was it bought?",
        "What sound does it make here?",
        "How long has it been there?",
        "What is inside it?",
    ),
}
PRESENCE = (
    "Is there {t} in the picture?",
    "Is there {t} in this image?",
    "Is there {t}?",
    "Is there {t} here?",
    "Is this {t}?",
    "Is it {t}?",
    "Do you see {t}?",
    "Can you see {t} in the photo?",
    "Does the picture show {t}?",
    "Does this image contain {t}?",
)
KINDS = (
    "What kind of {k} is it?",
    "What kind of {k} is this?",
    "Which {k} is this?",
    "What type of {k} is in the picture?",
    "What {k} is it?",
    "What {k} do you see?",
)
CATEGORY = (
    "What kind of thing is it?",
    "What category does it belong to?",
    "What sort of thing is this?",
)
CHOICE = (
    "Is it {a} or {b}?",
    "Is this {a} or {b}?",
    "Does the picture show {a} or {b}?",
    "Can you see {a} or {b}?",
    "What is it, {a} or {b}?",
)
SURE = ("Are you sure?", "Are you certain?", "How sure are you?", "Really?")
# Things that are no class of the encoder, asked for all the same.
OTHER_THINGS = (
    "a person",
    "a man",
    "a woman",
    "a child",
    "a tree",
    "a house",
    "a flower",
    "a river",
    "the sky",
    "a road",
    "a window",
    "a door",
    "a face",
    "a hand",
    "a giraffe",
    "a cloud",
    "a table",
    "a phone",
    "a plane",
    "snow",
    "grass",
    "water",
    "text",
    "a motorcycle",
    "a plant",
)
# Everyday words for kinds: a question may use either.
SYNONYMS = {
    "a cat": ("a cat", "a kitten"),
    "a dog": ("a dog", "a puppy"),
    "an airplane": ("a plane", "an aircraft"),
    "a motorcycle": ("a motorcycle", "a motorbike"),
    "a shark": ("a fish",),
    "a ray": ("a fish",),
    "a boat": ("a ship",),
    "a ship": ("a boat",),
    "a lizard": ("a reptile",),
    "a snake": ("a reptile",),
    "a crocodile": ("a reptile",),
    "a turtle": ("a reptile",),
    "a butterfly": ("an insect",),
    "a beetle": ("an insect", "a bug"),
    "an insect": ("a bug",),
    "a dragonfly": ("an insect",),
    "a frog": ("an amphibian",),
    "a church": ("a building",),
    "a tower": ("a building",),
    "a bus": ("a vehicle",),
    "a screen": ("a display",),
    "a couch": ("a sofa",),
    "a cup": ("a mug",),
}


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
