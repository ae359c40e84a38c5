"""Every runtime with an adapter answers as PEFT's own merged weights do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import coreml_interpreter
import numpy as np
import pytest
from numpy.typing import NDArray
from peft_reference import PeftReference

from edgevlm.adapters.peft import read_peft
from edgevlm.engine.adapter import Adapters
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles, Runtime, adaptable
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.errors import NotSupported
from edgevlm.families import load_family
from edgevlm.families.base import Turn
from edgevlm.models.layouts import discover
from edgevlm.runtimes import get_runtime

# How far logits with a deviation of 3 may be off at most, and as the root of the mean square.
# Core ML computes at 16 bits, which have steps of 0.008 above 8: its base is 0.016 off.
PARITY = {
    "onnx": (1e-3, 1e-3),
    "llamacpp": (1e-3, 1e-3),
    "mlx": (1e-3, 1e-3),
    "coreml": (5e-2, 1e-2),
}
# All that are linear in the decoder.
DECODER = {"target_modules": "all-linear", "exclude_modules": r".*(vision_model|connector)\..*"}
PLAIN = {"r": 8, "lora_alpha": 16, **DECODER}
PATTERNS = {
    **DECODER,
    "r": 16,
    "lora_alpha": 24,
    "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 4, "up_proj": 2, "down_proj": 24},
    "alpha_pattern": {"down_proj": 6, r".*layers\.0\..*v_proj": 40},
}
FEW = {"r": 16, "lora_alpha": 8, "target_modules": r".*text_model.*(q|down)_proj"}
WHOLE = "r8 all-linear, tower and connector too"
# Settings of each adapter, and its scale.
CASES: Mapping[str, list[tuple[dict[str, Any], float]]] = {
    "r8 all-linear": [(PLAIN, 1.0)],
    "r16 with patterns": [(PATTERNS, 1.0)],
    "rsLoRA": [({**PLAIN, "r": 12, "rank_pattern": {"v_proj": 3}, "use_rslora": True}, 1.0)],
    "two with scales": [(PLAIN, 0.8), ({**FEW, "use_rslora": True}, 0.5)],
    WHOLE: [({"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}, 1.0)],
}
# Behind the prompt, one by one, so that steps of decoding count too.
ANSWER = [105, 260, 107]
OPTIONS = LoadOptions(threads=1)

Logits = NDArray[Any]


@pytest.fixture(scope="module")
def reference(smolvlm_source: Path) -> PeftReference:
    return PeftReference(smolvlm_source)


@pytest.fixture(scope="module")
def prompts(smolvlm_source: Path) -> Mapping[str, Prompt]:
    family = load_family(smolvlm_source)
    picture = np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    question = "What is in this picture?"
    return {
        "text": family.render([Turn("user", (question,))]),
        "picture": family.render([Turn("user", (family.preprocess(picture), question))]),
    }


@pytest.fixture(scope="module")
def saved(
    reference: PeftReference, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Mapping[Path, float]]:
    folder = tmp_path_factory.mktemp("peft")
    return {
        case: {
            reference.save(folder / case / str(seed), seed=seed, **settings).folder: scale
            for seed, (settings, scale) in enumerate(adapters)
        }
        for case, adapters in CASES.items()
    }


@pytest.fixture(scope="module")
def merged(
    reference: PeftReference, saved: Mapping[str, Mapping[Path, float]]
) -> Callable[[str], Any]:
    """PEFT's merged model of a case."""
    return cache(lambda case: reference.merged(saved[case]))


@dataclass
class Running:
    """A model on a runtime."""

    files: ModelFiles
    runtime: Runtime
    language: LanguageModel

    def assert_near(self, found: Logits, expected: Logits) -> None:
        most, root_mean_square = PARITY[self.runtime.name]
        np.testing.assert_allclose(found, expected, rtol=0, atol=most)
        assert np.sqrt(np.square(found - expected).mean()) < root_mean_square


@pytest.fixture(scope="module", params=PARITY)
def running(request: pytest.FixtureRequest, smolvlm_everywhere: Path) -> Iterator[Running]:
    runtime = get_runtime(request.param)
    apart = request.param == "coreml"
    folder = request.getfixturevalue("smolvlm_coreml") if apart else smolvlm_everywhere
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    roles = discover(paths, request.param, "random").roles
    files = ModelFiles("random", folder, {role: folder / path for role, path in roles.items()})
    with pytest.MonkeyPatch.context() as patch:
        if apart:
            coreml_interpreter.install(patch)
        language = runtime.load_language(files, OPTIONS)
    yield Running(files, runtime, language)
    language.close()


class Answers:
    """The logits of one context, whose pictures come from elsewhere: a tower has a test of its
    own."""

    def __init__(self, language: LanguageModel, prompt: Prompt, pictures: list[Logits]) -> None:
        self._context = PrefixContext(language.new_context())
        self._prompt, self._pictures = prompt, pictures

    def __call__(self, adapters: Adapters) -> Logits:
        """[1 + len(ANSWER), n_vocab]"""
        self._context.use_adapters(adapters)
        first, _ = self._context.prefill(self._prompt, self._pictures.__getitem__, Cancel())
        return np.stack([first, *(self._context.extend(token, Cancel()) for token in ANSWER)])

    def close(self) -> None:
        self._context.close()


@pytest.mark.parametrize("name", ["text", "picture"])
@pytest.mark.parametrize("case", CASES)
def test_as_if_peft_had_merged_them(
    running: Running,
    reference: PeftReference,
    saved: Mapping[str, Mapping[Path, float]],
    merged: Callable[[str], Any],
    prompts: Mapping[str, Prompt],
    case: str,
    name: str,
) -> None:
    prompt, model = prompts[name], merged(case)
    answers = Answers(running.language, prompt, reference.pictures(model, prompt))
    base = answers({})
    adapters = {
        running.language.load_adapter(read_peft(folder, name=folder.name)): scale
        for folder, scale in saved[case].items()
    }
    found, expected = answers(adapters), reference.logits(model, prompt, ANSWER)
    running.assert_near(found, expected)
    assert np.abs(found - base).max() > 0.5
    # Removed, nothing of them is left.
    np.testing.assert_array_equal(answers({}), base)
    np.testing.assert_array_equal(answers(adapters), found)
    answers.close()
    for adapter in adapters:
        adapter.close()


def test_a_tower_sees_as_if_peft_had_merged_them(
    running: Running,
    reference: PeftReference,
    saved: Mapping[str, Mapping[Path, float]],
    merged: Callable[[str], Any],
    prompts: Mapping[str, Prompt],
) -> None:
    ((folder, scale),) = saved[WHOLE].items()
    lora, prompt = read_peft(folder, name="whole"), prompts["picture"]
    (image,), (expected,) = prompt.images, reference.pictures(merged(WHOLE), prompt)
    with pytest.MonkeyPatch.context() as patch:
        if running.runtime.name == "coreml":
            coreml_interpreter.install(patch)
        vision = running.runtime.load_vision(running.files, OPTIONS)
    if running.runtime.name in ("llamacpp", "coreml"):
        with pytest.raises(NotSupported, match="whole changes the vision tower"):
            adaptable(vision, lora.name)
    else:
        base, tower = vision.encode(image, Cancel()), adaptable(vision, lora.name)
        adapter = tower.load_adapter(lora)
        found = tower.encode_with(image, {adapter: scale}, Cancel())
        running.assert_near(found, expected)
        assert np.abs(found - base).max() > 0.5
        np.testing.assert_array_equal(vision.encode(image, Cancel()), base)
        adapter.close()
    vision.close()
