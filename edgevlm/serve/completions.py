"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgevlm.engine.grammar import check_schema
from edgevlm.engine.prompt import Prompt
from edgevlm.engine.sampling import Sampling
from edgevlm.engine.schema import Schema
from edgevlm.errors import EdgeVLMError, UsageError
from edgevlm.messages import Reply, Route, Token
from edgevlm.serve.answers import Answering, Events
from edgevlm.serve.conversation import Reader
from edgevlm.serve.engine import Engine, Job
from edgevlm.serve.errors import ApiError, api_error
from edgevlm.serve.listing import Listing
from edgevlm.serve.log import Record
from edgevlm.serve.metrics import Metrics
from edgevlm.serve.protocol import ChatRequest, read_chat
from edgevlm.serve.wire import Envelope, Trimmed, logprobs_of, own_of, own_tokens, usage_of
from edgevlm.slot import Request
from edgevlm.stream import Clock

# A small model may not find an end by itself.
DEFAULT_MAX_TOKENS = 1024
_PREPARED_AT_ONCE = 4
_ROUTE = Route("local", "answered on the device that runs this server")


@dataclass(frozen=True, slots=True)
class Completions:
    """The route. `seconds` is how long an answer may take, waiting included; `preparing` bounds
    how many requests have their pictures decoded at once."""

    engine: Engine
    reader: Reader
    listing: Listing
    metrics: Metrics
    seconds: float
    preparing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_PREPARED_AT_ONCE))

    async def __call__(self, http: HttpRequest) -> _Answer:
        clock = Clock()
        self.engine.check_room()  # before a body is read that nobody will answer
        asked = read_chat(await http.body())
        request, prompt = await anyio.to_thread.run_sync(
            self._prepare, asked, clock, limiter=self.preparing
        )
        events = Events()
        job = Job(_client(http, asked), prompt, request, events.put)
        answering = Answering(self.engine, job, events, http.receive, self.seconds)
        record: Record = http.scope["edgevlm.record"]
        record.asked(asked)
        return _Answer(self, asked, job, answering, record)

    def _prepare(self, asked: ChatRequest, clock: Clock) -> tuple[Request, Prompt]:
        """Everything that can be refused is refused here, before the engine sees it."""
        own = asked.edgevlm
        sampling, schema = sampling_of(asked), schema_of(asked)
        adapters = self.listing.adapters(asked.model, own)
        prompt, subject = self.reader.prompt(
            asked.messages, adapters, own.detail or "auto", own.image_tokens
        )
        return Request(sampling, schema, adapters, subject, clock=clock), prompt


class _Answer:
    """The response, an ASGI application: all at once, or as server-sent events."""

    def __init__(
        self,
        route: Completions,
        asked: ChatRequest,
        job: Job,
        answering: Answering,
        record: Record,
    ) -> None:
        self._route = route
        self._asked = asked
        self._job = job
        self._answering = answering
        self._record = record
        model = route.listing.model
        self._envelope = Envelope(asked.model, model.fingerprint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._answering:
            if self._asked.stream:
                await self._stream(send)
            else:
                await self._whole(scope, receive, send)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async for _ in self._answering:
            pass
        reply = self._finished()
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {
            "message": message,
            "logprobs": self._logprobs(*reply.tokens),
            "finish_reason": reply.finish_reason,
        }
        body = self._envelope.completion(choice, usage_of(reply)) | {"edgevlm": self._own(reply)}
        await JSONResponse(body)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        begun = False
        try:
            async for chunk in self._chunks():
                if not begun:
                    await send(_EVENT_STREAM)
                    begun = True
                await send(_event(msgspec.json.encode(chunk)))
        except Exception as error:
            if not begun:
                raise
            # The status has been sent: the stream itself must say what went wrong.
            told = api_error(error)
            self._record.failed(told)
            await send(_event(msgspec.json.encode(told.body)))
            await send({"type": "http.response.body", "body": b""})
            return
        await send(_event(b"[DONE]"))
        await send({"type": "http.response.body", "body": b""})

    async def _chunks(self) -> AsyncIterator[dict[str, Any]]:
        envelope, trimmed = self._envelope, Trimmed()
        first = {"role": "assistant"}
        async for token in self._answering:
            text = trimmed.push(token.text)
            logprobs = self._logprobs(token)
            told = self._asked.edgevlm.tokens
            if not (text or told or (logprobs and logprobs["content"])):
                if first:
                    yield envelope.chunk(first | {"content": ""})
                    first = {}
                continue
            chunk = envelope.chunk(first | {"content": text}, logprobs=logprobs)
            first = {}
            yield chunk | {"edgevlm": {"tokens": own_tokens([token])}} if told else chunk
        reply = self._finished()
        yield envelope.chunk({}, reply.finish_reason) | {"edgevlm": self._own(reply, False)}
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            yield envelope.usage_chunk(usage_of(reply))

    def _finished(self) -> Reply:
        reply = replace(self._answering.reply, route=_ROUTE)
        self._record.answered(reply, self._job.queue_ms)
        self._route.metrics.answered(reply, self._job.queue_ms)
        return reply

    def _own(self, reply: Reply, tokens: bool = True) -> dict[str, Any]:
        return own_of(reply, self._job.queue_ms, tokens=tokens and self._asked.edgevlm.tokens)

    def _logprobs(self, *tokens: Token) -> dict[str, Any] | None:
        if not self._asked.logprobs:
            return None
        family = self._route.listing.model.family
        top = self._asked.top_logprobs or 0
        return logprobs_of(tokens, family.tokenizer, family.stop_ids, top)


_EVENT_STREAM = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ],
}


def _event(data: bytes) -> dict[str, Any]:
    body = b"data: " + data + b"\n\n"
    return {"type": "http.response.body", "body": body, "more_body": True}


def sampling_of(asked: ChatRequest) -> Sampling:
    """Raises ApiError naming the field that can't be."""
    if asked.top_logprobs and not asked.logprobs:
        raise ApiError(400, "top_logprobs goes with logprobs: true.", param="top_logprobs")
    if asked.top_logprobs is not None and not 0 <= asked.top_logprobs <= 20:
        raise ApiError(400, "top_logprobs is 0 to 20.", param="top_logprobs")
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise ApiError(400, "Give max_tokens or max_completion_tokens.", param="max_tokens")
    most = asked.max_tokens if asked.max_tokens is not None else asked.max_completion_tokens
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    given: dict[str, Any] = {
        "max_tokens": DEFAULT_MAX_TOKENS if most is None else most,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "seed": asked.seed,
        "stop": stop,
        "top_logprobs": asked.top_logprobs,
    }
    sampling = Sampling()
    for name, value in given.items():
        if value is None:
            continue
        try:
            sampling = replace(sampling, **{name: value})
        except UsageError as error:
            raise api_error(error, param=name) from error
    return sampling


def schema_of(asked: ChatRequest) -> Schema | None:
    """Raises ApiError for one that no answer can follow."""
    wanted = asked.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object" or wanted.json_schema is None:
        raise ApiError(
            400,
            "Name the keys that you want: response_format takes a json_schema.",
            param="response_format",
            code="unsupported_parameter",
        )
    try:
        schema = Schema.of(wanted.json_schema.schema)
        check_schema(schema.text)
    except EdgeVLMError as error:
        raise api_error(error, param="response_format") from error
    return schema


def _client(http: HttpRequest, asked: ChatRequest) -> str:
    """Whose turn it is: a name that the client gives, or else its connection."""
    named = asked.safety_identifier or asked.user
    return named or (f"{http.client.host}:{http.client.port}" if http.client else "")
