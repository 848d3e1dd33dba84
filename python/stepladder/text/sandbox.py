"""The sandbox of chat templates: jinja2, with all that a template does drawn on its budget.

What cannot be bounded (recursive loops, formatting with widths, printing of namespaces) is refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ..base.errors import InvalidArgumentError
from .budget import (
    MAX_INTEGER_BITS,
    MAX_ITEMS,
    MAX_TEXT,
    TooMuch,
    check_format,
    check_join,
    check_replace,
    checked,
    iterated,
    limited_range,
    note_change,
    spend,
)

MAX_NODES = 20_000  # of the parsed template; real ones have hundreds

_FILTERS = (
    "abs batch capitalize count d default dictsort e escape first float forceescape format groupby indent int "
    "items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr "
    "slice sort string sum title trim truncate unique upper wordcount"
).split()
_PRINTING = frozenset(
    "string lower upper e escape forceescape trim title wordcount replace".split()
)
# Filters that give of a list, or of a value and its stand-in, what is there, as it is.
_PICKING = frozenset(
    "d default first items last list max min reject rejectattr reverse select selectattr sort".split()
)
_METHODS = frozenset(
    "strip lstrip rstrip startswith endswith split rsplit splitlines upper lower title capitalize find rfind index "
    "count isdigit isalpha isalnum isspace isupper islower isnumeric isdecimal replace join removeprefix "
    "removesuffix partition rpartition swapcase casefold get items keys values copy".split()
)


def printable(value: Any) -> Any:
    """What may be turned into text: numbers, strings and lists of them."""
    todo, count = [value], 0
    while todo:
        item = todo.pop()
        count += 1
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo += item
        elif isinstance(item, Namespace) or not isinstance(
            item, (str, int, float, type(None), Undefined)
        ):
            raise TooMuch(f"prints a {type(item).__name__}")
        if count + len(todo) > MAX_ITEMS:
            raise TooMuch("prints a list that is too large")
    return checked(value)


def _finalized(value: Any) -> Any:
    """What is printed. The text of a list writes quotes and line ends of its items in another way."""
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        note_change()
    return printable(value)


def _taken_apart(value: Any) -> Any:
    """What is sliced, indexed, or unpacked into names: a text gives other texts."""
    if isinstance(value, str) or any(isinstance(item, str) for item in value):
        note_change()
    return value


def _note_result(owner: Any, result: Any, picks: bool) -> None:
    """Notes a text made by a filter or call out of `owner`, unless it is one that was there before."""
    if isinstance(result, str):
        same = result == owner or isinstance(owner, (int, float))
        if type(result) is not str or not (same or picks and not isinstance(owner, str)):
            note_change()
    elif isinstance(owner, str) and isinstance(result, (list, tuple, dict)):
        note_change()


def concat(parts: Any) -> str:
    pieces, size = [], 0
    for part in parts:
        piece = part if isinstance(part, str) else str(_finalized(part))
        size += len(piece)
        if size > MAX_TEXT:
            raise TooMuch(f"makes a text of more than {MAX_TEXT} characters")
        pieces.append(piece)
    spend(1 + size // 4096)
    return "".join(pieces)


def _binary(operator: str, left: Any, right: Any) -> None:
    """Refuses an operation whose result would be too large, before it is done."""
    sized = (str, list, tuple)
    if operator == "*":
        for a, b in ((left, right), (right, left)):
            if isinstance(a, sized) and isinstance(b, int) and len(a) * b > MAX_ITEMS:
                raise TooMuch("repeats a text or list too often")
    elif operator == "**":
        bits = left.bit_length() if isinstance(left, int) else 1
        if isinstance(right, int) and abs(right) * bits > MAX_INTEGER_BITS:
            raise TooMuch("makes a number of thousands of digits")
    elif operator == "%" and isinstance(left, str):
        check_format(left)
        printable(right)
    elif operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        if len(left) + len(right) > (MAX_TEXT if isinstance(left, str) else MAX_ITEMS):
            raise TooMuch("makes a text or list that is too large")


def _check_filter(name: str, plain: list[Any], settings: list[Any]) -> None:
    """Refuses a filter whose result would be too large, before it runs. `plain` are its arguments of
    plain types, `settings` all but the first."""
    numbers = [a for a in settings if isinstance(a, int)]
    if name == "replace" and len(plain) >= 3 and all(isinstance(a, str) for a in plain[:3]):
        check_replace(*plain[:3])
    elif name == "format" and plain:
        check_format(str(plain[0]))
    elif name == "indent" and any(
        a > 256 for a in [*numbers, *(len(a) for a in settings if isinstance(a, str))]
    ):
        raise TooMuch("indents too far")
    elif name == "round" and any(abs(n) > 30 for n in numbers):
        raise TooMuch("rounds to too many digits")
    elif name in ("batch", "slice") and any(n > MAX_ITEMS for n in numbers):
        raise TooMuch("makes a list that is too large")
    elif name in _PRINTING:
        for argument in plain:
            printable(argument)


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` on the budget."""
    at = int(hasattr(function, "jinja_pass_arg"))  # jinja may pass a context as the first argument

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        spend()
        plain = [a for a in args if isinstance(a, (str, list, tuple, dict, int))]
        for argument in plain:
            checked(argument)
        _check_filter(name, plain, [*args[1:], *options.values()])
        if name == "join":
            parts = list(iterated(args[at]))
            glue = args[at + 1] if len(args) > at + 1 else options.get("d", "")
            printable(parts)
            check_join(parts, str(glue))
            args = (*args[:at], parts, *args[at + 1 :])
        result = function(*args, **options)
        if hasattr(result, "__next__"):
            result = iterated(result)
        _note_result(args[at] if len(args) > at else None, result, name in _PICKING)
        return checked(result)

    return run


