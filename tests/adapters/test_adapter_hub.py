"""The store of adapters against a hub: what is fetched, what is not, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import HubServer, noise
from pack_factory import change_manifest, contents, make_pack
from recorder import Recorder

from edgevlm.adapters import plan
from edgevlm.adapters.peft import read_peft
from edgevlm.adapters.store import AdapterStore, InstalledAdapter
from edgevlm.errors import (
    AdapterCorrupt,
    AdapterMismatch,
    ModelUnavailable,
    NotSupported,
    Offline,
    UnknownAdapter,
)
from edgevlm.models import hub as hub_client
from edgevlm.models.catalog import load_catalog
from edgevlm.models.plan import Plan
from edgevlm.settings import Settings

REPO = "acme/Terms"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return make_pack(tmp_path / "terms", rank=8)


@pytest.fixture
def published(hub: HubServer, pack: Path) -> HubServer:
    more = {"LICENSE": b"CC0", "optimizer.pt": noise(9000, 1), "checkpoint-1/x.bin": b"x"}
    hub.add(REPO, {**contents(pack), **more, "../LICENSE": b"no", "adapter_model.bin": b"no"})
    return hub


def test_one_for_weights_that_are_no_more_is_refused(
    hub: HubServer, adapters: AdapterStore, tmp_path: Path, home: Path
) -> None:
    now = load_catalog().entries["edgevlm-tiny"].edition
    assert now is not None
    folder = make_pack(tmp_path / "old")
    change_manifest(folder, bases=[{"name": "edgevlm-tiny", "edition": now - 1}])
    hub.add(REPO, contents(folder))
    for name in (str(folder), REPO):
        with pytest.raises(AdapterMismatch, match=f"edition {now - 1}, and this is edition {now}"):
            adapters.install(name)
    assert [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    change_manifest(folder, bases=[{"name": "edgevlm-tiny", "edition": now}])
    assert adapters.install(str(folder)).changed


def test_only_the_files_of_an_adapter_are_fetched(
    published: HubServer, adapters: AdapterStore, pack: Path
) -> None:
    shown = Recorder()
    adapter = adapters.install(REPO, progress=shown).adapter
    assert adapter.name == REPO
    assert adapter.manifest.name == "terms"
    assert adapter.origin == f"hf://{REPO}"
    wanted = {"adapter_config.json", WEIGHTS, "edgevlm.json", "README.md", "LICENSE"}
    assert set(adapter.files) == wanted
    fetched = {r.path.rpartition("/")[2] for r in published.requests if "/resolve/" in r.path}
    assert fetched == wanted
    assert shown.labels[0].startswith(f"Downloading {REPO}")
    assert shown.done == shown.total == adapter.size
    assert adapters.resolve(REPO) == adapter
    assert adapters.load(REPO).name == REPO
    assert adapters.load(REPO).digest == read_peft(pack, name="x").digest
    assert adapters.list() == (adapter,)
    assert adapters.remove(REPO) > adapter.size


def test_a_moved_branch_is_followed_by_install_and_only_by_it(
    published: HubServer, adapters: AdapterStore, tmp_path: Path
) -> None:
    first = adapters.install(REPO).adapter
    again = adapters.install(REPO)
    assert (again.changed, again.adapter) == (False, first)
    assert len(published.gets(WEIGHTS)) == 1
    published.add(REPO, contents(make_pack(tmp_path / "newer", version="2.0.0", seed=9)))
    assert adapters.resolve(REPO) == first
    done = adapters.install(REPO)
    assert (done.changed, done.before, done.adapter.manifest.version) == (True, "1.0.0", "2.0.0")
    assert not first.folder.exists()


def test_a_revision_is_an_adapter_of_its_own(published: HubServer, adapters: AdapterStore) -> None:
    name = f"{REPO}@{published.repos[REPO].commit}"
    assert adapters.install(name).adapter.name == name
    with pytest.raises(UnknownAdapter, match=f"{REPO} is not installed") as caught:
        adapters.load(REPO)
    assert f"install {REPO}" in str(caught.value.hint)
    adapters.install(REPO)
    assert [adapter.name for adapter in adapters.list()] == [REPO, name]


def test_find_shows_what_an_install_would_fetch(
    published: HubServer, adapters: AdapterStore
) -> None:
    found = adapters.find(REPO)
    assert isinstance(found, Plan)
    assert found.size == sum(file.size for file in found.files) > 10_000
    assert published.gets(WEIGHTS) == []
    adapter = adapters.install(REPO).adapter
    asked = len(published.requests)
    assert adapters.find(REPO) == adapter
    assert isinstance(adapter, InstalledAdapter)
    assert len(published.requests) == asked


def test_a_download_that_was_given_up_goes_on_next_time(
    published: HubServer, adapters: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "_PAUSES", ())
    published.faults.cuts[WEIGHTS] = [30_000]
    with pytest.raises(ModelUnavailable, match="reach the hub") as caught:
        adapters.install(REPO)
    assert caught.value.retryable
    assert adapters.list() == ()
    adapters.install(REPO)
    assert published.gets(WEIGHTS)[-1].range is not None
    assert adapters.verify(REPO)[0].altered == {}
    assert list((adapters.root / ".staging").iterdir()) == []


@pytest.mark.parametrize("path", [WEIGHTS, "adapter_config.json"])
def test_altered_contents_leave_nothing(
    published: HubServer, adapters: AdapterStore, path: str
) -> None:
    content = bytearray(published.repos[REPO].files[path])
    content[-1] ^= 1
    published.faults.altered[path] = bytes(content)
    with pytest.raises(AdapterCorrupt, match=path):
        adapters.install(REPO)
    left = [p for p in adapters.root.rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert (adapters.list(), left) == ((), [])


def test_a_bad_adapter_is_refused_once_it_is_here_and_leaves_nothing(
    hub: HubServer, adapters: AdapterStore, pack: Path, tmp_path: Path
) -> None:
    other = contents(make_pack(tmp_path / "other", rank=8, seed=4))[WEIGHTS]
    hub.add(REPO, contents(pack))
    old = adapters.install(REPO).adapter
    for spoilt in ({WEIGHTS: other}, {"edgevlm.json": b"{}"}, {"adapter_config.json": b"{}"}):
        hub.add(REPO, contents(pack) | spoilt)
        with pytest.raises(AdapterCorrupt):
            adapters.install(REPO)
        assert adapters.resolve(REPO) == old
        assert list((adapters.root / ".staging").iterdir()) == []


def test_a_file_that_nobody_states_the_size_of_has_a_limit(
    published: HubServer, adapters: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.faults.unstated = {WEIGHTS}
    with monkeypatch.context() as patch:
        patch.setattr(plan, "MAX_BYTES", 20_000)
        with pytest.raises(AdapterCorrupt, match=f"{WEIGHTS} is larger than the 20000 bytes"):
            adapters.install(REPO)
    assert list((adapters.root / ".staging").iterdir()) == []
    assert adapters.install(REPO).changed


def test_a_repository_without_an_adapter_is_not_fetched(
    hub: HubServer, adapters: AdapterStore, pack: Path, home: Path
) -> None:
    files = contents(pack)
    weights = files.pop(WEIGHTS)
    hub.add("acme/none", files)
    hub.add("acme/pickled", files | {"adapter_model.bin": weights})
    with pytest.raises(AdapterCorrupt, match=f"acme/none has no {WEIGHTS}"):
        adapters.install("acme/none")
    with pytest.raises(NotSupported, match="pickle"):
        adapters.install("acme/pickled")
    assert not home.exists()


def test_unknown_repositories_and_revisions(published: HubServer, adapters: AdapterStore) -> None:
    with pytest.raises(UnknownAdapter, match="acme/nothing"):
        adapters.install("acme/nothing")
    with pytest.raises(UnknownAdapter, match="'v9'"):
        adapters.install(f"{REPO}@v9")
    published.repos[REPO].gated = True
    with pytest.raises(ModelUnavailable, match="refuses access"):
        adapters.install(REPO)


def test_offline_serves_what_is_here_and_asks_nobody(
    published: HubServer, adapters: AdapterStore, home: Path
) -> None:
    offline = AdapterStore(Settings(home=home, offline=True))
    for use in (offline.install, offline.load, offline.find):
        with pytest.raises(Offline, match="EDGEVLM_OFFLINE"):
            use(REPO)
    assert published.requests == []
    adapter = adapters.install(REPO).adapter
    asked = len(published.requests)
    assert not offline.install(REPO).changed
    assert offline.resolve(REPO) == adapter
    assert len(published.requests) == asked


def test_one_that_calls_itself_as_a_pack_does_not_take_its_place(
    hub: HubServer, adapters: AdapterStore, packs: Path, tmp_path: Path
) -> None:
    pack = adapters.install("medical").adapter
    hub.add("acme/medical", contents(make_pack(tmp_path / "x", name="medical", version="9.0.0")))
    adapters.install("acme/medical")
    assert adapters.resolve("medical") == pack
