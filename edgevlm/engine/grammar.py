"""Structured output: a mask on logits that lets only a schema's JSON through.

llguidance (https://github.com/guidance-ai/llguidance, extra `schema`) knows which tokens may
come next; it bounds its own work, so that no schema takes long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgevlm.engine.contract import Logits
from edgevlm.errors import NotSupported, RuntimeFailed, UsageError

# One space, or one line break with its indentation: a model that likes white space would
# else write nothing but it.
_JSON = {"whitespace_pattern": r" |\n {0,20}", "lenient": False}
# A fifth of llguidance's own, for the steps of an answer: a pattern of a million repetitions
# is refused in about 0.2 s instead of 2.
_LIMITS = {"step_lexer_fuel": 50_000, "max_lexer_states": 50_000, "verbose_errors": False}
_SILENT = 0


class Grammars:
    """Makes the masks of one model. Its vocabulary is read once, in about half a second."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, stop_ids: Iterable[int]) -> None:
        """Raises NotSupported where llguidance is missing or can't read the tokenizer."""
        llguidance = _llguidance()
        self._n_vocab = max(n_vocab, tokenizer.get_vocab_size())
        try:
            self._tokenizer = llguidance.LLTokenizer(
                tokenizer.to_str(), n_vocab=self._n_vocab, eos_token=sorted(stop_ids)
            )
        except Exception as error:  # it raises ValueError and RuntimeError, tokenizers Exception
            raise NotSupported(
                f"Structured output can't use this model's tokenizer: {error}.",
                hint="Ask without a schema, or use another model.",
            ) from error

    def mask(self, schema: str) -> SchemaMask:
        """The mask for one answer, of a JSON Schema as text. Raises UsageError."""
        llguidance = _llguidance()
        limits = llguidance.LLParserLimits(**_LIMITS)
        with _panics_told():
            matcher = llguidance.LLMatcher(
                self._tokenizer, _grammar(schema), log_level=_SILENT, limits=limits
            )
        if matcher.is_error():
            raise _refused(matcher.get_error())
        return SchemaMask(matcher, self._n_vocab)


class SchemaMask:
    """Which tokens may come next, of one answer (a `LogitMask`)."""

    def __init__(self, matcher: Any, n_vocab: int) -> None:
        """Raises UsageError where nothing at all fits the schema."""
        self._matcher = matcher
        self._bits = np.zeros((1, -(-n_vocab // 32)), dtype=np.int32)
        self._look()

    @property
    def finished(self) -> bool:
        """Whether the JSON is whole and nothing more may follow."""
        return bool(self._matcher.is_stopped() and not self._matcher.is_error())

    def apply(self, logits: Logits) -> Logits:
        """A copy of logits float32 [n_vocab], -inf where a token does not fit.

        Raises UsageError where the schema has become too complex to go on with.
        """
        self._look()
        allowed = np.unpackbits(self._bits.view(np.uint8)[0], bitorder="little", count=logits.size)
        return np.where(allowed.view(np.bool_), logits, np.float32(-np.inf))

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen of those that `apply` left.

        Raises RuntimeFailed for another, and UsageError as `apply` does.
        """
        if not self._bits[0, token_id // 32] >> (token_id % 32) & 1:
            raise RuntimeFailed(
                "The model gave no probability to anything that fits the schema.",
                hint="Ask without a schema, or with another one.",
            )
        if not self._matcher.consume_token(token_id):
            raise _refused(self._matcher.get_error())

    def _look(self) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())


def check_schema(schema: str) -> None:
    """Refuse, before a model is loaded, what no model can answer in.

    Raises UsageError, and NotSupported where llguidance is missing.
    """
    llguidance = _llguidance()
    limits = llguidance.LLParserLimits(**_LIMITS)
    with _panics_told():
        wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(
            _grammar(schema), limits=limits
        )
    if wrong:
        raise _refused(messages[0])


def _grammar(schema: str) -> str:
    try:
        grammar: str = _llguidance().LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)
    except ValueError as error:
        raise _refused(str(error)) from error
    return grammar


@contextmanager
def _panics_told() -> Iterator[None]:
    """A panic of Rust code comes as a BaseException, which ends programs."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _refused(f"llguidance gave up on it ({error})") from error


def _refused(reason: str) -> UsageError:
    first = reason.partition("<state>")[0].partition("<non-verbose")[0].strip().rstrip(".:")
    return UsageError(
        f"The schema can't be followed: {' '.join(first.split())[:300]}.",
        hint="Simplify it: types, enums, properties, items, bounds and plain patterns work.",
    )


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise NotSupported(
            "Structured output needs llguidance.", hint="Run: pip install 'edgevlm[schema]'"
        ) from error
    return llguidance
