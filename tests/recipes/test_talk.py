"""What the decoder is taught to say: the truth about made-up pictures, as far as slots tell it."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from check_answers import auroc
from conversations import Conversations, Mix, Tree
from decoder import FEED_FORWARD, HEADS, KV_HEADS, WIDTH, add_lora
from projector import CERTAINTIES, CLEAR, PROBABLY, Reading, load_vocabulary
from real_looks import known as known_of
from real_looks import unfamiliar
from scene_questions import SceneQuestions
from seen import (
    COLUMNS,
    NUMBERS,
    RANKS,
    ROWS,
    SIZES,
    SORTS,
    SURFACES,
    Look,
    Scene,
    Thing,
)
from simulate import TEXT, THINGS, Known, SeenThing, Simulator
from spatial_projector import sight
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from train import backward, to_bfloat16
from transformers import LlamaConfig, LlamaForCausalLM
from trees import answer_logits, by_length, pack
from wording import coloured, listing, plural, several, where

VOCABULARY = load_vocabulary()
WORDS = ["river", "cloud", "stone", "bread", "7", "45", "90"]
RED, BLUE = SURFACES.index("red"), SURFACES.index("blue")
LEFT, RIGHT = (0.2, 0.5), (0.8, 0.5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for every word that slots hold, and letters for the rest."""
    words = {word for name in VOCABULARY.names for word in name.split()} | set(WORDS)
    for said in (SORTS, NUMBERS, SURFACES, ROWS, COLUMNS, RANKS, SIZES):
        words |= set(said)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spaced = [f"Ġ{word.strip()}" for word in (*CERTAINTIES, "-", *sorted(words))]
    tokens = dict.fromkeys([*special, *letters, *spaced])
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


def new_conversations(tokenizer: Tokenizer) -> Conversations:
    rows = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    conversations = Conversations(tokenizer, rows, WORDS)
    conversations.add_chat({"Name a fruit.": tokenizer.encode("A pear.").ids})
    return conversations


@pytest.fixture(scope="module")
def conversations(tokenizer: Tokenizer) -> Conversations:
    return new_conversations(tokenizer)


def seen(name: str, surface: int, centre: tuple[float, float], certainty: int = CLEAR) -> SeenThing:
    index = VOCABULARY.names.index(name)
    table = VOCABULARY.concepts
    row = list(table.rows).index(index)
    names = frozenset({index, int(table.kind_of[row]), int(table.broad_of[row])} - {-1})
    column = 0 if centre[0] < 0.4 else 2
    return SeenThing(index, index, names, certainty, surface, 1, column, 1, centre)


def known(*things: SeenThing) -> Known:
    return Known(THINGS, Reading(-1), things, len(things))


CIRCLE_AND_SQUARE = known(seen("a circle", RED, LEFT), seen("a square", BLUE, RIGHT))


def asked(picture: Known, seed: int, times: int) -> list[tuple[str, str, str]]:
    questions = SceneQuestions(VOCABULARY, random.Random(seed))
    exchanges = [questions.ask(picture) for _ in range(times)]
    return [(e.task, e.question.lower(), e.answer) for e in exchanges]


def test_a_picture_is_described_from_left_to_right() -> None:
    answers = {a for task, _, a in asked(CIRCLE_AND_SQUARE, 0, 300) if task == "naming"}
    assert answers == {"The picture shows a red circle and a blue square."}
    details = {a for task, _, a in asked(CIRCLE_AND_SQUARE, 1, 300) if task == "detail"}
    assert details == {"The picture shows a red circle on the left and a blue square on the right."}


def test_what_is_unsure_is_hedged() -> None:
    picture = known(seen("a cat", -1, LEFT), seen("a dog", -1, RIGHT, PROBABLY))
    answers = {a for task, _, a in asked(picture, 0, 300) if task == "naming"}
    assert answers == {"The picture shows a cat and probably a dog."}
    alone = known(seen("a dog", -1, LEFT, PROBABLY))
    answers = {a for task, _, a in asked(alone, 0, 400) if task == "naming"}
    assert answers == {"The picture probably shows a dog.", "Dog."}


