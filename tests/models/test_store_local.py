"""Models from folders and from `file://`, names that are none, and what the store keeps."""

from __future__ import annotations

import errno
import os
import resource
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import model_files
from recorder import Recorder

from edgevlm.errors import ModelCorrupt, ModelUnavailable, NoSpace, NotSupported, UnknownModel
from edgevlm.models.catalog import Catalog, RuntimeFiles, parse_catalog
from edgevlm.models.disk import disk_errors, size_text
from edgevlm.models.layouts import discover
from edgevlm.models.receive import hash_file
from edgevlm.models.store import Store
from edgevlm.settings import Settings


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def catalog_of(
    folder: Path, paths: list[str], *, shipped: bool = False, extra: str = ""
) -> Catalog:
    roles = {"onnx/decoder_model_merged_q4.onnx": "decoder"}
    rows = ", ".join(
        f'{{ path = "{p}", size = {(folder / p).stat().st_size}, '
        f'source = "{(folder / p).as_uri()}"'
        + (f', role = "{roles[p]}"' if p in roles else "")
        + " }"
        for p in paths
    )
    return parse_catalog(
        f"""
        [cam]
        title = "Cam"
        family = "smolvlm"
        base = "ours"
        parameters = 1_000
        context_length = 64
        licence = "MIT"
        verified = false
        [cam.onnx]
        quantization = {{ decoder = "q4" }}
        {extra}
        files = [{rows}]
        """,
        shipped=shipped,
    )


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return write(tmp_path / "origin", model_files())


@pytest.fixture
def local_store(home: Path, origin: Path) -> Store:
    paths = ["config.json", "tokenizer.json", "onnx/decoder_model_merged_q4.onnx"]
    return Store(Settings(home=home, offline=True), catalog_of(origin, paths))


def test_a_folder_is_used_where_it_is(store: Store, origin: Path) -> None:
    files = store.resolve(str(origin), runtime="onnx")
    assert (files.name, files.folder) == ("origin", origin)
    assert files.roles["vision_encoder"] == origin / "onnx/vision_encoder_fp16.onnx"
    assert files.roles["decoder"] == origin / "onnx/decoder_model_merged_q4.onnx"
    assert not store.root.exists()


def test_the_parts_may_lie_at_the_top_and_at_full_precision(store: Store, tmp_path: Path) -> None:
    names = ["vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"]
    folder = write(
        tmp_path / "flat", dict.fromkeys([*names, "config.json", "tokenizer.json"], b"x")
    )
    files = store.resolve(str(folder), runtime="onnx")
    assert [p.name for p in files.roles.values()] == names
    assert set(files.quantization.values()) == {"fp32"}


def test_weights_beside_a_graph_belong_to_it() -> None:
    parts = ["onnx/vision_encoder.onnx", "onnx/embed_tokens.onnx"]
    decoder = ["onnx/decoder_model_merged_q4.onnx", "onnx/decoder_model_merged_q4.onnx_data"]
    others = ["onnx/decoder_model_merged.onnx_data", "README.md", "model.safetensors.index.json"]
    needed = ["config.json", "tokenizer.json", "chat_template.jinja"]
    layout = discover([*parts, *decoder, *others, *needed], "onnx", "cam")
    assert set(layout.paths) == {*parts, *decoder, *needed}


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("onnx/embed_tokens_fp16.onnx", "onnx/embed_tokens.onnx"),
    ],
)
def test_a_missing_file_is_named(store: Store, origin: Path, missing: str, named: str) -> None:
    (origin / missing).unlink()
    with pytest.raises(ModelCorrupt, match=f"{origin} has no {named}"):
        store.resolve(str(origin), runtime="onnx")


def test_unknown_runtimes_take_only_what_is_in_the_catalog(store: Store, origin: Path) -> None:
    with pytest.raises(NotSupported, match="abacus"):
        store.resolve(str(origin), runtime="abacus")


def test_a_runtime_whose_files_are_not_there(store: Store, origin: Path) -> None:
    with pytest.raises(ModelCorrupt, match=r"has no decoder \(\*.gguf\)"):
        store.resolve(str(origin), runtime="llamacpp")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smolvlm2-50m", "smolvlm2-500m"),
        ("SmolVLM2-500M", "smolvlm2-500m"),
        ("llava", "model list"),
        ("", "model list"),
        ("./nowhere", "folder"),
        ("/nowhere/at/all", "folder"),
        ("~nobody-of-that-name/model", "folder"),
        ("x" * 5000, "model list"),
        ("a\0b", "model list"),
    ],
)
def test_unknown_names_get_a_hint(store: Store, name: str, hint: str) -> None:
    with pytest.raises(UnknownModel) as caught:
        store.resolve(name, runtime="onnx")
    assert hint in str(caught.value.hint)


