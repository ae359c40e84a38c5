"""Which placement this machine takes of a model: what fits and is here comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm.devices.linux import linux_machine
from edgevlm.devices.outlook import Sizes
from edgevlm.devices.predict import predict_memory
from edgevlm.engine.placement import Placement
from edgevlm.errors import DoesNotFit, Offline
from edgevlm.models.catalog import Catalog, CatalogFile, RuntimeFiles, load_catalog
from edgevlm.models.choice import choose
from edgevlm.models.names import HubId
from edgevlm.models.shapes import check_fit
from edgevlm.models.sources import FileSource, HubSource
from edgevlm.models.store import Store
from edgevlm.settings import Settings

NAMES = ("onnx", "llamacpp", "mlx")


def model(folder: Path, *, on_hub: Sequence[str] = ()) -> Catalog:
    """SmolVLM2 500M's sizes with files of a few bytes, some of which only the hub has."""
    entry = load_catalog().entries["smolvlm2-500m"]
    folder.mkdir()
    runtimes = {}
    for name in NAMES:
        path = folder / f"{name}.bin"
        path.write_bytes(name.encode())
        hub = HubSource(HubId("acme", "cam"), path.name)
        source = hub if name in on_hub else FileSource(path)
        file = CatalogFile(path.name, source, len(name), role="decoder")
        known = load_catalog().entries["smolvlm2-500m"].runtimes[name]
        sizes = {"decoder": 300_000_000, "vision": 190_000_000}
        runtimes[name] = RuntimeFiles((file,), known.quantization, weights=sizes)
    return Catalog({"cam": replace(entry, name="cam", runtimes=runtimes)})


def predicted(sizes: Sizes, placement: Placement, context: int) -> int:
    weights = sizes.weights(placement)
    assert weights is not None
    return predict_memory(sizes.shape, weights, placement, context).total


def chosen(settings: Settings, catalog: Catalog, runtime: str = "auto") -> str:
    return str(choose("cam", runtime, settings, Store(settings, catalog))[0])


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home)


def test_what_is_here_is_not_fetched_again_for_another_runtime(
    settings: Settings, tmp_path: Path
) -> None:
    catalog = model(tmp_path / "files")
    first = chosen(settings, catalog)
    other = next(name for name in ("onnx", "llamacpp") if name != first)
    Store(settings, catalog).pull("cam", runtime=other)
    assert chosen(settings, catalog) == other
    assert chosen(settings, catalog, first) == first


def test_offline_what_is_here_answers(settings: Settings, tmp_path: Path) -> None:
    catalog = model(tmp_path / "files", on_hub=NAMES)
    offline = replace(settings, offline=True)
    with pytest.raises(Offline, match="not on this device"):
        Store(offline, catalog).resolve("cam", runtime=chosen(offline, catalog))
    (tmp_path / "local").mkdir()
    whole = model(tmp_path / "local" / "files")
    for name in ("llamacpp", "onnx"):
        Store(settings, whole).pull("cam", runtime=name)
        assert chosen(offline, catalog) == name
        Store(settings, whole).remove("cam")


def test_a_placement_that_fits_is_taken_where_the_soonest_does_not(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = model(tmp_path / "files")
    sizes = choose("cam", "auto", settings, Store(settings, catalog))[1]
    room = {"onnx": 10**8, "llamacpp": 10**10, "mlx": 10**8}
    for module in ("choice", "shapes"):
        monkeypatch.setattr(
            f"edgevlm.models.{module}.memory_allowed", lambda machine, runtime: room[runtime]
        )
    placement = Placement.parse(chosen(settings, catalog))
    assert placement.language == "llamacpp"
    check_fit(sizes, placement, settings, catalog)


def test_a_shorter_context_comes_before_another_download(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = model(tmp_path / "files")
    store = Store(settings, catalog)
    store.pull("cam", runtime="onnx")
    sizes = choose("cam", "auto", settings, store)[1]
    onnx, llamacpp = Placement.parse("onnx"), Placement.parse("llamacpp")
    room = predicted(sizes, onnx, 4000)
    assert predicted(sizes, llamacpp, 8192) < room < predicted(sizes, onnx, 8192)
    for module in ("choice", "shapes"):
        monkeypatch.setattr(f"edgevlm.models.{module}.memory_allowed", lambda *_: room)
    assert chosen(settings, catalog) == "onnx"
    store.remove("cam")
    assert chosen(settings, catalog) != "onnx"


def test_little_memory_shortens_the_context_before_it_refuses(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = model(tmp_path / "files")
    sizes = choose("cam", "auto", settings, Store(settings, catalog))[1]
    offers = catalog.entries["cam"].placements
    # Enough for the smallest placement and some thousand tokens.
    room = min(predicted(sizes, placement, 4000) for placement in offers)
    for module in ("choice", "shapes"):
        monkeypatch.setattr(f"edgevlm.models.{module}.memory_allowed", lambda *_: room)
    placement = Placement.parse(chosen(settings, catalog))
    context = check_fit(sizes, placement, settings, catalog)
    assert context is not None
    assert 2048 <= context <= 4000
    with pytest.raises(DoesNotFit):
        check_fit(sizes, placement, replace(settings, context_length=8192), catalog)


def test_nothing_is_refused_where_the_system_does_not_tell_its_memory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = linux_machine("riscv64", tmp_path, graphics=False)
    assert silent.total == 0
    monkeypatch.setattr("edgevlm.models.shapes.this_machine", lambda: silent)
    catalog = model(tmp_path / "files")
    placement, sizes = choose("cam", "onnx", settings, Store(settings, catalog))
    assert check_fit(sizes, placement, settings, catalog) is None