def test_yes_and_no_say_what_is_there_and_come_about_as_often() -> None:
    found: Counter[str] = Counter()
    for task, question, answer in asked(CIRCLE_AND_SQUARE, 2, 3000):
        if not task.startswith("presence"):
            continue
        short = answer.split(",")[0].rstrip(".")
        found[short] += 1
        denied = " not " in question or " no " in question or "missing" in question
        if " red circle" in question or " blue square" in question:
            assert short == ("No" if denied else "Yes"), (question, answer)
        if " blue circle" in question or " triangle" in question:
            assert short == ("Yes" if denied else "No"), (question, answer)
    assert set(found) == {"Yes", "No"}
    assert 0.7 < found["Yes"] / found["No"] < 1.4


def test_sides_are_those_of_the_picture() -> None:
    checked = 0
    for task, question, answer in asked(CIRCLE_AND_SQUARE, 3, 3000):
        # Each by its name, and in the order of the answer.
        if "circle" not in question or "square" not in question or "on which side" in question:
            continue
        if task == "is it left of":
            subject = question.index("circle") < question.index("square")
            true = subject == ("left" in question)
            assert answer.endswith(", so yes." if true else ", so no."), (question, answer)
            checked += 1
        if task == "which of two" and ("left" in question or "right" in question):
            assert answer.endswith(" circle." if "left" in question else " square.")
            checked += 1
        if task in ("is it left of", "left or right", "where from", "which of two"):
            first = "circle" if question.index("circle") < question.index("square") else "square"
            assert f"{first} is to the {'left' if first == 'circle' else 'right'}" in answer
            checked += 1
    assert checked > 50


def test_what_is_not_there_has_no_colour_and_no_place() -> None:
    for task, question, answer in asked(CIRCLE_AND_SQUARE, 4, 1500):
        if task == "absent":
            thing = answer.removeprefix("There is no ").removesuffix(" in the picture.")
            assert thing not in ("circle", "square", "red circle", "blue square"), question


def test_several_of_one_are_counted() -> None:
    picture = known(seen("a cat", RED, LEFT), seen("a cat", BLUE, RIGHT))
    answers = {a for task, _, a in asked(picture, 5, 600) if task in ("naming", "count all")}
    assert answers >= {"The picture shows two cats.", "There are two things."}
    counts = {q: a for task, q, a in asked(picture, 6, 600) if task == "count"}
    assert all("two" in a.lower() for q, a in counts.items() if " cats" in q and " red" not in q
               and " blue" not in q)  # fmt: skip


def test_who_asks_gets_the_guess_and_a_description_keeps_to_what_is_sure() -> None:
    sure, guess = seen("a cat", RED, LEFT), seen("a fox", BLUE, RIGHT, PROBABLY)
    told = {(task, answer) for task, _, answer in asked(known(sure, guess), 10, 900)}
    assert ("naming", "The picture shows a red cat and probably a blue fox.") in told
    assert ("description", "The picture shows a red cat and a blue thing.") in told
    other = seen("a banana", RED, LEFT, PROBABLY)
    told = {(task, answer) for task, _, answer in asked(known(other, guess), 10, 900)}
    assert ("naming", "The picture probably shows a red banana and a blue fox.") in told
    assert ("description", "The picture probably shows a red fruit and a blue animal.") in told


def test_what_is_mistaken_is_asked_about_by_its_true_name() -> None:
    fox, animal = (VOCABULARY.names.index(name) for name in ("a fox", "an animal"))
    mistaken = replace(seen("a cat", RED, LEFT), name=animal, true_names=frozenset({animal}))
    mistaken = replace(mistaken, exact=fox)
    colours = 0
    for task, question, answer in asked(known(mistaken), 11, 900):
        if " fox" in question:
            assert "no fox" not in answer.replace("red fox", "fox"), (question, answer)
            colours += task == "colour" and answer == "It is red."
    assert colours


