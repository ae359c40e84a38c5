"""Patterns mean what `re` says that they mean, and can't be made to run for long."""

from __future__ import annotations

import random
import re

import pytest

from edgevlm.adapters.patterns import LONGEST, Effort, Pattern
from edgevlm.engine.adapter import ATTENTION, FEED_FORWARD

NAME = "model.text_model.layers.12.self_attn.q_proj"


def test_random_patterns_match_what_re_matches() -> None:
    dice = random.Random(0)
    matched = 0
    for _ in range(10_000):
        pattern = _pattern(dice)
        text = "".join(dice.choice("abc1.") for _ in range(dice.randrange(7)))
        expected = re.fullmatch(pattern, text) is not None
        assert Pattern(pattern).fullmatch(text) is expected, (pattern, text)
        matched += expected
    assert matched > 500


def _pattern(dice: random.Random, depth: int = 0) -> str:
    kind = dice.random()
    if depth > 3 or kind < 0.35:
        return dice.choice([*"abc.1", r"\d", r"\w", r"\.", "[ab]", "[^a]", "[a-c]", "[]a]"])
    if kind < 0.55:
        return _pattern(dice, depth + 1) + _pattern(dice, depth + 1)
    if kind < 0.65:
        return f"({_pattern(dice, depth + 1)}|{_pattern(dice, depth + 1)})"
    if kind < 0.75:
        return f"({dice.choice(['?=', '?!', '?:'])}{_pattern(dice, depth + 1)})"
    if kind < 0.8:
        return dice.choice(["^", "$", r"\b", "(?<=[ab])", "(?<!a|1)", "(?<=.b)"])
    repeat = dice.choice(["*", "+", "?", "*?", "{2}", "{1,3}", "{,2}", "{2,}"])
    return f"(?:{_pattern(dice, depth + 1)}){repeat}"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r".*text_model.*(q|k|v)_proj", True),
        (r".*vision_model.*(q|k|v)_proj", False),
        (r"^(?!.*vision).*(q_proj|v_proj)$", True),
        (r"model\.(?P<tower>text|vision)_model\.layers\.1[0-5]\..*", True),
        (r"(?:.*?(?:language|text).*?(?:attn|mlp).*?(?:k_proj|q_proj).*?)|(?:\blm_head)", True),
        (r".*(?<!vision_model\.)layers\.\d+\..*(?<=q_proj)", True),
        (r".*(?<!text_model\.)layers.*", False),
        (NAME, True),
        (NAME[1:], False),
    ],
)
def test_patterns_as_people_write_them(pattern: str, expected: bool) -> None:
    assert Pattern(pattern).fullmatch(NAME) is expected


@pytest.mark.parametrize(
    "pattern", ["(.*)*x", "(a|a|.)+" * 9 + "x", "(.*)" * 60 + "x", "(.?){40}" * 20 + "x"]
)
def test_what_backtracking_never_ends_is_soon_done(pattern: str) -> None:
    assert not Pattern(pattern, Effort(100_000)).fullmatch(NAME)


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 30 + ".?" + "){40}" * 30,
        "(?=.*" * 30 + ")" * 30,
        "(" + "|" * 1900 + "){200}",
        "(" + "(?=)" * 400 + "){200}",
    ],
)
def test_what_takes_too_long_is_given_up(pattern: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        Pattern(pattern, Effort(10_000)).fullmatch(NAME)


NAMES = [
    f"model.text_model.layers.{layer}.{part}"
    for layer in range(30)
    for part in (*ATTENTION, *FEED_FORWARD)
]


@pytest.mark.parametrize(
    "pattern",
    [
        "|".join(rf".*layers\.{layer}\..*_proj" for layer in range(15, 115)),
        "|".join(map(re.escape, NAMES[105:])),
        ".*" * 60 + r"layers\.(1[5-9]|2\d).*",
    ],
    ids=["100 alternatives", "every module by its name", "60 repeats"],
)
def test_long_patterns_without_malice_are_matched(pattern: str) -> None:
    matcher = Pattern(pattern)
    assert [name for name in NAMES if matcher.fullmatch(name)] == NAMES[105:]


def test_the_patterns_of_a_file_share_their_effort() -> None:
    effort = Effort(300)
    Pattern(".*q_proj", effort).fullmatch(NAME)
    with pytest.raises(ValueError, match="too long"):
        all(not Pattern(".*k_proj", effort).fullmatch(NAME) for _ in range(100))


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", ")", "a)|(b", "*a", "a**", "a*+", "[", "[[a]", "(?i)a", r"(a)\1", "(?<a)b"),
        *("\\", "a{2,1}", "[b-a]", "(?#x)", r"\Q", r"\B", "(?P=x)", "(" * 50 + ")" * 50),
        "a" * (LONGEST + 1),
    ],
)
def test_other_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        Pattern(pattern)
