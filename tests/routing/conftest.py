"""A cloud on loopback, whose pauses are noted and not waited."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloud_parts
import pytest
from serving import adapters_home, model, server

from edgevlm.routing.cloud import Cloud

__all__ = ["adapters_home", "make_cloud", "model", "pauses", "server"]


@pytest.fixture
def pauses() -> cloud_parts.Pauses:
    return cloud_parts.Pauses()


@pytest.fixture
def make_cloud(home: Path, pauses: cloud_parts.Pauses) -> Iterator[cloud_parts.MakeCloud]:
    """`cloud_parts.make_cloud` in this test's home folder; closed at its end."""
    made: list[Cloud] = []

    def make(*arguments: Any, **given: Any) -> Cloud:
        made.append(partial(cloud_parts.make_cloud, home, wait=pauses)(*arguments, **given))
        return made[-1]

    yield make
    for cloud in made:
        cloud.close()
