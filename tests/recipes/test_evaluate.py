"""That answers are judged as a careful person would, and that the evaluation runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import judge
import numpy as np
import pytest
import scene_tasks
from evaluate import BY_NAME, Evaluation, Task, report, report_parts
from judge import Lexicon
from measures import auroc, share
from photos import load_photos
from scenes import Scenes
from tasks import lexicon, nothing, photo_accepts, true_names

from edgevlm import Session, load_settings

LEXICON = Lexicon(
    ["a dog", "a cat", "a hot dog", "a sea lion", "a lion", "an orange", "a glass", "glasses",
     "a tree", "a person", "a ping-pong ball", "a ball", "a berry", "a rectangle", "a bus",
     "a can"]
)  # fmt: skip


def mentioned(answer: str) -> list[str]:
    return [name for name, _ in LEXICON.mentions(answer)]


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ("The picture shows a cat and two dogs.", ["cat", "dog"]),
        ("No, there is no dog.", []),
        ("No, it's a cat.", ["cat"]),
        ("There isn\u2019t a dog, but there is a cat.", ["cat"]),
        ("It is not a dog but a cat.", ["cat"]),
        ("I can't tell whether it is a cat or a dog.", []),
        ("I can't tell; it's probably a cat.", ["cat"]),
        ("I'm not sure, maybe a cat.", ["cat"]),
        ("A dog isn't in the picture.", []),
        ("There is a cat and no dog.", ["cat"]),
        ("It shows a cat without a dog or a tree.", ["cat"]),
        ("A hot dog.", ["hot dog"]),
        ("Hot-dogs and sea lions", ["hot dog", "sea lion"]),
        ("a doghouse", []),
        ("An orange cat under an orange.", ["cat", "orange"]),
        ("Two glasses of berries", ["glasses", "berry"]),
        ("some people at a ping pong ball", ["person", "ping pong ball"]),
        ("It is either a cat or a dog.", ["cat"]),
        ("The dog's ball", ["dog", "ball"]),
        ("The cat is orange.", ["cat"]),
        ("Oranges and the orange", ["orange", "orange"]),
        ("Nothing like a dog.", []),
        ("I can only see a cat; I can't tell more.", ["cat"]),
        ("A cat can be seen in a can.", ["cat", "can"]),
        ("", []),
    ],
)
def test_things_are_named_by_what_is_asserted(answer: str, names: list[str]) -> None:
    assert mentioned(answer) == names


JUDGED: list[tuple[Callable[..., str], tuple[object, ...], dict[str, str]]] = [
    (
        judge.yes_no,
        (True,),
        {
            "Yes, there is a dog.": "right",
            "yes": "right",
            "Probably, it looks like a dog.": "right",
            "No, there is a cat.": "wrong",
            "Not that I can tell; it looks like a cat.": "wrong",
            "There is no dog.": "wrong",
            "Yes, there is no dog.": "wrong",
            "I don't see a dog.": "wrong",
            "The picture shows a cat.": "wrong",
            "I can't tell.": "refused",
            "Maybe; it is either a cat or a dog.": "refused",
            "Not sure.": "refused",
            "Yesterday": "wrong",
            "The dog is to the left of the cat, so yes.": "right",
            "The dog is to the right of the cat, so no.": "wrong",
            "No, the dog is there, so yes.": "wrong",
        },
    ),
    (
        judge.yes_no,
        (False,),
        {
            "No.": "right",
            "Nope, it isn't.": "right",
            "Not that I can tell.": "right",
            "There isn't a dog in the picture.": "right",
            "No, I can't tell.": "right",
            "Yes.": "wrong",
            "Notably, a dog.": "wrong",
            "The dog is above the cat, so no!": "right",
            "The dog is above the cat, so not left.": "wrong",
            "I don't know.": "refused",
        },
    ),
    (
        judge.colour,
        ("grey",),
        {
            "It is gray.": "right",
            "The cat is light grey.": "right",
            "It's not black, it's grey.": "right",
            "It is grey or black.": "wrong",
            "It is not grey.": "wrong",
            "It is greyish.": "wrong",
            "It's a cat, but I can't tell its colour.": "refused",
            "There is no cat.": "refused",
        },
    ),
    (
        judge.number,
        (3,),
        {
            "There are three dogs.": "right",
            "3": "right",
            "Three.": "right",
            "There are 3, not 4.": "right",
            "two or three": "wrong",
            "There are 13 dogs.": "wrong",
            "There are thirteen.": "wrong",
            "None.": "refused",
            "There are no dogs.": "refused",
            "It looks like a dog, but I can't tell how many there are.": "refused",
        },
    ),
    (judge.number, (1,), {"There is a dog.": "right", "One dog, the one on the left.": "right"}),
    (judge.number, (42,), {"forty-two": "right", "It is 42.": "right", "40": "wrong"}),
    (judge.number, (2.5,), {"The highest value is 2.5.": "right", "2": "wrong"}),
    (
        judge.direction,
        ("left", ["a cat"], ["a hot dog", "a sausage"]),
        {
            "The cat is to the left of the hot dog.": "right",
            "Left.": "right",
            "The hot dog is right of the cat.": "right",
            "The hot dog is on the left.": "wrong",
            "To the right, not to the left.": "wrong",
            "It is above.": "wrong",
            "left or right": "wrong",
            "I can't tell where it is.": "refused",
        },
    ),
    (
        judge.which,
        ("above", ["a cat"], ["a dog"]),
        {
            "The cat.": "right",
            "The cat is above the dog.": "right",
            "The dog is below the cat.": "right",
            "The dog.": "wrong",
            "The dog is on top.": "wrong",
            "The cat is below the dog.": "wrong",
            "Above.": "wrong",
            "There is no cat.": "refused",
        },
    ),
    (
        judge.shape,
        ("rectangle",),
        {"a square": "right", "It is a rectangle.": "right", "a circle": "wrong"},
    ),
    (
        judge.reading,
        ("table",),
        {
            'It says "table".': "right",
            "It says “Table.”": "right",
            "The word is table.": "right",
            "TABLE": "right",
            "It says 'cable', on a table.": "wrong",
            "tables": "wrong",
            "I can't read it.": "refused",
            "There is no text.": "refused",
        },
    ),
    (
        judge.honesty,
        (["a dog"],),
        {
            "There is no dog.": "right",
            "I can't see a dog in the picture.": "right",
            "I can't tell.": "right",
            "No dog is there; it looks like a cat.": "right",
            "The dog isn't in the picture.": "right",
            "Zero.": "right",
            "The dog is red.": "wrong",
            "The picture shows a cat.": "wrong",
            "It looks like a dog, but I can't tell its colour.": "wrong",
        },
    ),
    (
        judge.honesty,
        ((), LEXICON),
        {
            "I can't tell what this is.": "right",
            "The picture is blank.": "right",
            "There is nothing in the picture.": "right",
            "It is an empty picture with a rectangle.": "wrong",
            "The picture shows a bus; I can't tell more than that.": "wrong",
            "A lovely picture.": "wrong",
        },
    ),
    (
        judge.naming,
        (["a dog", "a puppy"], LEXICON),
        {
            "The picture shows a puppy.": "right",
            "Dogs.": "right",
            "A hot dog.": "wrong",
            "It isn't a dog.": "wrong",
            "I can't tell what this is.": "refused",
            "I can't tell if it is a dog.": "refused",
            "It is either a cat or a dog.": "wrong",
        },
    ),
]


@pytest.mark.parametrize(
    ("judged", "arguments", "answer", "verdict"),
    [
        (judged, arguments, answer, verdict)
        for judged, arguments, answers in JUDGED
        for answer, verdict in answers.items()
    ],
)
def test_an_answer_is_judged(
    judged: Callable[..., str], arguments: tuple[object, ...], answer: str, verdict: str
) -> None:
    assert judged(answer, *arguments) == verdict


def test_the_first_name_counts_where_only_one_may_be_given() -> None:
    answer = "A cat and a dog."
    assert judge.naming(answer, ["dog"], LEXICON) == "right"
    assert judge.naming(answer, ["dog"], LEXICON, first=True) == "wrong"


def test_a_class_of_an_accepted_kind_names_the_main_thing() -> None:
    (dog,) = [photo for photo in load_photos() if photo.main == "a dog"]
    answers = {
        "The picture shows a Pekingese.": "right",
        "The picture shows a doghouse.": "wrong",
        "I can't tell what this is.": "refused",
    }
    for answer, verdict in answers.items():
        assert judge.naming(answer, photo_accepts(dog), lexicon()) == verdict


@pytest.fixture
def _shapes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes of what needs no package: shapes before drawn backdrops."""
    scenes = Scenes(held_out=True, cutouts=(), photos=())
    monkeypatch.setattr(scene_tasks, "_scenes", lambda: scenes)