def test_a_model_for_other_runtimes_says_which(store: Store) -> None:
    with pytest.raises(ModelUnavailable, match=r"smolvlm2-2\.2b") as caught:
        store.resolve("HuggingFaceTB/SmolVLM2-2.2B-Instruct", runtime="onnx")
    assert "llamacpp, mlx" in str(caught.value.hint)


def test_local_sources_work_offline(local_store: Store, origin: Path) -> None:
    shown = Recorder()
    files = local_store.resolve("cam", runtime="onnx", progress=shown)
    decoder = "onnx/decoder_model_merged_q4.onnx"
    assert files.roles == {"decoder": files.folder / decoder}
    assert (files.folder / decoder).read_bytes() == model_files()[decoder]
    assert files.quantization == {"decoder": "q4"}
    (version,) = local_store.list()
    assert version.manifest.files[decoder].source == (origin / decoder).as_uri()
    assert shown.done == shown.total == version.manifest.size


def test_without_download_an_absent_model_is_only_reported(local_store: Store) -> None:
    with pytest.raises(ModelUnavailable, match="not on this device"):
        local_store.resolve("cam", runtime="onnx", download=False)
    assert local_store.list() == ()


def test_an_older_copy_serves_when_the_new_one_can_not_be_had(
    local_store: Store, home: Path, origin: Path
) -> None:
    old = local_store.resolve("cam", runtime="onnx")
    newer = Store(
        Settings(home=home), catalog_of(origin, ["config.json", "onnx/vision_encoder_q4.onnx"])
    )
    (origin / "config.json").unlink()
    shown = Recorder()
    assert newer.resolve("cam", runtime="onnx", progress=shown).folder == old.folder
    assert "older cam" in shown.notes[-1]
    (origin / "config.json").write_text("{}")
    new = newer.resolve("cam", runtime="onnx")
    assert new.folder != old.folder
    assert not old.folder.exists()


def test_verify_reads_what_load_does_not(local_store: Store) -> None:
    files = local_store.resolve("cam", runtime="onnx")
    path = files.roles["decoder"]
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    local_store.resolve("cam", runtime="onnx")
    (result,) = local_store.verify("cam")
    assert dict(result.altered) == {
        "onnx/decoder_model_merged_q4.onnx": "its contents have changed"
    }
    assert local_store.verify() == [result]


@pytest.mark.parametrize("harm", ["truncate", "delete"])
def test_load_sees_truncated_and_missing_files(local_store: Store, harm: str) -> None:
    path = local_store.resolve("cam", runtime="onnx").roles["decoder"]
    if harm == "truncate":
        os.truncate(path, 1000)
    else:
        path.unlink()
    with pytest.raises(ModelCorrupt, match="cam is damaged"):
        local_store.resolve("cam", runtime="onnx")


def test_a_file_that_was_only_touched_is_read_once_and_then_trusted(local_store: Store) -> None:
    path = local_store.resolve("cam", runtime="onnx").roles["decoder"]
    before = path.stat().st_mtime_ns
    os.utime(path)
    assert path.stat().st_mtime_ns != before
    local_store.resolve("cam", runtime="onnx")
    assert path.stat().st_mtime_ns == before


def test_a_broken_record_is_told_and_mended(local_store: Store) -> None:
    folder = local_store.resolve("cam", runtime="onnx").folder
    (folder / "manifest.json").write_text('{"files": {"../../x": {}}}')
    with pytest.raises(ModelCorrupt, match="can't be read"):
        local_store.resolve("cam", runtime="onnx")
    (result,) = local_store.verify()
    assert "manifest.json" in result.altered
    local_store.pull("cam", runtime="onnx")
    assert local_store.verify("cam")[0].altered == {}


