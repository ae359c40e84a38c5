"""Families that have no file here, through mtmd and the GGUF's own chat template, against
transformers on the same weights: Qwen2.5-VL (M-RoPE) and Gemma 3 (pictures attend in both
directions, windows of attention).

Pictures have a size that no preprocessing changes. `TOLERANCE`: ggml looks GELU up in a table
of 16-bit numbers, and Gemma has one in every layer; logits have a standard deviation of 1 to 3.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf_foreign
import numpy as np
import pytest
import torch
from gguf_foreign import GEMMA_SIDE, MERGE, PATCH, Foreign
from hub_server import HubServer
from numpy.typing import NDArray
from PIL import Image

from edgevlm import Session
from edgevlm.cli import run
from edgevlm.engine.cancel import Cancel
from edgevlm.engine.prefix import PrefixContext
from edgevlm.engine.prompt import ImageInput, ImageSlot, Prompt
from edgevlm.errors import ModelCorrupt, RuntimeFailed
from edgevlm.families.base import Turn
from edgevlm.model import load_model
from edgevlm.models.gguf_export.quantizer import quantize
from edgevlm.models.progress import Silent

TOLERANCE = 1e-2
STEPS = 6


class Case:
    """A model on llama.cpp, and what transformers makes of the same prompt."""

    def __init__(self, name: str, foreign: Foreign) -> None:
        self.is_qwen = name == "qwen"
        self.foreign = foreign
        self.model = load_model(str(foreign.folder), runtime="llamacpp")

    def picture(self, seed: int = 0) -> NDArray[np.uint8]:
        size = (4 * PATCH * MERGE, 5 * PATCH * MERGE) if self.is_qwen else (GEMMA_SIDE,) * 2
        return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)

    def prompt(self, *turns: Sequence[str | NDArray[np.uint8]]) -> Prompt:
        """Turns of the user and the assistant, one after the other."""
        roles = ("user", "assistant") * len(turns)
        family = self.model.family
        return family.render(
            [
                Turn(role, tuple(p if isinstance(p, str) else family.preprocess(p) for p in turn))
                for role, turn in zip(roles, turns, strict=False)
            ]
        )

    def prefill(self, context: PrefixContext, prompt: Prompt) -> tuple[Any, int]:
        def embed(index: int) -> Any:
            return self.model.embed(prompt.images[index], Cancel())

        return context.prefill(prompt, embed, Cancel())

    def context(self) -> PrefixContext:
        return PrefixContext(self.model.language.new_context())

    def answer(self, prompt: Prompt) -> tuple[list[int], Any]:
        """Greedy ids [STEPS] and the logits before each."""
        context = self.context()
        rows = [self.prefill(context, prompt)[0]]
        ids = [int(rows[0].argmax())]
        while len(ids) < STEPS:
            rows.append(context.extend(ids[-1], Cancel()))
            ids.append(int(rows[-1].argmax()))
        context.close()
        return ids, np.stack(rows)

    def expected(self, prompt: Prompt, answer: list[int], **changed: Any) -> Any:
        """transformers' logits at the end of the prompt and after each of `answer`."""
        soft = self.foreign.special["<|image_pad|>" if self.is_qwen else "<image_soft_token>"]
        ids: list[int] = []
        for part in prompt.parts:
            ids += [soft] * part.count if isinstance(part, ImageSlot) else list(part)
        ids += answer[:-1]
        kinds = torch.tensor([[int(id_ == soft) for id_ in ids]])
        inputs: dict[str, Any] = {}
        if prompt.images:
            pictures = [image.prepared.rgb for image in prompt.images]  # type: ignore[attr-defined]
            inputs = self._pixels(pictures)
            inputs["mm_token_type_ids" if self.is_qwen else "token_type_ids"] = kinds
        with torch.no_grad():
            given = {"input_ids": torch.tensor([ids])} | inputs | changed
            logits = self.foreign.reference(**given).logits[0]
        return logits[-len(answer) :].numpy()

    def _pixels(self, pictures: list[NDArray[np.uint8]]) -> dict[str, Any]:
        pixels = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if not self.is_qwen:
            return {"pixel_values": pixels}
        n, _, height, width = pixels.shape
        rows, columns = height // PATCH, width // PATCH
        shape = (n, 1, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
        # One row a patch, in squares of MERGE x MERGE; a still picture is two equal frames.
        patches = pixels.reshape(shape).expand(n, 2, *shape[2:]).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return {
            "pixel_values": patches.reshape(n * rows * columns, -1),
            "image_grid_thw": torch.tensor([[1, rows, columns]] * n),
        }


@pytest.fixture(scope="module", params=["qwen", "gemma"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    make = {"qwen": gguf_foreign.make_qwen25vl, "gemma": gguf_foreign.make_gemma3}[request.param]
    case = Case(request.param, make(tmp_path_factory.mktemp(request.param)))
    with case.model:
        yield case


@pytest.fixture
def encodings(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[ImageInput]:
    """Every picture that really goes through the vision encoder, none known from before."""
    seen: list[ImageInput] = []
    encode = case.model.vision.encode

    def counted(image: ImageInput, cancel: Cancel) -> Any:
        seen.append(image)
        return encode(image, cancel)

    case.model.tower._features.clear()
    monkeypatch.setattr(case.model.vision, "encode", counted)
    return seen


def assert_agrees(case: Case, prompt: Prompt) -> None:
    ids, logits = case.answer(prompt)
    expected = case.expected(prompt, ids)
    assert ids == list(expected.argmax(-1))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


def test_a_text(case: Case) -> None:
    assert_agrees(case, case.prompt(["What colour is the cat?"]))


def test_a_picture(case: Case) -> None:
    prompt = case.prompt(["What is in ", case.picture(), "this picture?"])
    assert_agrees(case, prompt)
    assert prompt.image_tokens == (20 if case.is_qwen else 4)


def test_two_pictures_and_a_follow_up(case: Case) -> None:
    pictures = [case.picture(), case.picture(1)]
    assert_agrees(case, case.prompt([*pictures, "What?"], ["A cat."], ["And the colour?"]))


def test_positions_and_directions_count(case: Case) -> None:
    """What the block of a picture says shows in the logits, far above the tolerance."""
    prompt = case.prompt([case.picture(), "What is in this picture?"])
    ids, logits = case.answer(prompt)
    if case.is_qwen:
        count = prompt.length + len(ids) - 1
        plain = {"position_ids": torch.arange(count).expand(3, 1, count)}
    else:
        plain = {"token_type_ids": torch.zeros((1, prompt.length + len(ids) - 1), dtype=int)}
    difference = np.abs(logits - case.expected(prompt, ids, **plain)).max()
    assert difference > 10 * TOLERANCE


def test_a_follow_up_computes_only_its_own_tokens(case: Case, encodings: list[ImageInput]) -> None:
    first = case.prompt([case.picture(), "What is it?"])
    second = case.prompt([case.picture(), "What is it?"], ["A cat."], ["And the colour?"])
    warm = case.context()
    case.prefill(warm, first)
    logits, kept = case.prefill(warm, second)
    assert kept >= first.length - 1 > first.image_tokens
    assert len(encodings) == 1
    cold, none = case.prefill(case.context(), second)
    assert none == 0
    np.testing.assert_allclose(logits, cold, rtol=0, atol=1e-4)


def test_another_picture_is_never_answered_from_the_old_one(
    case: Case, encodings: list[ImageInput]
) -> None:
    warm = case.context()
    case.prefill(warm, case.prompt([case.picture(), "What is it?"]))
    changed = case.picture()
    changed[0, 0, 0] ^= 1
    prompt = case.prompt([changed, "What is it?"])
    logits, kept = case.prefill(warm, prompt)
    first = prompt.parts[0]
    assert isinstance(first, tuple)
    assert kept == len(first)
    assert len(encodings) == 2
    cold, _ = case.prefill(case.context(), prompt)
    np.testing.assert_allclose(logits, cold, rtol=0, atol=1e-4)


def test_a_session(case: Case, encodings: list[ImageInput]) -> None:
    with Session(case.model) as session:
        first = session.ask("What is it?", images=[case.picture()], max_tokens=4)
        second = session.ask("And the colour?", max_tokens=4)
    assert first.runtime == {"vision": "llamacpp", "language": "llamacpp"}
    assert first.usage.image_tokens == second.usage.image_tokens == (20 if case.is_qwen else 4)
    assert second.usage.cached_tokens > first.usage.prompt_tokens - 2
    assert len(encodings) == 1


def test_the_command_line(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(case.picture()).save(photo)
    arguments = ["--model", str(case.foreign.folder), "--runtime", "llamacpp", "--max-tokens", "3"]
    code = run(["chat", "What is it?", "--image", str(photo), "--json", *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert json.loads(out)["usage"]["image_tokens"] == (20 if case.is_qwen else 4)


def test_a_pair_on_the_hub(case: Case, hub: HubServer, tmp_path: Path) -> None:
    """Of several quantisations the smallest decoder and a gentle vision encoder are fetched."""
    decoder, encoder = sorted(case.foreign.folder.glob("[!m]*.gguf")) + sorted(
        case.foreign.folder.glob("mmproj*.gguf")
    )
    quantize(decoder, tmp_path / "small.gguf", "q8_0", Silent())
    hub.add(
        "acme/cam",
        {
            "README.md": b"A model.",
            "cam-F32.gguf": decoder.read_bytes(),
            "cam-Q8_0.gguf": (tmp_path / "small.gguf").read_bytes(),
            "mmproj-cam-F32.gguf": encoder.read_bytes(),
        },
    )
    with load_model("acme/cam", runtime="llamacpp") as model:
        assert model.quantization == "decoder q8_0, vision f32"
        assert not hub.gets("cam-F32.gguf")
        with Session(model) as session:
            reply = session.ask("What is it?", images=[case.picture()], max_tokens=2)
    assert reply.usage.image_tokens == (20 if case.is_qwen else 4)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"clip.vision.patch_size", struct.pack("<II", 4, 3), "v.patch_embd.weight"),
        (b"clip.vision.embedding_length", struct.pack("<II", 4, 2), "v.patch_embd.weight"),
        (b"clip.vision.attention.head_count", struct.pack("<II", 4, 3), "contradict"),
        (b"clip.vision.attention.layer_norm_epsilon", struct.pack("<If", 6, -1), "from 0 on"),
        (b"v.blk.1.attn_k.weigh", b"s", "not each of 2 blocks has attn_k.weight"),
    ],
)
def test_an_mmproj_that_contradicts_itself_ends_no_process(
    case: Case, tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    """llama.cpp would; it asserts these when a picture is encoded."""
    folder = tmp_path / "model"
    shutil.copytree(case.foreign.folder, folder)
    (path,) = folder.glob("mmproj*.gguf")
    data = path.read_bytes()
    start = data.index(old) + len(old)
    path.write_bytes(data[:start] + new + data[start + len(new) :])
    with pytest.raises(ModelCorrupt, match=re.escape(words)):
        load_model(str(folder), runtime="llamacpp")
    path.write_bytes(data[:-1000])
    with pytest.raises(ModelCorrupt, match="not within the file"):
        load_model(str(folder), runtime="llamacpp")


def test_a_closed_model_says_so(case: Case) -> None:
    model = load_model(str(case.foreign.folder), runtime="llamacpp")
    image = model.family.preprocess(case.picture())
    model.close()
    with pytest.raises(RuntimeFailed, match="closed"):
        model.family.preprocess(case.picture())
    with pytest.raises(RuntimeFailed, match="closed"):
        model.embed(image, Cancel())
