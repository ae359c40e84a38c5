"""The official `openai` package for Python, as applications use it, against a real server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from known_photo import PHOTO, names_it
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from serving import QUESTION, TOKEN, Running, asking, data_url, pixels, running, shown
from watching import held, job_of, jobs_of, until

from edgevlm import Model, Session


class Seen(BaseModel):
    colour: Literal["red", "green"]
    sharp: bool


def options(server: Running, **others: Any) -> dict[str, Any]:
    return {"base_url": f"{server.url}/v1", "api_key": TOKEN, "max_retries": 0} | others


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(**options(server)) as client:
        yield client


@pytest.fixture
def asked(server: Running) -> dict[str, Any]:
    """A question about a picture."""
    messages = [{"role": "user", "content": asking(pixels())}]
    return {"model": server.model, "messages": messages, "max_tokens": 6}


@pytest.fixture(scope="module")
def said(model: Model) -> str:
    """What a session says to the same."""
    with Session(model) as session:
        return session.ask(QUESTION, images=[pixels()], max_tokens=6).text


def test_it_lists_the_models(client: OpenAI, server: Running) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [server.model, f"{server.model}:one", f"{server.model}:two"]
    assert client.models.retrieve(names[1]).id == names[1]


def test_it_asks_about_a_picture(client: OpenAI, asked: dict[str, Any], said: str) -> None:
    answer = client.chat.completions.create(**asked)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", said)
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    assert answer.model_extra is not None
    assert answer.model_extra["edgevlm"]["route"]["decision"] == "local"


def test_a_conversation_goes_on(client: OpenAI, server: Running, model: Model) -> None:
    with Session(model) as session:
        session.ask(QUESTION, images=[pixels(3)], max_tokens=6)
        expected = session.ask("And its colour?", max_tokens=6).text
    messages: list[Any] = [{"role": "user", "content": asking(pixels(3))}]
    asked = {"model": server.model, "messages": messages, "max_tokens": 6}
    first = client.chat.completions.create(**asked)
    messages += [first.choices[0].message, {"role": "user", "content": "And its colour?"}]
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == expected
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens


def test_it_streams(client: OpenAI, asked: dict[str, Any], said: str) -> None:
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *told, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == said
    assert told[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in told[-2:]] == [None, "length"]
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 6


def test_async_clients_ask_side_by_side(server: Running, asked: dict[str, Any], said: str) -> None:
    async def whole(client: AsyncOpenAI) -> str | None:
        answer = await client.chat.completions.create(**asked)
        return answer.choices[0].message.content

    async def streamed(client: AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(**asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_at_once() -> list[str | None]:
        async with AsyncOpenAI(**options(server)) as client:
            asking = [whole(client) if n % 2 else streamed(client) for n in range(8)]
            return list(await asyncio.gather(*asking))

    assert asyncio.run(all_at_once()) == [said] * 8


def test_an_answer_is_parsed(client: OpenAI, asked: dict[str, Any]) -> None:
    answer = client.chat.completions.parse(**asked | {"max_tokens": 60}, response_format=Seen)
    assert isinstance(answer.choices[0].message.parsed, Seen)


def test_an_answer_cut_short_is_not_parsed(client: OpenAI, asked: dict[str, Any]) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked | {"max_tokens": 2}, response_format=Seen)


def test_a_stream_is_parsed(client: OpenAI, asked: dict[str, Any]) -> None:
    with client.chat.completions.stream(
        **asked | {"max_tokens": 60}, response_format=Seen
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert isinstance(final.choices[0].message.parsed, Seen)


def test_logprobs(client: OpenAI, asked: dict[str, Any]) -> None:
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=4)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 4
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert 0 < math.exp(entry.logprob) <= 1


def test_an_adapter_by_its_models_name_or_field(client: OpenAI, asked: dict[str, Any]) -> None:
    named = client.chat.completions.create(**asked | {"model": f"{asked['model']}:one"})
    field = client.chat.completions.create(**asked, extra_body={"edgevlm": {"adapter": "one"}})
    base = client.chat.completions.create(**asked)
    assert named.choices[0].message == field.choices[0].message != base.choices[0].message


def test_the_raw_response_is_there(client: OpenAI, asked: dict[str, Any], said: str) -> None:
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert raw.http_response.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == said


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        (
            {"messages": [{"role": "user", "content": "word " * 9000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            None,
        ),
    ],
)
def test_errors_are_their_own_kinds(
    client: OpenAI,
    asked: dict[str, Any],
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str | None,
    param: str | None,
) -> None:
    with pytest.raises(kind) as refused:
        client.chat.completions.create(**asked | fields)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_key(server: Running, asked: dict[str, Any], stream: bool) -> None:
    with (
        OpenAI(**options(server, api_key="sk-not-this-one-at-all")) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.chat.completions.create(**asked, stream=stream)
    assert refused.value.code == "invalid_api_key"


def test_a_foreign_host_name(server: Running) -> None:
    with (
        OpenAI(**options(server, default_headers={"Host": "evil.example"})) as client,
        pytest.raises(openai.PermissionDeniedError),
    ):
        client.models.list()


def test_a_full_queue_says_when_to_come_back(model: Model) -> None:
    with (
        running(model, parallel=1, queue_size=1) as server,
        held(server),
        OpenAI(**options(server)) as client,
    ):
        server.server.engine.submit(job_of(server))
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(
                model=server.model, messages=[{"role": "user", "content": "Hello."}]
            )
        assert refused.value.code == "queue_full"
        assert int(refused.value.response.headers["retry-after"]) >= 1


def test_the_client_comes_back_by_itself(model: Model) -> None:
    statuses: list[int] = []
    with running(model, parallel=1, queue_size=1) as server, held(server) as let_go:

        def noted(response: Any) -> None:
            statuses.append(response.status_code)
            let_go()

        http = openai.DefaultHttpxClient(event_hooks={"response": [noted]})
        with OpenAI(**options(server, max_retries=2, http_client=http)) as client:
            server.server.engine.submit(job_of(server))
            answer = client.chat.completions.create(
                model=server.model,
                messages=[{"role": "user", "content": "Hello."}],
                max_tokens=2,
            )
    assert answer.choices[0].message.content is not None
    assert statuses == [429, 200]


def test_a_client_that_gives_up_loses_its_place(model: Model) -> None:
    with (
        running(model, parallel=1) as server,
        held(server),
        jobs_of(server) as jobs,
        OpenAI(**options(server, timeout=0.3)) as client,
    ):
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(
                model=server.model, messages=[{"role": "user", "content": "Hello."}]
            )
        [job] = jobs
        until(lambda: job.request.cancel.is_set and not server.server.engine.queued)
    assert not job.request.tokens


def test_closing_a_stream_frees_the_engine(
    client: OpenAI, server: Running, asked: dict[str, Any]
) -> None:
    with jobs_of(server) as jobs:
        stream = client.chat.completions.create(**asked | {"max_tokens": 4000}, stream=True)
        next(iter(stream))
        stream.close()
        [job] = jobs
        until(lambda: not server.server.engine.active)
    assert job.request.cancel.is_set
    assert len(job.request.tokens) < 4000


def test_cancelling_a_task_frees_the_engine(server: Running, asked: dict[str, Any]) -> None:
    async def give_up() -> None:
        async with AsyncOpenAI(**options(server)) as client:
            task = asyncio.create_task(
                client.chat.completions.create(**asked | {"max_tokens": 4000})
            )
            while not (jobs and jobs[0].request.tokens):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with jobs_of(server) as jobs:
        asyncio.run(give_up())
        [job] = jobs
        until(lambda: not server.server.engine.active)
    assert job.request.cancel.is_set
    assert len(job.request.tokens) < 4000


def test_the_built_in_model_names_what_a_photograph_shows(tiny_server: Running) -> None:
    photo = shown(data_url(PHOTO.read_bytes(), "jpeg"))
    content: Any = [photo, {"type": "text", "text": QUESTION}]
    with OpenAI(**options(tiny_server)) as client:
        answer = client.chat.completions.create(
            model="edgevlm-tiny", messages=[{"role": "user", "content": content}]
        )
    assert answer.choices[0].finish_reason == "stop"
    assert names_it(answer.choices[0].message.content or "")
