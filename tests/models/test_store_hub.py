"""The store against a hub: the real client, a small server, and what goes wrong between them."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest
from hub_server import DECODER, REPO, HubServer, model_files, noise
from recorder import Recorder

from edgevlm.errors import (
    ModelCorrupt,
    ModelUnavailable,
    NoSpace,
    Offline,
    UnknownModel,
)
from edgevlm.models import disk
from edgevlm.models import hub as hub_client
from edgevlm.models.store import Store
from edgevlm.settings import Settings

FETCHED = {
    "config.json",
    "tokenizer.json",
    "onnx/vision_encoder_fp16.onnx",
    "onnx/embed_tokens_fp16.onnx",
    DECODER,
}


def test_a_hub_id_brings_the_wanted_variants_and_only_them(hub: HubServer, store: Store) -> None:
    shown = Recorder()
    files = store.resolve(REPO, runtime="onnx", progress=shown)
    contents = model_files()
    assert files.name == REPO
    assert files.roles["decoder"].read_bytes() == contents[DECODER]
    assert files.roles["vision_encoder"].name == "vision_encoder_fp16.onnx"
    assert files.quantization == {"vision": "fp16", "embeddings": "fp16", "decoder": "q4"}
    here = {p.relative_to(files.folder).as_posix() for p in files.folder.rglob("*.*")}
    assert here == FETCHED | {"manifest.json"}
    assert (shown.done, shown.total) == (shown.total, sum(len(contents[p]) for p in FETCHED))
    assert list((store.root / ".staging").iterdir()) == []


def test_what_is_here_needs_no_network(hub: HubServer, store: Store) -> None:
    first = store.resolve(REPO, runtime="onnx")
    asked = len(hub.requests)
    offline = Store(Settings(home=store.root.parent, offline=True))
    assert offline.resolve(REPO, runtime="onnx") == first
    assert offline.pull(REPO, runtime="onnx").folder == first.folder
    assert len(hub.requests) == asked


def test_a_cut_is_healed_by_asking_for_the_rest(hub: HubServer, store: Store) -> None:
    hub.faults.cuts[DECODER] = [100_000, 50_000]
    files = store.resolve(REPO, runtime="onnx")
    assert files.roles["decoder"].read_bytes() == model_files()[DECODER]
    ranges = [r.range for r in hub.gets(DECODER)]
    assert ranges[0] is None
    starts = [int(str(r).removeprefix("bytes=").rstrip("-")) for r in ranges[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= 100_000 < starts[1] <= 150_000
    sent = sum(r.sent for r in hub.gets(DECODER))
    assert sent == 150_000 + 300_000 - starts[1]


def test_a_download_that_was_given_up_goes_on_next_time(
    hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "_PAUSES", ())
    hub.faults.cuts[DECODER] = [200_000]
    with pytest.raises(ModelUnavailable, match="reach the hub") as caught:
        store.resolve(REPO, runtime="onnx")
    assert caught.value.retryable
    assert store.list() == ()
    shown = Recorder()
    files = store.resolve(REPO, runtime="onnx", progress=shown)
    rest = hub.gets(DECODER)[-1]
    kept = int(str(rest.range).removeprefix("bytes=").rstrip("-"))
    assert 100_000 < kept <= 200_000
    assert rest.sent == 300_000 - kept
    assert len(hub.gets("config.json")) == 1
    assert shown.done == shown.total
    assert files.roles["decoder"].read_bytes() == model_files()[DECODER]


def test_a_server_that_knows_no_ranges_is_asked_for_the_whole(hub: HubServer, store: Store) -> None:
    hub.faults.ignore_range = True
    hub.faults.cuts[DECODER] = [100_000]
    shown = Recorder()
    files = store.resolve(REPO, runtime="onnx", progress=shown)
    assert files.roles["decoder"].read_bytes() == model_files()[DECODER]
    assert shown.done == shown.total


@pytest.mark.parametrize("path", [DECODER, "config.json"])
def test_altered_contents_are_refused_and_thrown_away(
    hub: HubServer, store: Store, path: str
) -> None:
    content = bytearray(model_files()[path])
    content[5] ^= 1
    hub.faults.altered[path] = bytes(content)
    with pytest.raises(ModelCorrupt, match=Path(path).name) as caught:
        store.resolve(REPO, runtime="onnx")
    assert caught.value.exit_code == 3
    assert store.list() == ()
    assert not [p for p in store.root.rglob("*") if p.name.startswith(Path(path).name)]
    hub.faults.altered.clear()
    assert store.resolve(REPO, runtime="onnx").folder.is_dir()


def test_a_spoilt_beginning_is_fetched_again(hub: HubServer, store: Store) -> None:
    """A power cut may leave zeros where bytes were; the source is not to blame."""
    plan = store.plan(REPO, runtime="onnx")
    folder = store.root / ".staging" / f"acme--cam@main--onnx--{plan.fingerprint}" / "files"
    (folder / "onnx").mkdir(parents=True)
    (folder / f"{DECODER}.part").write_bytes(bytes(70_000))
    shown = Recorder()
    files = store.resolve(REPO, runtime="onnx", progress=shown)
    assert files.roles["decoder"].read_bytes() == model_files()[DECODER]
    assert [r.range for r in hub.gets(DECODER)] == ["bytes=70000-", None]
    assert shown.done == shown.total


def test_more_bytes_than_announced_are_refused(hub: HubServer, store: Store) -> None:
    hub.faults.altered[DECODER] = noise(400_000, 8)
    with pytest.raises(ModelCorrupt, match="larger"):
        store.resolve(REPO, runtime="onnx")


def test_a_busy_hub_is_asked_again(hub: HubServer, store: Store) -> None:
    hub.faults.status[DECODER] = [503, 429]
    assert store.resolve(REPO, runtime="onnx").roles["decoder"].is_file()
    hub.faults.status["tokenizer.json"] = [503] * 9
    store.remove(REPO)
    with pytest.raises(ModelUnavailable, match="503") as caught:
        store.resolve(REPO, runtime="onnx")
    assert caught.value.retryable


def test_unknown_repositories_and_revisions(hub: HubServer, store: Store) -> None:
    with pytest.raises(UnknownModel, match="acme/none"):
        store.resolve("acme/none", runtime="onnx")
    with pytest.raises(UnknownModel, match="'v9'"):
        store.resolve(f"{REPO}@v9", runtime="onnx")


def test_a_gated_model_asks_for_a_token(
    hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[REPO].gated = True
    with pytest.raises(ModelUnavailable, match="refuses access") as caught:
        store.resolve(REPO, runtime="onnx")
    assert "HF_TOKEN" in str(caught.value.hint)
    assert not caught.value.retryable
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert store.resolve(REPO, runtime="onnx").roles["decoder"].is_file()
    assert hub.gets(DECODER)[-1].token == "Bearer hf_secret"


def test_a_repository_without_a_part_is_named(hub: HubServer, store: Store) -> None:
    files = model_files()
    del files["onnx/embed_tokens_fp16.onnx"]
    hub.add("acme/half", files)
    with pytest.raises(ModelCorrupt, match=r"acme/half has no onnx/embed_tokens\.onnx"):
        store.resolve("acme/half", runtime="onnx")


def test_names_in_a_repository_that_could_do_harm_are_left_there(
    hub: HubServer, store: Store
) -> None:
    hub.add("acme/evil", model_files() | {"../out.json": b"{}", "a\\b.json": b"{}"})
    store.resolve("acme/evil", runtime="onnx")
    assert not [p for p in store.root.parent.rglob("*") if p.name in ("out.json", "a\\b.json")]


def test_nobody_answering_is_told_within_seconds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", f"http://me:hunter2@{address}/")
    with pytest.raises(ModelUnavailable, match=f"reach the hub at http://{address} for") as caught:
        store.resolve(REPO, runtime="onnx")
    assert caught.value.retryable


def test_a_silent_hub_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "_LISTING_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ModelUnavailable, match="reach the hub"):
            store.resolve(REPO, runtime="onnx")


@pytest.mark.parametrize("page", [b"<html>Log in</html>", b"{}", b'{"sha": null}', b"[]"])
def test_a_page_that_is_no_hub_is_not_believed(hub: HubServer, store: Store, page: bytes) -> None:
    hub.faults.listing = page
    with pytest.raises(ModelUnavailable, match="did not answer like a Hugging Face hub"):
        store.resolve(REPO, runtime="onnx")


def test_the_hub_client_may_be_told_to_stay_offline_too(
    hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Offline, match="HF_HUB_OFFLINE"):
        store.resolve(REPO, runtime="onnx")
    assert hub.requests == []


def test_offline_asks_nobody_and_says_what_is_here(
    hub: HubServer, store: Store, home: Path
) -> None:
    offline = Store(Settings(home=home, offline=True))
    with pytest.raises(Offline, match="EDGEVLM_OFFLINE") as caught:
        offline.resolve(REPO, runtime="onnx")
    assert "no model" in str(caught.value.hint)
    assert hub.requests == []
    store.pull(REPO, runtime="onnx")
    with pytest.raises(Offline) as caught:
        offline.resolve("acme/other", runtime="onnx")
    assert REPO in str(caught.value.hint)


def test_room_is_checked_before_the_first_byte(
    hub: HubServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage(free=100_000))
    with pytest.raises(NoSpace, match=r"403 kB .* 100 kB are free") as caught:
        store.resolve(REPO, runtime="onnx")
    assert caught.value.exit_code == 4
    assert hub.gets(DECODER) == []


def test_a_moved_branch_is_followed_by_pull_and_only_by_it(hub: HubServer, store: Store) -> None:
    first = store.pull(REPO, runtime="onnx")
    hub.add(REPO, model_files() | {"config.json": b'{"model_type": "idefics3"}'})
    assert store.resolve(REPO, runtime="onnx").folder == first.folder
    decoder_gets = len(hub.gets(DECODER))
    second = store.pull(REPO, runtime="onnx")
    assert (second.folder / "config.json").read_bytes() == b'{"model_type": "idefics3"}'
    assert second.manifest.revisions == {REPO: hub.repos[REPO].commit}
    # Files that are here already, by their hash, are not fetched again.
    assert len(hub.gets(DECODER)) == decoder_gets
    assert not first.folder.exists()


def test_a_damaged_file_is_refused_at_load_and_mended_by_pull(hub: HubServer, store: Store) -> None:
    decoder = store.resolve(REPO, runtime="onnx").roles["decoder"]
    content = bytearray(decoder.read_bytes())
    content[1000] ^= 255
    decoder.write_bytes(content)
    with pytest.raises(ModelCorrupt, match=rf"{REPO} is damaged: {DECODER}") as caught:
        store.resolve(REPO, runtime="onnx")
    assert f"pull {REPO}" in str(caught.value.hint)
    vision_gets = len(hub.gets("onnx/vision_encoder_fp16.onnx"))
    mended = store.pull(REPO, runtime="onnx")
    assert (mended.folder / DECODER).read_bytes() == model_files()[DECODER]
    assert len(hub.gets("onnx/vision_encoder_fp16.onnx")) == vision_gets
    assert len(hub.gets(DECODER)) == 2


def test_what_another_program_fetched_is_copied_from_its_cache(
    hub: HubServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = hub.repos[REPO].commit
    cache = tmp_path / "cache"
    snapshot = cache / "models--acme--cam" / "snapshots" / commit
    (snapshot / "onnx").mkdir(parents=True)
    (snapshot / DECODER).write_bytes(model_files()[DECODER])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert store.resolve(REPO, runtime="onnx").roles["decoder"].is_file()
    assert hub.gets(DECODER) == []


def test_a_home_that_cannot_be_written_is_named(hub: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("not a folder")
    with pytest.raises(ModelUnavailable, match=r"Can't write to .*file") as caught:
        Store(Settings(home=home)).resolve(REPO, runtime="onnx")
    assert "EDGEVLM_HOME" in str(caught.value.hint)
