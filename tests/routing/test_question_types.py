from __future__ import annotations

import pytest

from edgevlm.routing.question import ANSWER_TYPES, QUESTION_TYPES, answer_type, question_type


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is there a dog in the picture?", "yes or no"),
        ("And does this image show a cat?", "yes or no"),
        ("is it not a circle", "yes or no"),
        ("Is the cup to the left or to the right of the clock?", "choice"),
        ("Which one is further left, the cup or the clock?", "choice"),
        ("How many stars do you see?", "count"),
        ("Count the stars.", "count"),
        ("what color is the cup", "colour"),
        ("Tell me the colour of the cup.", "colour"),
        ("Where was this taken?", "where"),
        ("What does it say?", "read"),
        ("Which word is written here?", "read"),
        ("What is the highest value?", "read"),
        ("Describe this image.", "describe"),
        ("Write one sentence about this image.", "describe"),
        ("What is in this picture?", "name"),
        ("what is this", "name"),
        ("Name the main thing in the photo.", "name"),
        ("Who took this picture?", "other"),
        ("", "other"),
    ],
)
def test_a_question_is_of_the_type_that_its_words_say(question: str, expected: str) -> None:
    assert question_type(question) == expected
    assert expected in QUESTION_TYPES


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No, there is no dog.", "no"),
        ("Nothing of the kind", "other"),
        ("I can\u2019t tell what colour it is.", "declined"),
        ("It isn't clear to me what this is.", "declined"),
        ("The picture probably shows a cat.", "hedged"),
        ("There are three cups.", "number"),
        ("37", "number"),
        ("It is red.", "other"),
        ("", "other"),
    ],
)
def test_an_answer_is_of_the_type_that_its_words_say(answer: str, expected: str) -> None:
    assert answer_type(answer) == expected
    assert expected in ANSWER_TYPES
