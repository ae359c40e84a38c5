"""Adapter packs made from nothing: a small random PEFT folder with its `edgevlm.json`.

make_pack(tmp_path / "medical", version="1.1.0")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_factory import write_peft

from edgevlm.adapters.manifest import AdapterFile, DeclaredBase, Manifest, write_manifest
from edgevlm.models.receive import hash_file

# Seven linear modules of two small layers: an adapter of 14 kB.
SMALL: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def make_pack(
    folder: Path, *, name: str | None = None, version: str = "1.0.0", seed: int = 0, rank: int = 2
) -> Path:
    """Write a pack, called as its folder unless `name` says otherwise, and return the folder."""
    write_peft(folder, SMALL, rank=rank, seed=seed)
    (folder / "README.md").write_text(f"# Version {version}\n", encoding="utf-8")
    (folder / "train.toml").write_text("steps = 1\n", encoding="utf-8")
    seal(folder, name=name or folder.name, version=version)
    return folder


def seal(folder: Path, *, name: str, version: str = "1.0.0") -> None:
    """Write the `edgevlm.json` of the files that are there."""
    files = {}
    for path in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        found = hash_file(folder / path)
        files[path] = AdapterFile(found.size, found.sha256)
    write_manifest(
        folder,
        Manifest(
            name=name,
            version=version,
            title=f"All about {name}",
            description="Made for tests.",
            licence="CC0-1.0",
            bases=(DeclaredBase("edgevlm-tiny"),),
            files=files,
        ),
    )


def change_manifest(folder: Path, **fields: Any) -> None:
    """Write fields into `edgevlm.json` that nobody checks."""
    path = folder / "edgevlm.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, **fields}), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a pack as a repository of the hub has them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
