"""Chat templates run in bounded time and memory, and do what real ones need."""

import pytest
from conftest import refused
from stepladder import InvalidArgumentError, ModelFormatError
from stepladder.text.template import ChatTemplate

MESSAGES = [
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "<think>a</think>b"},
]


def render(source, messages=MESSAGES, **variables):
    return ChatTemplate(source, "template").render(messages, True, variables).text


GOOD = {
    "{{ messages[0]['content'] | trim }}": "hi",
    "{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{% endfor %}": "0False21True2",
    "{% if tools is defined and tools is not none %}T{% else %}N{% endif %}": "N",
    "{{ messages[1].content.split('</think>')[-1].lstrip('\\n') }}": "b",
    "{%- set ns = namespace(a=0) -%}{%- for m in messages -%}{%- set ns.a = ns.a + 1 -%}{%- endfor -%}{{ ns.a }}": "2",
    "{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}": "au",
    "{{ messages[0] | tojson }}": '{"role": "user", "content": " hi "}',
    "{{ ['a', 'b'] | join('-') }}{{ {'a': 1}.items() | list | length }}": "a-b1",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ f('y') }}": "[1][y]",
    "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}": "012",
    "{% generation %}x{{ 1 + 1 }}{% endgeneration %}": "x2",
    "{{ '%s and %d' % ('a', 3) }}": "a and 3",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | first }}": " hi ",
    "{{ add_generation_prompt }}{{ (7 // 2) ~ '' ~ 2 ** 3 }}": "True38",
    "{{ messages[0].missing is defined }}{{ 'a' in 'abc' }}{{ none is none }}": "FalseTrueTrue",
    "{{ 'x' if messages[0].role == 'user' and not false else 'y' }}": "x",
    "{% set x %}block{% endset %}{{ x | upper }}": "BLOCK",
    "{{ strftime_now('%%') }}": "%",
    "{{ raise_exception.__globals__ }}{{ range.__init__ }}{{ messages.__class__ }}": "",
    "{{ messages | join(',', attribute='role') }}{{ 'abc' | join('-') }}": "user,assistanta-b-c",
}


@pytest.mark.parametrize("source", GOOD)
def test_what_real_templates_do_works(source):
    assert render(source) == GOOD[source]


