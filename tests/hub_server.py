"""A Hugging Face hub on loopback, small and obedient: it can cut, alter, refuse and wait.

with HubServer() as hub:
    hub.add("acme/cam", {"config.json": b"{}"})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

REPO = "acme/cam"
DECODER = "onnx/decoder_model_merged_q4.onnx"
LFS_FROM = 1000  # bytes; larger files have a SHA-256, smaller ones git's own SHA-1
_STEP = 4096


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def model_files() -> dict[str, bytes]:
    """A repository that is laid out like the real ones; no runtime would load it."""
    return {
        "README.md": b"A model.",
        "config.json": b'{"model_type": "smolvlm"}',
        "tokenizer.json": noise(3_000, 1),
        "model.safetensors": noise(9_000, 2),
        "onnx/vision_encoder.onnx": noise(90_000, 3),
        "onnx/vision_encoder_fp16.onnx": noise(60_000, 4),
        "onnx/vision_encoder_q4.onnx": noise(9_000, 5),
        "onnx/embed_tokens_fp16.onnx": noise(40_000, 6),
        "onnx/decoder_model_merged.onnx": noise(90_000, 7),
        DECODER: noise(300_000, 8),
    }


@dataclass
class Repo:
    files: dict[str, bytes]
    commit: str
    gated: bool = False


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    sent: int = 0


@dataclass
class Faults:
    """What goes wrong, by file path. `cuts` are byte counts, one for each coming GET."""

    cuts: dict[str, list[int]] = field(default_factory=dict)
    altered: dict[str, bytes] = field(default_factory=dict)
    status: dict[str, list[int]] = field(default_factory=dict)
    # The GET of a path stops half way until the event is set.
    gates: dict[str, threading.Event] = field(default_factory=dict)
    ignore_range: bool = False
    # Of these the listing doesn't tell how large they are.
    unstated: set[str] = field(default_factory=set)
    listing: bytes | None = None


class HubServer:
    """Serves from a thread between `__enter__` and `__exit__`; `requests` is its log."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults = Faults()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], *, gated: bool = False) -> Repo:
        """Publish a commit; its hash follows from the files."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos[repo] = Repo(dict(files), digest, gated)
        return self.repos[repo]

    def gets(self, path: str) -> list[Request]:
        """The GETs of one file so far."""
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(f"/{path}")]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for gate in self.faults.gates.values():
            gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def log_message(self, format: str, *args: object) -> None: ...

    def _serve(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        request = Request(self.command, path, headers["Range"], headers["Authorization"])
        self.server_hub.requests.append(request)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._listing(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3], request, body)
        else:
            self._refuse(404, "")

    def _repo(self, name: str, revision: str) -> Repo | None:
        repo = self.server_hub.repos.get(name)
        if repo is None:
            # The real hub does not tell a stranger whether a repository exists.
            self._refuse(401 if self.headers["Authorization"] is None else 404, "RepoNotFound")
            return None
        if revision not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound")
            return None
        return repo

    def _listing(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        unstated = self.server_hub.faults.unstated
        siblings = [
            {"rfilename": path} if path in unstated else _sibling(path, content)
            for path, content in sorted(repo.files.items())
        ]
        document = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings}
        text = self.server_hub.faults.listing or json.dumps(document).encode()
        self._answer(200, text, {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, path: str, request: Request, body: bool) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.gated and self.headers["Authorization"] is None:
            self._refuse(401, "GatedRepo")
            return
        faults = self.server_hub.faults
        if statuses := faults.status.get(path):
            self._refuse(statuses.pop(0), "")
            return
        if path not in repo.files:
            self._refuse(404, "EntryNotFound")
            return
        content = faults.altered.get(path, repo.files[path])
        start = 0
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{_etag(repo.files[path])}"'}
        if request.range and not faults.ignore_range:
            start = int(request.range.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        status = 206 if start else 200
        self._answer(status, content[start:], headers, path=path, request=request, body=body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"{}", {"X-Error-Code": code} if code else {})

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        *,
        path: str = "",
        request: Request | None = None,
        body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not body:
            return
        cuts = self.server_hub.faults.cuts.get(path)
        end = cuts.pop(0) if cuts else len(content)
        gate = self.server_hub.faults.gates.get(path)
        try:
            for at in range(0, min(end, len(content)), _STEP):
                if gate is not None and at >= len(content) // 2:
                    gate.wait()
                chunk = content[at : min(at + _STEP, end)]
                self.wfile.write(chunk)
                if request is not None:
                    request.sent += len(chunk)
            self.wfile.flush()
        except ConnectionError:
            self.close_connection = True
        if end < len(content):
            self.close_connection = True


def _sibling(path: str, content: bytes) -> dict[str, object]:
    sibling: dict[str, object] = {
        "rfilename": path,
        "size": len(content),
        "blobId": _git_sha1(content),
    }
    if len(content) >= LFS_FROM:
        sha256 = hashlib.sha256(content).hexdigest()
        sibling["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
    return sibling


def _etag(content: bytes) -> str:
    large = len(content) >= LFS_FROM
    return hashlib.sha256(content).hexdigest() if large else _git_sha1(content)


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