def test_a_word_is_read_and_no_word_made_up() -> None:
    word = Known(TEXT, Reading(-1), word="river", word_certainty=PROBABLY)
    assert {a for task, _, a in asked(word, 7, 200) if task == "read"} == {
        "It probably says: river."
    }
    assert {a for task, _, a in asked(CIRCLE_AND_SQUARE, 7, 900) if task == "read"} == {
        "There is no text that I can read."
    }


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (plural("bunch of grapes"), "bunches of grapes"),
        (plural("butterfly"), "butterflies"),
        (plural("swiss army knife"), "swiss army knives"),
        (plural("tomato"), "tomatoes"),
        (coloured("a cat", SURFACES.index("orange")), "an orange cat"),
        (coloured("an apple", RED), "a red apple"),
        (coloured("glasses", RED), "red glasses"),
        (several(3, "a fox", RED), "three red foxes"),
        (listing(["a cat", "a dog", "a fox"]), "a cat, a dog and a fox"),
        (where(0, 0), "at the top left"),
        (where(1, 2), "on the right"),
        (where(1, 1), "in the middle"),
    ],
)
def test_english(said: str, expected: str) -> None:
    assert said == expected


def test_slots_are_right_as_often_as_their_certainty_says() -> None:
    simulator, rng = Simulator(VOCABULARY, WORDS), random.Random(8)
    right: dict[int, list[bool]] = {CLEAR: [], PROBABLY: []}
    for _ in range(3000):
        sight, truth = simulator.picture(rng)
        if len(sight.spatial.slots) == len(truth.things) == 1:
            (slot,), (thing,) = sight.spatial.slots, truth.things
            if slot.name >= 0:
                right[slot.certainty].append(slot.name in thing.true_names)
    assert 0.9 < np.mean(right[CLEAR]) < 0.98
    assert 0.5 < np.mean(right[PROBABLY]) < 0.72


def test_flawless_slots_tell_what_is_known() -> None:
    simulator, rng = Simulator(VOCABULARY, WORDS, flawless=True), random.Random(9)
    for _ in range(300):
        sight, truth = simulator.picture(rng)
        spatial = sight.spatial
        assert len(spatial.slots) == len(truth.things)
        for slot, thing in zip(spatial.slots, truth.things, strict=True):
            # Of what is told as a kind, the runner-up is the thing itself.
            assert thing.name in (slot.name, slot.second)
        assert [slot.order for slot in spatial.slots] == list(range(len(spatial.slots)))
        assert truth.n_things == len(spatial.slots)
        assert spatial.word == (WORDS.index(truth.word) if truth.word else -1)


def test_a_real_slot_tells_of_the_thing_that_it_covers() -> None:
    simulator = Simulator(VOCABULARY, WORDS)
    boxes = ((0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9), (0.6, 0.1, 0.9, 0.3))
    scene = Scene(THINGS, tuple(Thing(i, RED, box) for i, box in enumerate(boxes)))
    # The second is found first, the third not at all, and there is nothing at the lower left.
    found = np.array([boxes[1], boxes[0], (0.1, 0.7, 0.2, 0.9), *[(0, 0, 1, 1)] * 2], np.float32)
    concepts = np.zeros((5, len(VOCABULARY.concepts.rows)), np.float32)
    concepts[[0, 1], [1, 0]] = 20
    look = Look(
        classes=np.zeros(1000, np.float32),
        concepts=np.zeros(concepts.shape[1], np.float32),
        sorts=np.eye(5, dtype=np.float32)[THINGS],
        boxes=found,
        objectness=np.array([0.9, 0.8, 0.7, 0, 0], np.float32),
        thing_concepts=concepts,
        thing_surfaces=np.zeros((5, len(SURFACES) + 1), np.float32),
        word=-1,
        word_probability=0.0,
    )
    truth = known_of(scene, look, sight(look, VOCABULARY), simulator)
    names = [int(VOCABULARY.concepts.rows[i]) for i in range(3)]
    assert [thing.name for thing in truth.things] == names[:2]
    assert truth.n_things == 3
    assert names[2] in truth.missed


def test_noise_leaves_alike_things_alike_and_makes_others_err() -> None:
    rng = np.random.default_rng(1)
    wrong = same = 0
    for _ in range(60):
        logits = np.repeat(rng.normal(0, 1.9, (2, 906)), (2, 3), axis=0).astype(np.float32)
        logits[[0, 1], 7] = logits[[2, 3, 4], 8] = 9
        blank = np.zeros((5, 4), np.float32)
        look = Look(
            *(np.zeros(1000, np.float32), logits[0], np.zeros(5, np.float32), blank),
            *(blank[:, 0], logits, np.zeros((5, len(SURFACES) + 1), np.float32), -1, 0.0),
        )
        things = unfamiliar(look, rng).thing_concepts
        first = things.argmax(axis=1)
        wrong += int((first != [7, 7, 8, 8, 8]).sum())
        same += int(first[0] == first[1])
        assert np.corrcoef(things[2], things[3])[0, 1] > np.corrcoef(things[0], things[3])[0, 1]
    assert 0.1 < wrong / 300 < 0.5
    assert same > 40


