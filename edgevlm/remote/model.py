"""A model on a server, with what a session needs of one: pictures, prompts, adapters, answers."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.adapters.choice import Name, read_name
from edgevlm.adapters.resident import Resident
from edgevlm.engine.prompt import ImageInput, Prompt
from edgevlm.errors import CloudError, Interrupted, UnknownAdapter, UnknownModel
from edgevlm.families.base import Detail, Turn
from edgevlm.media.embeddings import pack_embeddings
from edgevlm.media.image import pixels_key
from edgevlm.messages import (
    ActiveAdapter,
    FinishReason,
    Reply,
    Route,
    Sent,
    Token,
    TopToken,
    Usage,
)
from edgevlm.model import Notice, load_tower
from edgevlm.remote.access import ENVIRONMENT, known_token
from edgevlm.remote.client import Server
from edgevlm.settings import Settings
from edgevlm.slot import Request
from edgevlm.tower import VisionTower

if TYPE_CHECKING:
    from edgevlm.models.progress import Progress

# Beyond this a picture is made smaller before it is sent.
_MOST_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True)
class RemotePicture:
    """A picture as it is sent: rebuilt from its pixels, so that nothing else of its file goes."""

    png: bytes
    detail: Detail
    budget: int | None


@dataclass(frozen=True, eq=False, slots=True)
class RemotePrompt(Prompt):
    """Turns as they are: the server lays them out."""

    turns: tuple[Turn, ...] = ()


class RemoteFamily:
    """Prepares pictures to be sent; with a `tower`, to be encoded here and sent as embeddings."""

    video = None

    def __init__(self, tower: VisionTower | None) -> None:
        self._tower = tower

    def preprocess(
        self, pixels: NDArray[np.uint8], detail: Detail = "auto", budget: int | None = None
    ) -> ImageInput:
        if self._tower is not None:
            return self._tower.family.preprocess(pixels, detail, budget)
        picture = RemotePicture(_png(pixels), detail, budget)
        return ImageInput(
            np.empty((0, 3, 0, 0), np.float32), None, (0, 0), 0, pixels_key(pixels), None, picture
        )

    def render(self, turns: Sequence[Turn]) -> RemotePrompt:
        return RemotePrompt((), (), tuple(turns))


class RemoteModel:
    """The base model of a server, whose pictures a `tower` encodes here where there is one.

    Raises CloudError where there is no server, UnknownModel where its model is not `name`, or
    not the tower's.
    """

    def __init__(
        self, server: Server, name: str = "auto", tower: VisionTower | None = None
    ) -> None:
        self.server = server
        self.tower = tower
        self.load_ms = 0.0
        self._entries = _entries(server)
        entry = self._entries[0]
        self.name = entry.base
        if name not in ("auto", self.name):
            raise UnknownModel(
                f"{server.url} serves {self.name}, not {name}.", hint="Ask for that, or for auto."
            )
        self.runtime = entry.runtime
        self.quantization = entry.quantization
        self.fingerprint = entry.fingerprint
        self.context_length = entry.context_length
        self.family = RemoteFamily(tower)
        if tower is not None and tower.fingerprint != self.fingerprint:
            raise UnknownModel(
                f"{server.url} serves another {self.name} than the one that sees here.",
                hint="Bring both to the same edition: `edgevlm model pull` on each.",
            )
        if tower is not None:
            self.runtime = {**self.runtime, "vision": tower.runtime}

    def adapter(self, name: Name, settings: Settings | None = None) -> Resident:
        """One that is installed on the server, and stays there. Raises UnknownAdapter."""
        wanted = read_name(name)
        for entry in self._entries[1:]:
            if entry.adapter == wanted:
                return Resident(wanted, None, None, 0, entry.scale, None, entry.notice)
        known = ", ".join(entry.adapter or "" for entry in self._entries[1:])
        raise UnknownAdapter(
            f"{self.server.url} has no adapter {wanted}.",
            hint=f"It has {known}." if known else "`edgevlm adapter install` there brings one.",
        )

    def close(self) -> None:
        if self.tower is not None:
            self.tower.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Entry:
    base: str
    adapter: str | None
    scale: float
    notice: str | None
    runtime: dict[str, str]
    quantization: str
    fingerprint: str | None
    context_length: int


def _entries(server: Server) -> list[_Entry]:
    listed = server.get("/v1/models")
    try:
        entries = [
            _Entry(
                own["base"],
                own["adapter"],
                1.0 if own["scale"] is None else float(own["scale"]),
                own["notice"],
                dict(own["runtime"]),
                str(own["quantization"]),
                own["fingerprint"],
                int(own["context_length"]),
            )
            for own in (model["edgevlm"] for model in listed["data"])
        ]
        if not entries or entries[0].adapter is not None:
            raise ValueError("no base model")
    except (KeyError, TypeError, ValueError) as error:
        raise CloudError(
            f"{server.url} is not `edgevlm serve`: it lists no model as that does.",
            hint="Check the address.",
        ) from error
    return entries


def connect(
    url: str,
    name: str | None,
    settings: Settings,
    *,
    split: bool = False,
    runtime: str | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> RemoteModel:
    """The model of the server at `url`. Its token is the environment's, or this device's own.

    With `split` pictures are encoded here, on the vision half of `runtime`. Raises what `Server`,
    `RemoteModel` and `load_tower` do, and SettingsError.
    """
    server = Server(url, offline=settings.offline)
    if server.on_this_device or os.environ.get(ENVIRONMENT):
        server = replace(server, token=known_token(settings.home))
    if not split:
        return RemoteModel(server, name or "auto")
    wanted = name if name not in (None, "auto") else RemoteModel(server).name
    tower = load_tower(wanted, runtime=runtime, settings=settings, progress=progress, notice=notice)
    try:
        return RemoteModel(server, tower=tower)
    except BaseException:
        tower.close()
        raise


class RemoteSlot:
    """Answers of one conversation on a server (see `edgevlm.slot.Slot`)."""

    def __init__(self, model: RemoteModel) -> None:
        self.model = model

    def answer(
        self, prepare: Callable[[], Prompt], request: Request
    ) -> Generator[Token, None, Reply]:
        """As a local slot's. Raises CloudError, and the errors that the server tells."""
        told: dict[str, Any] = {}
        finish: FinishReason = "cancelled"
        sent = Sent()
        try:
            prompt = prepare()
            assert isinstance(prompt, RemotePrompt)
            body, sent = self._body(prompt, request)
            for event in self.model.server.events("/v1/chat/completions", body, request.cancel):
                for token in _tokens(event):
                    request.clock.tick()
                    request.tokens.append(token)
                    yield token
                choice: dict[str, Any] = next(iter(event.get("choices", [])), {})
                if choice.get("finish_reason"):
                    finish, told = choice["finish_reason"], event.get("edgevlm", {})
        except Interrupted:
            pass
        return self._reply(request, told, finish, sent)

    def close(self) -> None:
        """There is nothing here to let go."""

    def _body(self, prompt: RemotePrompt, request: Request) -> tuple[bytes, Sent]:
        sampling = request.sampling
        messages: list[dict[str, Any]] = [
            {"role": turn.role, "content": [self._part(part, request) for part in turn.content]}
            for turn in prompt.turns
        ]
        body: dict[str, Any] = {
            "model": self.model.name,
            "messages": messages,
            "stream": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "stop": list(sampling.stop),
            "edgevlm": {
                "tokens": True,
                "adapter": {active.name: active.scale for active in request.adapters.told},
            },
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        if request.schema is not None:
            schema = json.loads(request.schema.text)
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema},
            }
        text = json.dumps(body).encode()
        parts = [part for message in messages for part in message["content"]]
        pictures = sum(len(p["image_url"]["url"]) for p in parts if p["type"] == "image_url")
        rows = sum(len(p["image_embeds"]) for p in parts if p["type"] == "image_embeds")
        if self.model.server.on_this_device:
            return text, Sent()
        return text, Sent(len(text) - pictures - rows, pictures, rows)

    def _part(self, part: str | ImageInput, request: Request) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if isinstance(part.prepared, RemotePicture):
            data = base64.b64encode(part.prepared.png).decode("ascii")
            url: dict[str, Any] = {"url": f"data:image/png;base64,{data}"}
            url |= {"detail": part.prepared.detail, "image_tokens": part.prepared.budget}
            return {"type": "image_url", "image_url": url}
        tower = self.model.tower
        assert tower is not None
        before = time.perf_counter()
        rows = tower.embed(part, request.cancel)
        request.clock.vision += time.perf_counter() - before
        return {
            "type": "image_embeds",
            "image_embeds": pack_embeddings(rows),
            "edgevlm": {"grid": list(part.grid), "fingerprint": tower.fingerprint},
        }

    def _reply(
        self, request: Request, told: dict[str, Any], finish: FinishReason, sent: Sent
    ) -> Reply:
        timings = request.clock.timings(len(request.tokens), request.load_ms)
        try:
            usage = Usage(**told.get("usage", {}))
            vision = float(told.get("timings", {}).get("vision_ms", 0.0))
            adapters = tuple(ActiveAdapter(**each) for each in told.get("adapter", ()))
            notices = tuple(str(line) for line in told.get("notices", ()))
            confidence, unsure = told.get("confidence"), bool(told.get("unsure"))
        except (TypeError, ValueError, AttributeError) as error:
            raise CloudError("The server's answer can't be read.", hint=_VERSION) from error
        near = self.model.server.on_this_device
        parsed = finish == "stop" and request.schema is not None
        return Reply(
            text=request.text,
            tokens=tuple(request.tokens),
            model=self.model.name,
            runtime=self.model.runtime,
            quantization=self.model.quantization,
            finish_reason=finish,
            usage=usage,
            timings=replace(timings, vision_ms=timings.vision_ms or vision),
            route=Route(
                "local" if near else "cloud",
                f"{self.model.name} on the server {self.model.server.url}",
                sent,
            ),
            confidence=confidence,
            unsure=unsure,
            adapter=adapters or request.adapters.told,
            notices=notices,
            parsed=request.schema.parse(request.text) if parsed and request.schema else None,
            structured=request.schema is not None,
        )


_VERSION = "Is it `edgevlm serve` of this version?"


def _tokens(event: dict[str, Any]) -> list[Token]:
    own = event.get("edgevlm")
    try:
        return [
            Token(
                int(token["id"]),
                str(token["text"]),
                float(token["logprob"]),
                tuple(
                    TopToken(int(t["id"]), str(t["text"]), float(t["logprob"]))
                    for t in token["top"]
                ),
            )
            for token in (own or {}).get("tokens", ())
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CloudError("The server's tokens can't be read.", hint=_VERSION) from error


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    image = Image.fromarray(pixels)
    if image.width * image.height > _MOST_PIXELS:
        scale = (_MOST_PIXELS / (image.width * image.height)) ** 0.5
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()
