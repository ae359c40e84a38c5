"""Simon Willison's `llm`, the command, told of a server as of any other OpenAI-compatible one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from known_photo import PHOTO, names_it
from serving import TOKEN, Running

Llm = Callable[..., str]
CONFIGURATION = """
- model_id: edgevlm
  model_name: edgevlm-tiny
  api_base: "{url}/v1"
  api_key_name: edgevlm
  vision: true
  supports_schema: true
"""


@pytest.fixture(scope="module")
def llm(tiny_server: Running, tmp_path_factory: pytest.TempPathFactory) -> Llm:
    """Run the command, with a folder of its own."""
    folder = tmp_path_factory.mktemp("llm")
    configuration = CONFIGURATION.format(url=tiny_server.url)
    (folder / "extra-openai-models.yaml").write_text(configuration, encoding="utf-8")
    environ = {**os.environ, "LLM_USER_PATH": str(folder)}

    def llm(*arguments: str) -> str:
        command = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert command.returncode == 0, command.stderr
        return command.stdout

    llm("keys", "set", "edgevlm", "--value", TOKEN)
    return llm


def test_an_answer_about_a_photograph_streams(llm: Llm) -> None:
    assert names_it(llm("-m", "edgevlm", "-a", str(PHOTO), "What is in this picture?"))


def test_a_conversation_goes_on(llm: Llm) -> None:
    question = ("--no-stream", "What is in this picture?")
    assert names_it(llm("-m", "edgevlm", "-a", str(PHOTO), *question))
    assert llm("-c", "Is it an animal?").lower().startswith("no")


def test_its_schema_is_kept_to(llm: Llm) -> None:
    question = ("--schema", "food bool", "Is it food?")
    assert json.loads(llm("-m", "edgevlm", "-a", str(PHOTO), *question)).keys() == {"food"}
