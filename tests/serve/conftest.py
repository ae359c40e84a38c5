"""Servers: of a small random model with adapters, and of the built-in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Running, adapters_home, model, running, server
from visits import browser, packs_home, page_server, tiny, visit

from edgevlm import Model

__all__ = [
    "adapters_home",
    "browser",
    "model",
    "packs_home",
    "page_server",
    "server",
    "tiny",
    "visit",
]


@pytest.fixture(scope="session")
def tiny_server(tiny: Model, tiny_home: Path) -> Iterator[Running]:
    """edgevlm-tiny with its real weights, on ONNX Runtime."""
    with running(tiny, tiny_home) as server:
        yield server
