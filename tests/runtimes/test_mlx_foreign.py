"""MLX folders of families that have no file here, against transformers: Qwen2.5-VL, whose
pictures have positions of their own, and LLaVA."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_factory import OPTIONS, mlx_files
from mlx_foreign import LLAVA_SIDE, Foreign, make_llava, make_qwen25vl
from numpy.typing import NDArray
from PIL import Image

from edgevlm import Session
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import ImageInput, Prompt
from edgevlm.errors import Interrupted, ModelCorrupt, TemplateError, UsageError
from edgevlm.families.base import BringsFamily, Turn
from edgevlm.runtimes import get_runtime, mlx_loading
from edgevlm.runtimes.mlx_decoder import MlxLanguageModel

MAKERS = {"qwen2_5_vl": make_qwen25vl, "llava": make_llava}
Said = Sequence[tuple[str, Sequence[str | ImageInput]]]


class Ours:
    """Both parts of a folder on MLX, and the family that comes with them."""

    def __init__(self, foreign: Foreign) -> None:
        files = mlx_files(foreign.folder)
        runtime = get_runtime("mlx")
        self.language = runtime.load_language(files, OPTIONS)
        self.vision = runtime.load_vision(files, OPTIONS)
        assert isinstance(self.vision, BringsFamily)
        self.family = self.vision.own_family(files)
        self.encoded = 0

    def prompt(self, turns: Said) -> Prompt:
        return self.family.render([Turn(role, tuple(parts)) for role, parts in turns])  # type: ignore[arg-type]

    def prefill(self, context: PrefixContext, prompt: Prompt) -> tuple[Any, int]:
        def embed(index: int) -> Any:
            self.encoded += 1
            return self.vision.encode(prompt.images[index], Cancel())

        return context.prefill(prompt, embed, Cancel())

    def context(self) -> PrefixContext:
        return PrefixContext(self.language.new_context())


@pytest.fixture(scope="module", params=list(MAKERS))
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def ours(foreign: Foreign) -> Ours:
    return Ours(foreign)


def picture(foreign: Foreign, seed: int) -> NDArray[np.uint8]:
    """Of a size that the processor leaves as it is: resizing is another subject."""
    width, height = ((168, 112), (84, 140), (56, 56))[seed % 3]
    if foreign.begin:
        width = height = LLAVA_SIDE
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return coarse[np.arange(height) * 5 // height][:, np.arange(width) * 7 // width]


@pytest.fixture
def halved(foreign: Foreign, tmp_path: Path) -> Path:
    """The folder with its weights in bfloat16."""
    folder = Path(shutil.copytree(foreign.folder, tmp_path / "halved"))
    weights = {
        name: array.astype(mx.bfloat16)
        for name, array in mx.load(str(folder / "model.safetensors")).items()
    }
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def test_pictures_do_not_widen_a_model_of_16_bits(
    foreign: Foreign, ours: Ours, halved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU all layers, and the cache, would take twice as long for them."""
    monkeypatch.setattr(mlx_loading, "on_metal", lambda: True)
    narrow = MlxLanguageModel(mlx_files(halved), OPTIONS)
    image = ours.family.preprocess(picture(foreign, 0))
    prompt = ours.prompt([("user", (image, "What is it?"))])
    context = narrow.new_context()
    PrefixContext(context).prefill(
        prompt, lambda index: ours.vision.encode(prompt.images[index], Cancel()), Cancel()
    )
    assert context._cache is not None
    assert {layer.keys.dtype for layer in context._cache.layers} == {mx.bfloat16}


def near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("n_images", [0, 1, 3])
def test_16_greedy_steps(ours: Ours, foreign: Foreign, n_images: int) -> None:
    pictures = [picture(foreign, seed) for seed in range(n_images)]
    images = [ours.family.preprocess(pixels) for pixels in pictures]
    asked = ["What is it? "] + [part for image in images for part in (image, "and ")]
    context = ours.context()
    logits, kept = ours.prefill(context, ours.prompt([("user", [*asked, "why?"])]))
    ids, rows = [], [logits]
    for _ in range(16):
        ids.append(int(rows[-1].argmax()))
        rows.append(context.extend(ids[-1], Cancel()))
    text = foreign.write([("user", "What is it? " + "{}and " * n_images + "why?")])
    expected = foreign.logits(text, pictures, ids)
    near(rows, expected)
    assert ids == [int(row.argmax()) for row in expected[:-1]]
    assert kept == 0


