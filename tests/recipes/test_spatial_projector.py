"""What is said of a picture follows from what was measured, in numpy and in the graph alike."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from projector import (
    CERTAINTIES,
    CLEAR,
    EITHER,
    N_TOKENS,
    PROBABLY,
    UNCLEAR,
    Vocabulary,
    load_vocabulary,
    token_rows,
    write,
)
from projector_graph import Embeddings, WordNodes, add_projector
from seen import COLUMNS, NUMBERS, RANKS, ROWS, SIZES, SORTS, SURFACES, Look
from spatial_projector import (
    CHART,
    NOTHING,
    PHOTO,
    TEXT,
    THINGS,
    sight,
    thing_rows,
    word_rows,
    write_spatial,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from views import LookNodes

from edgevlm.models.onnx_export.graph import Graph

CONCEPTS = """a cat | a cat | an animal | kitten
a tiger | a big cat | an animal |
a lion | a big cat | an animal |
an apple | a fruit | food |
a pear | a fruit | food |
a sailboat | a boat | a vehicle | yacht
a star | | a shape |
the moon | | |
"""
WORDS = ("house", "garden", "42")
LEVELS = 97
EVERY_SORT = range(len(SORTS))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("concepts") / "concepts.txt"
    path.write_text(CONCEPTS)
    return load_vocabulary(concepts=path)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """A token for every word that can be said."""
    lists = (COLUMNS, NUMBERS, RANKS, ROWS, SIZES, SORTS, SURFACES, CERTAINTIES, WORDS)
    said = [*vocabulary.names, *(word.strip() for words in lists for word in words), "-"]
    tokens = dict.fromkeys(f" {word}" for text in said for word in text.split())
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    return tokenizer


def leading(first: str, **behind: float) -> NDArray[np.float32]:
    """Logits of a surface that leads others by so much, and the rest by 20."""
    logits = np.full(len(SURFACES) + 1, 10, np.float32)
    logits[SURFACES.index(first)] = 30
    for name, lead in behind.items():
        logits[SURFACES.index(name)] = 30 - lead
    return logits


def a_look(seed: int, n_concepts: int) -> Look:
    """Measurements of every kind: sure, torn, on a coarse grid, so that there are equal ones."""
    rng = np.random.default_rng(seed)

    def logits(*shape: int) -> NDArray[np.float32]:
        noise = rng.normal(0, rng.uniform(0.2, 4), shape)
        return np.round(noise, int(rng.integers(0, 3))).astype(np.float32)

    classes = logits(1000) / 4
    classes[rng.integers(1000, size=2)] += rng.uniform(0, 10, 2).astype(np.float32)
    surfaces = logits(5, len(SURFACES) + 1)
    if seed % 4 == 0:  # as of reddish brown and of teal, or nearly so
        surfaces[rng.random(5) < 0.7] = leading("red", brown=rng.integers(5, 8), pink=5)
        surfaces[rng.random(5) < 0.4] = leading("blue", green=rng.integers(9, 12), purple=9)
    corners = rng.integers(0, 10, (5, 2, 2)) / np.float32(9)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return Look(
        classes,
        logits(n_concepts),
        logits(len(SORTS)),
        boxes.astype(np.float32),
        rng.choice(np.array([0.1, 0.5, 0.9, 1], np.float32), 5) * np.float32(rng.choice([0.4, 1])),
        logits(5, n_concepts),
        surfaces,
        int(rng.integers(len(WORDS))),
        float(np.float32(rng.random())),
    )


def written(looks: list[Look], vocabulary: Vocabulary, tokenizer: Tokenizer) -> NDArray[np.int64]:
    rows, things = token_rows(vocabulary, tokenizer), thing_rows(vocabulary, tokenizer)
    words = word_rows(WORDS, tokenizer)
    sights = [sight(look, vocabulary) for look in looks]
    return np.stack(
        [
            np.concatenate(
                [
                    write(s.reading, s.spatial.sort, rows, tokenizer),
                    write_spatial(s.spatial, things, words, tokenizer),
                ]
            )
            for s in sights
        ]
    )


def test_the_graph_says_what_numpy_says(
    vocabulary: Vocabulary, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    # The token's id, in two digits.
    ids = np.arange(tokenizer.get_vocab_size())
    levels = np.stack([ids % LEVELS, ids // LEVELS], axis=1)[:, None].astype(np.int8)
    embeddings = Embeddings(levels, np.ones((len(ids), 1), np.float16))
    looks = [a_look(seed, len(vocabulary.concept_rows)) for seed in range(400)]
    names = [field.name for field in fields(Look)]
    feeds = {name: np.stack([getattr(look, name) for look in looks]) for name in names}
    feeds["word_probability"] = feeds["word_probability"].astype(np.float32)

    graph = Graph("projector")
    inputs = {
        name: graph.input(name, array.dtype, ["n", *array.shape[1:]])
        for name, array in feeds.items()
    }
    word = WordNodes(inputs.pop("word"), inputs.pop("word_probability"))
    features = add_projector(
        graph, LookNodes(**inputs), word, vocabulary, WORDS, tokenizer, embeddings
    )
    graph.output(features, "features", np.float32, ["n", N_TOKENS, 2])
    graph.save(tmp_path / "projector.onnx", {})
    session = onnxruntime.InferenceSession(str(tmp_path / "projector.onnx"))
    (found,) = session.run(None, feeds)

    expected = written(looks, vocabulary, tokenizer)
    np.testing.assert_array_equal(found[..., 0] + LEVELS * found[..., 1], expected)
    # The random looks made everything happen that can.
    sights = [sight(look, vocabulary) for look in looks]
    slots = [slot for s in sights for slot in s.spatial.slots]
    assert {s.reading.certainty for s in sights} == {-1, CLEAR, PROBABLY, EITHER, UNCLEAR}
    assert {s.spatial.sort for s in sights} == set(EVERY_SORT)
    assert {len(s.spatial.slots) for s in sights} == set(range(6))
    assert {s.spatial.word_certainty for s in sights} == {-1, CLEAR, PROBABLY}
    assert {slot.name for slot in slots} > {-1, *vocabulary.concept_rows}
    assert {slot.second for slot in slots} == {-1, *vocabulary.concept_rows}
    assert any(
        s.spatial.sort != int(look.sorts.argmax()) for s, look in zip(sights, looks, strict=True)
    )
    assert {slot.surface for slot in slots} == set(range(-1, len(SURFACES)))
    assert {slot.number for slot in slots} >= {1, 2, 3}
    lists = {"row": ROWS, "column": COLUMNS, "order": RANKS, "rank": RANKS, "size": SIZES}
    for field, words in lists.items():
        assert {getattr(slot, field) for slot in slots} == set(range(len(words)))


def likely(index: int, size: int, probability: float) -> NDArray[np.float32]:
    """Logits that give `index` the probability and the others equal shares of the rest."""
    shares = np.full(size, (1 - probability) / (size - 1))
    shares[index] = probability
    return np.log(shares).astype(np.float32)


@pytest.fixture
def blank_look(vocabulary: Vocabulary) -> Look:
    n = len(vocabulary.concept_rows)
    return Look(
        np.zeros(1000, np.float32),
        np.zeros(n, np.float32),
        likely(THINGS, len(SORTS), 0.9),
        np.zeros((5, 4), np.float32),
        np.zeros(5, np.float32),
        np.zeros((5, n), np.float32),
        np.zeros((5, len(SURFACES) + 1), np.float32),
        0,
        0.0,
    )


def text_of(look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer) -> str:
    """What is written, without the blanks."""
    ids = written([look], vocabulary, tokenizer)[0].tolist()
    words = [tokenizer.id_to_token(i).strip() for i in ids]
    return " ".join(word for word in words if word != "-")


def with_thing(
    look: Look, place: int, concept: int, sure: float, x: float, y: float, surface: int = -1
) -> Look:
    """The look with one more thing in it, a tenth of the picture wide."""
    arrays = (look.boxes, look.objectness, look.thing_concepts, look.thing_surfaces)
    boxes, objectness, concepts, surfaces = (array.copy() for array in arrays)
    boxes[place] = (x - 0.05, y - 0.05, x + 0.05, y + 0.05)
    objectness[place] = 0.95
    concepts[place] = likely(concept, concepts.shape[1], sure)
    surfaces[place] = likely(surface % surfaces.shape[1], surfaces.shape[1], 0.8)
    return replace(
        look, boxes=boxes, objectness=objectness, thing_concepts=concepts, thing_surfaces=surfaces
    )


def test_things_are_told_from_left_to_right(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 0, concept=5, sure=0.9, x=0.9, y=0.1)
    look = with_thing(look, 1, concept=0, sure=0.5, x=0.1, y=0.5, surface=SURFACES.index("red"))
    # Alone the second cat would be clear; it shares the certainty of the first.
    look = with_thing(look, 2, concept=0, sure=0.9, x=0.5, y=0.9)
    assert text_of(look, vocabulary, tokenizer) == (
        "things three "
        "probably two red cat middle left first second small "
        "probably two cat bottom center second third small "
        "clear one sailboat top right third first small"
    )


def test_one_thing_is_named_by_its_glimpse_and_the_whole(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 3, concept=5, sure=0.8, x=0.5, y=0.5)
    look = replace(look, concepts=likely(5, 8, 0.9))
    assert text_of(look, vocabulary, tokenizer) == (
        "clear a sailboat a boat a vehicle things one "
        "clear one sailboat middle center first first small"
    )
    doubtful = replace(look, concepts=likely(6, 8, 0.7))
    assert text_of(doubtful, vocabulary, tokenizer) == (
        "probably a sailboat a boat a vehicle things one "
        "probably one sailboat star middle center first first small"
    )


@pytest.mark.parametrize(
    ("logits", "told"),
    [
        (leading("red", brown=12), "red"),
        (leading("red", brown=6, orange=4), "red"),
        (leading("red", brown=6, pink=4), "red"),
        (leading("red", brown=6, orange=5, pink=5), "brown"),
        (leading("blue", green=11, purple=12), "blue"),
        (leading("blue", green=6, purple=8), "blue"),
        (leading("blue", green=6, purple=12), ""),
        (leading("purple", green=6, blue=3), "purple"),
    ],
)
def test_reddish_brown_is_brown_and_teal_no_blue(
    vocabulary: Vocabulary, logits: NDArray[np.float32], told: str
) -> None:
    look = replace(
        a_look(1, len(vocabulary.concept_rows)),
        sorts=np.eye(len(SORTS), dtype=np.float32)[THINGS] * 9,
        thing_surfaces=np.tile(logits, (5, 1)),
        objectness=np.array([1, 0, 0, 0, 0], np.float32),
        word_probability=0.0,
    )
    (slot,) = sight(look, vocabulary).spatial.slots
    assert slot.surface == (SURFACES.index(told) if told else -1)

    (slot, *_) = sight(replace(look, objectness=np.ones(5, np.float32)), vocabulary).spatial.slots
    assert slot.surface == (-1 if not told else SURFACES.index("red" if told == "brown" else told))


def test_a_runner_up_is_told_and_of_a_kind_the_likeliest_one(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 0, concept=1, sure=0.9, x=0.2, y=0.5)
    look = with_thing(look, 1, concept=0, sure=0.9, x=0.8, y=0.5)
    look.thing_concepts[:2] = np.log(
        [
            [0.01, 0.36, 0.34, 0.01, 0.01, 0.01, 0.01, 0.25],
            [0.72, 0.01, 0.01, 0.20, 0.01, 0.02, 0.02, 0.01],
        ]
    )
    assert text_of(look, vocabulary, tokenizer) == (
        "things two probably one big cat tiger middle left first first small "
        "probably one cat apple middle right second second small"
    )


def test_the_surest_thing_is_told_of_where_none_is_sure_but_the_whole_is(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 0, concept=5, sure=0.3, x=0.5, y=0.5)
    look = replace(look, objectness=np.full(5, 0.1, np.float32))
    assert text_of(look, vocabulary, tokenizer) == "unclear things none"
    look = replace(look, concepts=likely(5, 8, 0.9))
    assert "one sailboat middle center" in text_of(look, vocabulary, tokenizer)


def test_the_parts_of_a_large_thing_are_no_things(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 0, concept=4, sure=0.9, x=0.4, y=0.4)
    look = with_thing(look, 1, concept=5, sure=0.9, x=0.5, y=0.5)
    look = with_thing(look, 2, concept=3, sure=0.9, x=0.95, y=0.95)
    assert text_of(look, vocabulary, tokenizer).startswith("things three")
    look.boxes[1] = (0.1, 0.1, 0.9, 0.9)
    assert text_of(look, vocabulary, tokenizer) == (
        "things two clear one sailboat middle center first first large "
        "clear one apple bottom right second second small"
    )


def test_a_sure_thing_without_print_makes_it_a_picture_of_things(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 0, concept=5, sure=0.9, x=0.5, y=0.5)
    look = replace(look, sorts=likely(TEXT, len(SORTS), 0.9), word_probability=0.6)
    assert "things one" in text_of(look, vocabulary, tokenizer)
    look = replace(look, word_probability=0.8)
    assert text_of(look, vocabulary, tokenizer) == "text clear house"


def test_a_kind_is_named_where_the_concept_is_not_known(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 0, concept=1, sure=0.18, x=0.5, y=0.5)
    look.thing_concepts[0, 2] = look.thing_concepts[0, 1]
    look = replace(look, concepts=look.thing_concepts[0])
    said = text_of(look, vocabulary, tokenizer)
    assert said.startswith(
        "probably a big cat a big cat an animal things one probably one big cat tiger"
    )


def test_a_photograph_is_named_by_its_class_or_else_by_a_sure_concept(
    blank_look: Look, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    look = with_thing(blank_look, 0, concept=0, sure=0.7, x=0.5, y=0.5)
    look = replace(look, sorts=likely(PHOTO, len(SORTS), 0.9))
    assert text_of(look, vocabulary, tokenizer) == "unclear photo"
    shape = replace(look, concepts=likely(6, 8, 0.9))
    assert text_of(shape, vocabulary, tokenizer) == "unclear photo"
    sure = replace(look, concepts=likely(5, 8, 0.9))
    assert text_of(sure, vocabulary, tokenizer) == "clear a sailboat a boat a vehicle photo"
    of_class = replace(sure, classes=likely(954, 1000, 0.9))
    assert text_of(of_class, vocabulary, tokenizer) == "clear a banana a fruit food photo"
    glimpsed = with_thing(of_class, 0, concept=0, sure=0.95, x=0.5, y=0.5)
    assert text_of(glimpsed, vocabulary, tokenizer).endswith(
        "photo one clear one cat middle center first first small"
    )


@pytest.mark.parametrize(
    ("sort", "probability", "said"),
    [
        (TEXT, 0.8, "text clear garden"),
        (CHART, 0.5, "chart probably garden"),
        (TEXT, 0.2, "text"),
        (THINGS, 0.8, "unclear things none"),
        (THINGS, 0.95, "unclear things none clear garden"),
        (NOTHING, 1.0, "unclear nothing"),
    ],
)
def test_print_is_told_where_it_is_expected_or_plain(
    blank_look: Look,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    sort: int,
    probability: float,
    said: str,
) -> None:
    look = replace(blank_look, sorts=likely(sort, len(SORTS), 0.9), word=1)
    look = replace(look, word_probability=probability)
    assert text_of(look, vocabulary, tokenizer) == said


def test_a_concept_called_as_a_class_shares_its_row(vocabulary: Vocabulary, tmp_path: Path) -> None:
    (tmp_path / "none.txt").touch()
    plain = load_vocabulary(concepts=tmp_path / "none.txt")
    assert vocabulary.names[: len(plain.names)] == plain.names
    names = [vocabulary.names[row] for row in vocabulary.concept_rows]
    assert names == [line.split(" | ")[0] for line in CONCEPTS.splitlines()]
    assert len(set(vocabulary.names[len(plain.names) :])) == len(vocabulary.names) - len(
        plain.names
    )


def test_a_name_too_long_for_its_slot_is_refused(
    vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match="5 tokens; 4 fit"):
        word_rows(["house house house house house"], tokenizer)
