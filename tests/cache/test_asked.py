"""What makes another question of a question, and what doesn't."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from answer_factory import ADAPTERS, QUESTION, asked, picture, pixels, talk

from edgevlm import Sampling
from edgevlm.cache import Asked, Picture, Said
from edgevlm.cache import asked as asked_module
from edgevlm.cache.wording import loosened, normalised
from edgevlm.engine.prompt import ImageInput
from edgevlm.messages import ActiveAdapter

CHANGES: dict[str, Any] = {
    "conversation": talk("What else?", picture()),
    "model": "smolvlm2-500m",
    "weights": "0124",
    "quantization": "language 8 bits, vision 16 bits",
    "runtime": {"vision": "onnx", "language": "onnx"},
    "context_length": 1024,
    "adapters": ((("ab" * 32, 1.0),), ()),
    "told": (ActiveAdapter("shapes2", 1.0),),
    "notices": (),
    "sampling": Sampling(max_tokens=255),
    "schema": '{"type": "integer"}',
    "rated_by": "calibration 2",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Asked)])
def test_every_field_is_in_the_key(field: str) -> None:
    assert asked(**{field: CHANGES[field]}).key != asked().key


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Sampling)])
def test_every_decoding_setting_is_in_the_key(field: str) -> None:
    other = {"temperature": 0.5, "stop": ("x",), "repetition_penalty": 1.1, "top_p": 0.5}
    changed = Sampling(**{field: other.get(field, 1)})  # type: ignore[arg-type]
    assert asked(sampling=changed).key != asked().key


def test_the_versions_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {asked().key}
    monkeypatch.setattr(asked_module, "ANSWERS_VERSION", 10_000)
    keys.add(asked().key)
    monkeypatch.setattr(asked_module, "__version__", "99")
    keys.add(asked().key)
    assert len(keys) == 3


def test_equal_questions_have_equal_keys() -> None:
    assert asked().key == asked().key
    numpy_numbers = Sampling(max_tokens=np.int64(256), temperature=np.float32(0))  # type: ignore[arg-type]
    assert asked(sampling=numpy_numbers).key == asked().key
    assert len(asked(talk("\ud800", picture())).key) == 32


def test_a_picture_is_its_pixels_and_their_shape() -> None:
    array = pixels(0)
    changed = array.copy()
    changed[-1, -1, -1] ^= 1
    transposed = array.reshape(32, 24, 3)
    made = [Picture.of(p, "auto", None) for p in (array, changed, transposed)]
    made += [Picture.of(array, "high", None), Picture.of(array, "auto", 64)]
    assert len({asked(talk(QUESTION, p)).key for p in made}) == 5
    assert asked(talk(QUESTION, Picture.of(array[:, ::-1][:, ::-1], "auto", None))).key in {
        asked(talk(QUESTION, made[0])).key
    }


def test_a_prepared_picture_is_its_key_and_no_decoded_one() -> None:
    image = ImageInput.encoded(np.zeros((2, 4), np.float32), (0, 0), "1234")
    one = Picture.prepared(image)
    two = Picture.prepared(dataclasses.replace(image, key="1235"))
    assert asked(talk(QUESTION, one)).key != asked(talk(QUESTION, two)).key
    assert asked(talk(QUESTION, one)).frame is None


def test_who_said_it_where_is_in_the_key() -> None:
    shown = picture()
    conversations = [
        talk("ab", shown),
        (Said("user", ("ab", shown)),),
        (Said("user", (shown, "a", "b")),),
        (Said("user", (shown,)), Said("user", ("ab",))),
        (Said("system", (shown, "ab")),),
        talk("ab", shown, system="Be brief."),
        talk("ab", shown, system="Be brief. "),
        talk("ab", shown, shown),
        talk("ab"),
    ]
    assert len({asked(conversation).key for conversation in conversations}) == len(conversations)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is it?", "  What is it?\n"),
        ("What is it?", "What  is   it?"),
        ("Is there a caf\u00e9?", "Is there a cafe\u0301?"),
    ],
)
def test_wording_that_cannot_matter_is_folded(one: str, other: str) -> None:
    assert asked(talk(one, picture())).key == asked(talk(other, picture())).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is this Polish?", "Is this polish?"),
        ("What is it?", "What is it"),
        ("Is it 'a  b'?", "Is it 'a b'?"),
        ("Is it \u201ea  b\u201c?", "Is it \u201ea b\u201c?"),
        ("How many spaces are between A   B?", "How many spaces are between A  B?"),
        ("if x:\n  y", "if x:\n y"),
        ("Is there a \ufb01sh?", "Is there a fish?"),
        ("Is it x\u00b2?", "Is it x2?"),
        ("Is it a\u00a0b?", "Is it a b?"),
    ],
)
def test_wording_that_may_matter_is_kept(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    assert asked(talk(one, picture())).key != asked(talk(other, picture())).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is it?", "what is it"),
        ("Please tell me what it is.", "tell me what it is."),
        ("How many dogs are there, please?", "how many dogs are there?"),
    ],
)
def test_near_questions_may_differ_in_manners(one: str, other: str) -> None:
    assert loosened(one) == loosened(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is it a dog?", "Is it not a dog?"),
        ("Is it a dog?", "Isn't it a dog?"),
        ("Are there 2 dogs?", "Are there 3 dogs?"),
        ("Are there two dogs?", "Are there three dogs?"),
        ("Is it Polish?", "Is it polish?"),
        ("Is the dog left of the cat?", "Is the cat left of the dog?"),
        ("Does the sign say please wait?", "Does the sign say wait?"),
        ("Does the sign say please?", "Does the sign say?"),
        ("Please stop is on which sign?", "stop is on which sign?"),
        ("Is it a dog?", "Is it a dog!"),
        ("US or them?", "us or them?"),
    ],
)
def test_near_questions_agree_in_every_other_word(one: str, other: str) -> None:
    assert loosened(one) != loosened(other)


def test_only_what_is_repeatable_is_repeated() -> None:
    assert asked(adapters=ADAPTERS).repeatable
    assert not asked(sampling=Sampling(temperature=0.5)).repeatable
    assert asked(sampling=Sampling(temperature=0.5, seed=3)).repeatable
