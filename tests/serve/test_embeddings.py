"""The two ends of split inference over HTTP: `/v1/embeddings/image`, and `image_embeds` parts."""

from __future__ import annotations

import base64
import io
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_http import Answer, posted, refused_as_wrong
from serving import QUESTION, Running, asking, data_url, pixels, png, running

from edgevlm import Model
from edgevlm.engine.cancel import Cancel
from edgevlm.media.embeddings import pack_embeddings, unpack_embeddings

EMBEDDINGS = "/v1/embeddings/image"
WIDE = (64, 512)

pytestmark = pytest.mark.usefixtures("health")


def embedded(server: Running, *pictures: np.ndarray, **fields: Any) -> list[dict[str, Any]]:
    urls = [data_url(png(picture)) for picture in pictures]
    answer = posted(server, {"model": server.model, "image": urls} | fields, EMBEDDINGS)
    assert answer.status == 200, answer.body
    body = json.loads(answer.body)
    assert body["object"] == "list"
    assert body["usage"]["image_tokens"] == sum(each["shape"][0] for each in body["data"])
    return body["data"]  # type: ignore[no-any-return]


def part_of(entry: dict[str, Any], **own: Any) -> dict[str, Any]:
    return {
        "type": "image_embeds",
        "image_embeds": entry["embedding"],
        "edgevlm": entry["edgevlm"] | own,
    }


def asked(server: Running, part: dict[str, Any], **fields: Any) -> Answer:
    content = [part, {"type": "text", "text": QUESTION}]
    return posted(server, server.body(content, edgevlm={"tokens": True}, **fields))


@pytest.fixture(scope="module")
def entry(server: Running) -> dict[str, Any]:
    [entry] = embedded(server, pixels())
    return entry


# The encoder's end.


def test_the_rows_are_the_models(server: Running, model: Model) -> None:
    pictures = [pixels(0), pixels(1, WIDE), pixels(2)]
    entries = embedded(server, *pictures)
    assert [entry["index"] for entry in entries] == [0, 1, 2]
    for entry, picture in zip(entries, pictures, strict=True):
        image = model.family.preprocess(picture)
        expected = model.embed(image, Cancel())
        rows = unpack_embeddings(entry["embedding"], model.language.d_model)
        assert np.array_equal(rows, np.asarray(expected))
        assert entry["shape"] == [image.n_tokens, model.language.d_model]
        assert entry["dtype"] == "float32"
        assert entry["object"] == "image_embedding"
        assert entry["edgevlm"] == {"grid": list(image.grid), "fingerprint": model.fingerprint}


def test_one_url_is_one_picture(server: Running, entry: dict[str, Any]) -> None:
    body = {"model": server.model, "image": data_url(png(pixels()))}
    [single] = json.loads(posted(server, body, EMBEDDINGS).body)["data"]
    assert single == entry


def test_numpy_reads_what_is_sent(entry: dict[str, Any]) -> None:
    rows = np.load(io.BytesIO(base64.b64decode(entry["embedding"])), allow_pickle=False)
    assert list(rows.shape) == entry["shape"]


