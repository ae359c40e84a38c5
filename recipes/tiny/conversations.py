"""Training conversations, laid out token for token as the family lays out real ones.

What is asked about one picture shares its beginning: a `Tree` holds that once, and a branch for
every conversation that goes on from there without knowing of the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from projector import (
    CLEAR,
    EITHER,
    N_TOKENS,
    PROBABLY,
    UNCLEAR,
    Reading,
    Vocabulary,
    describe,
    load_vocabulary,
    token_rows,
    write,
)
from questions import Exchange, Questioner
from scene_questions import SceneQuestions
from seen import Spatial
from simulate import PHOTO, Known, Simulator
from spatial_projector import Sight, softmax, thing_rows, word_rows, write_spatial
from tokenizers import Tokenizer

from edgevlm.engine.prompt import ImageInput, ImageSlot
from edgevlm.families.base import Turn
from edgevlm.families.tiny import Preprocessing, TinyFamily

WORDS = Path(__file__).with_name("words.txt")
# How often each certainty is practised, whatever real pictures would give.
CERTAINTY_SHARES = {CLEAR: 0.50, PROBABLY: 0.18, EITHER: 0.10, UNCLEAR: 0.22}
# Where only the broad kind is known ("an animal"): rare in made-up scores, not in pictures.
BROAD_ONLY = 0.05
OTHER_SYSTEM = 0.25
SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "Answer in one short sentence.",
    "You are a vision assistant. Describe what you see truthfully.",
    "You help people who can't see well.",
    "Be concise and honest.",
)
GREETINGS = (
    "hello", "Hello", "Hello!", "hi", "Hi!", "Hi there", "hey", "hey there", "Hey there!",
    "Good morning!", "Good evening", "Hello there!", "hi, how are you", "Greetings!",
)  # fmt: skip
GREETING = "Hello! How can I help you?"
THANKS = ("Thanks!", "Thank you.", "thanks", "Thank you very much!", "Great, thanks.")
WELCOME = "You're welcome."


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of what is practised besides drawings and print: of trees `photos`, `several`
    pictures at once, `text_only` and `drills` in left, right, above and below; of branches those
    that end in something else."""

    photos: float = 0.24
    several: float = 0.04
    text_only: float = 0.05
    drills: float = 0.25
    chat_with_picture: float = 0.03
    thanks: float = 0.02
    branches: tuple[int, int] = (5, 7)
    drilled: tuple[int, int] = (12, 16)
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """What the projector writes, and what can be said."""

    sight: Sight
    known: Known


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids and which of them the decoder has to say itself; a task for every answer."""

    ids: list[int]
    is_answer: list[bool]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """`prefix` holds no answer, and every branch begins with a token that is none."""

    prefix: list[int]
    branches: list[Sample]


class Conversations:
    def __init__(
        self,
        tokenizer: Tokenizer,
        classifier_rows: NDArray[np.float32],
        words: Sequence[str] | None = None,
        *,
        flawless: bool = False,
    ) -> None:
        """`flawless` pictures are told of without errors."""
        self._tokenizer = tokenizer
        self._vocabulary = load_vocabulary()
        self._rows = token_rows(self._vocabulary, tokenizer)
        self._thing_rows = thing_rows(self._vocabulary, tokenizer)
        words = words or WORDS.read_text(encoding="utf-8").split()
        self._word_rows = word_rows(words, tokenizer)
        self.simulator = Simulator(self._vocabulary, list(words), flawless=flawless)
        self._flawless = Simulator(self._vocabulary, list(words), flawless=True)
        self._family = TinyFamily(tokenizer, Preprocessing(1, 1, (0,) * 3, (1,) * 3), N_TOKENS)
        unit = classifier_rows / np.linalg.norm(classifier_rows, axis=1, keepdims=True)
        self._likeness = unit @ unit.T
        self._chat: list[tuple[str, list[int]]] = []
        self._real: Callable[[random.Random], Picture] | None = None
        self._end = tokenizer.token_to_id("<|im_end|>")

    def add_chat(self, answers: Mapping[str, list[int]]) -> None:
        """Text-only questions with the token ids of the answers to keep."""
        courtesies = {**dict.fromkeys(GREETINGS, GREETING), **dict.fromkeys(THANKS, WELCOME)}
        kept = {q: a for q, a in answers.items() if q not in courtesies}
        self._chat = list(kept.items())
        self._courtesies = [(q, self._answer_ids(a)) for q, a in courtesies.items()]

    def add_real(self, draw: Callable[[random.Random], Picture]) -> None:
        """Pictures that were looked at, to practise on as well as on made-up ones."""
        self._real = draw

    def chat_prompt(self, question: str) -> list[int]:
        return self._ids([Turn("user", (question,))], {})

    def batch(
        self, rng: random.Random, size: int, mix: Mix, share_of_real: float = 0.0
    ) -> list[Tree]:
        return [self._tree(rng, mix, share_of_real) for _ in range(size)]

    # Pictures.

    def picture(self, rng: random.Random, photos: float, share_of_real: float = 0.0) -> Picture:
        if self._real and rng.random() < share_of_real:
            return self._real(rng)
        if rng.random() >= photos:
            return Picture(*self.simulator.picture(rng))
        reading = self.reading(rng)
        true = self.simulator.true_reading(reading, rng)
        return Picture(Sight(reading, Spatial(PHOTO)), Known(PHOTO, true))

    def reading(self, rng: random.Random) -> Reading:
        """A reading of made-up class scores, its certainty drawn by CERTAINTY_SHARES."""
        if rng.random() < BROAD_ONLY:
            broad = rng.choice(sorted(set(self._vocabulary.broad_of.tolist()) - {-1}))
            return Reading(PROBABLY, broad, -1, -1, broad)
        (wanted,) = rng.choices(list(CERTAINTY_SHARES), list(CERTAINTY_SHARES.values()))
        numbers = np.random.default_rng(rng.getrandbits(64))
        while True:
            reading = describe(self._made_up_scores(numbers), self._vocabulary)
            if reading.certainty == wanted:
                return reading

    def every_name(self, question: str) -> Iterator[tuple[str, Tree]]:
        """For each concept, a clear picture of it and its naming."""
        table = self._vocabulary.concepts
        columns = zip(table.rows, table.kind_of, table.broad_of, strict=True)
        for index, kind, broad in ((int(i), int(k), int(b)) for i, k, b in columns):
            name = self._vocabulary.names[index]
            sight = Sight(Reading(CLEAR, index, -1, kind, broad), Spatial(PHOTO))
            sights: dict[str, Sight] = {}
            image = self._image(sight, sights)
            exchange = Exchange(question, f"The picture shows {name}.")
            yield name, _tree([self._supervised([], [(image,)], [exchange], sights)])

    def _made_up_scores(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Softmax of a class, its look-alikes by the classifier's own rows, and noise."""
        best = rng.integers(1000)
        logits = rng.uniform(2, 14) * self._likeness[best] + rng.normal(
            0, rng.uniform(0.2, 1), 1000
        )
        logits[best] += rng.uniform(-2, 6)
        if rng.random() < 0.3:
            rival = rng.integers(1000)
            logits[rival] = logits.max() + rng.uniform(-1, 1)
        return softmax(logits)

    # Conversations.

    def _tree(self, rng: random.Random, mix: Mix, share_of_real: float) -> Tree:
        start: list[Turn] = []
        if rng.random() < OTHER_SYSTEM:
            start.append(Turn("system", (rng.choice(SYSTEMS),)))
        kind = rng.random()
        if kind < mix.text_only:
            return _tree([self._chat_sample(start, (), {}, rng) for _ in range(4)])
        sights: dict[str, Sight] = {}
        asking = _Asking(self._vocabulary, rng, held_out=mix.held_out)
        if kind < mix.text_only + mix.several:
            number = rng.choice((2, 2, 3))
            pictures = [self.picture(rng, 0.4, share_of_real) for _ in range(number)]
            images = tuple(self._image(p.sight, sights) for p in pictures)
            exchanges = {e.question: e for e in (asking.about_several(pictures) for _ in range(4))}
            return _tree(
                [self._supervised(start, [images], [e], sights) for e in exchanges.values()]
            )
        if kind < mix.text_only + mix.several + mix.drills:
            number = rng.randint(*mix.drilled)
            return self._drill(start, asking, number, rng, share_of_real)
        picture = self.picture(rng, mix.photos, share_of_real)
        image = self._image(picture.sight, sights)
        branches = []
        seen_questions: set[str] = set()
        for _ in range(rng.randint(*mix.branches)):
            exchanges_ = [asking.ask(picture) for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 3)))]
            if exchanges_[0].question in seen_questions:
                continue
            seen_questions.add(exchanges_[0].question)
            contents: list[tuple[ImageInput, ...]] = [(image,)] + [()] * (len(exchanges_) - 1)
            ending = rng.random()
            if ending < mix.chat_with_picture:
                turns = [] if rng.random() < 0.5 else self._turns(contents, exchanges_)
                branches.append(
                    self._chat_sample([*start, *turns], () if turns else (image,), sights, rng)
                )
                continue
            if ending < mix.chat_with_picture + mix.thanks:
                exchanges_.append(Exchange(rng.choice(THANKS), WELCOME, "thanks"))
                contents.append(())
            elif ending < mix.chat_with_picture + mix.thanks + 0.01:
                other = self.picture(rng, 0.3, share_of_real)
                exchanges_.append(asking.ask(other))
                contents.append((self._image(other.sight, sights),))
            branches.append(self._supervised(start, contents, exchanges_, sights))
        return _tree(branches)

    def _drill(
        self,
        start: list[Turn],
        asking: _Asking,
        n_branches: int,
        rng: random.Random,
        share_of_real: float,
    ) -> Tree:
        """Many questions about how the things of one picture lie. It is told of without errors,
        or was looked at."""
        if self._real and rng.random() < share_of_real:
            picture = self._real(rng)
        else:
            picture = Picture(*self._flawless.several_things(rng))
        sights: dict[str, Sight] = {}
        image = self._image(picture.sight, sights)
        exchanges = (asking.about_places(picture.known) for _ in range(n_branches))
        asked = {e.question: e for e in exchanges if e is not None}
        if not asked:
            return self._drill(start, asking, n_branches, rng, share_of_real)
        return _tree([self._supervised(start, [(image,)], [e], sights) for e in asked.values()])

    def _chat_sample(
        self,
        turns: list[Turn],
        images: tuple[ImageInput, ...],
        sights: Mapping[str, Sight],
        rng: random.Random,
    ) -> Sample:
        courteous = not images and rng.random() < 0.2
        question, answer = rng.choice(self._courtesies if courteous else self._chat)
        start = self._ids([*turns, Turn("user", (*images, question))], sights)
        return Sample(start + answer, [False] * len(start) + [True] * len(answer), ("chat",))

    @staticmethod
    def _turns(
        images: Sequence[tuple[ImageInput, ...]], exchanges: Sequence[Exchange]
    ) -> list[Turn]:
        turns = []
        for pictures, exchange in zip(images, exchanges, strict=True):
            turns.append(Turn("user", (*pictures, exchange.question)))
            turns.append(Turn("assistant", (exchange.answer,)))
        return turns

    def _supervised(
        self,
        start: list[Turn],
        images: Sequence[tuple[ImageInput, ...]],
        exchanges: Sequence[Exchange],
        sights: Mapping[str, Sight],
    ) -> Sample:
        """Every assistant turn, its end included, is to be said by the decoder."""
        turns = [*start, *self._turns(images, exchanges)]
        ids: list[int] = []
        is_answer: list[bool] = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._ids(turns[:index], sights)
            answer = self._answer_ids(str(turn.content[0]))
            is_answer += [False] * (len(before) - len(ids)) + [True] * len(answer)
            ids = before + answer
        return Sample(ids, is_answer, tuple(exchange.task for exchange in exchanges))

    def _answer_ids(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text, add_special_tokens=False).ids, self._end]

    def _image(self, sight: Sight, sights: dict[str, Sight]) -> ImageInput:
        """A stand-in for a prepared picture that the projector would tell of as `sight`."""
        key = str(len(sights))
        sights[key] = sight
        return ImageInput(np.zeros((1, 3, 1, 1), np.float32), None, (0, 0), N_TOKENS, key)

    def _ids(self, turns: list[Turn], sights: Mapping[str, Sight]) -> list[int]:
        prompt = self._family.render(turns)
        ids: list[int] = []
        for part in prompt.parts:
            if isinstance(part, ImageSlot):
                ids += self.picture_ids(sights[prompt.images[part.image].key])
            else:
                ids += part
        return ids

    def picture_ids(self, sight: Sight) -> list[int]:
        """The ids [N_TOKENS] that the projector writes."""
        whole = write(sight.reading, sight.spatial.sort, self._rows, self._tokenizer)
        parts = write_spatial(sight.spatial, self._thing_rows, self._word_rows, self._tokenizer)
        return [*whole.tolist(), *parts.tolist()]


