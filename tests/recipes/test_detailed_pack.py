"""The pack `detailed`: facts are judged as readers would, and what is learned is true."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from check_detailed import ALONE, DESCRIBE, IN_DETAIL, WITH, Answer, draw, judged, report
from detailed_answers import Describer
from detailed_data import AT_LENGTH, BRIEFLY, write
from detailed_facts import Facts, judge_facts
from detailed_slots import SlotReader
from projector import CERTAINTIES, CLEAR, GLOBAL_TOKENS, PROBABLY, Vocabulary, load_vocabulary
from scenes import Sample, Scenes
from seen import COLUMNS, NUMBERS, RANKS, ROWS, SIZES, SORTS, SURFACES, Scene, Slot, Spatial, Thing
from simulate import Simulator
from spatial_projector import thing_rows, word_rows, write_spatial
from tokenizers import Tokenizer, models, pre_tokenizers

from edgevlm.adapters.training.data import read_examples
from edgevlm.adapters.training.recipe import make_recipe

ROOT = Path(__file__).parents[2]
THINGS, NOTHING = SORTS.index("things"), SORTS.index("nothing")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary()


def thing(name: str, colour: str, *box: float) -> Thing:
    vocabulary = load_vocabulary()
    concept = vocabulary.concepts.rows.tolist().index(vocabulary.names.index(name))
    return Thing(concept, SURFACES.index(colour) if colour else -1, box)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A red cat at the top left, a purple dog at the top right, a small green circle at the
    bottom left and a large orange one at the bottom right."""
    return Scene(
        THINGS,
        (
            thing("a cat", "red", 0.0, 0.0, 0.3, 0.3),
            thing("a dog", "purple", 0.7, 0.0, 1.0, 0.3),
            thing("a circle", "green", 0.0, 0.7, 0.15, 0.85),
            thing("a circle", "orange", 0.5, 0.55, 0.95, 1.0),
        ),
    )


def sorts(facts: Facts) -> tuple[dict[str, int], dict[str, int]]:
    right, wrong = (Counter[str](fact.sort for fact in of) for of in (facts.right, facts.wrong))
    return dict(right), dict(wrong)


# Answers, and how many facts of each sort are right, and wrong.
JUDGED = [
    ("The picture shows a red cat.", {"name": 1, "colour": 1}, {}),
    ("The picture shows a blue cat.", {"name": 1}, {"colour": 1}),
    ("The picture shows a red pig.", {"colour": 1}, {"name": 1}),
    ("The picture shows a red wolf.", {"colour": 1}, {"name": 1}),
    ("It shows an animal.", {"name": 1}, {}),
    # What is said carefully counts alike, what is denied doesn't.
    ("The picture probably shows a wolf.", {}, {"name": 1}),
    ("There is no cat.", {}, {}),
    ("I can't tell what this is.", {}, {}),
    # Numbers.
    ("There are two circles.", {"name": 1, "number": 1}, {}),
    ("There are three circles.", {"name": 1}, {"number": 1}),
    ("There is one orange circle.", {"name": 1, "colour": 1, "number": 1}, {}),
    ("There are four things in this picture.", {"number in all": 1}, {}),
    ("The picture shows three objects.", {}, {"number in all": 1}),
    ("The picture shows a cat and two things.", {"name": 1}, {}),
    # Places and sizes, before the thing and behind it.
    ("A cat is at the top left.", {"name": 1, "place": 1}, {}),
    ("At the bottom right there is a cat.", {"name": 1}, {"place": 1}),
    ("A medium-sized dog is on the right.", {"name": 1, "place": 1, "size": 1}, {}),
    ("A small purple thing is at the top of the picture.", {"colour": 1, "place": 1}, {"size": 1}),
    ("In the middle is a dog, and a cat is at the top.", {"name": 2, "place": 1}, {"place": 1}),
    # Several, each by itself.
    (
        "There are two circles: a small green one at the bottom left and a large red one.",
        {"name": 1, "number": 1, "size": 2, "colour": 1, "place": 1},
        {"colour": 1},
    ),
    # Relations.
    ("The cat is to the left of the dog.", {"name": 2, "relation": 1}, {}),
    ("The cat is above the dog and right of it.", {"name": 2}, {"relation": 2}),
    ("To the right of the cat is a dog.", {"name": 2, "relation": 1}, {}),
    (
        "A cat is left of the dog. The dog is right of the cat.",
        {"name": 2, "relation": 1},
        {},
    ),
    (
        "There are two circles: a green one and an orange one. The green circle is smaller than"
        " the orange circle.",
        {"name": 1, "number": 1, "colour": 2, "relation": 1},
        {},
    ),
    # Who is meant is carried on.
    ("There is a thing at the top left. It is a cat.", {"name": 1, "place": 1}, {}),
    ("There is a dog. It is purple and large.", {"name": 1, "colour": 1}, {"size": 1}),
    ("There is a cat. The cat is at the top.", {"name": 1, "place": 1}, {}),
    # No thing is meant twice.
    ("There is a cat. There is a cat at the top.", {"name": 1, "place": 1}, {"name": 1}),
    ("An orange circle and a cat on white.", {"name": 2, "colour": 1}, {}),
]


