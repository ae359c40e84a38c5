"""What a run leaves behind: a folder that `edgevlm adapter install` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from torch import Tensor

from edgevlm.adapters.base import Base
from edgevlm.adapters.manifest import (
    MANIFEST_NAME,
    AdapterFile,
    DeclaredBase,
    Manifest,
    write_manifest,
)
from edgevlm.adapters.peft import WEIGHTS_NAME, read_peft
from edgevlm.adapters.peft_config import CONFIG_NAME
from edgevlm.adapters.plan import files_in
from edgevlm.adapters.training.recipe import Recipe
from edgevlm.adapters.training.report import Report
from edgevlm.adapters.training.state import write_tensors
from edgevlm.models.disk import disk_errors, write_atomically
from edgevlm.models.receive import hash_file

CARD_NAME = "README.md"


def write_pack(
    recipe: Recipe,
    base: Base,
    report: Report,
    config: LoraConfig,
    tensors: Mapping[str, Tensor],
) -> None:
    """Write the pack into `recipe.out`; a card that is there stays as it is.

    The manifest is last, so that a pack that was cut short is refused. Raises NoSpace,
    ModelUnavailable where the folder can't be written, and what `read_peft` raises.
    """
    folder = recipe.out
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS_NAME, tensors)
        write_atomically(folder / CONFIG_NAME, _config_json(config, base))
        if not (folder / CARD_NAME).exists():
            write_atomically(folder / CARD_NAME, _card(recipe, base, report))
        read_peft(folder, name=recipe.name)
        write_manifest(folder, _manifest(recipe, base))


def _config_json(config: LoraConfig, base: Base) -> str:
    fields: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    fields |= {"base_model_name_or_path": base.name, "inference_mode": True}
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in fields.items()}
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def _manifest(recipe: Recipe, base: Base) -> Manifest:
    folder = recipe.out
    found = {path: hash_file(folder / path) for path in files_in(folder) if path != MANIFEST_NAME}
    return Manifest(
        name=recipe.name,
        version=recipe.version,
        title=recipe.title or recipe.name,
        description=recipe.description or "Trained with `edgevlm adapter train`.",
        licence=recipe.license,
        bases=(DeclaredBase(base.name, base.fingerprint, base.edition),),
        files={path: AdapterFile(file.size, file.sha256) for path, file in found.items()},
        system=recipe.system or None,
        notice=recipe.notice or None,
    )


def _card(recipe: Recipe, base: Base, report: Report) -> str:
    trained = f"rank {recipe.rank}, alpha {recipe.alpha:g}, {recipe.targets}"
    rows = {
        "base": base.described,
        "adapter": f"LoRA, {trained}",
        "examples": f"{report.examples}, and {report.held_out} kept apart to evaluate",
        "pictures": report.pictures,
        "steps": f"{report.steps} of {recipe.batch} examples, learning rate {recipe.lr:g}",
        "loss at the end": f"{report.loss:.3f} nats for each answer token",
    }
    if report.eval_loss is not None:
        rows["evaluation"] = (
            f"{report.eval_loss:.3f}, at step {report.best_step};"
            f" the base {report.base_eval_loss:.3f}"
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {recipe.title or recipe.name}\n\n{recipe.description or 'What it is for.'}\n\n"
        "## What it is not for\n\nNot said yet.\n\n## How it was made\n\n"
        f"With `edgevlm adapter train`, on data that is not described yet.\n\n"
        f"| | |\n|---|---|\n{table}\n\nLicence: {recipe.license}\n"
    )
