"""Clients of a server, which hold conversations one after the other or all at once."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from serving import TOKEN

PATIENCE_S = 600


SYSTEM = "You are a helpful assistant."
PHOTO = Path(__file__).parent.parent.parent / "examples" / "photo.jpg"


@dataclass(frozen=True, slots=True)
class Talk:
    """Questions about one picture, or none, each a request. `tell_ids` is for a server of ours,
    which can."""

    model: str
    questions: tuple[str, ...]
    picture: str | None
    max_tokens: int
    tell_ids: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, as its client saw it. `first` and `whole` are seconds since it asked; `count`
    is of tokens, and where a server does not tell, of pieces of text."""

    text: str
    ids: tuple[int, ...]
    count: int
    first: float
    whole: float

    @property
    def decode_tps(self) -> float:
        return (self.count - 1) / (self.whole - self.first)


@dataclass(frozen=True, slots=True)
class Load:
    """What a server made of some talks, in their order."""

    answers: list[list[Said]]
    seconds: float

    @property
    def requests_per_s(self) -> float:
        return sum(map(len, self.answers)) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        return sum(said.count for talk in self.answers for said in talk) / self.seconds

    def first_ms(self, percent: float) -> float:
        firsts = [said.first for talk in self.answers for said in talk]
        return float(np.percentile(firsts, percent)) * 1000


def client_of(url: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S)


def run(url: str, talks: Sequence[Talk], clients: int) -> Load:
    """Hold the talks, of which each client takes the next. Raises for one that is refused."""
    began = time.perf_counter()
    with client_of(url) as client, ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda talk: hold(client, talk), talks))
    return Load(answers, time.perf_counter() - began)


def hold(client: httpx.Client, talk: Talk) -> list[Said]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    answers = []
    for number, question in enumerate(talk.questions):
        content: Any = question
        if talk.picture is not None and number == 0:
            shown = {"type": "image_url", "image_url": {"url": talk.picture}}
            content = [shown, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        answers.append(_ask(client, talk, messages))
        messages.append({"role": "assistant", "content": answers[-1].text})
    return answers


def _ask(client: httpx.Client, talk: Talk, messages: list[dict[str, Any]]) -> Said:
    body: dict[str, Any] = {
        "model": talk.model,
        "messages": messages,
        "max_tokens": talk.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if talk.tell_ids:
        body["edgevlm"] = {"tokens": True}
    began, first = time.perf_counter(), None
    text, ids, usage = list[str](), list[int](), None
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{response.status_code}: {response.read().decode()}")
        for chunk in _chunks(response):
            usage = chunk.get("usage") or usage
            ids += [token["id"] for token in chunk.get("edgevlm", {}).get("tokens", ())]
            for choice in chunk["choices"]:
                if said := choice["delta"].get("content"):
                    first = first or time.perf_counter()
                    text.append(said)
    ended = time.perf_counter()
    count = usage["completion_tokens"] if usage else len(text)
    return Said("".join(text), tuple(ids), count, (first or ended) - began, ended - began)


def _chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise SystemExit(chunk["error"])
            yield chunk


def picture(number: int) -> bytes:
    """A photograph, which is another one for every cache by a corner."""
    pixels = np.array(Image.open(PHOTO).convert("RGB"))
    pixels[:8, :8] = np.random.default_rng(number).integers(0, 256, (8, 8, 3))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def picture_url(number: int) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture(number)).decode()}"
