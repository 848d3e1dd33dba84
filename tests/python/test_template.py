"""Chat templates run in bounded time and memory, and do what real ones need."""

import time

import pytest
from conftest import refused
from stepladder import InvalidArgumentError, ModelFormatError
from stepladder.text.budget import STEPS_A_MESSAGE, Budget
from stepladder.text.provenance import Traced, marked
from stepladder.text.template import ChatTemplate

MESSAGES = [
    {"role": "user", "content": " hi "},
    {"role": "assistant", "content": "<think>a</think>b"},
]


def render(source, messages=MESSAGES, **variables):
    return ChatTemplate(source, "template").render(messages, True, variables)


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
    assert template.render([{"n": 1}], True, {}) == ""


# What becomes of the message "aBc" between the template's own "<" and ">", and whose each character is.
ALONG = {
    "{{ '<' + t + '>' }}": ("<aBc>", "01110"),
    "{{ '<' ~ t ~ 1 }}": ("<aBc1", "01110"),
    "<{{ t }}>": ("<aBc>", "01110"),
    "{{ ('<' + t + '>') | trim }}": ("<aBc>", "01110"),
    "{{ ('  <' + t).strip() }}{{ (t + ' >').lstrip('a') }}": ("<aBcBc >", "01111100"),
    "{{ ('<' + t + '>')[1:] }}{{ t[0] }}{{ ('<' + t)[-2] }}": ("aBc>aB", "111011"),
    "{{ ('<' + t + '>') | upper }}{{ ('<' + t).lower() }}": ("<ABC><abc", "011100111"),
    "{{ (t + '<i>').swapcase() }}{{ ('<' + t) | capitalize }}": ("AbC<I><abc", "1110000111"),
    "{{ ('<' + t + '>').split('B') | join('|') }}": ("<a|c>", "01010"),
    "{{ ('<x ' + t + ' y').split() | last }}{{ ('<' + t).rsplit('a', 1)[0] }}": ("y<", "00"),
    "{{ ('<' + t + '>').replace('B', '-') }}{{ 'xBx'.replace('B', t) }}": (
        "<a-c>xaBcx",
        "0101001110",
    ),
    "{{ 'xBx' | replace('B', t) }}{{ t | replace('', '') }}": ("xaBcxaBc", "01110111"),
    "{{ ['<', t, '>'] | join }}{{ '-'.join([t, '>']) }}": ("<aBc>aBc->", "0111011100"),
    "{{ t.join(['<', '>']) }}{{ ['<', '>'] | join(t) }}": ("<aBc><aBc>", "0111001110"),
    "{{ '<%s>' % t }}{{ '%s%%%d' % (t, 5) }}": ("<aBc>aBc%5", "0111011100"),
    "{{ '<%(x)s>' % {'x': t} }}{{ '<%s>' | format(t) }}": ("<aBc><aBc>", "0111001110"),
    "{{ ('<' + t) | list | first }}{{ t | first }}{{ ('<' + t) | last }}": ("<ac", "011"),
    "{{ ('<' + t) | reverse }}{% for c in '<' + t %}{{ c }}{% endfor %}": ("cBa<<aBc", "11100111"),
    "{% set a, b, c, d = '<' + t %}{{ d }}{{ a }}": ("c<", "10"),
    "{% set x %}<{{ t }}>{% endset %}{{ x }}{{ x | length }}": ("<aBc>5", "011100"),
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(t) }}{{ f('t') }}": ("<aBc><t>", "01110000"),
    "{% filter upper %}<{{ t }}{% endfilter %}": ("<ABC", "0111"),
    "{% set ns = namespace(x='<') %}{% set ns.x = ns.x + t %}{{ ns.x }}": ("<aBc", "0111"),
    "{{ ('<' + t + '>').partition('B')[0] }}{{ t.rpartition('B')[2] }}": ("<ac", "011"),
    "{{ ('<' + t).removeprefix('<a') }}{{ (t + '>').removesuffix('>') }}": ("BcaBc", "11111"),
    "{{ (t + '\n>\n').splitlines() | join('/') }}": ("aBc/>", "11100"),
    "{{ t * 2 }}{{ ('<' + t) | string }}{{ ('<' + t) | safe }}": (
        "aBcaBc<aBc<aBc",
        "11111101110111",
    ),
    "{{ t | default('x') }}{{ nothing | default('<') }}": ("aBc<", "1110"),
    "{{ messages[0].role }}{{ messages | map(attribute='role') | first }}": ("useruser", "0" * 8),
    "{{ messages | map(attribute='content') | map('upper') | first }}": ("ABC", "111"),
    "{{ (messages | selectattr('role', 'eq', 'user') | list | first).content }}": ("aBc", "111"),
    "{{ {'<': t}['<'] }}{{ {'<': t}.keys() | first }}{{ {'<': t}.get('<') }}": (
        "aBc<aBc",
        "1110111",
    ),
    # What is made in another way counts as theirs, all of it; of the template's own words it does not.
    "{{ ['<', t] }}{{ ['<'] }}": ("['<', 'aBc']['<']", "1" * 12 + "0" * 5),
    "{{ t | tojson }}{{ 'a' | tojson }}": ('"aBc""a"', "11111000"),
    "{{ ('<' + t) | title }}{{ 'a<' | title }}": ("<AbcA<", "111100"),
    "{{ ('<' + t) | e }}{{ '<' | e }}": ("&lt;aBc&lt;", "1" * 7 + "0" * 4),
    "{{ strftime_now(t) }}{{ strftime_now('<') }}": ("aBc<", "1110"),
    "{{ '%5s' % t }}{{ '%5s' % '<' }}": ("  aBc    <", "1" * 5 + "0" * 5),
}