def _tojson(
    value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any
) -> str:
    printable(value)
    note_change()
    if indent is not None and not 0 <= indent <= 16:
        raise TooMuch("indents too far")
    separators = options.get("separators")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=bool(options.get("sort_keys")),
                      separators=tuple(separators) if separators else None)  # fmt: skip
    return checked(text)


def _raise_exception(message: str) -> None:
    raise InvalidArgumentError(f"messages: the chat template says: {str(message)[:500]}")


class _Bounder(NodeTransformer):
    """Puts the budget into loops and list literals, and sees where texts are taken apart."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TooMuch("has a recursive loop, which this sandbox does not run")
        self.generic_visit(node)
        node.iter = self._through("@iterated", node.iter)
        if isinstance(node.target, nodes.Tuple):
            node.iter = self._through("@taken_apart", node.iter)
        return node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.target, nodes.Tuple):
            node.node = self._through("@taken_apart", node.node)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._through("@taken_apart", node) if isinstance(node.arg, nodes.Slice) else node

    @staticmethod
    def _through(name: str, node: nodes.Node) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def _literal(self, node: nodes.Node) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return self._through("@checked", node)

    visit_List = visit_Dict = visit_Tuple = _literal


class _Generation(Extension):
    """{% generation %}: marks the assistant's words for training; its body is plain text here."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Generator(CodeGenerator):
    """Text is joined by the environment, which bounds it."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Runs templates on a budget."""

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    concat = staticmethod(concat)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        count, todo = 0, [tree]
        while todo:
            children = list(todo.pop().iter_child_nodes())
            count += len(children)
            todo += children
            if count > MAX_NODES:
                raise TooMuch(f"has more than {MAX_NODES} parts")
        return _Bounder().visit(tree)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        spend()
        _binary(operator, left, right)
        result = checked(super().call_binop(context, operator, left, right))
        if operator != "+" and isinstance(result, str):
            note_change()
        return result

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, str):
            note_change()
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> None:
        return None  # widths cannot be bounded: str.format is refused as any other attribute

    def is_safe_attribute(self, obj: Any, attribute: str, value: Any) -> bool:
        if isinstance(obj, (str, list, tuple, dict)) and attribute not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attribute, value)

    def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        spend()
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        for argument in (*args, *options.values()):
            checked(argument)
        if isinstance(owner, str) and name == "replace" and len(args) >= 2:
            check_replace(owner, str(args[0]), str(args[1]))
        if isinstance(owner, str) and name == "join" and args:
            parts = list(iterated(args[0]))
            check_join(parts, owner)
            args = (parts, *args[1:])
        result = checked(super().call(context, function, *args, **options))
        if not isinstance(function, Macro):
            _note_result(owner, result, isinstance(owner, (dict, list, tuple)))
        return result


@functools.cache
def environment() -> _Environment:
    """The one there is."""
    # Constants are not folded: that would run the template's operators while it is compiled.
    env = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_finalized,
        extensions=[loopcontrols, _Generation],
    )
    env.filters = {name: _guarded_filter(name, env.filters[name]) for name in _FILTERS}
    env.filters |= {
        "tojson": _tojson,
        "@iterated": iterated,
        "@taken_apart": _taken_apart,
        "@checked": checked,
    }
    keep = {name: env.globals[name] for name in ("dict", "namespace")}
    env.globals.clear()
    env.globals |= keep | {
        "range": limited_range,
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(str(layout)[:100]),
    }
    return env
