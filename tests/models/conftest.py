"""A hub on loopback, with a model on it, and an empty store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import REPO, HubServer, model_files

from edgevlm.models import hub as hub_client
from edgevlm.models.store import Store
from edgevlm.settings import Settings


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server, which the client finds through HF_ENDPOINT, and no pause before a retry."""
    monkeypatch.setattr(hub_client, "_PAUSES", (0.0, 0.0, 0.0, 0.0))
    with HubServer() as server:
        server.add(REPO, model_files())
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def store(home: Path) -> Store:
    return Store(Settings(home=home))