def test_remove_takes_everything_and_counts_it(local_store: Store, home: Path) -> None:
    version = local_store.pull("cam", runtime="onnx")
    unfinished = local_store.root / ".staging" / "cam--mlx--0123" / "files"
    write(unfinished, {"a.part": bytes(50)})
    freed = local_store.remove("cam")
    assert freed > version.manifest.size + 50
    assert [p.name for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"] == []
    with pytest.raises(ModelUnavailable, match="cam is not on this device"):
        local_store.remove("cam")


def test_remove_leaves_the_download_of_a_model_whose_owner_has_its_name(
    local_store: Store,
) -> None:
    local_store.pull("cam", runtime="onnx")
    other = local_store.root / ".staging" / "cam--net@main--onnx--0123"
    write(other, {"a.part": bytes(50)})
    local_store.remove("cam")
    assert (other / "a.part").exists()


def test_a_full_disk_leaves_the_old_model_and_what_came(
    local_store: Store, home: Path, origin: Path
) -> None:
    old = local_store.resolve("cam", runtime="onnx")
    newer = Store(
        Settings(home=home),
        catalog_of(origin, ["config.json", "onnx/decoder_model_merged_q4.onnx"]),
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (origin / "config.json").write_text('{"new": true}')
    (old.folder / "onnx/decoder_model_merged_q4.onnx").rename(origin / "kept")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(NoSpace, match="is full") as caught:
            newer.pull("cam", runtime="onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(home) in caught.value.message
    (origin / "kept").rename(old.folder / "onnx/decoder_model_merged_q4.onnx")
    assert local_store.resolve("cam", runtime="onnx") == old
    (part,) = (newer.root / ".staging").rglob("*.part")
    assert part.stat().st_size == 200_000
    assert newer.resolve("cam", runtime="onnx").folder != old.folder


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EFBIG, NoSpace),
        (errno.EROFS, ModelUnavailable),
        (errno.EACCES, ModelUnavailable),
        (errno.EIO, OSError),
    ],
)
def test_what_the_disk_says_becomes_an_error_of_ours(
    tmp_path: Path, code: int, kind: type[Exception]
) -> None:
    with pytest.raises(kind), disk_errors(tmp_path):
        raise OSError(code, os.strerror(code))


def test_raw_material_is_assembled_and_removed(
    home: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def assemble(raw: Path, folder: Path) -> None:
        assert raw.read_bytes() == model_files()["model.safetensors"]
        names = ["config.json", "tokenizer.json", "onnx/vision_encoder.onnx"]
        names += ["onnx/embed_tokens.onnx", "onnx/decoder_model_merged.onnx", "onnx/weights.bin"]
        write(folder, dict.fromkeys(names, b"made"))

    module = types.ModuleType("edgevlm.models.maker")
    module.assemble = assemble  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edgevlm.models.maker", module)
    extra = 'assemble = "edgevlm.models.maker:assemble"\ndisk = 1000'
    catalog = catalog_of(origin, ["model.safetensors"], shipped=True, extra=extra)
    store = Store(Settings(home=home), catalog)
    files = store.resolve("cam", runtime="onnx")
    assert set(files.roles) == {"vision_encoder", "embed_tokens", "decoder"}
    assert (files.quantization, files.edition) == ({"decoder": "q4"}, 1)
    assert (files.folder / "onnx/weights.bin").read_bytes() == b"made"
    assert list(home.rglob("*.safetensors")) == []
    assert store.verify("cam")[0].files == 6
    again = catalog_of(origin, ["model.safetensors"], shipped=True, extra=f"{extra}\nedition = 2")
    rebuilt = Store(Settings(home=home), again).resolve("cam", runtime="onnx")
    assert rebuilt.folder != files.folder
    assert rebuilt.edition == 2


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (98_362_432, "98.4 MB"), (1_708_710_196, "1.71 GB")],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert size_text(size) == text


def test_placements_of_one_model_share_files(home: Path, origin: Path) -> None:
    paths = ["config.json", "tokenizer.json", "onnx/decoder_model_merged_q4.onnx"]
    catalog = catalog_of(origin, paths)
    (entry,) = catalog.entries.values()
    hashed = tuple(
        replace(file, sha256=hash_file(origin / file.path).sha256)
        for file in entry.runtimes["onnx"].files
    )
    for name in ("onnx", "onnx+llamacpp"):
        runtimes = {name: RuntimeFiles(hashed)}
        one = Catalog({"cam": replace(entry, runtimes=runtimes, verified=True)})
        version = Store(Settings(home=home), one).pull("cam", runtime=name)
    assert (version.folder / paths[2]).stat().st_nlink == 2
    store, size = Store(Settings(home=home), one), version.manifest.size
    with pytest.raises(ModelUnavailable, match="runtime llamacpp") as caught:
        store.remove("cam", runtime="llamacpp")
    assert "onnx, onnx+llamacpp" in (caught.value.hint or "")
    # What they share is freed with the last of them, and with the first its record alone.
    assert store.remove("cam", runtime="onnx") < 5_000 < size
    assert store.remove("cam") > size
