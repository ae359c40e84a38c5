"""A reply as JSON on disk, and back again with every field checked."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any, TypeVar, get_args

from edgevlm.messages import (
    ActiveAdapter,
    FinishReason,
    Reply,
    Route,
    Timings,
    Token,
    TopToken,
    Usage,
)

Item = TypeVar("Item")
_TOO_LARGE = 2**40


def written(reply: Reply) -> bytes:
    """The reply as JSON in ASCII, with the time of day; what a cached one has anew is left out
    (`parsed`, route, timings and memory)."""
    fields = {
        "answered": int(time.time()),
        "text": reply.text,
        "tokens": _columns(reply.tokens),
        "n_top": [len(token.top) for token in reply.tokens],
        "top": _columns([candidate for token in reply.tokens for candidate in token.top]),
        "model": reply.model,
        "runtime": dict(reply.runtime),
        "quantization": reply.quantization,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        "confidence": reply.confidence,
        "unsure": reply.unsure,
        "adapter": [[a.name, a.scale] for a in reply.adapter],
        "notices": list(reply.notices),
        "structured": reply.structured,
    }
    return json.dumps(fields, default=lambda value: value.item()).encode("ascii")


def read(data: bytes) -> Reply:
    """What `written` wrote, as a reply from the cache. Raises ValueError for anything else."""
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("a record is an object")
    answered = time.gmtime(_whole(fields.get("answered")))
    return Reply(
        text=_text(fields.get("text")),
        tokens=_tokens(fields.get("tokens"), fields.get("n_top"), fields.get("top")),
        model=_text(fields.get("model")),
        runtime=_texts(fields.get("runtime")),
        quantization=_text(fields.get("quantization")),
        finish_reason=_finish(fields.get("finish_reason")),
        usage=_usage(fields.get("usage")),
        timings=Timings(),
        route=Route("cache", f"this was asked before: the answer of {_day(answered)}"),
        confidence=_confidence(fields.get("confidence")),
        unsure=_flag(fields.get("unsure")),
        adapter=_items(fields.get("adapter"), _adapter),
        notices=_items(fields.get("notices"), _text),
        structured=_flag(fields.get("structured")),
    )


def _day(moment: time.struct_time) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", moment)


def _columns(items: Sequence[Token | TopToken]) -> list[list[Any]]:
    """Ids, texts and logprobs, each in a list, which is checked several times faster than rows."""
    logprobs = [float(item.logprob) for item in items]
    return [[int(item.id) for item in items], [item.text for item in items], logprobs]


def _tokens(columns: object, counts: object, top: object) -> tuple[Token, ...]:
    ids, texts, logprobs = _checked(columns)
    n_top = _column(counts, int)
    candidates = list(map(TopToken, *_checked(top)))
    ends = list(accumulate(n_top))
    if len(ends) != len(ids) or (ends[-1] if ends else 0) != len(candidates):
        raise ValueError("candidates of other tokens")
    tops = [tuple(candidates[end - n : end]) for end, n in zip(ends, n_top, strict=True)]
    return tuple(map(Token, ids, texts, logprobs, tops))


def _checked(columns: object) -> tuple[list[int], list[str], list[float]]:
    if not isinstance(columns, list) or len(columns) != 3:
        raise ValueError("not three columns")
    ids, texts = _column(columns[0], int), _column(columns[1], str)
    logprobs = _column(columns[2], float)
    if not len(ids) == len(texts) == len(logprobs):
        raise ValueError("columns of several lengths")
    # -inf: a grammar may have forced a token that the model gave no probability at all.
    if any(map(math.isnan, logprobs)) or math.inf in logprobs:
        raise ValueError("not a logprob")
    return ids, texts, logprobs


def _column(values: object, kind: type[Item]) -> list[Item]:
    if not isinstance(values, list) or not set(map(type, values)) <= {kind}:
        raise ValueError(f"not a list of {kind.__name__}")
    if kind is int and values and not 0 <= min(values) <= max(values) < _TOO_LARGE:
        raise ValueError("not counts")
    return values


def _adapter(value: object) -> ActiveAdapter:
    name, scale = _row(value, 2)
    return ActiveAdapter(_text(name), _number(scale))


def _usage(value: object) -> Usage:
    if not isinstance(value, dict) or set(value) != set(Usage.__dataclass_fields__):
        raise ValueError("usage has other fields")
    return Usage(**{name: _whole(count) for name, count in value.items()})


def _finish(value: object) -> FinishReason:
    reasons: tuple[FinishReason, ...] = get_args(FinishReason)
    for reason in reasons:
        if value == reason:
            return reason
    raise ValueError("no such finish reason")


def _confidence(value: object) -> float | None:
    if value is None:
        return None
    confidence = _number(value)
    if not 0 <= confidence <= 1:
        raise ValueError("a confidence is from 0 to 1")
    return confidence


def _items(value: object, each: Callable[[object], Item]) -> tuple[Item, ...]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return tuple(each(item) for item in value)


def _row(value: object, length: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"not a list of {length}")
    return value


def _texts(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return {name: _text(text) for name, text in value.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _TOO_LARGE:
        raise ValueError("not a count")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)
