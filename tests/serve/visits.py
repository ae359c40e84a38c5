"""What the tests of the page share: the built-in model's server, visits to it, and its answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Visit, chromium
from playwright.sync_api import Browser, Page, expect
from serving import Running, running

from edgevlm import Model, load_model, load_settings
from edgevlm.adapters.store import AdapterStore

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "examples" / "photo.jpg"
STORY = "Tell me a long story about it, with many people in it."
HOSTILE = "<img src=x onerror=document.title='caught'><b>bold</b>"
# An answer that no model ends early.
LONG = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "array", "items": {"type": "integer"}, "minItems": 2000}},
}
OWN: dict[str, Any] = {
    "confidence": 0.414,
    "unsure": True,
    "route": {
        "decision": "cloud",
        "reason": "the answer made here was unsure",
        "sent": {"text_bytes": 612, "image_bytes": 84213, "embedding_bytes": 0},
        "cost_usd": 0.0013,
    },
    "timings": {"vision_ms": 0, "ttft_ms": 1261, "decode_tps": 61.2, "total_ms": 3000},
    "adapter": [{"name": "medical", "scale": 0.8}],
    "notices": [f"Not a diagnosis. {HOSTILE}"],
    "runtime": {"vision": "onnx", "language": "llamacpp"},
    "usage": {"prompt_tokens": 141, "image_tokens": 102, "cached_tokens": 20},
    "model": "edgevlm-tiny",
}


@pytest.fixture(scope="session")
def tiny(tiny_home: Path) -> Iterator[Model]:
    settings = load_settings({"EDGEVLM_HOME": str(tiny_home)})
    with load_model("edgevlm-tiny", runtime="onnx", settings=settings) as model:
        yield model


@pytest.fixture(scope="session")
def packs_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with `shapes`, and a pack whose title is HTML."""
    folder = tmp_path_factory.mktemp("packs")
    odd = Path(shutil.copytree(ROOT / "adapters" / "shapes", folder / "odd"))
    manifest = json.loads((odd / "edgevlm.json").read_text())
    (odd / "edgevlm.json").write_text(json.dumps(manifest | {"name": "odd", "title": HOSTILE}))
    store = AdapterStore(load_settings({"EDGEVLM_HOME": str(folder / "home")}))
    for source in ("shapes", str(odd)):
        store.install(source)
    return folder / "home"


@pytest.fixture(scope="session")
def page_server(tiny: Model, packs_home: Path) -> Iterator[Running]:
    with running(tiny, packs_home) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not for longer: while it is there, asyncio.run fails in this thread.
    with chromium() as browser:
        yield browser


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A browser that has not been here before; `options` are of its context."""
    with browser.new_context(**options) as context:
        visit = Visit(context.new_page(), url)
        visit.watch()
        yield visit
        visit.check()


@pytest.fixture
def visit(
    browser: Browser, page_server: Running, request: pytest.FixtureRequest
) -> Iterator[Visit]:
    with visiting(browser, page_server.url, **getattr(request, "param", {})) as visit:
        yield visit


def choose(page: Page, *files: Path) -> None:
    before = page.get_by_role("button", name="Remove").count()
    page.set_input_files("#files", files)
    expect(page.get_by_role("button", name="Remove")).to_have_count(before + len(files))
