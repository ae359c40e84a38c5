"""Model folders: which family reads them, and what a broken one is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from smolvlm_factory import CHAT_TEMPLATE, make_processor_files
from smolvlm_reference import Case, ids_of
from tokenizers import AddedToken, Tokenizer

from edgevlm.errors import ModelCorrupt, NotSupported, TemplateError
from edgevlm.families import load_family
from edgevlm.families.base import Turn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_processor_files(tmp_path / "model")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("variant", ["smolvlm", "idefics3"])
def test_both_model_types_are_smolvlm(cases: dict[str, Case], variant: str) -> None:
    assert cases[variant].family.name == "smolvlm"


def test_an_unknown_model_type_lists_the_known_ones(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.update(model_type="qwen9_vl"))
    with pytest.raises(NotSupported, match="qwen9_vl") as caught:
        load_family(folder)
    assert caught.value.hint is not None
    for known in ("edgevlm_tiny", "idefics3", "smolvlm"):
        assert known in caught.value.hint


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [None, "", "[1, 2]", '{"a": ', "\udcff", "[" * 100_000])
def test_missing_and_broken_files_are_named(folder: Path, name: str, content: str | None) -> None:
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelCorrupt, match=name) as caught:
        load_family(folder)
    assert "\n" not in caught.value.message


BROKEN: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("config.json", lambda c: c.pop("model_type"), "model_type"),
    ("config.json", lambda c: c.pop("image_token_id"), "image_token_id"),
    ("config.json", lambda c: c.update(image_token_id=5), "token 5"),
    ("config.json", lambda c: c.update(image_token_id=10**6), "token 1000000"),
    ("config.json", lambda c: c.pop("scale_factor"), "scale_factor"),
    ("config.json", lambda c: c.update(scale_factor=0), "scale_factor"),
    ("config.json", lambda c: c.update(scale_factor=3), "8 patches a side by 3"),
    ("config.json", lambda c: c.pop("vision_config"), "vision_config"),
    ("config.json", lambda c: c["vision_config"].update(image_size="64"), "image_size"),
    ("config.json", lambda c: c["vision_config"].update(patch_size=True), "patch_size"),
    ("config.json", lambda c: c["vision_config"].update(patch_size=65), "0 patches"),
    ("processor_config.json", lambda c: c.update(image_seq_len=9), "9 tokens a tile"),
    ("processor_config.json", lambda c: c.update(image_processor=[]), "image_processor"),
    ("preprocessor_config.json", lambda c: c.pop("size"), "size"),
    ("preprocessor_config.json", lambda c: c.update(size={"height": 64}), "longest_edge"),
    ("preprocessor_config.json", lambda c: c["size"].update(longest_edge=-1), "longest_edge"),
    ("preprocessor_config.json", lambda c: c["size"].update(longest_edge=10**9), "above"),
    ("preprocessor_config.json", lambda c: c.pop("max_image_size"), "max_image_size"),
    ("preprocessor_config.json", lambda c: c["max_image_size"].update(longest_edge=32), "32"),
    ("preprocessor_config.json", lambda c: c.update(image_mean=[0.5]), "image_mean"),
    ("preprocessor_config.json", lambda c: c.update(image_std=[0.5, 0, 0.5]), "image_std"),
    ("preprocessor_config.json", lambda c: c.update(image_mean=float("nan")), "image_mean"),
    ("preprocessor_config.json", lambda c: c.update(rescale_factor=10**400), "rescale_factor"),
    ("preprocessor_config.json", lambda c: c.update(resample=17), "resample"),
    ("preprocessor_config.json", lambda c: c.update(resample=[]), "resample"),
    ("preprocessor_config.json", lambda c: c.update(do_resize="no"), "do_resize"),
    ("generation_config.json", lambda c: c.update(eos_token_id=["x"]), "ends an answer"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), BROKEN, ids=[f"{name}-{m}" for name, _, m in BROKEN]
)
def test_inconsistent_settings_are_named(
    folder: Path, name: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder / name, change)
    with pytest.raises(ModelCorrupt, match=message) as caught:
        load_family(folder)
    assert name in caught.value.message


def test_a_gigantic_tile_is_refused(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c["vision_config"].update(image_size=2**20))
    edit(folder / "processor_config.json", lambda c: c.pop("image_seq_len"))
    edit(
        folder / "preprocessor_config.json",
        lambda c: c["max_image_size"].update(longest_edge=2**20),
    )
    with pytest.raises(ModelCorrupt, match="above"):
        load_family(folder)


def test_tokens_that_take_the_spaces_beside_them_are_refused(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<hungry>", special=True, lstrip=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelCorrupt, match="<hungry>"):
        load_family(folder)


def test_a_tokenizer_without_the_token_around_pictures_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<fake_token_around_image>", "<something_else>"))
    with pytest.raises(ModelCorrupt, match="<fake_token_around_image>"):
        load_family(folder)


def _without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def test_a_missing_template_is_named(folder: Path) -> None:
    _without_template(folder)
    with pytest.raises(ModelCorrupt, match=r"chat_template\.jinja"):
        load_family(folder)


def test_a_template_that_is_no_template_is_a_template_error(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(TemplateError):
        load_family(folder)


def test_a_template_that_is_no_text_is_named(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelCorrupt, match=r"chat_template\.jinja"):
        load_family(folder)


NAMED = [{"name": "tools", "template": "no"}, {"name": "default", "template": CHAT_TEMPLATE}]


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("chat_template.json", CHAT_TEMPLATE),
        ("processor_config.json", CHAT_TEMPLATE),
        ("tokenizer_config.json", CHAT_TEMPLATE),
        ("tokenizer_config.json", NAMED),
    ],
)
def test_the_template_may_live_in_any_of_its_four_places(
    folder: Path, cases: dict[str, Case], name: str, template: Any
) -> None:
    _without_template(folder)
    path = folder / name
    if not path.exists():
        path.write_text("{}")
    edit(path, lambda c: c.update(chat_template=template))
    turns = [Turn("user", ("Hello!",))]
    assert load_family(folder).render(turns).parts == cases["smolvlm"].family.render(turns).parts


def test_the_template_file_comes_first(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda c: c.update(chat_template="old"))
    (folder / "chat_template.json").write_text('{"chat_template": "older"}')
    (folder / "chat_template.jinja").write_text("new")
    family = load_family(folder)
    ids = ids_of(family.render([Turn("user", ("x",))]), 0)
    assert family.tokenizer.decode(ids) == "new"


def test_only_what_is_needed_must_be_there(folder: Path) -> None:
    for name in (
        "processor_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
    ):
        (folder / name).unlink()
    family = load_family(folder)
    end = family.tokenizer.token_to_id("<end_of_utterance>")
    assert family.stop_ids == {end}


def test_stop_ids_come_from_every_file_that_names_them(folder: Path) -> None:
    edit(folder / "generation_config.json", lambda c: c.update(eos_token_id=[0, 2]))
    edit(
        folder / "tokenizer_config.json",
        lambda c: c.update(eos_token={"content": "<|im_start|>", "special": True}),
    )
    family = load_family(folder)
    end = family.tokenizer.token_to_id("<end_of_utterance>")
    assert family.stop_ids == {0, 1, 2, end}


def test_a_model_that_never_stops_is_refused(folder: Path) -> None:
    tokenizer_file = folder / "tokenizer.json"
    text = tokenizer_file.read_text().replace("<end_of_utterance>", "<the_end>")
    tokenizer_file.write_text(text)
    edit(folder / "generation_config.json", lambda c: c.pop("eos_token_id"))
    with pytest.raises(ModelCorrupt, match="ends an answer"):
        load_family(folder)


def test_finding_a_family_loads_no_other() -> None:
    program = (
        "import sys, edgevlm.families;"
        "print([m for m in ('jinja2', 'PIL', 'edgevlm.families.smolvlm', 'edgevlm.families.tiny')"
        " if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