@pytest.mark.parametrize(("answer", "right", "wrong"), JUDGED)
def test_facts_are_right_or_wrong_of_the_thing_that_a_phrase_fits_best(
    answer: str, right: dict[str, int], wrong: dict[str, int], scene: Scene
) -> None:
    facts = judge_facts(answer, scene)
    assert (right, wrong) == sorts(facts)
    assert not facts.unparsed


@pytest.mark.parametrize(
    ("answer", "unparsed"),
    [
        ("It looks like a fine day.", ("fine day",)),
        ("At the top left is a small flurble.", ("flurble",)),
        ("Everything seems rather calm.", ("everything seems rather calm",)),
    ],
)
def test_what_is_not_understood_is_reported(
    answer: str, unparsed: tuple[str, ...], scene: Scene
) -> None:
    assert judge_facts(answer, scene).unparsed == unparsed


def test_the_colour_of_what_has_no_one_colour_is_neither_right_nor_wrong() -> None:
    scene = Scene(THINGS, (thing("a cat", "", 0.2, 0.2, 0.8, 0.8),))
    facts = judge_facts("The picture shows a large red cat.", scene)
    assert sorts(facts) == ({"name": 1, "size": 1}, {})
    assert [fact.sort for fact in facts.undecided] == ["colour"]


def test_a_place_may_be_a_little_beyond_its_edge() -> None:
    for x, right in ((0.40, True), (0.44, False)):
        scene = Scene(THINGS, (thing("a cat", "", x - 0.1, 0.4, x + 0.1, 0.6),))
        assert bool(judge_facts("A cat is on the left.", scene).right[1:]) == right


def slot(name: int, certainty: int, surface: str, column: int, second: int = -1) -> Slot:
    return Slot(certainty, 1, SURFACES.index(surface), name, second, 1, column, column, 0, 1)


def test_a_name_is_said_as_surely_as_it_is_known(vocabulary: Vocabulary) -> None:
    cat, lion, tiger, apple, circle = (
        vocabulary.names.index(name)
        for name in ("a cat", "a lion", "a tiger", "an apple", "a circle")
    )
    say = Describer(vocabulary).describe
    seen = Spatial(THINGS, slots=(slot(cat, CLEAR, "red", 0, lion), slot(circle, CLEAR, "blue", 2)))
    assert say(seen) == (
        "There are two things in this picture. A medium-sized red cat is on the left."
        " A medium-sized blue circle is on the right. The cat is to the left of the circle."
    )
    for second, said in (
        (-1, "There is probably a medium-sized red lion in the middle."),
        (tiger, "There is probably a medium-sized red big cat in the middle."),
        (apple, "A medium-sized red thing is in the middle."),
    ):
        seen = Spatial(THINGS, slots=(slot(lion, PROBABLY, "red", 1, second),))
        assert say(seen) == f"There is one thing in this picture. {said}"


def test_several_of_a_name_are_described_together(vocabulary: Vocabulary) -> None:
    circle = vocabulary.names.index("a circle")
    seen = Spatial(THINGS, slots=(slot(circle, CLEAR, "red", 0), slot(circle, CLEAR, "blue", 1)))
    assert Describer(vocabulary).describe(seen) == (
        "There are two things in this picture. There are two circles: a medium-sized red one on the"
        " left and a medium-sized blue one in the middle. The red circle is to the left of the blue"
        " circle."
    )


@pytest.fixture(scope="module")
def simulator(vocabulary: Vocabulary) -> Simulator:
    return Simulator(vocabulary, ["house", "42"], flawless=True)


def test_what_is_said_of_rightly_seen_things_is_right_and_understood(
    vocabulary: Vocabulary, simulator: Simulator
) -> None:
    rng, say = random.Random(3), Describer(vocabulary).describe
    stated: Counter[str] = Counter()
    for _ in range(300):
        scene = simulator.scene(rng)
        answer = say(simulator.told(scene, rng)[0].spatial)
        facts = judge_facts(answer, scene)
        # Of what has no name there may be more that has one.
        vague = "thing is" in answer or "probably" in answer
        assert not [f for f in facts.wrong if f.sort != "number" or not vague], answer
        assert not facts.unparsed, answer
        stated.update(fact.sort for fact in facts.right)
    assert set(stated) == {
        *("name", "colour", "size", "place", "number", "number in all", "relation"),
    }


