"""`/v1/chat/completions` against `Session` on the same model: the same tokens in OpenAI's words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from serving import QUESTION, Running, asking, data_url, pixels, png, shown

from edgevlm import Model, Reply, Session

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
}


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def expected(model: Model, *turns: str, **options: Any) -> Reply:
    with Session(model) as session:
        reply = session.ask(turns[0], images=[pixels()], **({"max_tokens": 6} | options))
        for turn in turns[1:]:
            reply = session.ask(turn, **({"max_tokens": 6} | options))
        return reply


def ids(answer: dict[str, Any]) -> list[int]:
    return [token["id"] for token in answer["edgevlm"]["tokens"]]


def test_an_answer_is_the_sessions(server: Running, model: Model) -> None:
    answer = server.chat(asking(pixels()), edgevlm={"tokens": True}).json()
    reply = expected(model, QUESTION)
    assert ids(answer) == [token.id for token in reply.tokens]
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": reply.text, "refusal": None}
    assert choice["finish_reason"] == reply.finish_reason
    assert answer["object"] == "chat.completion"
    assert answer["model"] == server.model
    assert answer["usage"]["prompt_tokens"] == reply.usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == 6
    own = answer["edgevlm"]
    assert own["usage"]["image_tokens"] == reply.usage.image_tokens > 0
    assert own["route"]["decision"] == "local"
    assert own["route"]["sent"] == {"text_bytes": 0, "image_bytes": 0, "embedding_bytes": 0}
    assert own["timings"]["ttft_ms"] > 0
    assert own["queue_ms"] >= 0
    assert "memory" not in own


def test_a_stream_says_what_the_whole_answer_says(server: Running) -> None:
    whole = server.chat(asking(pixels()), edgevlm={"tokens": True}).json()
    response = server.chat(
        asking(pixels()),
        stream=True,
        stream_options={"include_usage": True},
        edgevlm={"tokens": True},
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, usage = events(response)
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    last = chunks[-1]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["edgevlm"]["timings"]["total_ms"] > 0
    assert [i for c in chunks[:-1] for i in ids(c)] == ids(whole)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_follow_up_computes_only_what_is_new(server: Running, model: Model) -> None:
    first = server.chat(asking(pixels(1))).json()["choices"][0]["message"]
    messages = [
        {"role": "user", "content": asking(pixels(1))},
        first,
        {"role": "user", "content": "And its colour?"},
    ]
    answer = server.chat(messages=messages).json()
    usage = answer["usage"]
    assert (
        usage["prompt_tokens_details"]["cached_tokens"] > answer["edgevlm"]["usage"]["image_tokens"]
    )
    assert answer["edgevlm"]["timings"]["vision_ms"] < 20


def test_another_question_on_the_same_picture_reuses_it(server: Running) -> None:
    server.chat(asking(pixels(2), text="What is it?"))
    answer = server.chat(asking(pixels(2), text="Where is it?")).json()["edgevlm"]
    assert answer["usage"]["cached_tokens"] >= answer["usage"]["image_tokens"]


def test_logprobs_are_those_of_the_session(server: Running, model: Model) -> None:
    answer = server.chat(asking(pixels()), logprobs=True, top_logprobs=3).json()
    content = answer["choices"][0]["logprobs"]["content"]
    tokens = expected(model, QUESTION, top_logprobs=3).tokens
    for entry, token in zip(content, tokens, strict=True):
        assert entry["logprob"] == pytest.approx(token.logprob, abs=2e-3)
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert math.exp(entry["logprob"]) <= 1
        if entry["bytes"] is not None:
            assert bytes(entry["bytes"]).decode() == entry["token"]


def test_sampling_with_a_seed_is_the_sessions(server: Running, model: Model) -> None:
    options = {"temperature": 0.9, "top_p": 0.9, "seed": 5}
    answer = server.chat(asking(pixels()), edgevlm={"tokens": True}, **options).json()
    assert ids(answer) == [t.id for t in expected(model, QUESTION, **options).tokens]


def test_a_stop_string_ends_it(server: Running, model: Model) -> None:
    whole = expected(model, QUESTION).text
    stop = whole[len(whole) // 2 :][:3]
    [choice] = server.chat(asking(pixels()), stop=stop).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == whole.partition(stop)[0].strip()


def test_a_schema_is_kept_to(server: Running) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    answer = server.chat(asking(pixels()), response_format=wanted, max_tokens=60).json()
    assert answer["edgevlm"]["parsed"]["colour"] in ("red", "green")
    assert json.loads(answer["choices"][0]["message"]["content"]) == answer["edgevlm"]["parsed"]


def test_a_picture_without_a_question_is_described(server: Running) -> None:
    described = server.chat(asking(pixels(), text="Describe this image.")).json()
    assert server.chat([shown(data_url(png(pixels())))]).json()["choices"] == described["choices"]


def test_a_system_prompt_counts(server: Running) -> None:
    messages = [
        {"role": "developer", "content": "Answer in one word."},
        {"role": "user", "content": QUESTION},
    ]
    with_it = server.chat(messages=messages).json()
    assert with_it["usage"]["prompt_tokens"] > server.chat().json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "never"}},
                }
            },
            "response_format",
        ),
        ({"edgevlm": {"adapter": "one", "scale": 99}}, "edgevlm.adapter"),
        ({"edgevlm": {"scale": 0.5}}, "edgevlm.scale"),
        ({"edgevlm": {"image_tokens": 1}}, "messages[0].content[0]"),
        ({"edgevlm": {"rout": "local"}}, "edgevlm"),
        ({"no_such_thing": 1}, None),
        ({"messages": [{"role": "assistant", "content": "Yes."}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ],
)
def test_what_cant_be_is_named(server: Running, fields: dict[str, Any], param: str | None) -> None:
    response = server.chat(asking(pixels()), **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")


def test_what_asks_for_nothing_is_taken(server: Running) -> None:
    neutral = {
        "n": 1,
        "tools": [],
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "response_format": {"type": "text"},
        "service_tier": "auto",
        "tool_choice": "none",
    }
    assert server.chat(**neutral).status_code == 200


def test_too_long_a_conversation_says_so(server: Running) -> None:
    response = server.chat("word " * 9000)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
