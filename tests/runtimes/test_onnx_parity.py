"""The ONNX runtime against transformers on CPU, which uses its own processor and `generate`.

Random-weight models of both configurations, exported with each kind of attention, answer
greedily: at every one of 64 steps the token is the same and no logit further than 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from smolvlm_factory import Dims, load_reference, make_random_model
from smolvlm_reference import Case, Conversation, Pixels, make_case, reference_inputs

from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import Embeddings, LoadOptions, ModelFiles
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.families.base import Turn
from edgevlm.models.onnx_export import export_onnx
from edgevlm.runtimes.onnx_decoder import OnnxLanguageModel
from edgevlm.runtimes.onnx_vision import OnnxVisionEncoder

STEPS = 64
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "smolvlm": {"variant": "smolvlm"},
    "idefics3": {
        "variant": "idefics3",
        "image_size": 32,
        "longest_edge": 128,
        "dims": Dims(
            layers=3,
            hidden=96,
            intermediate=160,
            heads=6,
            kv_heads=3,
            vision_layers=1,
            vision_hidden=48,
            vision_intermediate=96,
            vision_heads=3,
        ),
    },
}
ROLES = {
    "vision_encoder": "onnx/vision_encoder.onnx",
    "embed_tokens": "onnx/embed_tokens.onnx",
    "decoder": "onnx/decoder_model_merged.onnx",
}


def picture(seed: int, width: int, height: int) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 7 // width
    return coarse[rows][:, columns]


CONVERSATIONS: dict[str, Conversation] = {
    "text only": [("user", ["What is a picture?"])],
    "one image": [("user", [picture(0, 60, 60), "What is in this picture?"])],
    "three images": [
        (
            "user",
            [
                *("Compare", picture(1, 30, 30), "with", picture(2, 64, 20)),
                *("and", picture(3, 20, 50), ": which one is red?"),
            ],
        )
    ],
    "a tiled image": [("user", [picture(4, 300, 170), "Describe this image."])],
}
SINGLE_TURNS = list(CONVERSATIONS)
CONVERSATIONS["a follow-up"] = [
    *CONVERSATIONS["a tiled image"],
    ("assistant", ["The picture shows a red bus."]),
    ("user", ["And what colour is the cat?"]),
]
CONVERSATIONS["another tiled image"] = [("user", [picture(9, 300, 170), "Describe this image."])]


@dataclass
class Answer:
    """Ids [STEPS] and the logits [STEPS, n_vocab] that they were chosen from."""

    ids: list[int]
    logits: NDArray[np.float32]


class Reference:
    """transformers: the processor of a folder, and its model or another."""

    def __init__(self, folder: Path, model: Any = None) -> None:
        self.case: Case = make_case(folder)
        self._model = model or load_reference(folder)
        self._model.generation_config.eos_token_id = None
        self._answers: dict[str, Answer] = {}

    def answer(self, name: str) -> Answer:
        if name not in self._answers:
            self._answers[name] = self._generate(CONVERSATIONS[name])
        return self._answers[name]

    @torch.no_grad()
    def _generate(self, conversation: Conversation) -> Answer:
        ids, tiles = reference_inputs(self.case.reference, conversation)
        pictures = {} if tiles is None else {"pixel_values": torch.from_numpy(tiles)[None]}
        generated = self._model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=STEPS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **pictures,
        )
        chosen = generated.sequences[0, len(ids) :].tolist()
        return Answer(chosen, torch.cat(generated.logits).numpy())


class Ours:
    """The ONNX runtime on an export of the same folder."""

    def __init__(self, folder: Path, attention: str, reference: Reference) -> None:
        export_onnx(reference.case.folder, folder, attention=attention)  # type: ignore[arg-type]
        self.attention = attention
        roles = {role: folder / path for role, path in ROLES.items()}
        files = ModelFiles("random", folder, roles)
        self.family = reference.case.family
        self.language = OnnxLanguageModel(files, LoadOptions(threads=2))
        self.vision = OnnxVisionEncoder(files, LoadOptions(threads=2))
        self.encoded = 0

    def prompt(self, name: str) -> Prompt:
        return self.family.render([self._turn(role, parts) for role, parts in CONVERSATIONS[name]])

    def answer(self, context: PrefixContext, prompt: Prompt) -> tuple[Answer, int]:
        """Decode greedily; also how many positions of the prompt were kept."""
        cancel = Cancel()

        def embed(index: int) -> Embeddings:
            self.encoded += 1
            return self.vision.encode(prompt.images[index], cancel)

        features = {index: embed(index) for index in sorted(context.needs(prompt))}
        logits, kept = context.prefill(prompt, features.__getitem__, cancel)
        ids, rows = [int(logits.argmax())], [logits]
        while len(ids) < STEPS:
            rows.append(context.extend(ids[-1], cancel))
            ids.append(int(rows[-1].argmax()))
        return Answer(ids, np.stack(rows)), kept

    def _turn(self, role: str, parts: Sequence[str | Pixels]) -> Turn:
        content = [p if isinstance(p, str) else self.family.preprocess(p) for p in parts]
        return Turn(role, tuple(content))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(CONFIGURATIONS))
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("source")
    make_random_model(folder, seed=3, **CONFIGURATIONS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        # The processor of SmolVLM2 wants it for videos.
        patch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", str)
        yield Reference(folder)


@pytest.fixture(scope="module", params=["plain", "gqa"])
def ours(
    request: pytest.FixtureRequest, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> Ours:
    return Ours(tmp_path_factory.mktemp("exported"), request.param, reference)


def assert_agree(answer: Answer, expected: Answer) -> None:
    assert len(expected.ids) == STEPS
    assert answer.ids == expected.ids
    np.testing.assert_allclose(answer.logits, expected.logits, rtol=0, atol=1e-3)


def test_fused_attention_writes_in_place(ours: Ours) -> None:
    assert ours.language.in_place is (ours.attention == "gqa")


@pytest.mark.parametrize("name", SINGLE_TURNS)
def test_64_steps(ours: Ours, reference: Reference, name: str) -> None:
    prompt = ours.prompt(name)
    answer, kept = ours.answer(PrefixContext(ours.language.new_context()), prompt)
    assert kept == 0
    if name == "a tiled image":
        assert len(prompt.images[0].pixel_values) > 4
    assert_agree(answer, reference.answer(name))


def test_a_follow_up_on_what_is_kept(ours: Ours, reference: Reference) -> None:
    context = PrefixContext(ours.language.new_context())
    first, second = ours.prompt("a tiled image"), ours.prompt("a follow-up")
    ours.answer(context, first)
    encoded = ours.encoded
    answer, kept = ours.answer(context, second)
    assert ours.encoded == encoded
    assert kept >= first.length - 1 > first.image_tokens
    assert_agree(answer, reference.answer("a follow-up"))


def test_another_picture_keeps_only_what_comes_before_it(ours: Ours, reference: Reference) -> None:
    context = PrefixContext(ours.language.new_context())
    ours.answer(context, ours.prompt("a tiled image"))
    prompt = ours.prompt("another tiled image")
    answer, kept = ours.answer(context, prompt)
    assert kept < prompt.length / 2
    assert_agree(answer, reference.answer("another tiled image"))
