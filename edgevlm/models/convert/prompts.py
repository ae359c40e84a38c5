"""The fixed prompt set that a converted model is measured on: conversations of our own.

A model reads each question, and then the answer a token at a time, whatever it would have
said itself (teacher forcing). So every model is asked for the same distributions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.engine.prompt import Prompt
from edgevlm.families.base import Family, Turn

# The first two are asked of the picture.
CONVERSATIONS = (
    (
        "What is in this picture?",
        "The picture shows a yellow disc above a green field, in front of a blue sky that gets"
        " darker towards the top.",
    ),
    ("Is there a red square in it?", "Yes, a small red square lies at the bottom on the left."),
    (
        "What is the capital of France, and what is it known for?",
        "The capital of France is Paris. It is known for the Eiffel Tower, its museums and its"
        " bread.",
    ),
    (
        "Why does ice float on water?",
        "Ice floats because water expands when it freezes. The same weight takes up more room, so"
        " ice is less dense than the water below it.",
    ),
    (
        "Count from one to twelve.",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.",
    ),
    (
        "Write a line of Python that adds up the squares of a list.",
        "total = sum(number ** 2 for number in numbers)",
    ),
    (
        "Put this into French: good morning, how are you?",
        "Bonjour, comment allez-vous ?",
    ),
    (
        "A train leaves at 14:50 and arrives at 16:05. How long does it take?",
        "From 14:50 to 15:50 is one hour, and 15 minutes more are 16:05. The train takes 1 hour"
        " and 15 minutes.",
    ),
    (
        "Write to my landlord that the heating is broken.",
        "Dear Mrs Keller,\n\nthe heating in my flat has not worked since Monday. Could you please"
        " send somebody to have a look at it?\n\nKind regards",
    ),
    (
        "Which animals lay eggs? Give me a list.",
        "- birds\n- most reptiles\n- frogs and toads\n- fish\n- insects\n- two mammals: the"
        " platypus and the echidna",
    ),
)
_WITH_PICTURE = 2


@dataclass(frozen=True, eq=False, slots=True)
class Forced:
    """`answer` are the ids that follow `prompt`."""

    prompt: Prompt
    answer: tuple[int, ...]


def forced_prompts(family: Family) -> Iterator[Forced]:
    """The set as a family lays it out. Raises TemplateError."""
    for index, (question, answer) in enumerate(CONVERSATIONS):
        content: tuple[object, ...] = (question,)
        if index < _WITH_PICTURE:
            content = (family.preprocess(synthetic_picture(), "low"), question)
        prompt = family.render([Turn("user", content)])  # type: ignore[arg-type]
        ids = family.tokenizer.encode(answer, add_special_tokens=False).ids
        yield Forced(prompt, tuple(ids))


def synthetic_picture(size: int = 256) -> NDArray[np.uint8]:
    """RGB uint8 [size, size, 3]: a sky that gets darker upwards, a field, a disc, a square."""
    row, column = np.mgrid[0:size, 0:size] / size
    picture = np.stack([90 * row, 120 + 100 * row, 200 + 55 * row], axis=-1)
    picture[row > 0.7] = (60, 150, 70)
    picture[(row - 0.35) ** 2 + (column - 0.6) ** 2 < 0.03] = (250, 220, 60)
    picture[(row > 0.8) & (row < 0.92) & (column > 0.1) & (column < 0.22)] = (200, 40, 40)
    return picture.astype(np.uint8)
