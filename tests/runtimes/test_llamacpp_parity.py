"""llama.cpp against transformers on CPU, as the ONNX runtime is held to it.

At every one of 64 greedy steps the token is the same. No logit of a text is further than
`TEXT`; with pictures `PICTURES`, as ggml looks GELU up in a table of 16-bit numbers, which
alone puts the embeddings 1e-3 away (their standard deviation is 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf_factory import make_gguf
from llamacpp_parts import LlamaCppParts
from smolvlm_factory import make_random_model
from test_onnx_parity import CONFIGURATIONS, CONVERSATIONS, SINGLE_TURNS, STEPS, Reference

from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt

# Of a seed at which no step is a tie within that tolerance.
SEED = 5
TEXT, PICTURES = 1e-4, 5e-3


@pytest.fixture(scope="module", params=list(CONFIGURATIONS))
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("source")
    make_random_model(folder, seed=SEED, **CONFIGURATIONS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        # The processor of SmolVLM2 wants it for videos.
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        yield Reference(folder)


@pytest.fixture(scope="module")
def ours(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> LlamaCppParts:
    folder: Path = tmp_path_factory.mktemp("exported")
    make_gguf(reference.case.folder, folder)
    return LlamaCppParts(folder)


def assert_agrees(
    ours: LlamaCppParts, context: PrefixContext, prompt: Prompt, reference: Reference, name: str
) -> int:
    """Answer, compare, and return how many positions were kept."""
    ids, logits, kept = ours.answer(context, prompt, STEPS)
    expected = reference.answer(name)
    assert ids == expected.ids
    tolerance = PICTURES if prompt.images else TEXT
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=tolerance)
    return kept


@pytest.mark.parametrize("name", SINGLE_TURNS)
def test_64_steps(ours: LlamaCppParts, reference: Reference, name: str) -> None:
    prompt = ours.prompt(CONVERSATIONS[name])
    if name == "a tiled image":
        assert len(prompt.images[0].pixel_values) > 4
    assert assert_agrees(ours, ours.context(), prompt, reference, name) == 0


def test_a_follow_up_on_what_is_kept(ours: LlamaCppParts, reference: Reference) -> None:
    context = ours.context()
    first = ours.prompt(CONVERSATIONS["a tiled image"])
    ours.answer(context, first, STEPS)
    encoded = ours.encoded
    second = ours.prompt(CONVERSATIONS["a follow-up"])
    kept = assert_agrees(ours, context, second, reference, "a follow-up")
    assert ours.encoded == encoded
    assert kept >= first.length - 1 > first.image_tokens


def test_another_picture_keeps_only_what_comes_before_it(
    ours: LlamaCppParts, reference: Reference
) -> None:
    context = ours.context()
    ours.answer(context, ours.prompt(CONVERSATIONS["a tiled image"]), STEPS)
    prompt = ours.prompt(CONVERSATIONS["another tiled image"])
    kept = assert_agrees(ours, context, prompt, reference, "another tiled image")
    assert kept < prompt.length / 2
