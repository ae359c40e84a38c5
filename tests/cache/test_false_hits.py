"""Ten thousand questions that are nearly one that was asked: none gets its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from answer_factory import asked, pixels, reply, talk

from edgevlm import Sampling
from edgevlm.cache import AnswerCache, Picture, Said
from edgevlm.messages import ActiveAdapter

N_ASKED, N_PAIRS = 500, 10_000
QUESTIONS = (
    "Is there a red circle left of the square?",
    "How many of the 12 boxes are open?",
    "What is written on the sign, and in which colour?",
    "Is the door open?",
)
Rng = np.random.Generator
Case = dict[str, Any]


def base(seed: int) -> Case:
    return {
        "pixels": [pixels(2 * seed), pixels(2 * seed + 1)][: 1 + seed % 2],
        "question": f"{QUESTIONS[seed % 4]} ({seed})",
        "system": "Answer briefly." if seed % 3 else None,
        "before": ("What is it?", "A drawing.") if seed % 5 == 0 else None,
        "detail": "auto",
        "budget": None,
        "fields": {},
    }


def question_of(case: Case) -> Any:
    shown = [Picture.of(p, case["detail"], case["budget"]) for p in case["pixels"]]
    turns: Sequence[Said] = talk(case["question"], *shown, system=case["system"])
    if case["before"] is not None:
        earlier = (Said("user", case["before"][:1]), Said("assistant", case["before"][1:]))
        turns = (*turns[:-1], *earlier, turns[-1])
    return asked(turns, **case["fields"])


def one_pixel(case: Case, rng: Rng) -> None:
    changed = case["pixels"][-1].copy()
    row, column, channel = (int(rng.integers(n)) for n in changed.shape)
    changed[row, column, channel] ^= 1 << int(rng.integers(8))
    case["pixels"] = [*case["pixels"][:-1], changed]


def two_pixels_swapped(case: Case, rng: Rng) -> None:
    changed = case["pixels"][0].copy()
    row, column = int(rng.integers(23)), int(rng.integers(31))
    changed[row, column], changed[row, column + 1] = (
        changed[row, column + 1],
        changed[row, column].copy(),
    )
    case["pixels"] = [changed, *case["pixels"][1:]]


def other_shape(case: Case, rng: Rng) -> None:
    height = int(rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 64, 96]))
    case["pixels"] = [case["pixels"][0].reshape(height, 768 // height, 3), *case["pixels"][1:]]


def transposed(case: Case, rng: Rng) -> None:
    case["pixels"] = [case["pixels"][0].swapaxes(0, 1), *case["pixels"][1:]]


def mirrored(case: Case, rng: Rng) -> None:
    axis = int(rng.integers(3))  # the colours too
    case["pixels"] = [np.flip(case["pixels"][0], axis), *case["pixels"][1:]]


def other_order(case: Case, rng: Rng) -> None:
    two = len(case["pixels"]) == 2
    case["pixels"] = case["pixels"][::-1] if two else case["pixels"] * 2


def fewer_pictures(case: Case, rng: Rng) -> None:
    case["pixels"] = case["pixels"][:-1]


def negated(case: Case, rng: Rng) -> None:
    first, rest = case["question"].split(" ", 1)
    case["question"] = str(rng.choice([f"{first} not {rest}", f"{first}n't {rest}"]))


def other_number(case: Case, rng: Rng) -> None:
    case["question"] = case["question"].replace("(", f"({int(rng.integers(1, 10))}")


def other_case(case: Case, rng: Rng) -> None:
    letters = [i for i, c in enumerate(case["question"]) if c.isalpha()]
    i = int(rng.choice(letters))
    text = case["question"]
    case["question"] = text[:i] + text[i].swapcase() + text[i + 1 :]


def other_letter(case: Case, rng: Rng) -> None:
    i = int(rng.integers(len(case["question"]) - 1))
    text = case["question"]
    case["question"] = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if case["question"] == text:
        case["question"] = text + "?"


def word_order(case: Case, rng: Rng) -> None:
    case["question"] = " ".join(reversed(case["question"].split(" ")))


def other_system(case: Case, rng: Rng) -> None:
    given = case["system"]
    case["system"] = "Answer briefly!" if given is None else rng.choice([None, given + " No."])


def other_past(case: Case, rng: Rng) -> None:
    given = case["before"]
    others = (None, given[::-1]) if given is not None else (("What is it?", "A dog."),)
    case["before"] = others[int(rng.integers(len(others)))]


def preparation(case: Case, rng: Rng) -> None:
    case["detail"] = str(rng.choice(["auto", "low", "high"]))
    case["budget"] = int(rng.integers(1, 2000))


def adapter(case: Case, rng: Rng) -> None:
    digest = bytes(rng.integers(0, 256, 32, dtype=np.uint8)).hex()
    case["fields"]["adapters"] = (((digest, 1.0),), ())  # of the same name


def scale(case: Case, rng: Rng) -> None:
    value = float(rng.uniform(-10, 10))
    case["fields"]["adapters"] = ((("aa" * 32, value),), ())
    case["fields"]["told"] = (ActiveAdapter("shapes", value),)


def half(case: Case, rng: Rng) -> None:
    case["fields"]["adapters"] = ((), (("aa" * 32, 1.0),))


def decoding(case: Case, rng: Rng) -> None:
    choices = (
        Sampling(max_tokens=int(rng.integers(1, 256))),
        Sampling(stop=(f"stop{rng.integers(9)}",)),
        Sampling(repetition_penalty=float(rng.uniform(1.01, 2))),
        Sampling(temperature=float(rng.uniform(0.1, 2)), seed=1),
        Sampling(top_logprobs=int(rng.integers(1, 20))),
    )
    case["fields"]["sampling"] = choices[int(rng.integers(len(choices)))]


def engine(case: Case, rng: Rng) -> None:
    name = str(rng.choice(["model", "weights", "quantization", "schema", "rated_by", "length"]))
    changed: Case = {name: f"another {rng.integers(1000)}"}
    if name == "length":
        changed = {"context_length": int(rng.integers(64, 2048))}
    case["fields"] |= changed


def placement(case: Case, rng: Rng) -> None:
    case["fields"]["runtime"] = {"vision": "llamacpp", "language": "onnx"}


CHANGES: tuple[Callable[[Case, Rng], None], ...] = (
    *(one_pixel, two_pixels_swapped, other_shape, transposed, mirrored, other_order),
    *(fewer_pictures, negated, other_number, other_case, other_letter, word_order, other_system),
    *(other_past, preparation, adapter, scale, half, decoding, engine, placement),
)


def test_none_of_ten_thousand_near_pairs_hits(cache: AnswerCache) -> None:
    rng = np.random.default_rng(0)
    for seed in range(N_ASKED):
        assert cache.put(question_of(base(seed)), reply(f"answer {seed}"))
    false_hits = []
    for number in range(N_PAIRS):
        case = base(number % N_ASKED)
        change = CHANGES[number % len(CHANGES)]
        change(case, rng)
        if cache.get(question_of(case)) is not None:
            false_hits.append((number, change.__name__))
    assert false_hits == []
    for seed in range(N_ASKED):  # while each question itself still gets its own answer
        found = cache.get(question_of(base(seed)))
        assert found is not None
        assert found.text == f"answer {seed}"