BAD = {
    "round": "{{ 1.5 | round(30000000, 'ceil') }}",
    "wide indent by name": "{{ 'a\\nb' | indent(width=3000000000) }}",
    "wide indent by text": "{{ ('a\\n' * 60000) | indent('y' * 100000) }}",
    "long batch by name": "{{ [1] | batch(linecount=400000000, fill_with='x') | list | length }}",
    "wide named format": "{{ '%(a)99999999s' % {'a': 1} }}",
    "big repeat": "{{ 'a' * 1000000000 }}",
    "big list": "{{ ([1] * 1000000000) | length }}",
    "long loop": "{% for i in range(1000000000) %}x{% endfor %}",
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by +": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling a block": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "nested lists": "{% set n = namespace(s=1) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "nested dicts": "{% set n = namespace(s=1) %}{% for i in range(60) %}{% set n.s = {1: n.s, 2: n.s} %}{% endfor %}",
    "nested dict()": "{% set n = namespace(s=1) %}{% for i in range(60) %}{% set n.s = dict(a=n.s, b=n.s) %}{% endfor %}",
    "nested namespaces": "{% set n = namespace(s=1) %}{% for i in range(60) %}{% set n.s = namespace(a=n.s, b=n.s) %}"
    "{% endfor %}{{ n.s }}",
    "namespace in text": "{{ namespace(a=1) ~ '' }}",
    "recursive macro": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "bounded recursive macro": "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "power": "{% set n = namespace(x=7) %}{% for i in range(100) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "tower": "{{ 99999 ** 99999 }}",
    "percent width": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (999999999, 1) }}",
    "format": "{{ '{:>999999999}'.format(1) }}",
    "format_map": "{{ '{a:>999999999}'.format_map({'a': 1}) }}",
    "format filter": "{{ '%999999999d' | format(1) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "indent": "{{ 'a\\nb' | indent(1000000000) }}",
    "indented json": "{{ [1] | tojson(indent=1000000000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ ('b' * 100000).join('a' * 100000) }}",
    "join filter": "{{ (('a ' * 100000).split()) | join('b' * 100000) }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "many maps": "{% for i in range(100000) %}{{ range(100000) | map('string') | list | length }}{% endfor %}",
    "many jsons": "{% for i in range(100000) %}{{ messages | tojson }}{% endfor %}",
    "many comparisons": "{% set a = [1] * 100000 %}{% for i in range(100000) %}{{ a == [1] * 100000 }}{% endfor %}",
    "deep parentheses": "{{" + "(" * 50_000 + "1" + ")" * 50_000 + "}}",
    "deep lists": "{{" + "[" * 50_000 + "]" * 50_000 + "}}",
    "deep ifs": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "large source": "x" * 66_000,
    "many parts": "{{a}}x" * 10_900,
    "many constants": "{{[" + "1," * 30_000 + "]}}",
    "many operators": "{{" + "+".join("1" * 30_000) + "}}",
    "many filters": "{{a" + "|e" * 30_000 + "}}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "lists change": "{{ messages.append(1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "lorem ipsum": "{{ lipsum(n=100000) }}",
    "syntax": "{% while true %}",
    "undefined": "{{ x.y.z }}",
    "wrong type": "{{ messages + 1 }}",
    "bad call": "{{ messages[0].content.split(1, 2, 3) }}",
    "itself": "{{ self }}",
    "a function": "{{ range }}",
}


@pytest.mark.parametrize("case", BAD)
def test_hostile_and_broken_templates_end_soon(case):
    with refused(ModelFormatError, "template", mebibytes=128):
        render(BAD[case])


def test_a_template_may_refuse_messages():
    with refused(InvalidArgumentError, "roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_long_messages_are_no_hostile_template():
    messages = [{"role": "user", "content": "word " * 20}] * 2000
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ '[' + m.content | trim + ']' }}{% endif %}{% endfor %}"
    assert len(render(template, messages)) == 2000 * 101


def test_a_template_that_failed_once_can_run_again():
    template = ChatTemplate(
        "{% for i in range(messages[0].n) %}{% for j in range(1000) %}{% endfor %}{% endfor %}", "t"
    )
    with refused(ModelFormatError, "steps"):
        template.render([{"n": 100_000}], True, {})
    assert template.render([{"n": 1}], True, {}).text == ""


KEEPING = [
    "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] + eos }}\n{% endfor %}",
    "{{ messages[1].content | trim }}{{ messages | length }}{{ messages[0].content | default('x') }}",
    "{% for m in messages[1:] %}{{ m.get('content') ~ loop.index }}{% endfor %}",
    "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages[0].content) }}",
    "{% for key, value in messages[0].items() %}{{ key }}{% endfor %}",
    "{% if '</think>' in messages[1].content and messages[1].content.startswith('<') %}x{% endif %}",
    "{% set ns = namespace(x='') %}{% set ns.x = ns.x + messages[0].content %}{{ ns.x }}",
    "{{ (messages | selectattr('role', 'eq', 'user') | list | first).content }}{{ 3 | string | length }}",
]
CHANGING = [
    "{{ messages[0].content | trim }}",
    "{{ messages[0].content.strip() }}",
    "{{ messages[0].content | upper }}",
    "{{ messages[0].content.replace('h', 'j') }}",
    "{{ messages[0].content[1:] }}",
    "{{ messages[0].content[1] }}",
    "{{ messages[0].content.split('h')[1] }}",
    "{{ messages[0].content | list | first }}",
    "{{ messages[0].content | first }}",
    "{{ messages[0].content | reverse }}",
    "{% for c in messages[0].content %}{{ c }}{% endfor %}",
    "{% set a, b, c, d = messages[0].content %}{{ c }}",
    "{% for a, b in ['ab'] %}{{ b }}{% endfor %}",
    "{{ ['a', messages[0].content] | join('') }}",
    "{{ '-'.join(messages | map(attribute='content')) }}",
    "{{ messages | map(attribute='content') | map('upper') | list | length }}",
    "{{ messages[0] | tojson }}",
    "{{ messages[0] }}",
    "{{ [messages[0].content] ~ '' }}",
    "{{ '%s!' % messages[0].content }}",
    "{{ messages[0].content * 2 }}",
    "{{ messages[0].content | escape }}",
    "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "{{ strftime_now(messages[0].content) }}",
]


@pytest.mark.parametrize("source", KEEPING)
def test_a_template_that_joins_texts_changes_none(source):
    assert not ChatTemplate(source, "template").render(MESSAGES, True, {"eos": "</s>"}).changed


@pytest.mark.parametrize("source", CHANGING)
def test_a_template_that_changes_a_text_is_noticed(source):
    assert ChatTemplate(source, "template").render(MESSAGES, True, {}).changed
