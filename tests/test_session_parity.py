"""Conversations through `Session`, against transformers on CPU with the same weights.

The KV cache is kept between turns on our side only: the reference computes every
prompt afresh, so equal tokens prove that reuse changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from smolvlm_factory import load_reference
from video_factory import make_video

from edgevlm import Session
from edgevlm.engine.prompt import ImageSlot, Prompt
from edgevlm.messages import Reply


class Reference:
    """Greedy decoding by transformers, from the prompts that the family laid out."""

    def __init__(self, source: Path) -> None:
        self.model = load_reference(source)

    @torch.no_grad()
    def answer(self, prompt: Prompt, reply: Reply) -> tuple[list[int], np.ndarray]:
        """Return the ids, and the logits float32 [n_steps, n_vocab] of every step."""
        image_token = self.model.config.image_token_id
        ids: list[int] = []
        for part in prompt.parts:
            ids.extend([image_token] * part.count if isinstance(part, ImageSlot) else part)
        pictures = {}
        if prompt.images:
            tiles = max(len(image.pixel_values) for image in prompt.images)
            pictures = {
                "pixel_values": torch.cat(
                    [_padded(image.pixel_values, tiles) for image in prompt.images]
                )[None],
                "pixel_attention_mask": torch.cat(
                    [_padded(image.pixel_mask, tiles) for image in prompt.images]
                )[None],
            }
        generated = self.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=len(reply.tokens),
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **pictures,
        )
        return generated.sequences[0, len(ids) :].tolist(), torch.cat(generated.logits).numpy()


def _padded(tiles: np.ndarray | None, count: int) -> torch.Tensor:
    """Zero tiles behind the real ones; transformers drops them."""
    assert tiles is not None
    empty = np.zeros((count - len(tiles), *tiles.shape[1:]), tiles.dtype)
    return torch.from_numpy(np.concatenate([tiles, empty]))


@pytest.fixture(scope="module")
def reference(smolvlm_source: Path) -> Reference:
    return Reference(smolvlm_source)


@pytest.fixture
def session(smolvlm: Path) -> Iterator[Session]:
    with Session(str(smolvlm)) as session:
        yield session


@pytest.fixture
def prompts(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Every prompt that the family lays out for the session."""
    seen: list[Prompt] = []
    render = session.model.family.render

    def recorded(turns: object) -> Prompt:
        seen.append(render(turns))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(session.model.family, "render", recorded)
    return seen


def picture(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((-(-height // 6), -(-width // 6), 1), np.uint8))[:height, :width]


def agree(reply: Reply, prompt: Prompt, reference: Reference) -> None:
    ids, logits = reference.answer(prompt, reply)
    assert [t.id for t in reply.tokens] == ids
    logprobs = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
    own = [float(logprobs[step, i]) for step, i in enumerate(ids)]
    assert [t.logprob for t in reply.tokens] == pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize(
    "sizes",
    [[], [(40, 60)], [(40, 60), (64, 64), (90, 30)], [(300, 500)]],
    ids=["text", "one image", "three images", "tiled image"],
)
def test_64_tokens(
    session: Session, prompts: list[Prompt], reference: Reference, sizes: list[tuple[int, int]]
) -> None:
    images = [picture(seed, *size) for seed, size in enumerate(sizes)]
    reply = session.ask("What is in the picture?", images=images, max_tokens=64)
    assert len(reply.tokens) == 64 or reply.finish_reason == "stop"
    if sizes == [(300, 500)]:
        assert len(prompts[-1].images[0].pixel_values) > 1
    agree(reply, prompts[-1], reference)


def test_three_turns_with_one_encoding(
    session: Session, prompts: list[Prompt], reference: Reference
) -> None:
    encoded = []
    encode = session.model.vision.encode
    session.model.vision.encode = lambda *a: (encoded.append(1), encode(*a))[1]  # type: ignore
    replies = [
        session.ask("What is in the picture?", images=[picture(0, 60, 80)], max_tokens=32),
        session.ask("What colour is it?", max_tokens=32),
        session.ask("And where is it?", max_tokens=32),
    ]
    assert len(encoded) == 1
    assert replies[0].usage.cached_tokens == 0
    for before, after in itertools.pairwise(replies):
        assert after.usage.cached_tokens >= before.usage.prompt_tokens - 1
    for reply, prompt in zip(replies, prompts, strict=True):
        agree(reply, prompt, reference)


def test_a_video(session: Session, prompts: list[Prompt], reference: Reference) -> None:
    reply = session.ask("What happens?", video=make_video(frames=50, fps=10), max_tokens=32)
    assert len(prompts[-1].images) == 5
    agree(reply, prompts[-1], reference)
