"""A `uuid` is a name that a client gives to a picture: it stands for that one and for no other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from raw_http import Answer, posted, refused_as_wrong
from serving import Running, data_url, pixels, png, shown

from edgevlm.media import MediaLimits
from edgevlm.serve import pictures as pictures_module
from edgevlm.serve.errors import ApiError
from edgevlm.serve.pictures import Pictures
from edgevlm.serve.protocol import ImagePart, ImageUrl


def named(server: Running, name: str, picture: np.ndarray | None = None) -> Answer:
    part: dict[str, Any] = {"type": "image_url", "uuid": name}
    if picture is not None:
        part |= shown(data_url(png(picture)))
    body = server.body([part, {"type": "text", "text": "What is it?"}], max_tokens=2)
    return posted(server, body)


def test_a_name_stands_for_its_picture(server: Running) -> None:
    first = named(server, "cat", pixels(1))
    again = named(server, "cat")
    assert first.status == again.status == 200
    assert choices(first) == choices(again)
    assert named(server, "cat", pixels(1)).status == 200


def choices(answer: Answer) -> Any:
    return json.loads(answer.body)["choices"]


def test_a_name_is_not_given_to_another_picture(server: Running) -> None:
    assert named(server, "dog", pixels(2)).status == 200
    before = choices(named(server, "dog"))
    error = refused_as_wrong(named(server, "dog", pixels(3)), 409)
    assert error["code"] == "uuid_taken"
    assert choices(named(server, "dog")) == before


@pytest.mark.parametrize("name", ["never seen", "cat ", "CAT", "\0", "../cat"])
def test_a_name_that_nobody_gave_is_told(server: Running, name: str) -> None:
    named(server, "cat", pixels(1))
    assert refused_as_wrong(named(server, name))["code"] == "unknown_image"


@pytest.mark.parametrize("name", ["", "x" * 257, "x" * 10**6])
def test_names_have_a_length(server: Running, name: str) -> None:
    for picture in (None, pixels(1)):
        refused_as_wrong(named(server, name, picture))


def test_no_picture_and_no_name(server: Running) -> None:
    error = refused_as_wrong(posted(server, server.body([{"type": "image_url"}])))
    assert error["code"] == "unknown_image"


def part_of(name: str, picture: np.ndarray | None) -> ImagePart:
    url = None if picture is None else ImageUrl(data_url(png(picture)))
    return ImagePart(url, name)


def test_the_picture_used_longest_ago_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "_KEPT_BYTES", 3 * pixels().nbytes)
    kept = Pictures(MediaLimits())
    for seed in range(3):
        kept.load(part_of(str(seed), pixels(seed)), "here")
    kept.load(part_of("0", None), "here")
    kept.load(part_of("3", pixels(3)), "here")
    assert np.array_equal(kept.load(part_of("0", None), "here"), pixels(0))
    with pytest.raises(ApiError) as told:
        kept.load(part_of("1", None), "here")
    assert told.value.code == "unknown_image"
    kept.load(part_of("1", pixels(9)), "here")  # and its name is free


def test_names_of_small_pictures_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "_MOST_NAMES", 4)
    kept = Pictures(MediaLimits())
    for number in range(10):
        kept.load(part_of(f"dot {number}", np.zeros((1, 1, 3), np.uint8)), "here")
    assert len(kept._seen) == 4


def test_one_large_picture_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "_KEPT_BYTES", 10)
    kept = Pictures(MediaLimits())
    kept.load(part_of("large", pixels()), "here")
    assert np.array_equal(kept.load(part_of("large", None), "here"), pixels())