def test_detail_counts(server: Running) -> None:
    [low] = embedded(server, pixels(1, WIDE), detail="low")
    [auto] = embedded(server, pixels(1, WIDE))
    assert low["edgevlm"]["grid"] == [0, 0]
    assert low["shape"][0] < auto["shape"][0]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "nothing"}, 404, "model"),
        ({"model": "SERVED:one"}, 400, "model"),
        ({"model": "SERVED:three"}, 404, "model"),
        ({"image": "x"}, 400, "image[0]"),
        ({"image": ["data:image/png;base64,AAAA"]}, 400, "image[0]"),
        ({"image": "https://pictures.test/cat.png"}, 400, "image[0]"),
        ({"image": "/etc/passwd"}, 400, "image[0]"),
        ({"image": [data_url(png(pixels())), "x"]}, 400, "image[1]"),
        ({"image": []}, 400, "image"),
        ({"image": None}, 400, "image"),
        ({"image": [1]}, 400, "image[0]"),
        ({"image": {"url": "x"}}, 400, "image"),
        ({"detail": "fine"}, 400, "detail"),
        ({"image_tokens": 1}, 400, "image[0]"),
        ({"image_tokens": 0}, 400, "image[0]"),
        ({"dimensions": 5}, 400, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cant_be_encoded_is_named(
    server: Running, fields: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"model": server.model, "image": data_url(png(pixels()))} | fields
    body["model"] = body["model"].replace("SERVED", server.model)
    error = refused_as_wrong(posted(server, body, EMBEDDINGS), status)
    assert (error["param"] or "").startswith(param or "")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The encoder begins, says so, and waits to be stopped."""
    begun = threading.Event()

    def waiting(self: Model, image: Any, cancel: Cancel, *_: Any) -> Any:
        begun.set()
        stopped = threading.Event()
        with cancel.calling(stopped.set):
            assert stopped.wait(30)
        cancel.check()

    monkeypatch.setattr(Model, "embed", waiting)
    return begun


def test_time_is_up_for_pictures_too(model: Model, held: threading.Event) -> None:
    with running(model, seconds=0.2) as server:
        body = {"model": server.model, "image": data_url(png(pixels()))}
        error = refused_as_wrong(posted(server, body, EMBEDDINGS), 408)
    assert error["code"] == "timeout"


# The decoder's end.


def test_the_answer_is_that_to_the_picture(server: Running) -> None:
    for picture in (pixels(), pixels(1, WIDE)):
        [entry] = embedded(server, picture)
        by_embeddings = json.loads(asked(server, part_of(entry)).body)
        by_picture = server.chat(asking(picture), edgevlm={"tokens": True}).json()
        assert said(by_embeddings) == said(by_picture)
        assert by_embeddings["usage"]["prompt_tokens"] == by_picture["usage"]["prompt_tokens"]


def said(answer: dict[str, Any]) -> list[tuple[int, Any]]:
    """Ids and logprobs, as near as sums in another order come: what of a prompt is known from
    before is not computed with the rest."""
    return [(t["id"], pytest.approx(t["logprob"], abs=1e-4)) for t in answer["edgevlm"]["tokens"]]


def changed(entry: dict[str, Any], rows: np.ndarray, **options: Any) -> str:
    out = io.BytesIO()
    np.lib.format.write_array(out, rows, **options)
    return base64.b64encode(out.getvalue()).decode()


def broken(entry: dict[str, Any]) -> dict[str, str]:
    """Embeddings that are none, by what is wrong with them."""
    rows = np.load(io.BytesIO(base64.b64decode(entry["embedding"])))
    nan, far = rows.copy(), rows.copy()
    nan[0, 0], far[-1, -1] = np.nan, 1e30
    objects = np.array([[None] * rows.shape[1]] * len(rows), dtype=object)
    return {
        "NaN": changed(entry, nan),
        "far out": changed(entry, far),
        "float64": changed(entry, rows.astype(np.float64)),
        "integers": changed(entry, rows.astype(np.int32)),
        "other byte order": changed(entry, rows.astype(">f4")),
        "by columns": changed(entry, np.asfortranarray(rows)),
        "version 2": changed(entry, rows, version=(2, 0)),
        "objects": changed(entry, objects, allow_pickle=True),
        "a batch": changed(entry, rows[None]),
        "narrower": changed(entry, np.ascontiguousarray(rows[:, :-1])),
        "wider": changed(entry, np.hstack([rows, rows])),
        "one row": changed(entry, rows[0]),
        "no rows": changed(entry, rows[:0]),
        "cut short": entry["embedding"][:-8],
        "more behind": base64.b64encode(base64.b64decode(entry["embedding"]) + b"x").decode(),
        "no base64": "!" + entry["embedding"][1:],
        "base64 for URLs": "-_" + entry["embedding"][2:],
        "with line breaks": entry["embedding"][:76] + "\n" + entry["embedding"][76:],
        "a data URL": f"data:application/x-npy;base64,{entry['embedding']}",
        "a pickle": base64.b64encode(pickle.dumps(rows)).decode(),
        "an archive": base64.b64encode(b"PK\x03\x04" + bytes(100)).decode(),
        "a path": "/etc/passwd",
        "nothing": "",
    }


BROKEN = tuple(broken({"embedding": pack_embeddings(np.zeros((2, 3), np.float32))}))


@pytest.mark.parametrize("what", BROKEN)
def test_embeddings_that_are_none_are_refused(
    server: Running, entry: dict[str, Any], what: str
) -> None:
    part = part_of(entry) | {"image_embeds": broken(entry)[what]}
    error = refused_as_wrong(asked(server, part))
    assert error["param"] == "messages[0].content[0].image_embeds"
    assert error["code"] == "media_unreadable"


class Canary:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self._file,))


@pytest.mark.parametrize("form", ["pickle", "npy", "torch"])
def test_what_would_run_when_unpickled_does_not(
    server: Running, entry: dict[str, Any], tmp_path: Path, form: str
) -> None:
    file = tmp_path / "canary"
    out = io.BytesIO()
    if form == "torch":
        import torch

        torch.save([torch.zeros(2, 3), Canary(file)], out)
    elif form == "npy":
        np.lib.format.write_array(out, np.array([[Canary(file)]], object), allow_pickle=True)
    else:
        pickle.dump(Canary(file), out)
    sent = base64.b64encode(out.getvalue()).decode()
    refused_as_wrong(asked(server, part_of(entry) | {"image_embeds": sent}))
    assert not file.exists()
    pickle.loads(pickle.dumps(Canary(file)))  # it would have
    assert file.exists()


@pytest.mark.parametrize(
    ("own", "param"),
    [
        ({"fingerprint": "another"}, "messages[0].content[0]"),
        ({"fingerprint": ""}, "messages[0].content[0]"),
        ({"fingerprint": "x" * 10**6}, "messages[0].content[0]"),
        ({"fingerprint": None}, "messages[0].content[0].edgevlm.fingerprint"),
        ({"grid": [1, 1]}, "messages"),
        ({"grid": [64, 64]}, "messages"),
        ({"grid": [0, 1]}, "messages[0].content[0].edgevlm.grid"),
        ({"grid": [-1, -1]}, "messages[0].content[0].edgevlm.grid"),
        ({"grid": [65, 1]}, "messages[0].content[0].edgevlm.grid"),
        ({"grid": [10**30, 1]}, "messages[0].content[0].edgevlm.grid"),
        ({"grid": [1]}, "messages[0].content[0].edgevlm.grid"),
        ({"grid": [1.5, 1]}, "messages[0].content[0].edgevlm.grid"),
        ({"grid": "2x2"}, "messages[0].content[0].edgevlm.grid"),
        ({"grid": None}, "messages[0].content[0].edgevlm.grid"),
        ({"more": 1}, "messages[0].content[0].edgevlm"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_go_with_the_model_is_refused(
    server: Running, entry: dict[str, Any], own: dict[str, Any], param: str
) -> None:
    error = refused_as_wrong(asked(server, part_of(entry, **own)))
    assert (error["param"] or "").startswith(param)


def test_more_or_fewer_rows_than_its_layout_has_are_refused(
    server: Running, entry: dict[str, Any]
) -> None:
    rows = np.load(io.BytesIO(base64.b64decode(entry["embedding"])))
    for other in (rows[:-1], np.vstack([rows, rows]), np.vstack([rows] * 200)):
        part = part_of(entry) | {"image_embeds": pack_embeddings(other)}
        assert refused_as_wrong(asked(server, part))["param"] == "messages"


def test_embeddings_need_to_say_of_which_model_they_are(
    server: Running, entry: dict[str, Any]
) -> None:
    part = {"type": "image_embeds", "image_embeds": entry["embedding"]}
    refused_as_wrong(asked(server, part))


def test_only_the_user_shows_them(server: Running, entry: dict[str, Any]) -> None:
    messages = [
        {"role": "system", "content": [part_of(entry)]},
        {"role": "user", "content": QUESTION},
    ]
    assert refused_as_wrong(posted(server, server.body(messages=messages)))["param"]
