"""What a session is asked, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from types import NoneType
from typing import Any

from edgevlm.adapters.choice import AdapterChoice, Wanted, read_choice
from edgevlm.engine.sampling import Sampling
from edgevlm.engine.schema import Schema
from edgevlm.errors import UsageError
from edgevlm.families.base import Detail, check_detail
from edgevlm.messages import DEFAULT_QUESTION, DEFAULT_VIDEO_QUESTION, Message


@dataclass(frozen=True, slots=True)
class Question:
    """`adapters` is None where those of the session answer."""

    message: Message
    detail: Detail
    image_tokens: int | None
    schema: Schema | None
    sampling: Sampling
    adapters: Wanted | None

    @classmethod
    def of(
        cls,
        prompt: str | None,
        images: Sequence[Any] | None,
        video: Any,
        *,
        detail: Detail,
        image_tokens: int | None,
        schema: Any,
        adapter: AdapterChoice,
        sampling: dict[str, Any],
    ) -> Question:
        """Read the arguments of `Session.ask`. Raises UsageError for what can't be."""
        return cls(
            _message(prompt, images, video),
            check_detail(detail),
            _budget(image_tokens),
            None if schema is None else Schema.of(schema),
            _sampling(sampling),
            None if adapter is None else read_choice(adapter),
        )


def _message(prompt: str | None, images: Sequence[Any] | None, video: Any) -> Message:
    if not isinstance(prompt, (str, NoneType)):
        raise UsageError(f"A prompt is text, not {type(prompt).__name__}.", hint="Give a str.")
    if images is None:
        images = ()
    one = isinstance(images, (str, bytes, bytearray, memoryview))
    if one or not isinstance(images, Sequence):
        images = [images]
    question = (prompt or "").strip()
    if not question and not images and video is None:
        raise UsageError("There is no question.", hint="Give a prompt, an image or a video.")
    default = DEFAULT_QUESTION if video is None else DEFAULT_VIDEO_QUESTION
    return Message("user", question or default, tuple(images), video)


def _budget(tokens: int | None) -> int | None:
    if tokens is None:
        return None
    if isinstance(tokens, bool) or not isinstance(tokens, Integral) or tokens < 1:
        raise UsageError(f"image_tokens can't be {tokens!r}.", hint="Use a whole number above 0.")
    return int(tokens)


def _sampling(options: dict[str, Any]) -> Sampling:
    stop = options.get("stop")
    if stop is not None:
        options = options | {"stop": tuple(stop) if isinstance(stop, (list, tuple)) else (stop,)}
    try:
        return Sampling(**{name: value for name, value in options.items() if value is not None})
    except TypeError as error:
        known = ", ".join(Sampling.__dataclass_fields__)
        raise UsageError(
            f"Can't decode with {options}: {error}.", hint=f"Known options: {known}."
        ) from error
