"""Trying a result, and the source that it must agree with.

The source answers as an ONNX graph of its weights at 32 bits, whatever the result's
runtime: our tests hold that graph to transformers within 1e-3 of every logit.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from edgevlm.engine.contract import ModelFiles
from edgevlm.errors import EdgeVLMError, ModelCorrupt
from edgevlm.models.convert.measure import (
    Rows,
    forced_logits,
    kl_divergence,
    top1_agreement,
)
from edgevlm.models.convert.recipe import Recipe
from edgevlm.models.convert.report import Check
from edgevlm.models.layouts import discover
from edgevlm.models.progress import Progress
from edgevlm.runtimes import get_runtime

# Rounding to 16 bits moved no distribution of the models tried by more than 1e-3 nats.
_MOST_AT_16_BITS = 0.01


def source_logits(source: Path, path: Path, progress: Progress) -> None:
    """Save the source's own logits float32 [n_tokens, n_vocab] on the fixed prompt set.

    Raises ModelCorrupt where they are no numbers.
    """
    from edgevlm.models.onnx_export import export_onnx

    folder = path.with_name("reference")
    shutil.rmtree(folder, ignore_errors=True)
    export_onnx(source, folder, decoder_bits=32, vision_bits=32)
    rows = _logits(folder, "onnx", "Asking the source ...", progress)
    if not np.isfinite(rows).all():
        raise ModelCorrupt(
            "The source's weights give logits that are no numbers.",
            hint="Fetch or train them again; there is nothing to convert in them.",
        )
    draft = path.with_suffix(".part.npy")
    np.save(draft, rows)
    draft.replace(path)
    shutil.rmtree(folder)


def check(folder: Path, recipe: Recipe, source: Rows, progress: Progress) -> Check:
    """Load the result and compare it with its source, or its files alone where its runtime
    can't run here. Raises ModelCorrupt for a result that is not its source any more."""
    reason = _unavailable(recipe.runtime)
    if reason is not None:
        discover(_paths(folder), recipe.runtime, "The result")
        return Check(reason=reason)
    found = _logits(folder, recipe.runtime, "Asking the result ...", progress)
    if found.shape != source.shape or not np.isfinite(found).all():
        raise _broken("it gives no logits, or others than there are tokens")
    divergence = float(kl_divergence(source, found).mean())
    if min(recipe.bits, recipe.vision_bits) >= 16 and divergence > _MOST_AT_16_BITS:
        raise _broken(f"at 16 bits its distributions are {divergence:.2g} nats from the source's")
    return Check(len(source), divergence, top1_agreement(source, found))


def _logits(folder: Path, runtime: str, label: str, progress: Progress) -> Rows:
    layout = discover(_paths(folder), runtime, str(folder))
    roles = {role: folder / path for role, path in layout.roles.items()}
    progress.note(label)
    return forced_logits(ModelFiles(folder.name, folder, roles), runtime)


def _unavailable(runtime: str) -> str | None:
    try:
        return get_runtime(runtime).unavailable()
    except EdgeVLMError as error:
        return error.message


def _paths(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def _broken(what: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"The converted model is not what its source is: {what}.",
        hint="Nothing was kept in its place. Please report the model and the versions.",
    )