@pytest.mark.parametrize("source", ALONG)
def test_what_messages_bring_is_known_whatever_becomes_of_it(source):
    messages = marked([{"role": "user", "content": "aBc"}])
    whole = "{% set t = messages[0].content %}" + source
    text = ChatTemplate(whole, "template").render(messages, True, {})
    mask = text.mask if isinstance(text, Traced) else bytes(len(text))
    assert (text, "".join(map(str, mask))) == ALONG[source]


LONG = (
    "{%- set ns = namespace(system='', n=0) -%}{%- if messages[0].role == 'system' -%}"
    "{%- set ns.system = messages[0].content -%}{%- set loop_messages = messages[1:] -%}{%- else -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for m in loop_messages -%}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('order') }}{%- endif -%}"
    "{%- set content = m.content | trim -%}{%- if '</think>' in content -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
    "{%- if loop.last or not loop.last and loop_messages[loop.index0 + 1].role != m.role -%}"
    "{{ '<|start|>' + m['role'] + '\n' + content + '<|end|>' }}{%- endif -%}"
    "{%- if m.tool_calls is defined -%}{{ m.tool_calls | tojson }}{%- endif -%}"
    "{%- if loop_messages | length > 2 and messages | selectattr('role', 'eq', 'none') | list -%}x{%- endif -%}"
    "{%- set ns.n = ns.n + 1 -%}{%- endfor -%}"
)


def conversation(count):
    return [
        {"role": ("user", "assistant")[i % 2], "content": f" message {i} "} for i in range(count)
    ]


def steps_of(monkeypatch, template, messages):
    """Steps that a text takes, and the text."""
    spent, spend = [], Budget.spend
    with monkeypatch.context() as patch:
        patch.setattr(Budget, "spend", lambda self, n=1: (spent.append(n), spend(self, n))[1])
        text = template.render(marked(messages), True, {})
    return sum(spent), text


def test_many_messages_cost_as_many_times_the_work_of_one(monkeypatch):
    """In steps, which are the same on every machine, and not in time, which is not."""
    source = LONG.replace(" and messages | selectattr('role', 'eq', 'none') | list", "")
    template, steps = ChatTemplate(source, "template"), {}
    for count in (500, 5_000):
        steps[count], text = steps_of(monkeypatch, template, conversation(count))
        assert text.count("<|end|>") == count
    assert steps[5_000] < 11 * steps[500]
    assert steps[5_000] < 5_000 * STEPS_A_MESSAGE / 5


def test_the_verdict_does_not_depend_on_time(monkeypatch):
    """A clock that runs a minute at every look changes nothing."""
    template = ChatTemplate(LONG, "template")
    ticks = iter(range(0, 10**9, 60))
    for clock in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: next(ticks))
    text = template.render(conversation(200), True, {})
    monkeypatch.undo()
    assert text == template.render(conversation(200), True, {})


def test_sums_are_what_they_are_to_jinja():
    """Of texts, numbers and lists, however many; what is not defined is refused as ever."""
    assert render("{{ 1 + 2 + 3 * 4 - 5 + 1 }} {{ ([1] + [2] + [3]) | length }}") == "11 3"
    assert (
        render("{{ 'a' + ('b' + 'c') + 'd' + 'e' * 2 }}{% set x = 'f' + 'g' %}{{ x }}")
        == "abcdeefg"
    )
    assert render("{{ ('a' + 'b' + 'c').upper() + ('d' + 'e')[1] }}") == "ABCe"
    for source in (
        "{{ 'a' + 1 }}",
        "{{ 'a' + 'b' + 1 }}",
        "{{ 'a' + nothing + 'b' }}",
        "{{ [1] + 'a' + 'b' }}",
    ):
        with pytest.raises(ModelFormatError, match="fails"):
            render(source)


def test_marks_go_along_with_sums_and_trimmed_texts():
    from stepladder.text.provenance import marked, mask_of

    messages = marked([{"role": "user", "content": "  no  "}])
    source = "{{ 'a' + messages[0].role + messages[0].content | trim + 'b' }}"
    text = render(source, messages)
    assert str(text) == "ausernob" and mask_of(text) == b"\0" * 5 + b"\1\1" + b"\0"
    for content in ("", "   ", "x", " x", "x ", "a b"):
        [trimmed] = marked([content])
        assert trimmed.strip() == content.strip() and len(trimmed.strip().mask) == len(
            content.strip()
        )
