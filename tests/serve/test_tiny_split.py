"""Split inference with the built-in model: encoded here, decoded by a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from known_photo import PHOTO, names_it
from serving import TOKEN, Running

from edgevlm import Model, Session, load_settings
from edgevlm.engine.cancel import Cancel
from edgevlm.media import load_image
from edgevlm.media.embeddings import pack_embeddings

QUESTIONS = ("What is in this picture?", "And what colour is it?")


def ids(session: Session) -> list[list[int]]:
    first = session.ask(QUESTIONS[0], images=[PHOTO], max_tokens=24)
    assert names_it(first.text)
    second = session.ask(QUESTIONS[1], max_tokens=24)
    return [[token.id for token in reply.tokens] for reply in (first, second)]


def test_it_says_what_the_whole_model_says(
    tiny: Model, tiny_server: Running, tiny_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_SERVE_TOKEN", TOKEN)
    settings = load_settings({"EDGEVLM_HOME": str(tiny_home), "EDGEVLM_CACHE": "0"})
    with Session(tiny, settings=settings) as whole:
        expected = ids(whole)
    with Session(
        "edgevlm-tiny", "onnx", "split", server=tiny_server.url, settings=settings
    ) as split:
        assert ids(split) == expected


def test_what_is_sent_is_the_embeddings_and_nothing_else(tiny: Model) -> None:
    """102 tokens of 576 numbers, in base64."""
    image = tiny.family.preprocess(load_image(PHOTO))
    sent = len(pack_embeddings(tiny.embed(image, Cancel())))
    assert sent == -(-(102 * 576 * 4 + 128) // 3) * 4
