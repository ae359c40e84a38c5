"""Masks of JSON Schemas over random logits: whatever a model would say, the answer fits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.decode import decode
from edgevlm.engine.grammar import Grammars, check_schema
from edgevlm.engine.sampling import Sampling
from edgevlm.errors import NotSupported, RuntimeFailed, UsageError
from edgevlm.messages import FinishReason, Token

VOCAB = 330  # more than the tokenizer has, as padded models do
END = 0

OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["food", "animal", 7, None]},
        "sure": {"type": "boolean"},
        "size": {
            "type": "object",
            "properties": {
                "width": {"type": "integer", "minimum": 1, "maximum": 640},
                "share": {"type": "number", "minimum": 0, "maximum": 1},
            },
            "required": ["width", "share"],
            "additionalProperties": False,
        },
        "tags": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z]{2,5}-[0-9]$"},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["name", "kind", "sure", "size", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, VOCAB, {END})


@pytest.fixture
def answer(
    grammars: Grammars, tokenizer: Tokenizer
) -> Callable[..., tuple[str, list[Token], FinishReason, bool]]:
    """A masked answer over seeded random logits: (text, tokens, finish, mask finished)."""

    def call(
        schema: object, seed: int = 0, **options: Any
    ) -> tuple[str, list[Token], FinishReason, bool]:
        rng = np.random.default_rng(seed)
        mask = grammars.mask(json.dumps(schema))

        def logits(_: int = 0) -> np.ndarray:
            return rng.normal(scale=3, size=VOCAB).astype(np.float32)

        steps = decode(
            logits(),
            logits,
            tokenizer,
            Sampling(**{"max_tokens": 400, "seed": seed, **options}),
            stop_ids=frozenset({END}),
            cancel=Cancel(),
            mask=mask,
        )
        tokens: list[Token] = []
        while True:
            try:
                tokens.append(next(steps))
            except StopIteration as end:
                return "".join(t.text for t in tokens), tokens, end.value, mask.finished

    return call


def fits_object(value: Any) -> bool:
    size = value["size"]
    return (
        list(value) == list(OBJECT["properties"])  # type: ignore[call-overload]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 12
        and value["kind"] in ("food", "animal", 7, None)
        and isinstance(value["sure"], bool)
        and type(size["width"]) is int
        and 1 <= size["width"] <= 640
        and 0 <= size["share"] <= 1
        and 1 <= len(value["tags"]) <= 3
        and all(re.fullmatch("[a-z]{2,5}-[0-9]", tag) for tag in value["tags"])
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_logits_the_answer_fits(answer: Any, seed: int, temperature: float) -> None:
    text, tokens, finish, finished = answer(
        OBJECT, seed, temperature=temperature, repetition_penalty=1.3
    )
    assert (finish, finished) == ("stop", True)
    assert fits_object(json.loads(text))
    assert END not in [t.id for t in tokens[:-1]]


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"type": "integer", "minimum": -5, "maximum": 5}, lambda v: -5 <= v <= 5),
        ({"const": "é\n\"日本\""}, lambda v: v == "é\n\"日本\""),
        ({"anyOf": [{"type": "null"}, {"enum": [1, 2]}]}, lambda v: v in (None, 1, 2)),
        ({"type": "string", "format": "date"}, lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d", v)),
        ({"type": "string", "minLength": 3, "maxLength": 6}, lambda v: 3 <= len(v) <= 6),
        (
            {"type": "array", "prefixItems": [{"enum": ["a"]}, {"type": "boolean"}],
             "items": False, "minItems": 2},
            lambda v: v[0] == "a" and isinstance(v[1], bool) and len(v) == 2,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_value(
    answer: Any, schema: object, fits: Callable[[Any], bool], seed: int
) -> None:
    text, _, finish, finished = answer(schema, seed)
    assert (finish, finished) == ("stop", True)
    assert fits(json.loads(text))


@pytest.mark.parametrize("seed", range(4))
def test_text_in_strings_is_whole_characters(answer: Any, seed: int) -> None:
    """Bytes outside ASCII are tokens of their own here, and random ones are no characters."""
    text, *_ = answer({"type": "string", "minLength": 20, "maxLength": 40}, seed)
    assert "\ufffd" not in text
    assert any(ord(c) > 127 for c in text)


def test_white_space_has_an_end(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A model that likes nothing better than spaces comes to the end all the same."""
    mask = grammars.mask(json.dumps({"type": "array", "items": {"enum": [1]}, "maxItems": 2}))
    likes = np.zeros(VOCAB, np.float32)
    for text in (" ", "\n", "\t"):
        likes[tokenizer.encode(text).ids] = 9
    for _ in range(200):
        mask.accept(int(mask.apply(likes).argmax()))
        if mask.finished:
            return
    pytest.fail("still writing white space")


