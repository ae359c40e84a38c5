"""One line a request: what was asked of which route and what it took; no text unless asked for."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from edgevlm.media.describe import shown
from edgevlm.messages import Reply
from edgevlm.serve.errors import ApiError
from edgevlm.serve.guard import OPEN
from edgevlm.serve.protocol import ChatRequest, TextPart

_log = logging.getLogger("edgevlm.serve")
_LONGEST_PATH = 200


class Record:
    """What is known of one request, to be written when it is over."""

    def __init__(self, method: str, path: str, client: str, *, prompts: bool) -> None:
        self._prompts = prompts
        self._began = time.perf_counter()
        self._fields: dict[str, Any] = {
            "method": shown(method),
            "path": shown(path, _LONGEST_PATH),
            "client": client,
        }
        self.status = 0

    def asked(self, request: ChatRequest) -> None:
        self._fields |= {"model": request.model, "stream": bool(request.stream)}
        if self._prompts:
            self._fields["prompt"] = [_text(message.content) for message in request.messages]

    def answered(self, reply: Reply, queue_ms: float) -> None:
        usage, timings = reply.usage, reply.timings
        self._fields |= {
            "queue_ms": round(queue_ms, 1),
            "ttft_ms": round(timings.ttft_ms, 1),
            "decode_tps": round(timings.decode_tps, 1),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish_reason": reply.finish_reason,
        }
        if self._prompts:
            self._fields["text"] = reply.text

    def failed(self, error: ApiError) -> None:
        self._fields["error"] = error.code or error.status

    def write(self) -> None:
        took = (time.perf_counter() - self._began) * 1000
        fields = {"status": self.status, **self._fields, "ms": round(took, 1)}
        # Who asks whether it is there asks all the time.
        asked_for_health = fields["path"] in OPEN and self.status == 200
        level = logging.DEBUG if asked_for_health else logging.INFO
        _log.log(level, "request", extra={"fields": fields})


class Lines(logging.Formatter):
    """`key=value` pairs behind the time, or a JSON object a line."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        at = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        said = {} if fields else {"message": record.getMessage()}
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            whole = {"time": at, "level": record.levelname.lower(), **said, **fields}
            return json.dumps(whole | ({"trace": trace} if trace else {}))
        pairs = " ".join(f"{name}={_plain(value)}" for name, value in (said | fields).items())
        return f"{at} {record.levelname.lower()} {pairs}" + (f"\n{trace}" if trace else "")


def _plain(value: Any) -> str:
    """A value on one line, whatever a client has put into it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    bare = text.isprintable() and not any(c in text for c in ' "=')
    return text if bare else json.dumps(text)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(part.text for part in content if isinstance(part, TextPart))
    return content or ""
