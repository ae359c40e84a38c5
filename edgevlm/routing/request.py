"""A conversation as a provider gets it, and what it weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import UsageError
from edgevlm.messages import Message, Sent
from edgevlm.routing.consent import Kind
from edgevlm.routing.pictures import SentPicture, rebuild
from edgevlm.routing.prices import Tokens
from edgevlm.routing.provider import Limits

# What a chat template puts around one message, and around all of them; generous.
_TOKENS_A_MESSAGE = 32
_TOKENS_AROUND = 64


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What is asked of a provider beside the conversation; None leaves it its default.

    `schema` is a JSON Schema that the answer has to fit.
    """

    max_tokens: int = 512
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`messages` in OpenAI's form. `worst` is an upper bound on what it can take of tokens."""

    messages: tuple[dict[str, Any], ...]
    pictures: tuple[SentPicture, ...]
    sent: Sent
    options: AnswerOptions
    worst: Tokens

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("text", "image") if self.pictures else ("text",)


def chat_request(
    messages: Sequence[Message], options: AnswerOptions, limits: Limits
) -> ChatRequest:
    """Pictures in `messages` are RGB uint8 [H, W, 3]. Raises UsageError for a video."""
    if any(message.video is not None for message in messages):
        raise UsageError(
            "A video is not sent to the cloud.", hint="Send pictures of it, or use route local."
        )
    pictures: list[SentPicture] = []
    turns = []
    for message in messages:
        rebuilt = [rebuild(pixels, limits.picture_side) for pixels in message.images]
        pictures += rebuilt
        turns.append({"role": message.role, "content": _content(message.text, rebuilt)})
    text_bytes = sum(len(message.text.encode("utf-8", "replace")) for message in messages)
    image_bytes = sum(len(picture.data) for picture in pictures)
    return ChatRequest(
        messages=tuple(turns),
        pictures=tuple(pictures),
        sent=Sent(text_bytes=text_bytes, image_bytes=image_bytes),
        options=options,
        worst=worst_tokens(messages, options, limits),
    )


def worst_tokens(messages: Sequence[Message], options: AnswerOptions, limits: Limits) -> Tokens:
    """No tokenizer makes more tokens of a text than it has bytes."""
    text = sum(len(message.text.encode("utf-8", "replace")) for message in messages)
    if options.schema is not None:
        text += len(repr(options.schema).encode())
    pictures = sum(len(message.images) for message in messages)
    around = _TOKENS_AROUND + _TOKENS_A_MESSAGE * len(messages)
    return Tokens(text + around + pictures * limits.picture_tokens, options.max_tokens)


def _content(text: str, pictures: Sequence[SentPicture]) -> str | list[dict[str, Any]]:
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text
    if not pictures:
        return text
    shown = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in pictures]
    return [*shown, {"type": "text", "text": text}]