class _Asking:
    """Asks about photographs by their readings, and about the rest by what is known."""

    def __init__(self, vocabulary: Vocabulary, rng: random.Random, *, held_out: bool) -> None:
        self._rng = rng
        self._of_photos = Questioner(vocabulary, rng, with_choices=True)
        self._of_scenes = SceneQuestions(vocabulary, rng, held_out=held_out)

    def ask(self, picture: Picture) -> Exchange:
        known = picture.known
        if known.sort == PHOTO and not known.things:
            return self._of_photos.ask(known.reading)
        return self._of_scenes.ask(known)

    def about_places(self, known: Known) -> Exchange | None:
        return self._of_scenes.ask_about_places(known)

    def about_several(self, pictures: Sequence[Picture]) -> Exchange:
        clauses = [self._shows(p.known) for p in pictures]
        return self._of_photos.about_several(clauses)

    def _shows(self, known: Known) -> str:
        if known.sort == PHOTO and not known.things:
            return self._of_photos.shows(known.reading)
        return self._of_scenes.shows(known)


def _tree(samples: Sequence[Sample]) -> Tree:
    """Part the samples where they begin to differ, or just before the first answer."""
    first_answers = [sample.is_answer.index(True) for sample in samples]
    columns = zip(*(sample.ids for sample in samples), strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    shared = min(alike, min(first_answers) - 1)
    return Tree(
        samples[0].ids[:shared],
        [Sample(s.ids[shared:], s.is_answer[shared:], s.tasks) for s in samples],
    )