# The truth of an item in a sentence.
SENTENCES = {
    scene_tasks.presence: "{}.",
    scene_tasks.colour: "It is {}.",
    scene_tasks.counting: "There are {}.",
    scene_tasks.relations: "{}.",
    scene_tasks.words: 'It says "{}".',
    scene_tasks.charts: "The highest value is {}.",
    scene_tasks.absence: "There is {}.",
    scene_tasks.descriptions: "The picture shows {}.",
}


@pytest.mark.usefixtures("_shapes_only")
@pytest.mark.parametrize("draw", SENTENCES, ids=lambda draw: draw.__name__)
def test_the_truth_is_right_and_nonsense_is_not(draw: Callable[..., object]) -> None:
    items = list(draw(16))
    assert [item.question for item in draw(16)] == [item.question for item in items]
    for item in items:
        assert item.judged(SENTENCES[draw].format(item.truth)) == "right"
        assert item.judged("A zebra.") == "wrong"


@pytest.mark.usefixtures("_shapes_only")
def test_yes_and_no_are_as_frequent() -> None:
    assert Counter(item.truth for item in scene_tasks.presence(8)) == {"yes": 4, "no": 4}
    relations = Counter(item.truth for item in scene_tasks.relations(32))
    assert relations["yes"] == relations["no"] == 8
    assert Counter(item.truth for item in scene_tasks.counting(10)) == dict.fromkeys("12345", 2)


