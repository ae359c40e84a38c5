"""Training conversations, laid out token for token as the family lays out real ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from projector import (
    CLEAR,
    EITHER,
    N_TOKENS,
    PROBABLY,
    UNCLEAR,
    Reading,
    describe,
    load_vocabulary,
    token_rows,
    write,
)
from questions import Questioner
from tokenizers import Tokenizer

from edgevlm.engine.prompt import ImageInput, ImageSlot
from edgevlm.families.base import Turn
from edgevlm.families.tiny import Preprocessing, TinyFamily

# How often each certainty is practised, whatever real pictures would give.
CERTAINTY_SHARES = {CLEAR: 0.58, PROBABLY: 0.16, EITHER: 0.12, UNCLEAR: 0.14}
# Where only the broad kind is known ("an animal"): rare in made-up scores, not in pictures.
BROAD_ONLY = 0.05
SEVERAL_PICTURES = 0.08
OTHER_SYSTEM = 0.25


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of what is practised besides questions about one picture.

    `text_only` conversations have no picture, `chat_after_picture` end in a question that has
    nothing to do with it, `chat_with_picture` begin with one, and `thanks` end in thanks.
    """

    text_only: float = 0.10
    chat_after_picture: float = 0.05
    chat_with_picture: float = 0.0
    thanks: float = 0.0
    with_choices: bool = False


SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "Answer in one short sentence.",
    "You are a vision assistant. Describe what you see truthfully.",
    "You help people who can't see well.",
    "Be concise and honest.",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids and which of them the decoder has to say itself."""

    ids: list[int]
    is_answer: list[bool]


class Conversations:
    def __init__(self, tokenizer: Tokenizer, classifier_rows: NDArray[np.float32]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = load_vocabulary()
        self._rows = token_rows(self._vocabulary, tokenizer)
        self._family = TinyFamily(tokenizer, Preprocessing(1, 1, (0,) * 3, (1,) * 3), N_TOKENS)
        unit = classifier_rows / np.linalg.norm(classifier_rows, axis=1, keepdims=True)
        self._likeness = unit @ unit.T
        self._chat: list[tuple[str, list[int]]] = []
        self._end = tokenizer.token_to_id("<|im_end|>")

    def add_chat(self, answers: Mapping[str, list[int]]) -> None:
        """Text-only questions with the token ids of the answers to keep."""
        self._chat = list(answers.items())

    def chat_prompt(self, question: str) -> list[int]:
        return self._ids([Turn("user", (question,))], {})

    def batch(self, rng: random.Random, size: int, mix: Mix) -> list[Sample]:
        return [self._sample(rng, mix) for _ in range(size)]

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

    def every_name(self, question: str) -> Iterator[tuple[str, Sample]]:
        """For each class and each kind, a clear picture of it and its naming."""
        vocabulary = self._vocabulary
        kinds = zip(vocabulary.kind_of.tolist(), vocabulary.broad_of.tolist(), strict=True)
        broad_of_kind = {kind: broad for kind, broad in kinds if kind >= 0}
        for index, name in enumerate(vocabulary.names):
            if index < len(vocabulary.kind_of):
                kind, broad = int(vocabulary.kind_of[index]), int(vocabulary.broad_of[index])
            elif index in broad_of_kind:
                kind, broad = index, broad_of_kind[index]
            else:
                continue
            readings: dict[str, Reading] = {}
            image = self._image(Reading(CLEAR, index, -1, kind, broad), readings)
            answer = Turn("assistant", (f"The picture shows {name}.",))
            yield name, self._supervised([Turn("user", (image, question)), answer], readings)

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
        scores = np.exp(logits - logits.max())
        return (scores / scores.sum()).astype(np.float32)

    def _sample(self, rng: random.Random, mix: Mix) -> Sample:
        questioner = Questioner(self._vocabulary, rng, with_choices=mix.with_choices)
        turns: list[Turn] = []
        readings: dict[str, Reading] = {}
        if rng.random() < OTHER_SYSTEM:
            turns.append(Turn("system", (rng.choice(SYSTEMS),)))
        if rng.random() < mix.text_only:
            return self._finish_with_chat(turns, (), readings, rng)
        if rng.random() < SEVERAL_PICTURES:
            several = [self.reading(rng) for _ in range(rng.choice((2, 2, 3)))]
            images = [self._image(reading, readings) for reading in several]
            exchange = questioner.about_several(several)
            turns += [
                Turn("user", (*images, exchange.question)),
                Turn("assistant", (exchange.answer,)),
            ]
            return self._supervised(turns, readings)
        reading = self.reading(rng)
        if mix.chat_with_picture and rng.random() < mix.chat_with_picture:
            image = self._image(reading, readings)
            return self._finish_with_chat(turns, (image,), readings, rng)
        for index in range(rng.choice((1, 1, 2, 3))):
            new = index == 0 or rng.random() < 0.1
            if new and index:
                reading = self.reading(rng)
            exchange = questioner.naming(reading) if new and index else questioner.ask(reading)
            image = (self._image(reading, readings),) if new else ()
            turns += [
                Turn("user", (*image, exchange.question)),
                Turn("assistant", (exchange.answer,)),
            ]
        if rng.random() < mix.chat_after_picture:
            return self._finish_with_chat(turns, (), readings, rng)
        if mix.thanks and rng.random() < mix.thanks:
            exchange = questioner.thanks()
            turns += [Turn("user", (exchange.question,)), Turn("assistant", (exchange.answer,))]
        return self._supervised(turns, readings)

    def _finish_with_chat(
        self,
        turns: list[Turn],
        images: tuple[ImageInput, ...],
        readings: dict[str, Reading],
        rng: random.Random,
    ) -> Sample:
        question, answer = rng.choice(self._chat)
        start = self._ids([*turns, Turn("user", (*images, question))], readings)
        return Sample(start + answer, [False] * len(start) + [True] * len(answer))

    def _supervised(self, turns: list[Turn], readings: dict[str, Reading]) -> Sample:
        """Every assistant turn, its end included, is to be said by the decoder."""
        ids: list[int] = []
        is_answer: list[bool] = []
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            start = self._ids(turns[:index], readings)
            (text,) = turn.content
            answer = [*self._tokenizer.encode(text, add_special_tokens=False).ids, self._end]
            is_answer += [False] * (len(start) - len(ids)) + [True] * len(answer)
            ids = start + answer
        return Sample(ids, is_answer)

    def _image(self, reading: Reading, readings: dict[str, Reading]) -> ImageInput:
        """A stand-in for a prepared picture that the projector would read as `reading`."""
        key = str(len(readings))
        readings[key] = reading
        return ImageInput(np.zeros((1, 3, 1, 1), np.float32), None, (0, 0), N_TOKENS, key)

    def _ids(self, turns: list[Turn], readings: Mapping[str, Reading]) -> list[int]:
        prompt = self._family.render(turns)
        ids: list[int] = []
        for part in prompt.parts:
            if isinstance(part, ImageSlot):
                reading = readings[prompt.images[part.image].key]
                ids += write(reading, self._rows, self._tokenizer).tolist()
            else:
                ids += part
        return ids
