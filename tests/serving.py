"""A real server on loopback, in a thread of the tests' process: uvicorn, engine, model."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from lora_factory import write_peft
from PIL import Image

from edgevlm import Model, load_model, load_settings
from edgevlm.adapters.store import AdapterStore
from edgevlm.remote.access import AccessToken
from edgevlm.serve.app import Options, Server
from edgevlm.serve.run import Runner, listen

TOKEN = "tests-only-0123456789"
QUESTION = "What is in the picture?"


@dataclass(frozen=True, slots=True)
class Running:
    url: str
    server: Server
    runner: Runner

    @property
    def model(self) -> str:
        return self.server.model.name

    def client(self, **options: Any) -> httpx.Client:
        """One that sends the token."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def chat(self, content: Any = QUESTION, **fields: Any) -> httpx.Response:
        """Ask, in a conversation of its own."""
        with self.client() as client:
            return client.post("/v1/chat/completions", json=self.body(content, **fields))

    def body(self, content: Any = QUESTION, **fields: Any) -> dict[str, Any]:
        messages = fields.pop("messages", None) or [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "max_tokens": 6} | fields


@contextmanager
def running(
    model: Model, home: Path | None = None, port: int = 0, **options: Any
) -> Iterator[Running]:
    """Serve `model`, with the adapters that are installed in `home`. Port 0 is any free one."""
    settings = load_settings(None if home is None else {"EDGEVLM_HOME": str(home)})
    server = Server(model, AccessToken(TOKEN, None), settings, Options(**options))
    started = threading.Event()
    with listen("127.0.0.1", port) as sock:
        runner = Runner(server, started.set)
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            assert started.wait(30)
            yield Running(f"http://127.0.0.1:{sock.getsockname()[1]}", server, runner)
        finally:
            runner.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def until(holds: Callable[[], bool], seconds: float = 30) -> float:
    """How long it took to hold, in seconds."""
    began = time.perf_counter()
    while not holds():
        assert time.perf_counter() - began < seconds, "it never came to hold"
        time.sleep(0.001)
    return time.perf_counter() - began


def pixels(seed: int = 0, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shown(url: str, **fields: Any) -> dict[str, Any]:
    """An `image_url` part."""
    return {"type": "image_url", "image_url": {"url": url}} | fields


def asking(*pictures: np.ndarray, text: str = QUESTION) -> list[dict[str, Any]]:
    """The content of a message: pictures, then text, as a session has them."""
    return [*(shown(data_url(png(p))) for p in pictures), {"type": "text", "text": text}]


@pytest.fixture(scope="session")
def adapters_home(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the adapters `one` and `two` are installed."""
    folder = tmp_path_factory.mktemp("serve")
    store = AdapterStore(load_settings({"EDGEVLM_HOME": str(folder / "home")}))
    for seed, name in enumerate(("one", "two")):
        store.install(str(write_peft(folder / name, smolvlm_source, seed=seed)))
    return folder / "home"


@pytest.fixture(scope="session")
def model(smolvlm: Path) -> Iterator[Model]:
    """A small random-weight SmolVLM."""
    with load_model(str(smolvlm), runtime="onnx") as model:
        yield model


@pytest.fixture(scope="session")
def server(model: Model, adapters_home: Path) -> Iterator[Running]:
    with running(model, adapters_home) as server:
        yield server
