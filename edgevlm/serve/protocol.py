"""What a client may send, as types: OpenAI's chat completions and what EdgeVLM adds to them.

https://platform.openai.com/docs/api-reference/chat. What can't be honoured is refused by
name, and never ignored, unless it is of no consequence here.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from edgevlm.media.describe import shown
from edgevlm.serve.errors import ApiError

Detail: TypeAlias = Literal["low", "auto", "high"]
AdapterField: TypeAlias = str | list[str] | dict[str, float | None] | None
T = TypeVar("T")

_LONGEST = 200
_MOST_STOPS = 16


class ImageUrl(Struct, forbid_unknown_fields=True):
    """`image_tokens` is ours: the most that the picture may cost."""

    url: str
    detail: Detail | None = None
    image_tokens: int | None = None


class TextPart(Struct, tag_field="type", tag="text"):
    text: str


class ImagePart(Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    """`uuid` is a name that the client gives a picture; with one that the server has seen, the
    picture itself may be left out."""

    image_url: ImageUrl | str | None = None
    uuid: str | None = None


class EmbedsInfo(Struct, forbid_unknown_fields=True):
    """`grid` is (rows, columns) of the picture's tiles, (0, 0) where it is not cut;
    `fingerprint` that of the model whose vision encoder made them."""

    fingerprint: str
    grid: tuple[int, int] = (0, 0)


class EmbedsPart(Struct, tag_field="type", tag="image_embeds", forbid_unknown_fields=True):
    """`image_embeds` is a .npy file of float32 or float16 [n_tokens, d_model], in base64."""

    image_embeds: str
    edgevlm: EmbedsInfo
    uuid: str | None = None


Part: TypeAlias = TextPart | ImagePart | EmbedsPart


class ChatMessage(Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class JsonSchema(Struct):
    schema: dict[str, Any]
    name: str = ""


class ResponseFormat(Struct):
    type: Literal["text", "json_schema", "json_object"]
    json_schema: JsonSchema | None = None


class Own(Struct, forbid_unknown_fields=True):
    """What a request may say under `edgevlm`."""

    adapter: AdapterField | UnsetType = UNSET
    scale: float | None = None
    route: Literal["local", "auto"] | None = None
    detail: Detail | None = None
    image_tokens: int | None = None
    tokens: bool = False


class ChatRequest(Struct, forbid_unknown_fields=True):
    """The fields of OpenAI's, then vLLM's names for what OpenAI has none for."""

    model: str
    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    edgevlm: Own = msgspec.field(default_factory=Own)
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    # Honoured as far as there is one way to.
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    # Of no consequence on one's own machine.
    user: str | None = None
    safety_identifier: str | None = None
    store: bool | None = None
    metadata: Any = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None
    prediction: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


class EmbeddingRequest(Struct, forbid_unknown_fields=True):
    model: str
    image: str | list[str]
    detail: Detail | None = None
    image_tokens: int | None = None


# Field, and which values of it ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
_INSTEAD = {
    "n": "Send the request again for another answer.",
    "frequency_penalty": "Use repetition_penalty.",
    "presence_penalty": "Use repetition_penalty.",
    "tools": "Use response_format with a json_schema.",
    "functions": "Use response_format with a json_schema.",
}


def read(kind: type[T], body: bytes) -> T:
    """Read a request. Raises ApiError naming the field that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        path = shown(where.strip("`."), _LONGEST) or None
        what = shown(what, _LONGEST)  # it may repeat what was sent
        raise ApiError(400, f"{what}{f' at {path}' if path else ''}.", param=path) from error
    # ValueError: msgspec's own, bytes that are no text, a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {shown(error, _LONGEST)}.") from error


def read_chat(body: bytes) -> ChatRequest:
    """Raises ApiError for what is no chat request, or asks for what isn't there."""
    request = read(ChatRequest, body)
    for name, neutral in _NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            raise ApiError(
                400,
                f"{name} is not supported here. {_INSTEAD.get(name, 'Leave it out.')}",
                param=name,
                code="unsupported_parameter",
            )
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > _MOST_STOPS or any(len(stop) > _LONGEST for stop in stops):
        raise ApiError(
            400, f"stop has at most {_MOST_STOPS} strings of {_LONGEST} characters.", param="stop"
        )
    if not request.messages:
        raise ApiError(400, "There are no messages. Send at least one.", param="messages")
    if request.messages[-1].role != "user":
        raise ApiError(
            400, "The last message is not the user's. End with a question.", param="messages"
        )
    return request
