"""The official `openai` package for Node, with zod, against a real server.

`npm ci` installs it, as `node/package-lock.json` pins it, into pytest's cache folder.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import QUESTION, TOKEN, Running, data_url, pixels, png
from watching import jobs_of, until

from edgevlm import Model, Session

SOURCE = Path(__file__).parent / "node"
LOCK = "package-lock.json"
Step = Callable[[str], Any]


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(
            f"{name} is not installed, and OpenAI's client for Node is tested with it. Install"
            " Node 20 or newer: https://nodejs.org, `apt-get install nodejs npm` or"
            " `brew install node`."
        )
    return found


@pytest.fixture(scope="session")
def installed(pytestconfig: pytest.Config) -> Path:
    """A folder with the client, its dependencies and our script."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("openai-node")
    # npm writes its own record last, so that a broken installation is not taken for a whole one.
    done = folder / "node_modules" / ".package-lock.json"
    if not (done.exists() and filecmp.cmp(SOURCE / LOCK, folder / LOCK, shallow=False)):
        for name in ("package.json", LOCK):
            shutil.copyfile(SOURCE / name, folder / name)
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
        npm = subprocess.run(
            [tool("npm"), "ci", *quiet], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert npm.returncode == 0, f"npm can't install the client:\n{npm.stderr}"
    shutil.copyfile(SOURCE / "client.mjs", folder / "client.mjs")
    return folder


@pytest.fixture
def run(installed: Path, server: Running) -> Step:
    """Run a step of `client.mjs` and read what it tells."""
    asked = {"model": server.model, "picture": data_url(png(pixels()))}
    environ = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": TOKEN}

    def run(step: str) -> Any:
        node = subprocess.run(
            [tool("node"), "client.mjs", step, json.dumps(asked)],
            cwd=installed,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert node.returncode == 0, node.stderr
        return json.loads(node.stdout)

    return run


@pytest.fixture(scope="module")
def said(model: Model) -> str:
    with Session(model) as session:
        return session.ask(QUESTION, images=[pixels()], max_tokens=6).text


def test_it_lists_the_models(run: Step, server: Running) -> None:
    told = run("models")
    assert told["ids"] == [server.model, f"{server.model}:one", f"{server.model}:two"]
    assert told["one"] == server.model


def test_it_asks_about_a_picture(run: Step, said: str) -> None:
    told = run("chat")
    assert (told["text"], told["finish_reason"]) == (said, "length")
    assert len(told["logprobs"]) == told["usage"]["completion_tokens"] == 6
    assert all(logprob < 0 for logprob in told["logprobs"])
    assert told["edgevlm"]["usage"]["image_tokens"] > 0


def test_it_streams(run: Step, said: str) -> None:
    told = run("stream")
    assert told["text"] == said
    assert told["usage"]["completion_tokens"] == 6


def test_zod_parses_the_answer(run: Step) -> None:
    told = run("schema")
    assert told["colour"] in ("red", "green")
    assert isinstance(told["sharp"], bool)


def test_errors_are_their_own_classes(run: Step) -> None:
    key, model, temperature = run("errors")
    assert (key["kind"], key["code"]) == ("AuthenticationError", "invalid_api_key")
    assert (model["kind"], model["code"]) == ("NotFoundError", "model_not_found")
    assert (temperature["kind"], temperature["param"]) == ("BadRequestError", "temperature")
    assert "temperature" in temperature["message"]


def test_leaving_a_stream_frees_the_engine(run: Step, server: Running) -> None:
    with jobs_of(server) as jobs:
        assert run("abort") == {"aborted": True}
        [job] = jobs
        until(lambda: not server.server.engine.active)
    assert job.request.cancel.is_set
    assert len(job.request.tokens) < 4000
