"""`edgevlm.json` is written and read back whole, and a plain PEFT folder does without."""

from __future__ import annotations

import json
from pathlib import Path

from lora_factory import SMALL, write_peft

from edgevlm.adapters.manifest import (
    MANIFEST_NAME,
    AdapterFile,
    DeclaredBase,
    Manifest,
    manifest_of,
    read_manifest,
    write_manifest,
)
from edgevlm.adapters.peft import WEIGHTS_NAME
from edgevlm.adapters.peft_config import CONFIG_NAME

WHOLE = Manifest(
    name="medical",
    version="1.20.3",
    title="Médical terms",
    description="Names anatomy.\nIs not a diagnosis.",
    licence="CC-BY-4.0",
    bases=(DeclaredBase("edgevlm-tiny", "0123456789abcdef", 4), DeclaredBase("owner/model")),
    files={
        CONFIG_NAME: AdapterFile(871, "0" * 64),
        WEIGHTS_NAME: AdapterFile(4884488, "a" * 64),
        "card/README.md": AdapterFile(0, "b" * 64),
    },
    system="Answer in clinical terms.",
    scale=0.8,
    notice="Not a diagnosis.",
    calibration={"temperature": 1.5, "bins": [0.1, 0.2]},
)


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, WHOLE)
    assert read_manifest(tmp_path / MANIFEST_NAME) == WHOLE
    assert manifest_of(tmp_path, "another") == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_what_may_be_missing_is_not_written(tmp_path: Path) -> None:
    short = Manifest("a", "0.0.1", "A", "B", "MIT", files=dict(WHOLE.files))
    write_manifest(tmp_path, short)
    fields = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert not fields.keys() & {"system", "scale", "notice", "calibration"}
    assert read_manifest(tmp_path / MANIFEST_NAME) == short


def test_a_plain_peft_folder_has_the_name_of_its_folder(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "My LoRA_v2", SMALL, base="owner/model")
    manifest = manifest_of(folder)
    assert manifest == Manifest(
        "my-lora-v2", "0.0.0", "my-lora-v2", "", "unknown", (DeclaredBase("owner/model"),)
    )
    assert manifest_of(folder, "other").name == "other"
    assert manifest_of(write_peft(tmp_path / "...", SMALL, base=None)).name == "adapter"
    assert manifest_of(tmp_path / "...").bases == ()
