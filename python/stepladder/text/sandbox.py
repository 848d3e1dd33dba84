"""The sandbox of chat templates: jinja2, with all that a template does drawn on its budget.

What cannot be bounded (recursive loops, formatting with widths, printing of namespaces) is refused.
Which characters messages brought goes along with every text (`provenance`).
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
    check_split,
    checked,
    iterated,
    limited_range,
    spend,
    walked,
)
from .provenance import Traced, formatted, holds_marks, joined

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
# Filters that look at none of the items of a list, or at the first they find.
_AT_ONCE = frozenset("length count d default first last items".split())
_CHEAP = _PRINTING | _AT_ONCE  # what they do with a text is done in no time, or looked at elsewhere
_SPLITTING = frozenset(["split", "rsplit", "splitlines"])
# Tests that compare a value with others.
_COMPARING = frozenset("eq == equalto ne != in gt > greaterthan ge >= lt < lessthan le <=".split())
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


def _attributed(result: Any, sources: Any) -> Any:
    """`result`, a text of the messages where any in `sources` is: it was made of them in no way known."""
    if isinstance(result, str) and not isinstance(result, Traced) and holds_marks(sources):
        return Traced(result)
    return result


def _printed(value: Any) -> str:
    """The text of what is printed or joined to one."""
    return value if isinstance(value, str) else _attributed(str(printable(value)), value)


def concat(parts: Any) -> str:
    pieces, size = [], 0
    for part in parts:
        piece = _printed(part)
        size += len(piece)
        if size > MAX_TEXT:
            raise TooMuch(f"makes a text of more than {MAX_TEXT} characters")
        pieces.append(piece)
    spend(1 + size // 1024)
    return joined("", pieces)


def added(*parts: Any) -> Any:
    """The sum of `parts`, from left to right: of texts at once, which is what templates add."""
    size = 0
    for part in parts:
        if not isinstance(part, str):
            return functools.reduce(lambda a, b: environment().call_binop(None, "+", a, b), parts)
        size += len(part)
    if size > MAX_TEXT:
        raise TooMuch("makes a text or list that is too large")
    spend(2 * len(parts) + size // 1024)
    return joined("", parts)


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
    """`function` on the budget, its texts with their provenance."""
    at = int(hasattr(function, "jinja_pass_arg"))  # jinja may pass a context as the first argument

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        spend()
        plain = [a for a in args if isinstance(a, (str, list, tuple, dict, int))]
        for argument in plain:
            checked(argument)
            if name not in _AT_ONCE and isinstance(argument, (list, tuple, dict)):
                spend(len(argument) // 4)
        _check_filter(name, plain, [*args[1:], *options.values()])
        value = args[at] if len(args) > at else None
        if isinstance(value, str) and name not in _CHEAP:
            spend(len(value) // 64)
        if name in ("join", "list", "sort", "batch", "slice", "unique") and not isinstance(
            value, dict
        ):
            parts = list(iterated(value))
            if name == "join":
                printable(parts)
                check_join(parts, str(args[at + 1] if len(args) > at + 1 else options.get("d", "")))
            args = (*args[:at], parts, *args[at + 1 :])
        if name == "join" and len(args) <= at + 2 and not options.get("attribute"):
            glue = args[at + 1] if len(args) > at + 1 else options.get("d", "")
            return checked(joined(str(glue), map(_printed, parts)))
        if name in ("replace", "format") and isinstance(value, str):
            if name == "format":
                return checked(formatted(value, options or args[at + 1 :]))
            args = (
                (*args[:at], Traced(value, bytes(len(value))), *args[at + 1 :])
                if (type(value) is str and holds_marks(args[at + 1 :]))
                else args
            )
        result = function(*args, **options)
        if hasattr(result, "__next__"):
            result = iterated(result)
        if name not in _PICKING:
            result = _attributed(result, [*plain, *options.values()])
        return checked(result)

    return run


def _trimming(guarded: Callable[..., Any]) -> Callable[..., Any]:
    """The filter that most templates put every message through: of a text, what makes nothing larger is
    done at once; `guarded` does the rest."""

    def trim(value: Any, *settings: Any, **options: Any) -> Any:
        if not isinstance(value, str) or settings or options:
            return guarded(value, *settings, **options)
        spend(2 + len(value) // 512)
        return value.strip()

    return trim


def _tojson(
    value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any
) -> str:
    printable(walked(value))
    if indent is not None and not 0 <= indent <= 16:
        raise TooMuch("indents too far")
    separators = options.get("separators")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=bool(options.get("sort_keys")),
                      separators=tuple(separators) if separators else None)  # fmt: skip
    spend(8 + len(text) // 16)
    return checked(_attributed(text, value))


def _time_now(layout: str) -> str:
    return _attributed(datetime.now().strftime(str(layout)[:100]), layout)


def _raise_exception(message: str) -> None:
    raise InvalidArgumentError(f"messages: the chat template says: {str(message)[:500]}")


class _Bounder(NodeTransformer):
    """Puts the budget into loops, sums, comparisons, slices and list literals."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise TooMuch("has a recursive loop, which this sandbox does not run")
        self.generic_visit(node)
        node.iter = self._through("@iterated", node.iter)
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        parts: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            parts.append(self.visit(left.right))
            left = left.left
        first = self.visit(left)
        return nodes.Filter(first, "@added", parts[::-1], [], None, None, lineno=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._through("@checked", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if any(isinstance(s, nodes.Const) for s in sides) and not any(
            operand.op in ("in", "notin") for operand in node.ops
        ):
            return node  # ends at the length of the constant
        node.expr = self._weighed(node.expr)
        for operand in node.ops:
            operand.expr = self._weighed(operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.name in _COMPARING:
            node.node = self._weighed(node.node)
            node.args = [self._weighed(argument) for argument in node.args]
        return node

    def _weighed(self, node: nodes.Expr) -> nodes.Expr:
        return node if isinstance(node, nodes.Const) else self._through("@walked", node)

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
        if operator == "%" and isinstance(left, str):
            return checked(formatted(left, right))
        return checked(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> None:
        return None  # widths cannot be bounded: str.format is refused as any other attribute

    def is_safe_attribute(self, obj: Any, attribute: str, value: Any) -> bool:
        if isinstance(obj, (str, list, tuple, dict)) and attribute not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attribute, value)

    def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        spend(3 if isinstance(function, Macro) else 1)
        owner = getattr(function, "__self__", None)
        name = getattr(function, "__name__", "")
        for argument in (owner, *args, *options.values()):
            checked(argument)
        if isinstance(owner, str):
            if name == "replace" and len(args) >= 2:
                check_replace(owner, str(args[0]), str(args[1]))
            elif name in _SPLITTING:
                separator = args[0] if args else options.get("sep")
                check_split(owner, "\n" if name == "splitlines" else separator)
            elif name == "join" and args:
                parts = list(iterated(args[0]))
                check_join(parts, owner)
                args = (parts, *args[1:])
            if type(owner) is str and holds_marks([args, options]):
                function = getattr(Traced(owner, bytes(len(owner))), name)
        return checked(super().call(context, function, *args, **options))


@functools.cache
def environment() -> _Environment:
    """The one there is."""
    # Constants are not folded: that would run the template's operators while it is compiled.
    env = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_printed,
        extensions=[loopcontrols, _Generation],
    )
    env.filters = {name: _guarded_filter(name, env.filters[name]) for name in _FILTERS}
    env.filters |= {
        "trim": _trimming(env.filters["trim"]),
        "tojson": _tojson,
        "safe": _printed,
        "@added": added,
        "@iterated": iterated,
        "@walked": walked,
        "@checked": checked,
    }
    keep = {name: env.globals[name] for name in ("dict", "namespace")}
    env.globals.clear()
    env.globals |= keep | {
        "range": limited_range,
        "raise_exception": _raise_exception,
        "strftime_now": _time_now,
    }
    return env
