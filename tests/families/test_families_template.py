"""Chat templates are programs from strangers: they may render, and they may fail."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from smolvlm_factory import CHAT_TEMPLATE

from edgevlm.errors import TemplateError
from edgevlm.families import template_sandbox
from edgevlm.families.template import ChatTemplate

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
]


def test_the_released_template() -> None:
    assert ChatTemplate(CHAT_TEMPLATE).render(MESSAGES) == (
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
        "User:<image>What?<end_of_utterance>\nAssistant:"
    )
    assert (
        ChatTemplate(CHAT_TEMPLATE)
        .render(MESSAGES, add_generation_prompt=False)
        .endswith("What?<end_of_utterance>\n")
    )


# What templates of released models are made of, each with what transformers gives.
USUAL = {
    "trimmed blocks": "a\n  {% if true %}\n  b\n  {% endif %}\nc",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "tests and slices": "{% for m in messages[1:] %}{{ m.content is iterable }}"
    "{{ m.content is not string }}{{ loop.index0 % 2 == 0 }}{{ loop.last }}{% endfor %}",
    "backwards": "{% for m in messages[::-1] %}{{ m['role'] }}"
    "{{ (messages|length - 1) - loop.index0 }}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ {'é': [1, none, '<']} | tojson(indent=2) }}",
    "macro": "{% macro say(role, loud=false) %}{{ role | upper if loud else role }}{% endmacro %}"
    "{{ say(messages[0].role, true) ~ '|' ~ say('x') }}",
    "selectattr": "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | map(attribute='role') | join(', ') }}",
    "break": "{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}x{% endfor %}",
    "set block": "{% set x %}{{ messages[0].role }}!{% endset %}{{ x | trim }}",
    "missing": "{{ nothing }}{{ nothing | default('d') }}{% if tools %}t{% endif %}",
    "strings": "{{ 'a-b'.split('-')[-1] }}{{ ' x '.strip() }}{{ 'abc'.startswith('ab') }}"
    "{{ 'aXa'.replace('X', 'yy') }}{{ 'aXa' | replace('X', '') }}{{ 'ab' * 2 }}{{ '1' | int + 1 }}",
    "dicts": "{% for k, v in messages[0].items() %}{{ k }}{% endfor %}"
    "{{ messages[0].get('x', 'y') }}{{ 'role' in messages[0] }}",
    "given": "{{ bos_token }}{{ add_generation_prompt }}",
}


@pytest.mark.parametrize("source", USUAL.values(), ids=USUAL.keys())
def test_usual_constructs_render_as_in_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES) == expected[0]


# Templates that would take time, memory or what is not theirs; each must end in an error.
GROW = "{{% set ns = namespace(x={0}) %}}{{% for i in range(64) %}}{1}{{% endfor %}}{{{{ {2} }}}}"
HOSTILE = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}"
    "{% endfor %}",
    "long loop": "{% for a in range(1000000000) %}{% endfor %}",
    "long string": "{{ 'a' * 10000000000 }}",
    "long list": "{{ ([0] * 10000000000) | length }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "squares": GROW.format(3, "{% set ns.x = ns.x * ns.x %}", 1),
    "doubling": GROW.format("'a'", "{% set ns.x = ns.x ~ ns.x %}", 1),
    "adding": GROW.format("'a'", "{% set ns.x = ns.x + ns.x %}", 1),
    "capturing": GROW.format("'a'", "{% set b %}{{ns.x}}{{ns.x}}{% endset %}{% set ns.x=b %}", 1),
    "lists in lists": GROW.format("[1]", "{% set ns.x = [ns.x, ns.x] %}", "ns.x | tojson"),
    "dicts in dicts": GROW.format("{}", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "ns.x == ns.x"),
    "tuples in tuples": GROW.format("(1,)", "{% set ns.x = (ns.x, ns.x) %}", "{ns.x: 1}"),
    "macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "joining": "{% set s = 'a' * 900000 %}{{ [s, s, s] | join }}",
    "replacing": "{% set s = 'a' * 100000 %}{{ s | replace('a', s) }}",
    "replacing nothing": "{% set s = 'a' * 100000 %}{{ s.replace('', s) }}",
    "long strings in a list": "{% set s = 'a' * 900000 %}{% set x = [s, s] %}",
    "copies": "{% set s = 'a' * 900000 %}"
    + "".join(f"{{% set a{i} = s[1:] %}}" for i in range(100)),
    "many comparisons": "{% set s = 'a' * 900000 %}{% set t = s[1:] ~ 'a' %}"
    "{% for i in range(100000) %}{% if s == t %}{% endif %}{% endfor %}",
    "lazy chains": "{% for i in range(100000) %}"
    "{{ range(100000) | reverse | list | length }}{% endfor %}",
    "padding": "{{ 'a' | center(1000000000) }}",
    "padding method": "{{ 'a'.center(1000000000) }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "filler": "{{ lipsum(n=100000) }}",
    "output": "{% set s = 'a' * 900000 %}{{ s }}{{ s }}",
    "printed list": "{{ messages }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "attr": "{{ '' | attr('__class__') }}",
    "item": "{{ ''['__class__'].__mro__ }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "generator": "{{ (messages | map('upper')).gi_frame.f_globals.x }}",
    "change": "{{ messages.append(1) }}",
    "change a dict": "{{ messages[0].update(x=1) }}",
    "private names": "{{ namespace(__class__='x') }}",
    "unknown name": "{{ nothing.at.all }}",
    "unknown call": "{{ nothing() }}",
    "division": "{{ 1 / 0 }}",
    "syntax": "{% for %}",
    "unknown filter": "{{ 'x' | nope }}",
    "too long": "a" * 70_000,
    "deep brackets": "{{ " + "(" * 20_000 + ")" * 20_000 + " }}",
    "deep blocks": "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "own refusal": "{{ raise_exception('Only one picture.') }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_fail(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(MESSAGES)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.hint


def test_the_refusal_of_a_template_is_told() -> None:
    template = ChatTemplate("{{ raise_exception('Only one picture.') }}")
    with pytest.raises(TemplateError, match=r"Only one picture\."):
        template.render(MESSAGES)


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{% for m in messages %}x{% endfor %}")
    moments = iter(range(0, 1000, 60))
    monkeypatch.setattr(template_sandbox.time, "thread_time", lambda: next(moments))
    with pytest.raises(TemplateError, match="too much work"):
        template.render(MESSAGES)


def test_every_rendering_has_the_whole_budget() -> None:
    """A long conversation renders again and again, also after a failure."""
    template = ChatTemplate(
        "{% for m in messages %}{{ messages | length }}{{ m.role }}{% endfor %}"
        "{% if messages | length == 1 %}{{ 'a' * 10000000 }}{% endif %}"
    )
    long = MESSAGES * 500
    for _ in range(30):
        assert template.render(long).startswith("1000system1000user")
        with pytest.raises(TemplateError):
            template.render(MESSAGES[:1])


def test_threads_render_one_template() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }},{% endfor %}")
    results: dict[int, str] = {}

    def render(count: int) -> None:
        for _ in range(50):
            results[count] = template.render(MESSAGES[:1] * count)

    threads = [threading.Thread(target=render, args=(count,)) for count in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {count: "system," * count for count in range(1, 9)}


def test_messages_stay_as_they_were() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    with pytest.raises(TemplateError):
        ChatTemplate("{{ messages[0].pop('role') }}").render(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
