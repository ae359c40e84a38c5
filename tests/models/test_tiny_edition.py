"""A copy assembled by an older EdgeVLM is rebuilt only when the catalog's `edition` rises."""

from __future__ import annotations

import hashlib

from edgevlm.adapters.catalog import packs
from edgevlm.adapters.manifest import manifest_of
from edgevlm.models.catalog import load_catalog
from edgevlm.models.tiny import SHIPPED

# SHA-256 over the shipped parts, for each edition that was made. When this test fails, raise
# `edition` of edgevlm-tiny in catalog.toml and add its line; never change a released one.
EDITIONS = {
    1: "d80018c10dc773e445b4c159d7545ea55284b72fdf1608821aa460e6f57b42a3",
    2: "0554b58efc8e2a4e9747443bc6786ac31081520cde9d7dbc5af31715ff873b88",
    3: "6bf07d0a2957c2d37360cadad070d2dfed608d394d05ec997a56a6496fe29692",
    4: "f13045f38395b819297bb56e5bb881872aa6dff224d9034b978e7d12f091c7af",
    5: "c5c75dfeaffa1c11d448892a5a7db44fdc4dffb08d5aa2be57a21b7eceab137d",
}


def test_other_parts_are_another_edition() -> None:
    digest = hashlib.sha256()
    for path in sorted(SHIPPED.iterdir()):
        digest.update(path.name.encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    placements = load_catalog().entries["edgevlm-tiny"].runtimes
    assert {EDITIONS[files.edition] for files in placements.values()} == {digest.hexdigest()}


def test_the_packs_that_ship_were_trained_on_the_edition_that_ships() -> None:
    edition = load_catalog().entries["edgevlm-tiny"].edition
    bases = [base for pack in packs().values() for base in manifest_of(pack).bases]
    assert {base.edition for base in bases if base.name == "edgevlm-tiny"} <= {edition}
