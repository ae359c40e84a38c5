"""What the built-in model is trained to say, and how it reads the scores of a whole picture."""

from __future__ import annotations

import random

import numpy as np
import pytest
from numpy.typing import NDArray
from photo_phrasings import NO_TEXT, NOT_SEEN, UNKNOWN
from projector import (
    CLEAR,
    EITHER,
    PROBABLY,
    UNCLEAR,
    Reading,
    describe,
    load_vocabulary,
)
from questions import Questioner

VOCABULARY = load_vocabulary()
UNTOLD = {NO_TEXT, *NOT_SEEN, *UNKNOWN}


def scores(seed: int) -> NDArray[np.float32]:
    """Class logits of every kind of picture: sure, torn between two, within a kind, lost."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.uniform(0.2, 1.5), 1000)
    kind = rng.integers(1000)
    same = VOCABULARY.kind_of == VOCABULARY.kind_of[kind]
    logits[same] += rng.uniform(0, 4)
    logits[rng.integers(1000, size=2)] += rng.uniform(0, 10, 2)
    return logits.astype(np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max())
    return (exponentials / exponentials.sum()).astype(np.float32)


def probabilities(**shares: float) -> NDArray[np.float32]:
    """Named classes get their share, the rest is spread over all."""
    values = np.full(1000, (1 - sum(shares.values())) / 1000, np.float32)
    for name, share in shares.items():
        values[VOCABULARY.names.index(name.replace("_", " "))] += share
    return values


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"a_minibus": 0.6}, (CLEAR, "a minibus", None, "a bus", "a vehicle")),
        ({"a_beagle": 0.2, "a_pug": 0.19}, (CLEAR, "a dog", None, "a dog", "an animal")),
        ({"a_banana": 0.3, "a_tent": 0.28}, (EITHER, "a banana", "a tent", None, None)),
        ({"a_tent": 0.2}, (PROBABLY, "a tent", None, None, None)),
        ({"a_koala": 0.12, "a_wombat": 0.12}, (PROBABLY, "an animal", None, None, "an animal")),
        ({"a_tent": 0.1}, (UNCLEAR, None, None, None, None)),
        ({}, (UNCLEAR, None, None, None, None)),
    ],
)
def test_no_more_is_said_than_the_scores_bear_out(
    shares: dict[str, float], said: tuple[int, str | None, str | None, str | None, str | None]
) -> None:
    r = describe(probabilities(**shares), VOCABULARY)
    words = [None if i < 0 else VOCABULARY.names[i] for i in (r.name, r.second, r.kind, r.broad)]
    assert (r.certainty, *words) == said


def test_the_vocabulary_is_a_thousand_classes_and_their_kinds() -> None:
    assert len(VOCABULARY.kind_of) == len(VOCABULARY.broad_of) == 1000
    assert VOCABULARY.names[VOCABULARY.kind_of[207]] == "a dog"
    assert VOCABULARY.names[VOCABULARY.broad_of[207]] == "an animal"


def test_answers_hold_no_name_but_those_read() -> None:
    questioner = Questioner(VOCABULARY, random.Random(3), with_choices=True)
    classes = sorted(VOCABULARY.names[:1000], key=len, reverse=True)
    for seed in range(400):
        reading = describe(softmax(scores(seed)), VOCABULARY)
        answer = questioner.ask(reading).answer
        if answer.startswith(("No, there is no ", "There is no ")):
            continue
        for index in (reading.name, reading.second, reading.kind, reading.broad):
            if index >= 0:
                answer = answer.replace(VOCABULARY.names[index], "")
        invented = [name for name in classes if f" {name}" in answer]
        assert not invented, (reading, answer)


def test_what_is_unclear_is_never_named() -> None:
    questioner = Questioner(VOCABULARY, random.Random(4), with_choices=True)
    for _ in range(200):
        answer = questioner.ask(Reading(UNCLEAR, -1, -1, -1, -1)).answer
        assert answer in UNTOLD or answer.removeprefix("No, ").startswith("I can't tell"), answer