@pytest.mark.usefixtures("_shapes_only")
def test_what_is_named_and_not_there_is_made_up() -> None:
    item = next(iter(scene_tasks.descriptions(1)))
    assert item.made_up is not None
    assert item.made_up(f"A zebra beside {item.truth}.")[1] == 1
    assert item.made_up("There is no zebra; it is a picture of nothing.") == (0, 0)


def test_a_thing_is_also_of_its_kinds() -> None:
    assert {"cat", "kitten", "animal"} <= true_names(["a cat"])
    assert "cat" not in true_names(["an animal"])


def test_pictures_of_nothing_are_honestly_called_so() -> None:
    for item in islice(nothing(6), 6):
        assert item.judged(f"It is {item.truth}; I can't tell more.") == "right"
        assert item.judged("The picture shows a cat.") == "wrong"


def test_shares_have_intervals_by_picture() -> None:
    alone = share([1, 0] * 50, [1] * 100, [str(i) for i in range(100)])
    assert (alone.value, alone.n) == (0.5, 100)
    assert alone.low == pytest.approx(0.40, abs=0.015)
    assert alone.high == pytest.approx(0.60, abs=0.015)
    # The same answers about only ten pictures say less.
    together = share([1] * 50 + [0] * 50, [1] * 100, [str(i // 10) for i in range(100)])
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_auroc_is_how_often_the_right_answer_is_surer() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.5
    confidence = np.round(rng.normal(right, 1.0), 1)
    pairs = confidence[right][:, None] - confidence[~right][None]
    expected = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    measured = auroc(confidence.tolist(), right.tolist(), [str(i) for i in range(200)])
    assert measured.value == pytest.approx(expected)
    assert 0.6 < measured.low < measured.value < measured.high < 0.9


@pytest.mark.usefixtures("_shapes_only")
def test_the_built_in_model_is_evaluated(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws = {"colour": scene_tasks.colour, "words": scene_tasks.words, "honesty": nothing,
             "descriptions": scene_tasks.descriptions}  # fmt: skip
    tasks = [
        Task(name, BY_NAME[name].title, draw, 2, answerable=BY_NAME[name].answerable)
        for name, draw in draws.items()
    ]
    settings = load_settings({"EDGEVLM_HOME": str(home)})
    with Session(model="edgevlm-tiny", runtime="onnx", settings=settings) as session:
        evaluation = Evaluation(session)
        evaluation.run(tasks, None)
    assert Counter(answer.task for answer in evaluation.answers) == dict.fromkeys(draws, 2)
    assert all(answer.confidence < 0 for answer in evaluation.answers)
    report(evaluation.answers)
    report_parts(evaluation.answers)
    out = capsys.readouterr().out
    assert "| colour of a named thing | 2 |" in out
    assert "AUROC" in out
