"""The Core ML runtime against transformers on CPU, the saved packages run by the interpreter.

Packages compute at 16 bits, transformers at 32: of logits with a deviation of 3, none is
further than 0.03. At every one of 64 greedy steps the token is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from coreml_factory import CoreMLParts
from smolvlm_factory import load_reference, make_random_model
from test_onnx_parity import CONFIGURATIONS, CONVERSATIONS, SINGLE_TURNS, STEPS, Reference

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.models.coreml_export import export_coreml

LOGITS = 0.03
EMBEDDINGS = 0.01  # of embeddings with a deviation of 1


@pytest.fixture(scope="module", params=["smolvlm", "idefics3"])
def reference(
    request: pytest.FixtureRequest, smolvlm_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reference]:
    folder = smolvlm_source
    if request.param == "idefics3":
        folder = tmp_path_factory.mktemp("source")
        make_random_model(folder, seed=4, **CONFIGURATIONS["idefics3"])
    with pytest.MonkeyPatch.context() as patch:
        # The processor of SmolVLM2 wants it for videos.
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        yield Reference(folder)


@pytest.fixture(scope="module")
def ours(
    reference: Reference,
    smolvlm_source: Path,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> CoreMLParts:
    source = reference.case.folder
    if source == smolvlm_source:
        return CoreMLParts(request.getfixturevalue("smolvlm_coreml"))
    target = tmp_path_factory.mktemp("converted")
    export_coreml(source, target, bits=16, context_length=1024)
    return CoreMLParts(target)


def assert_agrees(
    ours: CoreMLParts, context: PrefixContext, prompt: Prompt, reference: Reference, name: str
) -> int:
    """Answer, compare, and return how many positions were kept."""
    ids, logits, kept = ours.answer(context, prompt, STEPS)
    expected = reference.answer(name)
    assert ids == expected.ids
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=LOGITS)
    return kept


def test_embeddings_of_a_tiled_image(ours: CoreMLParts, reference: Reference) -> None:
    (image,) = ours.prompt(CONVERSATIONS["a tiled image"]).images
    found = ours.vision.encode(image, Cancel())
    assert (found.dtype, len(found)) == (np.float32, image.n_tokens)
    with torch.no_grad():
        model = load_reference(reference.case.folder).model
        features = model.get_image_features(torch.from_numpy(image.pixel_values)[None])
    rows = torch.cat(list(features.pooler_output)).reshape(found.shape).numpy()
    assert rows.std() > 0.3
    np.testing.assert_allclose(found, rows, rtol=0, atol=EMBEDDINGS)


@pytest.mark.parametrize("name", SINGLE_TURNS)
def test_64_steps(ours: CoreMLParts, reference: Reference, name: str) -> None:
    prompt = ours.prompt(CONVERSATIONS[name])
    if name == "a tiled image":
        assert len(prompt.images[0].pixel_values) > 4
    assert assert_agrees(ours, ours.context(), prompt, reference, name) == 0


def test_a_follow_up_on_what_is_kept(ours: CoreMLParts, reference: Reference) -> None:
    context = ours.context()
    first = ours.prompt(CONVERSATIONS["a tiled image"])
    ours.answer(context, first, STEPS)
    encoded = ours.encoded
    second = ours.prompt(CONVERSATIONS["a follow-up"])
    kept = assert_agrees(ours, context, second, reference, "a follow-up")
    assert ours.encoded == encoded
    assert kept >= first.length - 1 > first.image_tokens


def test_another_picture_keeps_only_what_comes_before_it(
    ours: CoreMLParts, reference: Reference
) -> None:
    context = ours.context()
    ours.answer(context, ours.prompt(CONVERSATIONS["a tiled image"]), STEPS)
    prompt = ours.prompt(CONVERSATIONS["another tiled image"])
    kept = assert_agrees(ours, context, prompt, reference, "another tiled image")
    assert kept < prompt.length / 2
