"""Every runtime with an adapter answers as PEFT's own merged weights do, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from peft_reference import PeftReference

from edgevlm.adapters.peft import read_peft
from edgevlm.engine.adapter import Adapters
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.contract import LanguageModel, LoadOptions, ModelFiles
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import Prompt
from edgevlm.families import load_family
from edgevlm.families.base import Turn
from edgevlm.models.layouts import discover
from edgevlm.runtimes import get_runtime

PARITY = 1e-3  # of logits with a deviation of 3
RUNTIMES = ("onnx", "llamacpp", "mlx")
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
# Settings of each adapter, and its scale.
CASES: Mapping[str, list[tuple[dict[str, Any], float]]] = {
    "r8 all-linear": [(PLAIN, 1.0)],
    "r16 with patterns": [(PATTERNS, 1.0)],
    "rsLoRA": [({**PLAIN, "use_rslora": True}, 1.0)],
    "two with scales": [(PLAIN, 0.8), ({**FEW, "use_rslora": True}, 0.5)],
}
# Behind the prompt, one by one, so that steps of decoding count too.
ANSWER = [105, 260, 107]

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
    reference: PeftReference,
    saved: Mapping[str, Mapping[Path, float]],
    prompts: Mapping[str, Prompt],
) -> Callable[[str, str], Logits]:
    model = cache(lambda case: reference.merged(saved[case]))
    return cache(lambda case, name: reference.logits(model(case), prompts[name], ANSWER))


@pytest.fixture(scope="module", params=RUNTIMES)
def language(request: pytest.FixtureRequest, smolvlm_everywhere: Path) -> Iterator[LanguageModel]:
    folder, runtime = smolvlm_everywhere, request.param
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    roles = discover(paths, runtime, "random").roles
    files = ModelFiles("random", folder, {role: folder / path for role, path in roles.items()})
    language = get_runtime(runtime).load_language(files, LoadOptions(threads=1))
    yield language
    language.close()


class Answers:
    """The logits of one context. The decoder gets its pictures from transformers, so that what
    is compared is what adapters change."""

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
    language: LanguageModel,
    reference: PeftReference,
    saved: Mapping[str, Mapping[Path, float]],
    merged: Callable[[str, str], Logits],
    prompts: Mapping[str, Prompt],
    case: str,
    name: str,
) -> None:
    answers = Answers(language, prompts[name], reference.pictures(prompts[name]))
    base = answers({})
    expected = reference.logits(reference.base, prompts[name], ANSWER)
    np.testing.assert_allclose(base, expected, rtol=0, atol=PARITY)
    adapters = {
        language.load_adapter(read_peft(folder, name=folder.name)): scale
        for folder, scale in saved[case].items()
    }
    found = answers(adapters)
    np.testing.assert_allclose(found, merged(case, name), rtol=0, atol=PARITY)
    assert np.abs(found - base).max() > 0.5
    # Removed, nothing of them is left.
    np.testing.assert_array_equal(answers({}), base)
    np.testing.assert_array_equal(answers(adapters), found)
    answers.close()
    for adapter in adapters:
        adapter.close()
