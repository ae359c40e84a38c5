"""The SmolVLM family against transformers' own processors: the same ids, the same pixels."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from smolvlm_factory import make_processor_files
from smolvlm_reference import Case, Conversation, Pixels, ids_of, make_case, reference_inputs

from edgevlm.engine.prompt import Prompt
from edgevlm.families.base import Detail, Family, Turn

Picture = Callable[[int, int], Pixels]

SIZES = [
    (64, 64),  # one tile
    (1, 1),
    (300, 200),
    (200, 300),
    (257, 255),
    (256, 256),  # the longest edge
    (255, 257),
    (1000, 700),
    (65, 64),
    (1, 4000),
    (4000, 1),
    (2000, 30),
]


def prompt_of(family: Family, conversation: Conversation, detail: Detail = "auto") -> Prompt:
    return family.render(
        [
            Turn(
                role,  # type: ignore[arg-type]
                tuple(p if isinstance(p, str) else family.preprocess(p, detail) for p in content),
            )
            for role, content in conversation
        ]
    )


def assert_same(case: Case, conversation: Conversation, detail: Detail = "auto") -> Prompt:
    options = {} if detail == "auto" else {"do_image_splitting": detail == "high"}
    ids, tiles = reference_inputs(case.reference, conversation, **options)
    prompt = prompt_of(case.family, conversation, detail)
    assert ids_of(prompt, case.image_id) == ids
    assert prompt.length == len(ids)
    if tiles is None:
        assert prompt.images == ()
        return prompt
    ours = np.concatenate([image.pixel_values for image in prompt.images])
    assert ours.dtype == np.float32
    assert ours.shape == tiles.shape
    # Both are (x / 255 - 0.5) / 0.5; in the units of x the issue allows 2.
    assert np.abs(ours - tiles).max() * 127.5 < 0.01
    assert prompt.image_tokens == sum(image.n_tokens for image in prompt.images)
    return prompt


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pictures_of_every_shape(case: Case, picture: Picture, size: tuple[int, int]) -> None:
    assert_same(case, [("user", [picture(*size), "What is in this picture?"])])


@pytest.mark.parametrize("detail", ["low", "high"])
@pytest.mark.parametrize("size", [(300, 200), (64, 64), (40, 900)])
def test_detail_overrules_the_configuration(
    case: Case, picture: Picture, size: tuple[int, int], detail: Detail
) -> None:
    prompt = assert_same(case, [("user", [picture(*size), "Describe it."])], detail)
    assert (prompt.images[0].grid == (0, 0)) == (detail == "low")


@pytest.mark.parametrize(
    ("image_size", "patch_size", "scale_factor", "longest_edge", "tokens"),
    [(512, 16, 4, 2048, 64), (384, 14, 3, 1536, 81)],
)
def test_the_released_geometries(
    tmp_path: Path,
    picture: Picture,
    cases: dict[str, Case],
    image_size: int,
    patch_size: int,
    scale_factor: int,
    longest_edge: int,
    tokens: int,
) -> None:
    case = make_case(
        make_processor_files(
            tmp_path / "model",
            image_size=image_size,
            patch_size=patch_size,
            scale_factor=scale_factor,
            longest_edge=longest_edge,
        )
    )
    prompt = assert_same(case, [("user", [picture(640, 400), "Describe it."])])
    assert prompt.images[0].grid == (3, 4)
    assert prompt.images[0].n_tokens == 13 * tokens


def test_text_only(case: Case) -> None:
    assert_same(case, [("user", ["What colour is the sky?"])])


def test_a_conversation_with_pictures_between_the_words(case: Case, picture: Picture) -> None:
    first, second, third = picture(120, 80), picture(64, 64), picture(80, 200)
    prompt = assert_same(
        case,
        [
            ("system", ["You are a helpful assistant."]),
            ("user", ["Compare ", first, " with ", second, "\nWhich is larger?"]),
            ("assistant", [" The first one."]),
            ("user", [third, "And this?"]),
            ("assistant", ["A cat, 12 years old."]),
            ("user", ["Really?\n\n"]),
        ],
    )
    assert len(prompt.images) == 3


def test_pictures_side_by_side_and_alone(case: Case, picture: Picture) -> None:
    assert_same(case, [("user", [picture(90, 90), picture(30, 70), picture(90, 90)])])


def test_random_conversations(case: Case, picture: Picture) -> None:
    """Whatever meets at the borders of template, text and pictures merges as it does there."""
    rng = random.Random(20)
    small = picture(50, 50)
    words = [*"aZ9 \n\t:.,!?'<>|_é漢🙂", "  ", "User:", " the", "12", "ing", "\r\n", "</s>", ": "]
    for _ in range(60):
        conversation: list[tuple[str, list[str | Pixels]]] = []
        for turn in range(rng.randint(1, 4)):
            content: list[str | Pixels] = []
            for _ in range(rng.randint(1, 3)):
                content.append("".join(rng.choices(words, k=rng.randint(0, 6))))
                if rng.random() < 0.3:
                    content.append(small)
            conversation.append((("user", "assistant")[turn % 2], content))
        assert_same(case, conversation)


def test_slots_name_each_picture_row_once_and_in_order(case: Case, picture: Picture) -> None:
    conversation = [("user", [picture(120, 80), "and", picture(64, 200)])]
    prompt = prompt_of(case.family, conversation)
    keys = prompt.keys()
    rows = [key for key in keys if isinstance(key, tuple)]
    assert rows == [(image.key, row) for image in prompt.images for row in range(image.n_tokens)]
    assert all(
        not (isinstance(a, tuple) and isinstance(b, tuple))
        for a, b in zip(prompt.parts, prompt.parts[1:], strict=False)
    )


def test_masks_cover_every_tile(case: Case, picture: Picture) -> None:
    image = case.family.preprocess(picture(120, 80))
    assert image.pixel_mask is not None
    assert image.pixel_mask.dtype == np.bool_
    assert image.pixel_mask.shape == image.pixel_values[:, 0].shape
    assert image.pixel_mask.all()
