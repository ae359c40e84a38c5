"""`edgevlm chat` as a person meets it: what it prints where, and the code it leaves with."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_factory import make_video

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(
        path
    )
    return path


@pytest.fixture
def chat(
    smolvlm: Path, edgevlm: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    """`edgevlm chat` with a small model, unless another or None is given."""

    def call(*arguments: str, model: str | None = str(smolvlm)) -> tuple[int, str, str]:
        return edgevlm("chat", *([] if model is None else ["--model", model]), *arguments)

    return call


def test_json_is_the_documented_object(
    chat: Callable[..., tuple[int, str, str]], photo: Path
) -> None:
    code, out, err = chat("What is this?", "--image", str(photo), "--json", "--max-tokens", "4")
    reply = json.loads(out)
    assert (code, err) == (0, "")
    assert set(reply) == {
        "text",
        "model",
        "runtime",
        "quantization",
        "adapter",
        "notices",
        "confidence",
        "unsure",
        "route",
        "finish_reason",
        "usage",
        "timings",
        "memory",
    }
    assert set(reply["runtime"]) == {"vision", "language"}
    assert reply["route"]["decision"] == "local"
    assert set(reply["route"]) == {"decision", "reason", "sent", "cost_usd"}
    assert set(reply["route"]["sent"].values()) == {0}
    assert set(reply["usage"]) == {
        "prompt_tokens",
        "image_tokens",
        "cached_tokens",
        "completion_tokens",
    }
    assert set(reply["timings"]) == {"load_ms", "vision_ms", "ttft_ms", "decode_tps", "total_ms"}
    assert reply["memory"]["peak_rss_bytes"] > 0


def test_tokens_carry_logprobs(chat: Callable[..., tuple[int, str, str]], photo: Path) -> None:
    _, out, _ = chat("What?", "--image", str(photo), "--json", "--tokens", "--max-tokens", "3")
    tokens = json.loads(out)["tokens"]
    assert [set(t) for t in tokens] == [{"id", "text", "logprob", "top"}] * len(tokens)
    assert all(len(t["top"]) == 5 and t["logprob"] <= 0 for t in tokens)


def test_plain_text_goes_to_stdout_alone(
    chat: Callable[..., tuple[int, str, str]], photo: Path
) -> None:
    _, as_json, _ = chat("What?", "--image", str(photo), "--json", "--max-tokens", "4")
    code, out, err = chat("What?", "--image", str(photo), "--max-tokens", "4")
    assert (code, out.strip(), err) == (0, json.loads(as_json)["text"], "")


def test_a_path_in_the_prompt_is_a_picture(
    chat: Callable[..., tuple[int, str, str]], photo: Path
) -> None:
    _, out, _ = chat(f"What is in {photo}?", "--json", "--max-tokens", "1")
    assert json.loads(out)["usage"]["image_tokens"] > 0


def test_a_named_picture_that_is_not_there_is_told(
    chat: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, err = chat("What is in holiday.jpg?", "--max-tokens", "1")
    assert (code, err) == (0, "There is no file holiday.jpg: it is read as text.\n")
    assert chat("What is a .jpg file?", "--max-tokens", "1")[2] == ""


def test_without_prompt_and_terminal_it_describes(
    chat: Callable[..., tuple[int, str, str]], photo: Path
) -> None:
    _, out, _ = chat("--image", str(photo), "--json", "--max-tokens", "1")
    _, asked, _ = chat("Describe this image.", "--image", str(photo), "--json", "--max-tokens", "1")
    assert json.loads(out)["usage"] == json.loads(asked)["usage"]


def test_a_picture_from_stdin(
    chat: Callable[..., tuple[int, str, str]], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    code, out, _ = chat("What?", "--image", "-", "--json", "--max-tokens", "1")
    assert code == 0
    assert json.loads(out)["usage"]["image_tokens"] > 0


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises this size, over a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no file"),
        (b"", "empty"),
        (b"just some words\n", "text"),
        (_jpeg()[:3000], "truncated"),
        (_png_of(20_000, 15_000), "300"),
    ],
    ids=["missing", "empty", "text", "truncated", "300-megapixel"],
)
def test_a_bad_picture(
    chat: Callable[..., tuple[int, str, str]], tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    code, out, err = chat("What?", "--image", str(path))
    _is_one_clear_error(err)
    assert (code, out) == (2, "")
    assert says in err.lower()


@pytest.mark.parametrize(
    "url",
    ["http://example.com/a.jpg", "https://127.0.0.1:9/a.jpg", "ftp://example.com/a.jpg"],
)
def test_a_url_that_is_not_fetched(chat: Callable[..., tuple[int, str, str]], url: str) -> None:
    code, out, err = chat("What?", "--image", url)
    _is_one_clear_error(err)
    assert (code, out) == (2, "")


def _is_one_clear_error(err: str) -> None:
    lines = err.strip().splitlines()
    assert lines[0].startswith("error: "), err
    assert len(lines) <= 2, err
    assert len(lines) == 1 or lines[1].startswith("hint: "), err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["What?", "--max-tokens", "0"], 2),
        (["What?", "--max-tokens", "many"], 2),
        (["What?", "--tokens"], 2),
        (["What?", "--temperature", "-1"], 2),
        (["What?", "--runtime", "abacus"], 2),
        (["word " * 9000], 2),
        (["What?", "--route", "cloud"], 5),
        ([], 2),
    ],
)
def test_wrong_usage(
    chat: Callable[..., tuple[int, str, str]], arguments: list[str], code: int
) -> None:
    got, out, err = chat(*arguments)
    assert (got, out) == (code, "")
    assert "Traceback" not in err
    assert "rror: " in err


def test_an_unknown_model_names_its_neighbours(
    chat: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = chat("What?", model="smolvlm2-500")
    _is_one_clear_error(err)
    assert (code, out) == (3, "")
    assert "smolvlm2-500m" in err


@pytest.mark.parametrize(
    "missing",
    ["config.json", "tokenizer.json", "onnx/decoder_model_merged.onnx", "onnx/embed_tokens.onnx"],
)
def test_a_model_folder_with_a_missing_file(
    chat: Callable[..., tuple[int, str, str]], smolvlm: Path, tmp_path: Path, missing: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smolvlm, folder)
    (folder / missing).unlink()
    code, out, err = chat("What?", model=str(folder))
    _is_one_clear_error(err)
    assert (code, out) == (3, "")
    assert Path(missing).stem in err


def test_a_weight_file_cut_short(
    chat: Callable[..., tuple[int, str, str]], smolvlm: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smolvlm, folder)
    weights = folder / "onnx" / "decoder_model_merged.onnx"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    code, out, err = chat("What?", model=str(folder))
    _is_one_clear_error(err)
    assert (code, out) == (3, "")


def test_no_network_and_nothing_cached(
    chat: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    monkeypatch.setenv("PIP_INDEX_URL", f"{CLOSED}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    code, out, err = chat("What?", model=None)
    tried, error = err.split("\n", 1)
    assert tried == "Downloading edgevlm-tiny (98.4 MB) ..."
    _is_one_clear_error(error)
    assert (code, out) == (3, "")


def test_offline_and_nothing_cached(
    chat: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_OFFLINE", "1")
    code, out, err = chat("What?", model=None)
    _is_one_clear_error(err)
    assert (code, out) == (3, "")
    assert "EDGEVLM_OFFLINE" in err


def test_an_empty_question_is_refused_before_a_model_is_looked_for(
    chat: Callable[..., tuple[int, str, str]],
) -> None:
    code, _, err = chat(" ", model="nobody-has-this")
    assert code == 2
    assert "no question" in err


def test_a_video(chat: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(make_video(frames=40, fps=10))
    code, out, err = chat("What happens?", "--video", str(clip), "--json", "--max-tokens", "2")
    assert (code, err) == (0, "")
    assert json.loads(out)["usage"]["image_tokens"] == 4 * 4


def test_a_budget_of_image_tokens(
    chat: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    photo = tmp_path / "large.png"
    Image.new("RGB", (300, 200)).save(photo)
    asked = ("--image", str(photo), "--json", "--max-tokens", "1")
    _, whole, _ = chat(*asked)
    _, bounded, _ = chat(*asked, "--image-tokens", "30")
    assert json.loads(whole)["usage"]["image_tokens"] == 52
    assert json.loads(bounded)["usage"]["image_tokens"] == 28
    code, out, err = chat(*asked, "--image-tokens", "3")
    _is_one_clear_error(err)
    assert (code, out) == (2, "")
    assert "at least 4 tokens" in err


def test_an_answer_in_a_schema(chat: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}')
    code, out, err = chat("How many?", "--schema", str(schema))
    assert (code, err) == (0, "")
    assert json.loads(out)["n"] in (1, 2)
    _, out, _ = chat("How many?", "--schema", str(schema), "--json")
    assert json.loads(out)["parsed"] == json.loads(json.loads(out)["text"])
    _, out, err = chat("How many?", "--schema", str(schema), "--json", "--max-tokens", "1")
    cut = json.loads(out)
    assert "cut short" in err
    assert (cut["finish_reason"], cut["parsed"]) == ("length", None)


@pytest.mark.parametrize(
    ("option", "content", "match"),
    [
        ("--schema", None, "no file"),
        ("--schema", b"{", "not JSON"),
        ("--schema", b"\xff\xfe", "not a text"),
        ("--schema", b'{"type": "strin"}', "strin"),
        ("--schema", b"[" * 100_000, "not JSON"),
        ("--video", None, "no file"),
        ("--video", b"hello", "not a video"),
        ("--video", make_video()[:300], "can't be decoded"),
    ],
)
def test_a_bad_schema_or_video_is_refused_before_a_model_is_looked_for(
    chat: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    option: str,
    content: bytes | None,
    match: str,
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    code, out, err = chat("What?", option, str(path), model="nobody-has-this")
    _is_one_clear_error(err)
    assert (code, out) == (2, "")
    assert match in err


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "EDGEVLM_HOME": str(home), "PYTHONUNBUFFERED": "1"}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from edgevlm.cli import main; main()", *arguments]


def test_ctrl_c_stops_an_answer_with_130(smolvlm: Path, photo: Path, home: Path) -> None:
    process = subprocess.Popen(
        _command(
            *("chat", "Talk.", "--model", str(smolvlm), "--image", str(photo)),
            *("--max-tokens", "100000", "--temperature", "2", "--seed", "1"),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=_environment(home),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err


def test_a_conversation_on_a_terminal(smolvlm: Path, photo: Path, home: Path) -> None:
    """Two questions on one picture, a bad command and a bad picture in between, then leave."""
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        _command("chat", "--model", str(smolvlm), "--max-tokens", "3"),
        stdin=side,
        stdout=side,
        stderr=side,
        env=_environment(home) | {"TERM": "dumb"},
    )
    os.close(side)
    shown = b""

    def until(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 4096)
        shown = shown.split(text, 1)[1]

    def say(line: str) -> None:
        os.write(terminal, line.encode() + b"\n")

    with process:
        until(b"> ")
        say(f"What is in {photo}?")
        until(b"first token")
        until(b"> ")
        say("/fly")
        until(b"no command /fly")
        until(b"> ")
        say("/image nowhere.png")
        until(b"error: ")
        until(b"> ")
        say("And what colour is it?")
        until(b"first token")
        until(b"> ")
        say(str(photo))
        until(b"first token")
        until(b"> ")
        say("/reset")
        until(b"new conversation")
        until(b"> ")
        say("/quit")
        assert process.wait(timeout=60) == 0
    os.close(terminal)
