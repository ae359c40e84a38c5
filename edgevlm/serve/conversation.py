"""From messages to a prompt: pictures read and prepared, turns laid out by the model's family."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgevlm.adapters.resident import ActiveSet
from edgevlm.engine.prompt import ImageInput, Prompt
from edgevlm.errors import EdgeVLMError
from edgevlm.families.base import Detail, Turn
from edgevlm.judge import Subject
from edgevlm.media.describe import shown
from edgevlm.media.embeddings import unpack_embeddings
from edgevlm.messages import DEFAULT_QUESTION
from edgevlm.model import Model
from edgevlm.routing.picture import PictureStats, picture_stats
from edgevlm.serve.errors import ApiError, api_error
from edgevlm.serve.pictures import Pictures, Pixels
from edgevlm.serve.protocol import ChatMessage, EmbedsPart, ImagePart, ImageUrl, Part, TextPart

_MOST_TILES = 64
_MOST_PICTURES = 32
# Of all pictures of a request: a minute of decoding would be a client's for the asking.
_MOST_PIXELS = 200_000_000


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads conversations for one model. `detail` and `image_tokens` are for pictures whose
    own part says nothing. Safe for threads."""

    model: Model
    pictures: Pictures
    _most_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        longest = max(len(token.encode()) for token in self.model.family.tokenizer.get_vocab())
        object.__setattr__(self, "_most_bytes", longest * self.model.language.context_length)

    def prompt(
        self,
        messages: Sequence[ChatMessage],
        adapters: ActiveSet,
        detail: Detail = "auto",
        image_tokens: int | None = None,
    ) -> tuple[Prompt, Subject]:
        """And what rates its answer. Raises ApiError naming the message that is wrong."""
        self._check_count(messages)
        self._check_length(messages)
        gallery = _Gallery()
        turns: list[Turn] = []
        for index, message in enumerate(messages):
            gallery.stats.clear()  # those of the last message are wanted
            turns.append(self._turn(message, f"messages[{index}]", detail, image_tokens, gallery))
        if not any(isinstance(part, (ImageInput, str)) for part in turns[-1].content):
            raise ApiError(400, "The last message is empty. Ask something.", param="messages")
        if turns[0].role != "system" and adapters.system:
            turns.insert(0, Turn("system", (adapters.system,)))
        try:
            prompt = self.model.family.render(turns)
        except EdgeVLMError as error:
            raise api_error(error, param="messages") from error
        asked = " ".join(part for part in turns[-1].content if isinstance(part, str))
        return prompt, Subject(asked, next(iter(gallery.stats), None))

    def picture(
        self, url: str, where: str, detail: Detail = "auto", image_tokens: int | None = None
    ) -> ImageInput:
        """A picture by its URL, prepared. Raises ApiError."""
        pixels = self.pictures.load(ImagePart(url), where)
        return self._prepared(pixels, where, detail, image_tokens)

    def _turn(
        self,
        message: ChatMessage,
        where: str,
        detail: Detail,
        image_tokens: int | None,
        gallery: _Gallery,
    ) -> Turn:
        role = "system" if message.role == "developer" else message.role
        if not isinstance(message.content, list):
            text = (message.content or "").strip()
            return Turn(role, (text,) if text else ())
        content = [
            self._part(part, f"{where}.content[{index}]", detail, image_tokens, gallery)
            for index, part in enumerate(message.content)
        ]
        content = [part for part in content if not isinstance(part, str) or part.strip()]
        seen = any(isinstance(part, ImageInput) for part in content)
        if seen and role != "user":
            raise ApiError(400, "Only the user shows pictures.", param=where)
        if seen and all(isinstance(part, ImageInput) for part in content):
            content.append(DEFAULT_QUESTION)
        return Turn(role, tuple(content))

    def _part(
        self,
        part: Part,
        where: str,
        detail: Detail,
        image_tokens: int | None,
        gallery: _Gallery,
    ) -> str | ImageInput:
        if isinstance(part, TextPart):
            return part.text
        if isinstance(part, EmbedsPart):
            return self._encoded(part, where)
        pixels = self.pictures.load(part, where)
        gallery.add(pixels, where)
        own = part.image_url if isinstance(part.image_url, ImageUrl) else ImageUrl("")
        budget = image_tokens if own.image_tokens is None else own.image_tokens
        return self._prepared(pixels, where, own.detail or detail, budget)

    def _prepared(
        self, pixels: Pixels, where: str, detail: Detail, image_tokens: int | None
    ) -> ImageInput:
        try:
            return self.model.family.preprocess(pixels, detail, image_tokens)
        except EdgeVLMError as error:
            raise api_error(error, param=where) from error

    def _encoded(self, part: EmbedsPart, where: str) -> ImageInput:
        """A picture that a vision encoder elsewhere has seen."""
        grid, given = part.edgevlm.grid, part.edgevlm.fingerprint
        if self.model.fingerprint is None or given != self.model.fingerprint:
            raise ApiError(
                400,
                f"The embeddings are of model {shown(given)!r}, and this is"
                f" {self.model.fingerprint!r}. Encode the picture with this model;"
                " /v1/models tells its fingerprint.",
                param=where,
                code="embeds_mismatch",
            )
        if min(grid) < 0 or max(grid) > _MOST_TILES or (0 in grid and grid != (0, 0)):
            raise ApiError(
                400,
                f"A grid has 0 to {_MOST_TILES} rows and columns.",
                param=f"{where}.edgevlm.grid",
            )
        try:
            rows = unpack_embeddings(part.image_embeds, self.model.language.d_model)
        except EdgeVLMError as error:
            raise api_error(error, param=f"{where}.image_embeds") from error
        digest = hashlib.sha256(f"embeddings {grid} {given} ".encode())
        digest.update(rows.data)
        return ImageInput.encoded(rows, grid, digest.hexdigest())

    def _check_count(self, messages: Sequence[ChatMessage]) -> None:
        parts = [p for m in messages if isinstance(m.content, list) for p in m.content]
        most = self.model.language.context_length
        if len(messages) + len(parts) > most:  # each is a token at least
            raise self._too_long(f"of {len(messages)} messages")
        if sum(not isinstance(part, TextPart) for part in parts) > _MOST_PICTURES:
            raise ApiError(
                400, f"A request has at most {_MOST_PICTURES} pictures.", param="messages"
            )

    def _check_length(self, messages: Sequence[ChatMessage]) -> None:
        """Refuse what can't fit however few tokens it is, since to count those of 32 MiB takes
        half a minute and gigabytes."""
        contents = [m.content for m in messages]
        length = sum(
            len(text.encode())
            for content in contents
            for text in ([content] if isinstance(content, str) else _texts(content or []))
        )
        if length > self._most_bytes:
            raise self._too_long(f"{length} bytes long")

    def _too_long(self, what: str) -> ApiError:
        return ApiError(
            400,
            f"The conversation is {what}, and {self.model.name} holds"
            f" {self.model.language.context_length} tokens. Ask something shorter.",
            param="messages",
            code="context_length_exceeded",
        )


class _Gallery:
    """The pictures of a request: what they may still hold together, and the `stats` of some."""

    def __init__(self) -> None:
        self.stats: list[PictureStats] = []
        self._left = _MOST_PIXELS

    def add(self, pixels: Pixels, where: str) -> None:
        self.stats.append(picture_stats(pixels))
        self._left -= pixels.shape[0] * pixels.shape[1]
        if self._left < 0:
            raise ApiError(
                413,
                f"The pictures have more than {_MOST_PIXELS // 10**6} million pixels together."
                " Send smaller ones.",
                param=where,
                code="media_too_large",
            )


def _texts(parts: Sequence[Part]) -> list[str]:
    return [part.text for part in parts if isinstance(part, TextPart)]
