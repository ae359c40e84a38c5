"""A folder of packs that ship, and an empty store of adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
from pack_factory import make_pack

from edgevlm.adapters import catalog
from edgevlm.adapters.store import AdapterStore
from edgevlm.settings import Settings


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ships: `medical` 1.0.0 and `shapes` 1.0.0."""
    folder = tmp_path / "packs"
    make_pack(folder / "medical", seed=1)
    make_pack(folder / "shapes", seed=2)
    monkeypatch.setattr(catalog, "packs_folder", lambda: folder)
    return folder


@pytest.fixture
def adapters(home: Path) -> AdapterStore:
    return AdapterStore(Settings(home=home))
