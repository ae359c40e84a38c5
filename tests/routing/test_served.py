"""`edgevlm serve` as the provider: a real model behind the protocol, and not only its look."""

from __future__ import annotations

import pytest
from cloud_parts import MakeCloud
from serving import TOKEN, Running, pixels

from edgevlm.errors import CloudRefused
from edgevlm.messages import Message
from edgevlm.routing.request import AnswerOptions, worst_tokens


def test_a_model_of_ours_answers(server: Running, make_cloud: MakeCloud) -> None:
    messages = [Message("user", "What is in the picture?", (pixels(),))]
    cloud = make_cloud(f"{server.url}/v1", model=server.model, key=TOKEN)
    options = AnswerOptions(max_tokens=6, temperature=0.0)
    pieces = list(stream := cloud.stream(messages, options))
    answer = stream.answer
    assert "".join(pieces).strip() == answer.text
    assert answer.finish_reason == "length"
    assert answer.tokens is not None
    assert answer.tokens.completion == 6
    assert 0 < answer.tokens.prompt <= worst_tokens(messages, options, cloud.provider.limits).prompt
    assert answer.text == cloud.ask(messages, options).text
    assert cloud.ledger.spending().calls == 2


def test_a_token_that_it_does_not_know(server: Running, make_cloud: MakeCloud) -> None:
    cloud = make_cloud(f"{server.url}/v1", model=server.model, key="not-its-token-0123")
    with pytest.raises(CloudRefused, match="rejected the key"):
        cloud.ask([Message("user", "What is this?")])


def test_a_model_that_it_does_not_serve(server: Running, make_cloud: MakeCloud) -> None:
    cloud = make_cloud(f"{server.url}/v1", model="another", key=TOKEN)
    with pytest.raises(CloudRefused, match="HTTP 404"):
        cloud.ask([Message("user", "What is this?")])
