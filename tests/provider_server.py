"""A provider on loopback that speaks OpenAI's protocol, and fails in the ways that a test says.

It keeps a bill of its own, of what it has computed whether or not anybody read it.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler"], None]

PROMPT_TOKENS = 40


class Handler(BaseHTTPRequestHandler):
    server: ProviderServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Each request takes the next behaviour; the last one is for all that follow."""
        server = self.server
        reads_body = not getattr(server.next_behaviour(), "ignores_body", False)
        body = self.rfile.read(int(self.headers["Content-Length"])) if reads_body else b""
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
        self.close_connection = True
        server.take_behaviour()(self)

    @property
    def request_json(self) -> dict[str, Any]:
        value = json.loads(self.server.requests[-1][2])
        assert isinstance(value, dict)
        return value

    def head(self, status: int, content_type: str, **headers: str) -> None:
        """Begin an answer that ends with its connection."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()

    def send(self, status: int, body: bytes, content_type: str, **headers: str) -> None:
        self.head(status, content_type, Content_Length=str(len(body)), **headers)
        self.wfile.write(body)

    def event(self, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.wfile.write(b"data: " + data + b"\n\n")
        self.wfile.flush()

    def bill(self, completion: int, prompt: int = PROMPT_TOKENS) -> None:
        with self.server.lock:
            self.server.billed += (prompt, completion)

    def log_message(self, *_: Any) -> None:
        pass


class Bill:
    def __init__(self) -> None:
        self.prompt = self.completion = 0

    def __iadd__(self, tokens: tuple[int, int]) -> Bill:
        self.prompt += tokens[0]
        self.completion += tokens[1]
        return self


class ProviderServer(ThreadingHTTPServer):
    """Use it as a context. `requests` are (path, headers, body) so far."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *behaviours: Behaviour, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours = list(behaviours)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.billed = Bill()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._context = context
        self._thread = threading.Thread(target=self.serve_forever, args=[0.01], daemon=True)

    @property
    def url(self) -> str:
        scheme = "https" if self._context else "http"
        return f"{scheme}://localhost:{self.server_address[1]}/v1"

    def next_behaviour(self) -> Behaviour:
        with self.lock:
            return self.behaviours[0]

    def take_behaviour(self) -> Behaviour:
        with self.lock:
            return self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]

    def pictures(self) -> list[bytes]:
        """The files that came with all requests so far."""
        found = []
        for _, _, body in self.requests:
            for message in json.loads(body)["messages"]:
                parts = message["content"] if isinstance(message["content"], list) else []
                urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
                found += [base64.b64decode(url.partition(",")[2]) for url in urls]
        return found

    def get_request(self) -> tuple[socket.socket, Any]:
        plain, address = super().get_request()
        if self._context is None:
            return plain, address
        secured = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        return secured, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what many tests want."""

    def __enter__(self) -> ProviderServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


def delta(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
    }


def usage(prompt: Any = PROMPT_TOKENS, completion: Any = 5) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**delta(None), "choices": [], "usage": counts}


def answers(*pieces: str, finish: str = "stop", counts: Any = None) -> Behaviour:
    """Stream the pieces as an answer; `counts` in place of the usage, an empty dict for none."""

    def behave(handler: Handler) -> None:
        handler.bill(len(pieces))
        handler.head(200, "text/event-stream")
        for piece in pieces:
            handler.event(delta(piece))
        handler.event(delta(None, finish))
        last = usage(completion=len(pieces)) if counts is None else counts
        if last:
            handler.event(last)
        handler.event(b"[DONE]")

    return behave


def status(code: int, message: str = "", **headers: str) -> Behaviour:
    """Answer with an error in OpenAI's form."""

    def behave(handler: Handler) -> None:
        said = message.replace("KEY", handler.headers.get("Authorization", ""))
        handler.send(
            code, json.dumps({"error": {"message": said}}).encode(), "application/json", **headers
        )

    return behave