def test_drills_ask_where_the_things_of_one_picture_lie(
    conversations: Conversations, tokenizer: Tokenizer
) -> None:
    only = Mix(text_only=0, several=0, drills=1, drilled=(9, 9))
    for tree in conversations.batch(random.Random(2), 6, only):
        tasks = {task for branch in tree.branches for task in branch.tasks}
        assert tasks <= {
            *("is it left of", "left or right", "which of two", "where from"),
            *("what is left of", "what is on the left"),
        }
        assert tokenizer.decode(tree.prefix, skip_special_tokens=False).count("Picture:") == 1


def test_only_answers_and_their_ends_are_to_be_learned(
    conversations: Conversations, tokenizer: Tokenizer
) -> None:
    mix = Mix(photos=0.3, several=0.2, text_only=0.2, chat_with_picture=0.2, thanks=0.2)
    for tree in conversations.batch(random.Random(5), 30, mix):
        assert tokenizer.decode(tree.prefix, skip_special_tokens=False).count("Picture:") < 4
        for branch in tree.branches:
            assert len(branch.ids) == len(branch.is_answer)
            assert not branch.is_answer[0]
            spoken = [i for i, a in zip(branch.ids, branch.is_answer, strict=True) if a]
            assert tokenizer.token_to_id("<|im_start|>") not in spoken
            assert tokenizer.decode(spoken).endswith((".", "?"))


def test_a_batch_depends_on_its_seed_alone(
    conversations: Conversations, tokenizer: Tokenizer
) -> None:
    other = new_conversations(tokenizer)
    other.batch(random.Random(1), 3, Mix())
    assert other.batch(random.Random(2), 4, Mix()) == conversations.batch(
        random.Random(2), 4, Mix()
    )


@pytest.fixture(scope="module")
def small_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The decoder's widths, but one layer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).requires_grad_(False).eval()
    to_bfloat16(model)
    return model


def test_branches_of_a_tree_know_nothing_of_each_other(
    conversations: Conversations, small_model: LlamaForCausalLM
) -> None:
    trees = conversations.batch(random.Random(3), 3, Mix())
    with torch.inference_mode():
        together = answer_logits(small_model, pack(trees))
        alone = [
            answer_logits(small_model, pack([Tree(trees[i].prefix, [branch])]))
            for i, branch in by_length(trees)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=0.05, rtol=0)


def test_a_tree_is_read_as_the_model_reads_its_conversations(
    conversations: Conversations, small_model: LlamaForCausalLM
) -> None:
    (tree,) = conversations.batch(random.Random(4), 1, Mix(text_only=0))
    with torch.inference_mode():
        ours = answer_logits(small_model, pack([tree]))
        rows = []
        for _, branch in by_length([tree]):
            ids = torch.tensor([tree.prefix + branch.ids])
            due = [len(tree.prefix) + i - 1 for i, a in enumerate(branch.is_answer) if a]
            with torch.autocast("cpu", torch.bfloat16):
                rows.append(small_model(input_ids=ids).logits[0, due].float())
    torch.testing.assert_close(ours, torch.cat(rows), atol=0.05, rtol=0)


def test_the_adapter_learns_from_a_tree(
    conversations: Conversations, small_model: LlamaForCausalLM
) -> None:
    lora = add_lora(small_model, ("q", "k", "v", "o"), rank=4, seed=0)
    parameters = [p for module in lora.values() for p in (module.a, module.b)]
    optimizer = torch.optim.AdamW(parameters, 0.02)
    batch = conversations.batch(random.Random(6), 1, Mix(text_only=0, several=0))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(backward(small_model, batch)[0])
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3


def test_auroc_is_how_often_the_right_one_is_surer() -> None:
    assert auroc(np.array([-0.1, -0.2]), np.array([-0.3, -0.15])) == 0.75
    assert auroc(np.array([-0.1]), np.array([-0.1])) == 0.5
