"""A hub on loopback, with a model on it, and an empty store."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import REPO, HubServer, model_files

from edgevlm.models.store import Store
from edgevlm.settings import Settings


@pytest.fixture
def hub(hub: HubServer) -> HubServer:
    hub.add(REPO, model_files())
    return hub


@pytest.fixture
def store(home: Path) -> Store:
    return Store(Settings(home=home))
