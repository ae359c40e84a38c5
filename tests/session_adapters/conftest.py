"""A model on every runtime that applies adapters, with random SmolVLM weights, and packs for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_factory import write_peft
from session_parts import NOTICE, SYSTEM, describe

from edgevlm import Model, Session, load_model

RUNTIMES = ("llamacpp", "mlx", "onnx")


@pytest.fixture(scope="module", params=RUNTIMES)
def model(request: pytest.FixtureRequest, smolvlm_everywhere: Path) -> Iterator[Model]:
    with load_model(str(smolvlm_everywhere), runtime=request.param) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with Session(model) as session:
        yield session


@pytest.fixture(scope="module")
def packs(smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `one`, `two` and `told`, which brings a system prompt and a notice."""
    folder = tmp_path_factory.mktemp("packs")
    for seed, name in enumerate(("one", "two", "told")):
        write_peft(folder / name, smolvlm_source, seed=seed)
    describe(folder / "told", system=SYSTEM, scale=0.5, notice=NOTICE)
    return folder
