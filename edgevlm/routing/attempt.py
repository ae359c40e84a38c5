"""One try to have a provider answer: the request through the `openai` client, the answer checked.

Whatever that client raises ends here. Its errors are not kept as causes: they hold what the
provider said, which may be anything, the key too.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgevlm.engine.cancel import Cancel
from edgevlm.errors import (
    CloudAnswerBroken,
    CloudNotAllowed,
    CloudRefused,
    CloudUnavailable,
)
from edgevlm.messages import FinishReason
from edgevlm.routing.keys import Key, Veil
from edgevlm.routing.line import Deadline
from edgevlm.routing.prices import Tokens
from edgevlm.routing.provider import Provider
from edgevlm.routing.request import ChatRequest

if TYPE_CHECKING:
    from edgevlm.routing.wire import Wire

# A token is four bytes of English; one of sixteen on average is no language at all.
_BYTES_A_TOKEN = 16
_BYTES_MORE = 1024
_MOST_TOKENS = 100_000_000
# What would move a terminal's cursor, colours or title.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_REASONS: dict[str, FinishReason] = {"length": "length", "max_tokens": "length"}


@dataclass(frozen=True, slots=True)
class Finished:
    """`tokens` as the provider counts them, None where it doesn't say, or says what can't be."""

    finish_reason: FinishReason
    tokens: Tokens | None


class Dialect:
    """Which of the optional words of the protocol a provider takes. It is learnt from what it
    refuses, once, and remembered."""

    def __init__(self) -> None:
        self._limit = "max_tokens"
        self._dropped: set[str] = set()

    def body(self, request: ChatRequest) -> dict[str, Any]:
        options = request.options
        body: dict[str, Any] = {
            self._limit: options.max_tokens,
            "stream_options": {"include_usage": True},
        }
        if options.temperature is not None:
            body["temperature"] = options.temperature
        if options.stop:
            body["stop"] = list(options.stop)
        if options.schema is not None:
            schema = {"name": "answer", "schema": dict(options.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return {name: value for name, value in body.items() if name not in self._dropped}

    def learn(self, message: str) -> bool:
        """Read why a request was refused. True where the same can be said in other words."""
        if self._limit == "max_tokens" and "max_completion_tokens" in message:
            self._limit = "max_completion_tokens"
            return True
        for name in ("stream_options", "temperature"):
            if name in message and name not in self._dropped:
                self._dropped.add(name)
                return True
        return False


class Attempt:
    """`sent` says whether the request may have left, `text_bytes` how much came back."""

    def __init__(
        self,
        provider: Provider,
        key: Key | None,
        request: ChatRequest,
        dialect: Dialect,
        deadline: Deadline,
        cancel: Cancel,
    ) -> None:
        self._provider = provider
        self._key = key
        self._request = request
        self._dialect = dialect
        self._deadline = deadline
        self._cancel = cancel
        self._wire: Wire | None = None
        self.text_bytes = 0

    @property
    def sent(self) -> bool:
        return self._wire is not None and self._wire.sent

    def run(self) -> Generator[str, None, Finished]:
        """Yield the answer's text as it comes. Raises what `Wire` raises, CloudRefused where a
        filter ended it, and CloudNotAllowed without the extra."""
        try:
            import openai
        except ImportError as error:
            raise CloudNotAllowed(
                "Asking the cloud needs the extra `cloud`, which is not installed.",
                hint="`pip install 'edgevlm[cloud]'` adds it.",
            ) from error
        failure: Exception
        try:
            return (yield from self._run())
        except openai.APIError as error:
            failure = CloudUnavailable(
                f"{self._provider.called} failed: {self._shown(error.message)}",
                hint="Ask again later.",
            )
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
            failure = self._broken("what is not the stream of an answer")
        except RecursionError:
            failure = self._broken("JSON that is nested too deeply")
        # Here and not above, so that the error has no context either.
        raise (self._wire and self._wire.error) or failure

    def _run(self) -> Generator[str, None, Finished]:
        import httpx
        from openai import OpenAI

        from edgevlm.routing.wire import Wire

        with Wire(self._provider, self._key, self._deadline, self._cancel) as wire:
            self._wire = wire
            # `Wire` ends the call at its deadline, so the client needs no timeout.
            http: Any = httpx.Client(transport=wire, trust_env=False, timeout=None)  # noqa: S113
            client = OpenAI(
                api_key="on-the-wire",  # only `Wire` has the real one
                base_url=self._provider.base_url,
                max_retries=0,
                http_client=http,
            )
            create: Any = client.chat.completions.create
            with create(
                model=self._provider.model,
                messages=list(self._request.messages),
                stream=True,
                **self._dialect.body(self._request),
            ) as chunks:
                return (yield from self._read(chunks))

    def _read(self, chunks: Any) -> Generator[str, None, Finished]:
        veil, reason, tokens = Veil(self._key), "", None
        for chunk in chunks:
            tokens = _tokens(getattr(chunk, "usage", None)) or tokens
            text, ended = _content(chunk)
            reason = ended or reason
            self._count(text)
            if shown := veil.push(text):
                yield shown
        if shown := veil.flush():
            yield shown
        if not reason:
            raise CloudUnavailable(
                f"The answer of {self._provider.called} broke off.", hint="Ask again."
            )
        if reason == "content_filter":
            raise CloudRefused(
                f"{self._provider.called} ended its answer by a content filter.",
                hint="Ask otherwise, or use route local.",
            )
        if not self.text_bytes:
            raise self._broken("an empty answer")
        return Finished(_REASONS.get(reason, "stop"), tokens)

    def _count(self, text: str) -> None:
        self.text_bytes += len(text.encode())
        if self.text_bytes > _BYTES_A_TOKEN * self._request.options.max_tokens + _BYTES_MORE:
            raise self._broken("more text than it was asked for, and was stopped")

    def _broken(self, what: str) -> CloudAnswerBroken:
        return CloudAnswerBroken(
            f"{self._provider.called} sent {what}.",
            hint="Check that the base URL is that of an OpenAI-compatible API, or ask again.",
        )

    def _shown(self, text: str) -> str:
        from edgevlm.media.describe import shown

        return shown(" ".join((self._key.hide(text) if self._key else text).split()), 200)


def _content(chunk: Any) -> tuple[str, str]:
    """The text of a chunk and why the answer ended there, both empty where it has neither.

    The client doesn't check what it reads, so any part of it may be missing or of another type.
    """
    choices = getattr(chunk, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    text = getattr(getattr(choice, "delta", None), "content", None)
    reason = getattr(choice, "finish_reason", None)
    return (
        _CONTROLS.sub("", text).encode("utf-8", "replace").decode("utf-8")
        if isinstance(text, str)
        else "",
        reason if isinstance(reason, str) else "",
    )


def _tokens(usage: Any) -> Tokens | None:
    """None for counts that can't be those of an answer."""
    prompt, completion = (
        getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")
    )
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    if not 1 < prompt < _MOST_TOKENS or not 0 < completion < _MOST_TOKENS:
        return None
    return Tokens(int(prompt), int(completion))