def test_slots_are_read_back_from_the_embeddings_of_their_words(
    vocabulary: Vocabulary, simulator: Simulator
) -> None:
    lists = (COLUMNS, NUMBERS, RANKS, ROWS, SIZES, SORTS, SURFACES, CERTAINTIES, ("house", "42"))
    said = [*vocabulary.names, *(word.strip() for words in lists for word in words), "-"]
    tokens = dict.fromkeys(f" {word}" for text in said for word in text.split())
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    embeddings = np.random.default_rng(0).normal(size=(len(tokens), 24)).astype(np.float32)
    reader = SlotReader(vocabulary, tokenizer, embeddings)
    things, words = thing_rows(vocabulary, tokenizer), word_rows(("house", "42"), tokenizer)
    rng = random.Random(4)
    for _ in range(20):
        spatial = simulator.told(simulator.scene(rng), rng)[0].spatial
        ids = write_spatial(spatial, things, words, tokenizer)
        before = [tokenizer.token_to_id(" -")] * (GLOBAL_TOKENS - 1)
        sort = tokenizer.token_to_id(f" {SORTS[spatial.sort]}")
        assert reader.read(embeddings[[*before, sort, *ids]]) == spatial


class Drawn(Scenes):
    """Scenes of shapes alone, which are remembered."""

    def __init__(self) -> None:
        super().__init__(held_out=False, cutouts=(), photos=())
        self.drawn: list[Scene] = []

    def draw(self, rng: np.random.Generator, sort: str | None = None) -> Sample:
        sample = super().draw(rng, sort)
        self.drawn.append(sample.scene)
        return sample


class Simulated:
    """Sees what `simulator` tells of the scene that was drawn last."""

    def __init__(self, scenes: Drawn, simulator: Simulator) -> None:
        self._scenes, self._simulator, self._rng = scenes, simulator, random.Random(1)

    def see(self, picture: Path) -> Spatial:
        assert picture.is_file()
        return self._simulator.told(self._scenes.drawn[-1], self._rng)[0].spatial

    def answer(self, picture: Path, question: str) -> str:
        return f"The base's answer to: {question}"


def test_only_what_is_true_of_a_scene_is_learned(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("photographs.PACK", tmp_path / "none")
    scenes = Drawn()
    model = Simulated(scenes, Simulator(vocabulary, ["house", "42"]))
    left_out = write(scenes, model, tmp_path, count=40)
    lines = [json.loads(line) for line in (tmp_path / "talks.jsonl").read_text().splitlines()]
    assert len(read_examples(tmp_path / "talks.jsonl")) == len(lines) == 40
    assert left_out > 0
    by_base = [line for line in lines if line["answer"].startswith("The base's answer")]
    described = [line for line in lines if line not in by_base]
    assert {line["question"] for line in described} <= set(AT_LENGTH)
    for line in described:
        facts = judge_facts(line["answer"], scenes.drawn[int(Path(line["image"]).stem)])
        assert facts.right
        assert not facts.wrong
    assert {line["question"] for line in by_base} <= {*AT_LENGTH, *BRIEFLY}
    assert len(described) > 20
    assert len(by_base) > 3
    assert {path.name for path in (tmp_path / "pictures").iterdir()} >= {
        Path(line["image"]).name for line in lines
    }


def test_the_same_seed_writes_the_same(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("photographs.PACK", tmp_path / "none")
    for name in ("one", "other"):
        scenes = Drawn()
        model = Simulated(scenes, Simulator(vocabulary, ["house", "42"]))
        write(scenes, model, tmp_path / name, count=8)
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("one", "other")
    )
    assert one == other


def test_the_question_of_the_check_is_learned_in_other_words_too() -> None:
    assert DESCRIBE[0] in AT_LENGTH
    assert not {*DESCRIBE[1:], *IN_DETAIL} & {*AT_LENGTH, *BRIEFLY}


def test_the_report_compares_the_same_questions(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[Answer] = []
    for asked in draw(Scenes(held_out=True, cutouts=(), photos=()), 2, 0):
        shown = type(asked)(asked.part, asked.picture, asked.pixels, scene, asked.question)
        said.append(judged(shown, ALONE, "The picture shows a red cat and a wolf."))
        said.append(judged(shown, WITH, "A red cat is at the top left, and a dog at the right."))
    report([*said, judged(shown, ALONE, "A cat.")][:-1])
    table = capsys.readouterr().out
    assert "| describe | 2 | base | 2.0 (2.0 to 2.0) | 33.3% (33.3% to 33.3%) |" in table
    assert "| describe | 2 | detailed | 5.0 (5.0 to 5.0) | 0.0% (0.0% to 0.0%) |" in table
    assert "Asked to describe: 2.5 (2.5 to 2.5) times the right facts." in table
    assert "| name | 1.00 | 50.0% | 2.00 | 0.0% |" in table


def test_the_recipe_can_be_read() -> None:
    recipe = make_recipe({}, ROOT / "adapters" / "detailed" / "train.toml")
    assert recipe.name == "detailed"
    assert recipe.data.resolve() == ROOT / "build" / "adapters" / "detailed" / "talks.jsonl"
    assert recipe.out.resolve() == ROOT / "adapters" / "detailed"