def test_a_follow_up_keeps_the_picture_and_another_picture_does_not(
    ours: Ours, foreign: Foreign
) -> None:
    pixels = picture(foreign, 0)
    image = ours.family.preprocess(pixels)
    context = ours.context()
    first: Said = [("user", [image, "What is it?"])]
    ours.prefill(context, ours.prompt(first))
    encoded = ours.encoded
    second: Said = [*first, ("assistant", ["A bus."]), ("user", ["Is it red?"])]
    prompt = ours.prompt(second)
    logits, kept = ours.prefill(context, prompt)
    assert ours.encoded == encoded
    assert kept > prompt.image_tokens
    tail = [("assistant", "A bus."), ("user", "Is it red?")]
    near([logits], foreign.logits(foreign.write([("user", "{}What is it?"), *tail]), [pixels]))
    other = picture(foreign, 3)
    changed: Said = [("user", [ours.family.preprocess(other), "What is it?"]), *second[1:]]
    logits, kept = ours.prefill(context, ours.prompt(changed))
    assert kept < 20
    near([logits], foreign.logits(foreign.write([("user", "{}What is it?"), *tail]), [other]))


def test_text_never_turns_into_a_picture(ours: Ours, foreign: Foreign) -> None:
    image_id = foreign.reference.config.image_token_id
    [ids] = ours.prompt([("user", [f"Look: {foreign.picture} <s>"])]).parts
    assert image_id not in ids
    assert ours.family.tokenizer.decode(list(ids)).count(foreign.picture) == 1


def test_a_cancelled_picture(ours: Ours, foreign: Foreign) -> None:
    image = ours.family.preprocess(picture(foreign, 1))
    cancel = Cancel()
    cancel.set()
    with pytest.raises(Interrupted):
        ours.vision.encode(image, cancel)
    features = ours.vision.encode(image, Cancel())
    assert features.shape == (image.n_tokens, ours.language.d_model)
    assert features.dtype == np.float32


def test_what_a_picture_costs(ours: Ours, foreign: Foreign) -> None:
    pixels = np.zeros((600, 900, 3), np.uint8)
    usual = ours.family.preprocess(pixels)
    low = ours.family.preprocess(pixels, "low")
    if foreign.begin:
        assert usual.n_tokens == low.n_tokens == (LLAVA_SIDE // 14) ** 2
        with pytest.raises(UsageError, match="at least 16 tokens"):
            ours.family.preprocess(pixels, budget=15)
        return
    assert usual.n_tokens > low.n_tokens > 64
    assert 32 < ours.family.preprocess(pixels, budget=64).n_tokens <= 64
    assert usual.key != low.key


def test_a_picture_of_another_family_is_refused(ours: Ours) -> None:
    strange = ImageInput(np.zeros((1, 3, 8, 8), np.float32), None, (0, 0), 4, "key")
    with pytest.raises(TemplateError, match="another model"):
        ours.prompt([("user", [strange, "?"])])


def test_a_session_answers(foreign: Foreign) -> None:
    photo = Image.fromarray(picture(foreign, 0))
    with Session(str(foreign.folder), runtime="mlx") as session:
        reply = session.ask("What is it?", images=[photo], max_tokens=4)
        again = session.ask("And now?", max_tokens=4)
    assert reply.runtime == {"vision": "mlx", "language": "mlx"}
    assert reply.usage.image_tokens > 0
    assert again.usage.cached_tokens > reply.usage.image_tokens


def test_code_beside_the_weights_is_never_run(foreign: Foreign, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(foreign.folder, folder)
    auto_map = {
        "AutoProcessor": "evil.Evil",
        "AutoImageProcessor": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        "AutoConfig": "evil.Evil",
    }
    (folder / "evil.py").write_text("raise SystemExit('code of the checkpoint was run')\n")
    for path in folder.glob("*config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    try:
        ours = Ours(Foreign(folder, None, foreign.begin, foreign.picture))
    except ModelCorrupt as error:
        assert "does not work" in error.message  # noqa: PT017
    else:
        ours.family.preprocess(picture(foreign, 0))


def test_it_needs_neither_torch_nor_torchvision(foreign: Foreign, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(picture(foreign, 0)).save(photo)
    code = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
from edgevlm import Session
with Session({str(foreign.folder)!r}, runtime="mlx") as session:
    print(session.ask("What is it?", images=[{str(photo)!r}], max_tokens=2).usage.image_tokens)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) > 0
    assert found.stderr == ""


def test_files_of_pictures_that_are_broken(foreign: Foreign, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(foreign.folder, folder)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text('{"patch_size": "many", "size": []}')
    with pytest.raises(ModelCorrupt, match="processor"):
        Ours(Foreign(folder, None, "", ""))
