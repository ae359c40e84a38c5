"""Requests in order that would cost more than one client may: pictures that swell, endless
conversations, schemas that explode."""

from __future__ import annotations

import resource
import struct
import sys
import time
import zlib
from typing import Any

import pytest
from media_builders import chunk, encoded, gif, jpeg_of_scans, noise, png, tiff, tiff_tags
from PIL import Image
from raw_http import posted, refused_as_wrong
from serving import Running, asking, data_url, pixels, shown

from edgevlm.serve import conversation

pytestmark = pytest.mark.usefixtures("memory", "health")


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def bomb(count: int = 64 * 2**20) -> bytes:
    return zlib.compress(bytes(count), 9)


def huge_jpeg() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 15_000, 20_000)
    return bytes(data)


JPEG = encoded(noise(channels=3), "JPEG")
PNG = encoded(noise(channels=3), "PNG")
PICTURES: dict[str, bytes] = {
    "a PNG of 300 megapixels": png((20_000, 15_000), bomb(20_000 * 3)),
    "a JPEG of 300 megapixels": huge_jpeg(),
    "a GIF of 300 megapixels": gif((20_000, 15_000), (0, 0, 1, 1), b"\0"),
    "a GIF with a frame of 3600 megapixels": gif((1, 1), (0, 0, 60_000, 60_000), b"\0"),
    "a TIFF of 300 megapixels": tiff(tiff_tags((20_000, 15_000)), bytes(10)),
    "a PNG without height": png((10, 0), b""),
    "a PNG with metadata that swells": png(
        (1, 1), b"\0\1\2\3", before=chunk(b"zTXt", b"k\0\0" + bomb())
    ),
    "a PNG with a profile that swells": png(
        (1, 1), b"\0\1\2\3", before=chunk(b"iCCP", b"k\0\0" + bomb()) * 2
    ),
    "a PNG with pixels that swell": png((8, 8), bytes(64 * 2**20)),
    "a JPEG of 5000 scans": jpeg_of_scans(5000),
    "a JPEG cut short": JPEG[: len(JPEG) // 2],
    "a JPEG of its first bytes": JPEG[:4],
    "a PNG cut short": PNG[: len(PNG) // 2],
    "a PNG with a wrong checksum": PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a web page": b"<!DOCTYPE html><script>alert(1)</script>",
    "PostScript": b"%!PS\n(/etc/passwd) (r) file",
    "a PDF": b"%PDF-1.7\n",
    "an archive": b"PK\x03\x04" + bytes(100),
    "zeros": bytes(10_000),
    "text": b"picture",
    "nothing": b"",
}
# What a decoder reads all the same, since what swells is nothing that it looks at.
HARMLESS = ("a PNG with metadata that swells", "a PNG with pixels that swell")


@pytest.mark.parametrize("what", PICTURES)
def test_pictures_that_are_broken_or_swell(server: Running, what: str) -> None:
    before = peak_bytes()
    answer = posted(server, server.body([shown(data_url(PICTURES[what]))], max_tokens=1))
    if answer.status != 200 or what not in HARMLESS:
        error = refused_as_wrong(answer, 400, 413)
        assert error["code"] in ("media_unreadable", "media_too_large")
        assert error["param"] == "messages[0].content[0]"
        assert "root:" not in answer.body.decode()
    assert peak_bytes() - before < 200 * 2**20


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png;base64,====",
        "data:image/png;base64,%",
        "data:image/png;base64,\u00e9\u00e9\u00e9\u00e9",
        "data:image/png;base64,\0\0\0\0",
        "data:image/png;base64," + "A" * 3,
        "data:image/png;base64," + "A" * 2**24,
        "data:image/png;base64," + "%41" * 2**20,
        "data:" + "x" * 2**20 + ";base64,AAAA",
        "data:text/html;base64,PGI+",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:image/png;base64;base64,AAAA,AAAA",
    ],
    ids=lambda url: url[:30],
)
def test_data_urls_that_hold_no_picture(server: Running, url: str) -> None:
    refused_as_wrong(posted(server, server.body([shown(url)])))