def test_the_mask_leaves_logits_and_logprobs_alone(grammars: Grammars, answer: Any) -> None:
    mask = grammars.mask('{"type": "boolean"}')
    logits = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32)
    before = logits.copy()
    masked = mask.apply(logits)
    np.testing.assert_array_equal(logits, before)
    kept = np.isfinite(masked)
    assert 0 < kept.sum() < VOCAB / 10
    np.testing.assert_array_equal(masked[kept], logits[kept])

    _, tokens, _, _ = answer({"type": "boolean"}, seed=5, top_logprobs=3)
    raw = np.random.default_rng(5).normal(scale=3, size=VOCAB).astype(np.float32)
    reference = raw.astype(np.float64) - np.log(np.exp(raw.astype(np.float64)).sum())
    assert tokens[0].logprob == pytest.approx(reference[tokens[0].id], abs=1e-5)
    assert [c.id for c in tokens[0].top] == list(np.argsort(-reference)[:3])


def test_an_answer_that_is_cut_is_not_finished(answer: Any) -> None:
    _, tokens, finish, finished = answer(OBJECT, max_tokens=5)
    assert (len(tokens), finish, finished) == (5, "length", False)


def test_a_whole_answer_ends_without_another_step(answer: Any) -> None:
    text, tokens, finish, _ = answer({"enum": ["x"]})
    assert (text, finish) == ('"x"', "stop")
    assert tokens[-1].id != END


def test_special_tokens_are_never_letters(grammars: Grammars, tokenizer: Tokenizer) -> None:
    mask = grammars.mask('{"type": "string"}')
    mask.accept(tokenizer.token_to_id('"'))
    masked = mask.apply(np.zeros(VOCAB, np.float32))
    for name in ("<|end|>", "<image>"):
        assert masked[tokenizer.token_to_id(name)] == -np.inf


def test_a_token_that_does_not_fit_is_refused(grammars: Grammars, tokenizer: Tokenizer) -> None:
    with pytest.raises(RuntimeFailed):
        grammars.mask('{"type": "boolean"}').accept(tokenizer.token_to_id("x"))


BOMBS: dict[str, dict[str, Any]] = {
    "unknown type": {"type": "strin"},
    "unknown keyword": {"not": {"type": "string"}},
    "nothing fits": {"type": "string", "enum": [1]},
    "itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
    "elsewhere": {"$ref": "http://127.0.0.1:9/schema.json"},
    "a file": {"$ref": "file:///etc/passwd"},
    "look-around": {"type": "string", "pattern": "^(?=a).*$"},
    "brackets": {"type": "string", "pattern": "(" * 20_000 + "a" + ")" * 20_000},
    "products": {"allOf": [{"anyOf": [{"pattern": i + j} for j in "abcde"]} for i in "012345"]},
    "half a character": {"enum": ["\ud800"]},
    "a large multiple": {"type": "integer", "multipleOf": 999_999_937},
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
def test_schemas_that_nobody_can_follow(grammars: Grammars, name: str) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match="can't be followed") as caught:
        grammars.mask(json.dumps(BOMBS[name]))
    assert time.monotonic() - started < 20  # no hang; each takes less than half a second
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("shift", range(4))
def test_where_the_library_itself_fails(grammars: Grammars, shift: int) -> None:
    """It cuts its own message at byte 100, which may lie inside a character."""
    schema = json.dumps({"maxProperties": {"a": "x" * shift + "😀" * 60}})
    for refuse in (grammars.mask, check_schema):
        with pytest.raises(UsageError, match="can't be followed"):
            refuse(schema)


def test_a_pattern_that_swells_ends_the_answer(answer: Any) -> None:
    with pytest.raises(UsageError, match="can't be followed"):
        answer({"type": "string", "pattern": "^(a{1000}){1000}$"})


def test_a_schema_is_refused_before_there_is_a_model() -> None:
    check_schema(json.dumps(OBJECT))
    with pytest.raises(UsageError, match="strin"):
        check_schema('{"type": "strin"}')


def test_a_tokenizer_that_is_not_of_bytes(tokenizer: Tokenizer) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(NotSupported, match="tokenizer"):
        Grammars(words, 2, {0})


def test_without_llguidance_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["llguidance"] = None
from edgevlm.engine.grammar import check_schema
from edgevlm.errors import NotSupported
try:
    check_schema("{}")
except NotSupported as error:
    print(error.exit_code, error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "4 Run: pip install 'edgevlm[schema]'"


def test_no_transformers_is_loaded(grammars: Grammars) -> None:
    program = """
import sys
from edgevlm.engine.grammar import check_schema
check_schema('{"type": "string"}')
print(*sorted({"transformers", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
