"""Adapters from packs and folders: versions, names that are none, damage, and what is kept."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lora_factory import write_peft
from pack_factory import SMALL, change_manifest, contents, make_pack, seal
from recorder import Recorder

from edgevlm.adapters import catalog, store
from edgevlm.adapters.manifest import manifest_of
from edgevlm.adapters.peft import read_peft
from edgevlm.adapters.plan import files_in
from edgevlm.adapters.store import AdapterStore
from edgevlm.errors import (
    AdapterCorrupt,
    EdgeVLMError,
    ModelUnavailable,
    NoSpace,
    NotSupported,
    UnknownAdapter,
)
from edgevlm.models import disk, publish
from edgevlm.models.receive import hash_file
from edgevlm.settings import Settings

INSTALLED = {"adapter_config.json", "adapter_model.safetensors", "edgevlm.json", "README.md"}
WEIGHTS = "adapter_model.safetensors"


def left_of(home: Path) -> list[str]:
    """Every file below `home` that is no lock."""
    return [p.name for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_pack_is_installed_as_it_ships(adapters: AdapterStore, packs: Path) -> None:
    shown = Recorder()
    done = adapters.install("medical", progress=shown)
    assert (done.changed, done.before) == (True, None)
    assert adapters.list() == (done.adapter,)
    assert adapters.resolve("medical") == done.adapter
    assert done.adapter.name == done.adapter.manifest.name == "medical"
    assert done.adapter.origin == "edgevlm"
    assert set(done.adapter.files) == INSTALLED
    for path, size in done.adapter.files.items():
        copy = (done.adapter.folder / path).read_bytes()
        assert copy == (packs / "medical" / path).read_bytes()
        assert len(copy) == size
    assert shown.done == shown.total == done.adapter.size
    assert shown.labels == [f"Copying medical ({disk.size_text(done.adapter.size)})"]
    loaded = adapters.load("medical")
    assert loaded.name == "medical"
    assert loaded.digest == read_peft(packs / "medical", name="any").digest


def test_installing_it_again_changes_nothing(adapters: AdapterStore, packs: Path) -> None:
    first = adapters.install("medical").adapter
    for name in ("medical", "medical@1.0.0", str(packs / "medical")):
        again = adapters.install(name)
        assert (again.changed, again.before, again.adapter) == (False, "1.0.0", first)


def test_another_version_takes_the_place_of_the_first(adapters: AdapterStore, packs: Path) -> None:
    old = adapters.install("medical").adapter
    make_pack(packs / "medical", version="1.1.0", seed=3)
    done = adapters.install("medical@1.1.0")
    assert (done.changed, done.before, done.adapter.manifest.version) == (True, "1.0.0", "1.1.0")
    assert not old.folder.exists()
    assert adapters.list() == (done.adapter,)
    assert adapters.load("medical").digest == read_peft(packs / "medical", name="x").digest


def test_a_version_is_that_one_or_none(adapters: AdapterStore, packs: Path) -> None:
    first = adapters.install("medical@1.0.0").adapter
    make_pack(packs / "medical", version="1.1.0", seed=3)
    assert adapters.resolve("medical@1.0.0") == first
    assert not adapters.install("medical@1.0.0").changed
    with pytest.raises(UnknownAdapter, match=r"medical@1\.1\.0 is not installed") as caught:
        adapters.load("medical@1.1.0")
    assert "install medical@1.1.0" in str(caught.value.hint)
    for use in (adapters.install, adapters.resolve, adapters.remove, adapters.verify):
        with pytest.raises(UnknownAdapter, match=r"1\.1\.0 ships and 1\.0\.0 is installed"):
            use("medical@2.0.0")
    assert adapters.list() == (first,)


def test_a_folder_is_installed_by_its_own_name(
    adapters: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pack(tmp_path / "out", name="mine", version="0.3.0")
    monkeypatch.chdir(tmp_path)
    done = adapters.install("./out")
    assert done.adapter.name == "mine"
    assert done.adapter.origin == (tmp_path / "out").as_uri()
    assert not adapters.install("mine").changed
    assert adapters.resolve("mine@0.3.0") == done.adapter
    # A change of any file, even of the card alone, is brought in.
    (tmp_path / "out" / "README.md").write_text("Better.")
    seal(tmp_path / "out", name="mine", version="0.3.0")
    assert adapters.install("./out").changed
    assert (adapters.resolve("mine").folder / "README.md").read_text() == "Better."


def test_a_folder_is_used_where_it_is(adapters: AdapterStore, tmp_path: Path, home: Path) -> None:
    folder = make_pack(tmp_path / "out", name="mine")
    found = adapters.resolve(str(folder))
    assert (found.name, found.folder, found.created) == ("mine", folder, "")
    assert adapters.find(str(folder)) == found
    assert adapters.load(str(folder)).name == "mine"
    with pytest.raises(UnknownAdapter, match="is a folder"):
        adapters.remove(str(folder))
    assert not home.exists()


def test_what_peft_saved_needs_no_manifest(adapters: AdapterStore, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "My LoRA", SMALL, base="acme/base")
    adapter = adapters.install(str(folder)).adapter
    assert adapter.name == "my-lora"
    assert [base.name for base in adapter.manifest.bases] == ["acme/base"]
    assert adapters.resolve("my-lora").manifest.name == "my-lora"


def test_a_pack_comes_before_a_folder_of_its_name(
    adapters: AdapterStore, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pack(tmp_path / "here" / "medical", version="9.0.0")
    monkeypatch.chdir(tmp_path / "here")
    assert adapters.install("medical").adapter.manifest.version == "1.0.0"
    assert adapters.install("./medical").adapter.manifest.version == "9.0.0"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("medcial", "Did you mean medical?"),
        ("Shapes", "Did you mean shapes?"),
        ("mines@1.0.0", "Did you mean mine?"),
        ("llava", "adapter list"),
        ("", "adapter list"),
        ("@1.0.0", "adapter list"),
        ("../medical", "folder"),
        ("/nowhere/at/all", "folder"),
        ("a/../b", "adapter list"),
        ("..", "adapter_config.json"),
        ("con", "adapter list"),
        (".staging", "folder"),
        ("medical/../../x", "Did you mean medical?"),
        ("x" * 5000, "adapter list"),
        ("a\0b", "adapter list"),
    ],
)
def test_names_that_are_none_get_a_hint(
    adapters: AdapterStore, packs: Path, tmp_path: Path, name: str, hint: str
) -> None:
    adapters.install(str(make_pack(tmp_path / "mine")))
    for use in (adapters.install, adapters.load, adapters.find):
        with pytest.raises(EdgeVLMError) as caught:
            use(name)
        assert caught.value.exit_code == 3
        assert hint in str(caught.value.hint)


def test_what_ships_and_is_not_installed_says_how(adapters: AdapterStore, packs: Path) -> None:
    with pytest.raises(UnknownAdapter, match="medical is not installed") as caught:
        adapters.load("medical")
    assert caught.value.hint == "`edgevlm adapter install medical` installs it."
    assert [pack.name for pack in adapters.shipped()] == ["medical", "shapes"]
    found = adapters.find("medical")
    assert found == adapters.shipped()[0]


def truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, 5000)
    seal(folder, name="medical")


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def alter(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def renamed_pickle(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\x80\x02}q\x00.")


def wrong_rank(folder: Path) -> None:
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 2', '"r": 3'))
    seal(folder, name="medical")


def escape(folder: Path) -> None:
    files = {"../../secret": {"size": 1, "sha256": "0" * 64}}
    change_manifest(folder, files=files)


BAD: list[tuple[Callable[[Path], None], type[EdgeVLMError], str]] = [
    (lambda f: (f / WEIGHTS).unlink(), AdapterCorrupt, WEIGHTS),
    (lambda f: (f / "adapter_config.json").unlink(), AdapterCorrupt, "adapter_config.json"),
    (lambda f: (f / "adapter_config.json").write_text("{"), AdapterCorrupt, "adapter_config.json"),
    (lambda f: (f / "edgevlm.json").write_text("[]"), AdapterCorrupt, "edgevlm.json"),
    (lambda f: change_manifest(f, name="../medical"), AdapterCorrupt, "not a name"),
    (lambda f: change_manifest(f, name="a/b"), AdapterCorrupt, "not a name"),
    (lambda f: change_manifest(f, name=".locks"), AdapterCorrupt, "not a name"),
    (lambda f: change_manifest(f, version="../1"), AdapterCorrupt, "version"),
    (escape, AdapterCorrupt, "plain relative path"),
    (truncate, AdapterCorrupt, "safetensors"),
    (empty, AdapterCorrupt, "SHA-256"),
    (alter, AdapterCorrupt, f"{WEIGHTS} of .* SHA-256"),
    (lambda f: (f / "README.md").write_text("x"), AdapterCorrupt, "README.md of .* SHA-256"),
    (pickle, NotSupported, "pickle"),
    (renamed_pickle, AdapterCorrupt, "SHA-256"),
    (wrong_rank, AdapterCorrupt, "rank"),
]


@pytest.mark.parametrize(("spoil", "kind", "words"), BAD)
def test_a_bad_adapter_leaves_nothing_and_what_was_here_stays(
    adapters: AdapterStore,
    tmp_path: Path,
    home: Path,
    spoil: Callable[[Path], None],
    kind: type[EdgeVLMError],
    words: str,
) -> None:
    folder = make_pack(tmp_path / "medical")
    bad = make_pack(tmp_path / "bad", name="medical", version="1.1.0", seed=5)
    spoil(bad)
    for use in (adapters.install, adapters.load):
        with pytest.raises(kind, match=words):
            use(str(bad))
    assert not home.exists()
    here = adapters.install(str(folder)).adapter
    before = left_of(home)
    with pytest.raises(kind, match=words):
        adapters.install(str(bad))
    assert left_of(home) == before
    assert adapters.resolve("medical") == here


def test_damage_is_refused_at_load_found_by_verify_and_mended_by_install(
    adapters: AdapterStore, packs: Path
) -> None:
    adapter = adapters.install("medical").adapter
    os.truncate(adapter.folder / WEIGHTS, 1000)
    with pytest.raises(AdapterCorrupt, match=f"medical is damaged: {WEIGHTS}") as caught:
        adapters.load("medical")
    assert "`edgevlm adapter install medical`" in str(caught.value.hint)
    (result,) = adapters.verify()
    assert list(result.altered) == [WEIGHTS]
    done = adapters.install("medical")
    assert done.changed
    assert not adapter.folder.exists()
    (mended,) = adapters.verify("medical")
    assert (mended.name, mended.files, dict(mended.altered)) == ("medical", 4, {})


def test_verify_and_install_read_what_load_does_not(adapters: AdapterStore, packs: Path) -> None:
    adapter = adapters.install("medical").adapter
    path = adapter.folder / "README.md"
    status = path.stat()
    path.write_bytes(b"?" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert adapters.resolve("medical") == adapter
    assert dict(adapters.verify()[0].altered) == {"README.md": "its contents have changed"}
    assert adapters.install("medical").changed


def test_a_damaged_folder_adapter_says_where_it_came_from(
    adapters: AdapterStore, tmp_path: Path
) -> None:
    folder = make_pack(tmp_path / "my own", name="mine")
    adapter = adapters.install(str(folder)).adapter
    (adapter.folder / WEIGHTS).unlink()
    with pytest.raises(AdapterCorrupt) as caught:
        adapters.install("mine")
    assert f"install '{folder}'" in str(caught.value.hint)


def test_a_broken_record_is_told_and_mended(adapters: AdapterStore, packs: Path) -> None:
    folder = adapters.install("medical").adapter.folder
    (folder / "manifest.json").write_text('{"files": {"../../x": {}}}')
    with pytest.raises(AdapterCorrupt, match="can't be read") as caught:
        adapters.load("medical")
    assert "edgevlm adapter install medical" in str(caught.value.hint)
    assert adapters.list() == ()
    assert "manifest.json" in adapters.verify()[0].altered
    assert "manifest.json" in adapters.verify("medical")[0].altered
    assert adapters.install("medical").changed
    assert adapters.verify("medical")[0].altered == {}


def test_remove_takes_everything_of_one_and_counts_it(
    adapters: AdapterStore, packs: Path, home: Path
) -> None:
    size = adapters.install("medical").adapter.size
    other = adapters.install("shapes").adapter
    unfinished = adapters.root / ".staging" / "medical--0123" / "files"
    unfinished.mkdir(parents=True)
    (unfinished / "a.part").write_bytes(bytes(50))
    longer = adapters.root / ".staging" / "medical--net--0123"
    longer.mkdir()
    assert adapters.remove("medical@1.0.0") > size + 50
    assert not unfinished.exists()
    assert longer.exists()
    assert adapters.list() == (other,)
    for use in (adapters.remove, adapters.verify):
        with pytest.raises(UnknownAdapter, match="medical is not installed"):
            use("medical")
    adapters.remove("shapes")
    assert left_of(home) == []


def test_a_full_disk_leaves_the_old_adapter(
    adapters: AdapterStore, packs: Path, home: Path
) -> None:
    old = adapters.install("medical").adapter
    before = left_of(home)
    make_pack(packs / "medical", version="1.1.0", seed=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
        with pytest.raises(NoSpace, match="is full") as caught:
            adapters.install("medical")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(home) in caught.value.message
    assert adapters.resolve("medical") == old
    assert left_of(home) == before
    assert adapters.install("medical").before == "1.0.0"


def test_room_is_checked_before_the_first_byte(
    adapters: AdapterStore, packs: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage(free=1_000))
    with pytest.raises(NoSpace, match="medical needs") as caught:
        adapters.install("medical")
    assert caught.value.exit_code == 4
    assert left_of(home) == []


def test_a_home_that_cannot_be_written_is_named(packs: Path, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("not a folder")
    with pytest.raises(ModelUnavailable, match=r"Can't write to .*file") as caught:
        AdapterStore(Settings(home=home)).install("medical")
    assert "EDGEVLM_HOME" in str(caught.value.hint)


def test_packs_and_folders_need_no_network(packs: Path, tmp_path: Path, home: Path) -> None:
    offline = AdapterStore(Settings(home=home, offline=True))
    assert offline.install("medical").changed
    assert offline.install(str(make_pack(tmp_path / "mine"))).changed


def test_what_changes_while_it_is_copied_is_not_put_in_place(
    adapters: AdapterStore, tmp_path: Path, home: Path
) -> None:
    folder = make_pack(tmp_path / "mine")

    class Meddler(Recorder):
        def start(self, total: int, label: str) -> None:
            alter(folder)

    with pytest.raises(AdapterCorrupt, match="did not arrive as it should"):
        adapters.install(str(folder), progress=Meddler())
    assert adapters.list() == ()
    assert left_of(home) == []


@pytest.mark.parametrize(
    ("module", "part"),
    [(publish, "_in_force"), (store, "manifest_of"), (store, "altered"), (store, "read_peft")],
)
@pytest.mark.parametrize("use", ["load", "list", "verify"])
def test_what_is_replaced_while_it_is_looked_at_is_looked_at_again(
    adapters: AdapterStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    part: str,
    use: str,
) -> None:
    old, new = (make_pack(tmp_path / f"v{n}", name="mine", seed=n) for n in range(2))
    adapters.install(str(old))
    real = getattr(module, part)

    def amid_a_replacement(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, part, real)
        stale = real(*arguments, **options) if part == "_in_force" else None
        adapters.install(str(new))
        return stale or real(*arguments, **options)

    monkeypatch.setattr(module, part, amid_a_replacement)
    if use == "load":
        digests = [read_peft(folder, name="x").digest for folder in (old, new)]
        assert adapters.load("mine").digest in digests
    elif use == "list":
        assert [adapter.name for adapter in adapters.list()] == ["mine"]
    else:
        assert [dict(result.altered) for result in adapters.verify("mine")] == [{}]


def test_every_pack_that_ships_is_sound() -> None:
    for name, folder in catalog.packs().items():
        manifest = manifest_of(folder)
        assert manifest.name == name
        sizes = files_in(folder)
        assert sum(sizes.values()) <= 10_000_000
        assert set(sizes) - {"edgevlm.json"} == set(manifest.files)
        assert {"README.md", "train.toml"} <= contents(folder).keys()
        for path, file in manifest.files.items():
            assert hash_file(folder / path).sha256 == file.sha256
        assert read_peft(folder, name=name).decoder
        assert all(base.fingerprint for base in manifest.bases)