def test_as_much_as_a_request_holds_of_white_pictures(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is 40 megapixels in 40 kilobytes. They are read one after another, up to a sum."""
    white = encoded(Image.new("L", (8000, 5000), 255), "PNG")
    part = shown(data_url(white))
    monkeypatch.setattr(conversation, "_MOST_PIXELS", 100_000_000)
    before = peak_bytes()
    answer = posted(server, server.body([part] * 32, edgevlm={"detail": "low"}))
    assert refused_as_wrong(answer, 413)["param"] == "messages[0].content[2]"
    assert peak_bytes() - before < 600 * 2**20


def test_a_thousand_pictures(server: Running) -> None:
    error = refused_as_wrong(posted(server, server.body(asking(*[pixels()] * 1000))))
    assert "at most 32 pictures" in error["message"]
    spread = [{"role": "user", "content": [shown("data:,")]}] * 1000
    assert "at most 32" in refused_as_wrong(posted(server, server.body(messages=spread)))["message"]


def test_ten_thousand_messages(server: Running) -> None:
    messages = [{"role": "user", "content": "word"}] * 10_000
    error = refused_as_wrong(posted(server, server.body(messages=messages)))
    assert error["code"] == "context_length_exceeded"


def test_half_a_million_empty_messages_and_parts(server: Running) -> None:
    messages = [{"role": "user", "content": ""}] * 500_000
    refused_as_wrong(posted(server, server.body(messages=messages)))
    parts = [{"type": "text", "text": ""}] * 500_000
    refused_as_wrong(posted(server, server.body(parts)))


@pytest.mark.parametrize(
    "text",
    [
        "word " * 6_000_000,
        "a" * 30_000_000,
        "\0" * 5_000_000,
        "é" * 5_000_000,
        "\U0001f600" * 10**6,
    ],
    ids=["words", "one word", "NUL", "accents", "emoji"],
)
def test_a_question_as_long_as_a_request(server: Running, text: str) -> None:
    before, began = peak_bytes(), time.perf_counter()
    error = refused_as_wrong(posted(server, server.body(text)))
    assert error["code"] == "context_length_exceeded"
    assert peak_bytes() - before < 400 * 2**20
    assert time.perf_counter() - began < 20


def test_a_system_prompt_of_the_same_length(server: Running) -> None:
    messages = [
        {"role": "system", "content": "word " * 1_000_000},
        {"role": "user", "content": "What is it?"},
    ]
    error = refused_as_wrong(posted(server, server.body(messages=messages)))
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "x" * 10**6}, "model"),
        ({"model": "a\0b"}, "model"),
        ({"model": "edgevlm-tiny:" + "x" * 10**6}, "model"),
        ({"model": "../../etc/passwd"}, "model"),
        ({"model": "/etc/passwd"}, "model"),
        ({"edgevlm": {"adapter": "/etc"}}, "edgevlm.adapter"),
        ({"edgevlm": {"adapter": "../one"}}, "edgevlm.adapter"),
        ({"edgevlm": {"adapter": "x" * 10**6}}, "edgevlm.adapter"),
        ({"edgevlm": {"adapter": ["one"] * 10_000}}, "edgevlm.adapter"),
        ({"edgevlm": {"adapter": {f"a{n}": 1 for n in range(10_000)}}}, "edgevlm.adapter"),
        ({"edgevlm": {"adapter": {"one": 1e308}}}, "edgevlm.adapter"),
        ({"edgevlm": {"adapter": "hf://someone/adapter"}}, "edgevlm.adapter"),
        ({"edgevlm": {"image_tokens": 0}}, "messages[0].content[0]"),
        ({"edgevlm": {"image_tokens": -(10**30)}}, "messages[0].content[0]"),
        ({"x" * 10**6: 1}, None),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 201}, "stop"),
        ({"top_logprobs": 10**9, "logprobs": True}, "top_logprobs"),
        ({"temperature": 1e308}, "temperature"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"n": 10**9}, "n"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_fields_that_ask_for_too_much(
    server: Running, fields: dict[str, Any], param: str | None
) -> None:
    answer = posted(server, server.body(asking(pixels())) | fields)
    assert refused_as_wrong(answer, 400, 404)["param"] == param


def test_a_picture_may_not_cost_no_tokens(server: Running) -> None:
    part = shown(data_url(PNG))
    part["image_url"]["image_tokens"] = 0
    error = refused_as_wrong(posted(server, server.body([part])))
    assert error["param"] == "messages[0].content[0]"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


SCHEMAS: dict[str, Any] = {
    "one that refers to itself": {"$ref": "#"},
    "one that refers elsewhere": {"$ref": "http://127.0.0.1:1/schema.json"},
    "one that refers to a file": {"$ref": "file:///etc/passwd"},
    "two that refer to each other": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "one that doubles": {
        "$defs": {
            "d0": {"type": "string"},
            **{
                f"d{n}": {
                    "type": "object",
                    "properties": {"a": {"$ref": f"#/$defs/d{n - 1}"}},
                    "allOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2,
                }
                for n in range(1, 30)
            },
        },
        "$ref": "#/$defs/d29",
    },
    "a pattern that explodes": {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
    "a pattern of a million": {"type": "string", "pattern": "a{1000000}"},
    "a length of 10^18": {"type": "string", "minLength": 10**18},
    "a deep one": nested(400),
    "a number beyond 64 bits": {"type": "integer", "minimum": -(2**64)},
    "a long one": {"enum": ["x" * 100 + str(n) for n in range(5_000)]},
    "one for nothing": {"not": {}},
}


@pytest.mark.parametrize("what", SCHEMAS)
def test_schemas_that_explode(server: Running, what: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[what]}}
    began = time.perf_counter()
    answer = posted(server, server.body(response_format=wanted, max_tokens=3))
    assert answer.status == 200 or refused_as_wrong(answer)["param"] in ("response_format", None)
    assert time.perf_counter() - began < 15


def test_embeddings_of_more_than_a_request_holds(server: Running) -> None:
    body = {"model": server.model, "image": [data_url(PNG)] * 33}
    assert refused_as_wrong(posted(server, body, "/v1/embeddings/image"))["param"] == "image"
    body["image"] = []
    assert refused_as_wrong(posted(server, body, "/v1/embeddings/image"))["param"] == "image"
    body["image"] = [data_url(PNG), data_url(b"x")]
    assert refused_as_wrong(posted(server, body, "/v1/embeddings/image"))["param"] == "image[1]"
