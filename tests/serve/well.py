"""Fixtures that hold a server to its health while tests try to harm it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_http import ask
from serving import Running


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.fixture(scope="module")
def memory(server: Running) -> Iterator[None]:
    """What all of them together leave behind."""
    assert server.chat().status_code == 200
    before = resident_bytes()
    yield
    assert resident_bytes() - before < 256 * 2**20


@pytest.fixture
def health(server: Running) -> Iterator[None]:
    """Right after each of them the server is well, and nothing of it is left."""
    yield
    began = time.perf_counter()
    assert ask(server, "GET", "/healthz", token=None).status == 200
    assert time.perf_counter() - began < 1
    engine = server.server.engine
    assert (engine.queued, engine.active) == (0, 0)
