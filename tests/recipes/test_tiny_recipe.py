"""What the built-in model is trained to say, and how it reads the scores of a whole picture."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conversations import Conversations, Mix
from numpy.typing import NDArray
from projector import (
    CERTAINTIES,
    CLEAR,
    EITHER,
    PROBABLY,
    UNCLEAR,
    Reading,
    describe,
    load_vocabulary,
)
from questions import Questioner
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = load_vocabulary()
EVERYTHING = Mix(0.2, 0.2, 0.2, 0.2, with_choices=True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for every word of the names, and letters for the rest."""
    words = sorted({f"Ġ{word}" for name in VOCABULARY.names for word in name.split()})
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    certainties = [c.replace(" ", "Ġ") for c in CERTAINTIES]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*special, *letters, *certainties, "Ġ-", *words])
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


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
        for index in (reading.name, reading.second, reading.kind, reading.broad):
            if index >= 0:
                answer = answer.replace(VOCABULARY.names[index], "")
        invented = [name for name in classes if f" {name}" in answer]
        assert not invented, (reading, answer)


def test_what_is_unclear_is_never_named() -> None:
    questioner = Questioner(VOCABULARY, random.Random(4), with_choices=True)
    for _ in range(200):
        answer = questioner.ask(Reading(UNCLEAR, -1, -1, -1, -1)).answer
        assert answer.removeprefix("No, ").startswith("I can't tell"), answer


def test_only_answers_and_their_ends_are_to_be_learned(tokenizer: Tokenizer) -> None:
    likeness = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    conversations = Conversations(tokenizer, likeness)
    conversations.add_chat({"Hello!": tokenizer.encode("Hi.").ids})
    for sample in conversations.batch(random.Random(5), 40, EVERYTHING):
        assert len(sample.ids) == len(sample.is_answer)
        spoken = [i for i, a in zip(sample.ids, sample.is_answer, strict=True) if a]
        assert tokenizer.token_to_id("<|im_start|>") not in spoken
        text = tokenizer.decode(spoken)
        assert text == "Hi." or text.endswith((".", "Hi."))


def test_a_batch_depends_on_its_seed_alone(tokenizer: Tokenizer) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    first, second = (Conversations(tokenizer, rows) for _ in range(2))
    for conversations in (first, second):
        conversations.add_chat({"Hello!": [0]})
    first.batch(random.Random(1), 3, EVERYTHING)
    assert first.batch(random.Random(2), 5, Mix()) == second.batch(random.Random(2), 5, Mix())
