"""Answers in OpenAI's words: a completion, its chunks, logprobs and usage."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenizers import Tokenizer

from edgevlm.messages import Reply, Token, TopToken

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer have in common. `model` is the name it was asked for by."""

    model: str
    fingerprint: str | None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choice: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        return self._object("chat.completion", [{"index": 0, **choice}]) | {"usage": usage}

    def chunk(
        self,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._object("chat.completion.chunk", [choice])

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return self._object("chat.completion.chunk", []) | {"usage": usage}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


def usage_of(reply: Reply) -> dict[str, Any]:
    usage = reply.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def own_of(reply: Reply, queue_ms: float, *, tokens: bool) -> dict[str, Any]:
    """What goes under `edgevlm`: the reply as `edgevlm chat --json` prints it, less its text."""
    told = reply.to_dict(tokens=tokens)
    del told["text"], told["memory"]
    return told | {"queue_ms": round(queue_ms, 3)}


def own_tokens(tokens: Iterable[Token]) -> list[dict[str, Any]]:
    return [asdict(token) for token in tokens]


def logprobs_of(
    tokens: Iterable[Token], tokenizer: Tokenizer, stop_ids: frozenset[int], top: int
) -> dict[str, Any]:
    """OpenAI's `logprobs`, without the token that ended the answer."""

    def entry(token: Token | TopToken) -> dict[str, Any]:
        text = tokenizer.decode([token.id], skip_special_tokens=False)
        # A token may be a part of a character, whose bytes no text has.
        whole = _UNFINISHED not in text
        return {
            "token": text,
            "logprob": token.logprob,
            "bytes": list(text.encode("utf-8")) if whole else None,
        }

    content = [
        entry(token) | {"top_logprobs": [entry(each) for each in token.top[:top]]}
        for token in tokens
        if token.id not in stop_ids
    ]
    return {"content": content, "refusal": None}


class Trimmed:
    """Text as it comes, without the white space around the whole: what a stream has said is
    then what the finished answer says."""

    def __init__(self) -> None:
        self._began = False
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        if not self._began:
            text = text.lstrip()
        ready = text.rstrip()
        self._held = text[len(ready) :]
        self._began = self._began or bool(ready)
        return ready
