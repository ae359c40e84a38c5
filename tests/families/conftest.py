"""Folders, families and pictures that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from smolvlm_factory import make_processor_files
from smolvlm_reference import CONFIGURATIONS, Case, Pixels, make_case


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    root = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        # The processor of SmolVLM2 wants it for videos.
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        yield {
            name: make_case(make_processor_files(root / name, **options))
            for name, options in CONFIGURATIONS.items()
        }


@pytest.fixture(params=list(CONFIGURATIONS))
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int], Pixels]:
    """Pictures of any (width, height): slow waves with noise, so that every resize shows."""

    def make(width: int, height: int) -> Pixels:
        rng = np.random.default_rng(width * 10_007 + height)
        y, x = np.mgrid[0:height, 0:width]
        waves = [np.sin(x / (7 + c) + c) + np.cos(y / (11 - c)) for c in range(3)]
        values = 128 + 50 * np.stack(waves, axis=-1) + rng.normal(0, 20, (height, width, 3))
        return values.clip(0, 255).astype(np.uint8)

    return make
