"""What a conversation is made of: plain frozen dataclasses, no behaviour but JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]
Decision = Literal["local", "cloud", "cache"]

# What is asked about a picture, or a video, that comes without a question.
DEFAULT_QUESTION = "Describe this image."
DEFAULT_VIDEO_QUESTION = "Describe this video."


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `images` holds whatever `edgevlm.media.load_image` takes, in reading order,
    and `video` what `open_video` does."""

    role: Role
    text: str
    images: tuple[Any, ...] = ()
    video: Any = None


@dataclass(frozen=True, slots=True)
class TopToken:
    """A candidate for one position. `logprob` is a natural logarithm."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One decoding step.

    `text` is what the step released to the reader: it may be empty while a
    character or a possible stop string is unfinished, so the texts of all
    tokens joined are the reply. `logprob` is the natural logarithm of the
    model's own probability, before temperature, penalties or a grammar.
    """

    id: int
    text: str
    logprob: float
    top: tuple[TopToken, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` of the `prompt_tokens` were reused, not computed."""

    prompt_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds, but for `decode_tps` (tokens per second after the first).

    `ttft_ms` runs from the question to its first token: picture decoding,
    vision encoding and prefill are in it, loading the model is not (`load_ms`).
    """

    load_ms: float = 0.0
    vision_ms: float = 0.0
    ttft_ms: float = 0.0
    decode_tps: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that left this device for one reply."""

    text_bytes: int = 0
    image_bytes: int = 0
    embedding_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """Who answered and why. `cost_usd` is None where nothing was bought."""

    decision: Decision = "local"
    reason: str = "local model"
    sent: Sent = Sent()
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class ActiveAdapter:
    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with its receipt. `confidence` is a calibrated probability of being right.

    `parsed` is the value of an answer that was asked for with a schema (`structured`); it is
    None where the answer was cut short, or where the class's own validators refuse it.
    `notices` are lines that its adapters have every answer carry, to be shown with the text.
    """

    text: str
    tokens: tuple[Token, ...]
    model: str
    runtime: Mapping[str, str]
    quantization: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    route: Route = Route()
    confidence: float | None = None
    unsure: bool = False
    adapter: tuple[ActiveAdapter, ...] = ()
    notices: tuple[str, ...] = ()
    parsed: Any = None
    structured: bool = False
    peak_rss_bytes: int = 0

    def to_dict(self, *, tokens: bool = False) -> dict[str, Any]:
        """The JSON object that `edgevlm chat --json` prints; `tokens` adds every step.

        `parsed` is in it where a schema was asked for.
        """
        result: dict[str, Any] = {
            "text": self.text,
            "model": self.model,
            "runtime": dict(self.runtime),
            "quantization": self.quantization,
            "adapter": [asdict(a) for a in self.adapter],
            "notices": list(self.notices),
            "confidence": self.confidence,
            "unsure": self.unsure,
            "route": asdict(self.route),
            "finish_reason": self.finish_reason,
            "usage": asdict(self.usage),
            "timings": {name: round(value, 3) for name, value in asdict(self.timings).items()},
            "memory": {"peak_rss_bytes": self.peak_rss_bytes},
        }
        if self.structured:
            result["parsed"] = None if self.parsed is None else json.loads(self.text)
        if tokens:
            result["tokens"] = [
                {
                    "id": t.id,
                    "text": t.text,
                    "logprob": t.logprob,
                    "top": [asdict(c) for c in t.top],
                }
                for t in self.tokens
            ]
        return result
