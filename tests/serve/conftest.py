"""Servers: of a small random model with adapters, and of the built-in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_server import authority, pictures, trusting
from serving import Running, adapters_home, model, running, server
from visits import browser, packs_home, page_server, tiny, visit
from well import health, memory

from edgevlm import Model

__all__ = [
    "adapters_home",
    "authority",
    "browser",
    "health",
    "memory",
    "model",
    "packs_home",
    "page_server",
    "pictures",
    "server",
    "tiny",
    "trusting",
    "visit",
]


@pytest.fixture(scope="session")
def tiny_server(tiny: Model, tiny_home: Path) -> Iterator[Running]:
    """edgevlm-tiny with its real weights, on ONNX Runtime."""
    with running(tiny, tiny_home) as server:
        yield server
