"""`edgevlm serve` as a person runs it: what it prints, how it stops, and `chat --server`."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

PROGRAM = [sys.executable, "-c", "from edgevlm.cli import main; main()"]
# An answer that no model ends early.
LONG = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "array", "items": {"type": "integer"}, "minItems": 2000}},
}
Run = Callable[..., tuple[int, str, str]]


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The process, and the lines that it has said once it serves."""
    process = subprocess.Popen(
        [*PROGRAM, "serve", "--model", str(model), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line.strip())
            if "kept in" in line or process.poll() is not None:
                break
        yield process, lines
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        watchdog.cancel()


def address(lines: list[str]) -> str:
    [line] = [line for line in lines if line.startswith("Serving ")]
    return line.rpartition(" ")[2]


def test_the_first_start_shows_its_token_once(smolvlm: Path, home: Path) -> None:
    token_file = home / "serve" / "token"
    with serving(smolvlm) as (_, lines):
        url, token = address(lines), token_file.read_text()
        assert f"Open {url}/#token={token}" in lines
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
    with serving(smolvlm) as (_, lines):
        assert not any(token in line for line in lines)
        assert f"The token is kept in {token_file}" in lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(smolvlm: Path, number: signal.Signals) -> None:
    with serving(smolvlm) as (process, _):
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_what_is_under_way_is_finished_first(smolvlm: Path, home: Path) -> None:
    with serving(smolvlm) as (process, lines):
        token = (home / "serve" / "token").read_text()
        body: dict[str, Any] = {"model": smolvlm.name, "stream": True, "max_tokens": 1000}
        body["messages"] = [{"role": "user", "content": "Hello?"}]
        body["response_format"] = LONG
        with httpx.stream(
            "POST",
            f"{address(lines)}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        ) as response:
            said = response.iter_lines()
            next(said)
            process.send_signal(signal.SIGINT)
            assert list(said)[-2:] == ["data: [DONE]", ""]
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Finishing 1 answers" in process.stderr.read()


def test_chat_asks_a_server(
    smolvlm: Path, edgevlm: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = edgevlm("chat", "Hello?", "--model", str(smolvlm), "--json", "--max-tokens", "5")
    with serving(smolvlm) as (_, lines):
        url = address(lines)
        code, out, err = edgevlm("chat", "Hello?", "--server", url, "--json", "--max-tokens", "5")
        assert (code, err) == (0, "")
        reply = json.loads(out)
        assert reply["text"] == json.loads(local[1])["text"]
        assert reply["route"]["reason"].endswith(url)
    code, out, err = edgevlm("chat", "Hello?", "--server", url)
    assert code == 5
    assert err.startswith("error: Can't reach")
    assert "hint: Start it with `edgevlm serve`" in err


def test_a_port_that_is_taken_says_so(smolvlm: Path, edgevlm: Run) -> None:
    with serving(smolvlm) as (_, lines):
        port = address(lines).rpartition(":")[2]
        code, _, err = edgevlm("serve", "--model", str(smolvlm), "--port", port)
    assert code == 2
    assert f"Can't listen on 127.0.0.1:{port}" in err


def test_a_host_is_an_address(edgevlm: Run) -> None:
    code, _, err = edgevlm("serve", "--host", "example.com")
    assert code == 2
    assert "not an IP address" in err


def test_help_has_examples(edgevlm: Run) -> None:
    code, out, _ = edgevlm("serve", "--help")
    assert code == 0
    assert "edgevlm serve --model smolvlm2-500m --port 9000" in out
