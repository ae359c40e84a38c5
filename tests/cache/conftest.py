"""A cache in a home folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from edgevlm.cache import AnswerCache
from edgevlm.settings import Settings


@pytest.fixture
def open_cache(home: Path) -> Iterator[Callable[..., AnswerCache]]:
    """Open the cache of the home folder, with settings; all are closed in the end."""
    with ExitStack() as stack:

        def opened(**settings: Any) -> AnswerCache:
            return stack.enter_context(closing(AnswerCache(Settings(home, **settings))))

        yield opened


@pytest.fixture
def cache(open_cache: Callable[..., AnswerCache]) -> AnswerCache:
    return open_cache()
