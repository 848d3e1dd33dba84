"""Chat templates: jinja2 in a sandbox whose work, memory and output are bounded.

Templates come with models and are not trusted. Loops, calls, filters and operators draw on one
budget of steps; every string, list and number they make has a largest size; what cannot be
bounded (recursive loops, formatting with widths, printing of namespaces) is refused.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import InvalidArgumentError, ModelFormatError

MAX_SOURCE = 64 << 10
MAX_NODES = 20_000  # of the parsed template; real ones have hundreds
MAX_STEPS = 1_000_000
MAX_SECONDS = 1.0
MAX_TEXT = 16 << 20
MAX_ITEMS = 200_000
MAX_INTEGER_BITS = 4096

_FILTERS = (
    "abs batch capitalize count d default dictsort e escape first float forceescape format groupby indent int "
    "items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr "
    "slice sort string sum title trim truncate unique upper wordcount"
).split()
_PRINTING = frozenset(
    "string lower upper e escape forceescape trim title wordcount replace".split()
)
_METHODS = frozenset(
    "strip lstrip rstrip startswith endswith split rsplit splitlines upper lower title capitalize find rfind index "
    "count isdigit isalpha isalnum isspace isupper islower isnumeric isdecimal replace join removeprefix "
    "removesuffix partition rpartition swapcase casefold get items keys values copy".split()
)


class _TooMuch(Exception):
    """A template went over its budget."""


class _Budget:
    def __init__(self) -> None:
        self.steps, self.deadline = MAX_STEPS, time.monotonic() + MAX_SECONDS

    def spend(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise _TooMuch(f"takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise _TooMuch(f"takes more than {MAX_SECONDS:g} s")


_budget: ContextVar[_Budget] = ContextVar("stepladder_template_budget")


def _spend(count: int = 1) -> None:
    budget = _budget.get(None)
    if budget is not None:
        budget.spend(count)


def _checked(value: Any) -> Any:
    """`value`, if it and all it holds is within the limits."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise _TooMuch(f"makes a text of {len(value)} characters")
        _spend(1 + len(value) // 4096)
    elif isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise _TooMuch("makes a number of thousands of digits")
    elif isinstance(value, (list, tuple, dict, set, frozenset)):
        todo, count, characters = [value], 0, 0
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, dict):
                todo += item.keys()
                todo += item.values()
            elif isinstance(item, (list, tuple, set, frozenset)):
                todo += item
            count += 1
            if count + len(todo) > MAX_ITEMS or characters > MAX_TEXT:
                raise _TooMuch("makes a list that is too large")
        _spend(1 + count // 16)
    return value


def _printable(value: Any) -> Any:
    """What may be turned into text: numbers, strings and lists of them."""
    from jinja2 import Undefined
    from jinja2.utils import Namespace

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
            raise _TooMuch(f"prints a {type(item).__name__}")
        if count + len(todo) > MAX_ITEMS:
            raise _TooMuch("prints a list that is too large")
    return _checked(value)


def _concat(parts: Any) -> str:
    pieces, size = [], 0
    for part in parts:
        piece = part if isinstance(part, str) else str(_printable(part))
        size += len(piece)
        if size > MAX_TEXT:
            raise _TooMuch(f"makes a text of more than {MAX_TEXT} characters")
        pieces.append(piece)
    _spend(1 + size // 4096)
    return "".join(pieces)


def _check_format(text: str) -> None:
    if "*" in text or re.search(r"%(\([^)]*\))?[^a-zA-Z%]*\d{4,}", text):
        raise _TooMuch("formats with a large width")


def _check_replace(text: str, old: str, new: str) -> None:
    grown = len(text) + (text.count(old) if old else len(text) + 1) * max(0, len(new) - len(old))
    if grown > MAX_TEXT:
        raise _TooMuch(f"makes a text of {grown} characters")


def _binary(operator: str, left: Any, right: Any) -> None:
    """Refuses an operation whose result would be too large, before it is done."""
    sized = (str, list, tuple)
    if operator == "*":
        for a, b in ((left, right), (right, left)):
            if isinstance(a, sized) and isinstance(b, int) and len(a) * b > MAX_ITEMS:
                raise _TooMuch("repeats a text or list too often")
    elif operator == "**":
        bits = left.bit_length() if isinstance(left, int) else 1
        if isinstance(right, int) and abs(right) * bits > MAX_INTEGER_BITS:
            raise _TooMuch("makes a number of thousands of digits")
    elif operator == "%" and isinstance(left, str):
        _check_format(left)
        _printable(right)
    elif operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        if len(left) + len(right) > (MAX_TEXT if isinstance(left, str) else MAX_ITEMS):
            raise _TooMuch("makes a text or list that is too large")


def _check_join(parts: list[Any], glue: str) -> None:
    size = len(glue) * len(parts) + sum(len(p) for p in parts if isinstance(p, str))
    if size > MAX_TEXT:
        raise _TooMuch(f"makes a text of {size} characters")


def _limited_range(*bounds: Any) -> range:
    values = range(*bounds)
    if len(values) > MAX_ITEMS:
        raise _TooMuch(f"counts to more than {MAX_ITEMS}")
    _spend(len(values) // 16)
    return values


def _iterated(values: Any) -> Any:
    """What a for loop runs over: its length is paid for before it starts."""
    if hasattr(values, "__len__"):
        _spend(1 + len(values))
        return values
    items = []
    for item in values:
        _spend()
        items.append(item)
        if len(items) > MAX_ITEMS:
            raise _TooMuch("loops over too many items")
    return items


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        _spend()
        plain = [a for a in args if isinstance(a, (str, list, tuple, dict, int))]
        for argument in plain:
            _checked(argument)
        settings = [*args[1:], *options.values()]
        if name == "replace" and len(plain) >= 3 and all(isinstance(a, str) for a in plain[:3]):
            _check_replace(*plain[:3])
        elif name == "format" and plain:
            _check_format(str(plain[0]))
        elif name == "indent" and any(
            (a if isinstance(a, int) else len(a)) > 256
            for a in settings
            if isinstance(a, (int, str))
        ):
            raise _TooMuch("indents too far")
        elif name == "round" and any(isinstance(a, int) and abs(a) > 30 for a in settings):
            raise _TooMuch("rounds to too many digits")
        elif name in ("batch", "slice") and any(
            isinstance(a, int) and a > MAX_ITEMS for a in settings
        ):
            raise _TooMuch("makes a list that is too large")
        elif name == "join":
            # A context that jinja passes along is the first argument.
            at = int(hasattr(function, "jinja_pass_arg"))
            parts = list(_iterated(args[at]))
            glue = args[at + 1] if len(args) > at + 1 else options.get("d", "")
            _printable(parts)
            _check_join(parts, str(glue))
            args = (*args[:at], parts, *args[at + 1 :])
        elif name in _PRINTING:
            for argument in plain:
                _printable(argument)
        result = function(*args, **options)
        if hasattr(result, "__next__"):
            result = _iterated(result)
        return _checked(result)

    return run


def _tojson(
    value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any
) -> str:
    _printable(value)
    if indent is not None and not 0 <= indent <= 16:
        raise _TooMuch("indents too far")
    separators = options.get("separators")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=bool(options.get("sort_keys")),
                      separators=tuple(separators) if separators else None)  # fmt: skip
    return _checked(text)


def _raise_exception(message: str) -> None:
    raise InvalidArgumentError(f"messages: the chat template says: {str(message)[:500]}")


@functools.cache
def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Bounder(NodeTransformer):
        """Puts the budget into loops and list literals."""

        def visit_For(self, node: nodes.For) -> nodes.Node:
            if node.recursive:
                raise _TooMuch("has a recursive loop, which this sandbox does not run")
            self.generic_visit(node)
            node.iter = nodes.Filter(node.iter, "_iterated", [], [], None, None, lineno=node.lineno)
            return node

        def _literal(self, node: nodes.Node) -> nodes.Node:
            self.generic_visit(node)
            if getattr(node, "ctx", "load") != "load":
                return node
            return nodes.Filter(node, "_checked", [], [], None, None, lineno=node.lineno)

        visit_List = visit_Dict = visit_Tuple = _literal

    class Generation(Extension):
        """{% generation %}: marks the assistant's words for training; its body is plain text here."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Generator(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
            self.write("environment.concat((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class Environment(ImmutableSandboxedEnvironment):
        code_generator_class = Generator
        intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
        concat = staticmethod(_concat)

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree = super()._parse(source, name, filename)
            count, todo = 0, [tree]
            while todo:
                children = list(todo.pop().iter_child_nodes())
                count += len(children)
                todo += children
                if count > MAX_NODES:
                    raise _TooMuch(f"has more than {MAX_NODES} parts")
            return Bounder().visit(tree)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _spend()
            _binary(operator, left, right)
            return _checked(super().call_binop(context, operator, left, right))

        def wrap_str_format(self, value: Any) -> None:
            return None  # widths cannot be bounded: str.format is refused as any other attribute

        def is_safe_attribute(self, obj: Any, attribute: str, value: Any) -> bool:
            if isinstance(obj, (str, list, tuple, dict)) and attribute not in _METHODS:
                return False
            return super().is_safe_attribute(obj, attribute, value)

        def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
            _spend()
            owner = getattr(function, "__self__", None)
            name = getattr(function, "__name__", "")
            for argument in (*args, *options.values()):
                _checked(argument)
            if isinstance(owner, str) and name == "replace" and len(args) >= 2:
                _check_replace(owner, str(args[0]), str(args[1]))
            if isinstance(owner, str) and name == "join" and args:
                parts = list(_iterated(args[0]))
                _check_join(parts, owner)
                args = (parts, *args[1:])
            return _checked(super().call(context, function, *args, **options))

    # Constants are not folded: that would run the template's operators while it is compiled.
    env = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_printable,
        extensions=[loopcontrols, Generation],
    )
    env.filters = {name: _guarded_filter(name, env.filters[name]) for name in _FILTERS}
    env.filters |= {"tojson": _tojson, "_iterated": _iterated, "_checked": _checked}
    keep = {name: env.globals[name] for name in ("dict", "namespace")}
    env.globals.clear()
    env.globals |= keep | {
        "range": _limited_range,
        "raise_exception": _raise_exception,
        "strftime_now": lambda layout: datetime.now().strftime(str(layout)[:100]),
    }
    return env


class ChatTemplate:
    """One compiled template; `where` names its source in messages."""

    def __init__(self, source: str, where: str):
        if not isinstance(source, str):
            raise ModelFormatError(f"{where}: the chat template is not a string")
        if len(source) > MAX_SOURCE:
            raise ModelFormatError(f"{where}: a chat template of {len(source)} characters")
        self.source, self.where = source, where
        self._compiled: Any = None

    @staticmethod
    def find(
        directory: Path, config: dict[str, Any], read_json: Callable[[Path], Any]
    ) -> "ChatTemplate | None":
        """The template of a model directory: chat_template.jinja, .json, or tokenizer_config.json."""
        path = directory / "chat_template.jinja"
        if path.is_file():
            if path.stat().st_size > MAX_SOURCE * 4:
                raise ModelFormatError(f"{path}: a chat template of {path.stat().st_size} bytes")
            return ChatTemplate(path.read_text(encoding="utf-8", errors="replace"), str(path))
        path = directory / "chat_template.json"
        value = (read_json(path) or {}).get("chat_template") if path.is_file() else None
        if value is None:
            path = directory / "tokenizer_config.json"
            value = config.get("chat_template")
        if isinstance(value, list):
            named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
            value = named.get("default")
        return None if value is None else ChatTemplate(value, str(path))

    def render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: dict[str, Any]
    ) -> str:
        """The prompt's text. Raises ModelFormatError when the template is broken or works too hard,
        InvalidArgumentError when it refuses the messages."""
        from jinja2 import TemplateError

        token = _budget.set(_Budget())
        try:
            if self._compiled is None:
                self._compiled = _environment().from_string(self.source)
            template = self._compiled
            context = template.new_context(
                {**variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
            )
            return _concat(self._pieces(template.root_render_func(context)))
        except InvalidArgumentError:
            raise
        except _TooMuch as error:
            raise ModelFormatError(f"{self.where}: the chat template {error}") from None
        except TemplateError as error:
            raise ModelFormatError(
                f"{self.where}: the chat template fails: {str(error)[:300]}"
            ) from None
        except (RecursionError, MemoryError):
            raise ModelFormatError(f"{self.where}: the chat template nests too deeply") from None
        except (
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            ArithmeticError,
            SyntaxError,
        ) as error:
            raise ModelFormatError(
                f"{self.where}: the chat template fails on these messages: {type(error).__name__}: {str(error)[:300]}"
            ) from None
        finally:
            _budget.reset(token)

    @staticmethod
    def _pieces(pieces: Any) -> Any:
        for piece in pieces:
            _spend()
            yield piece
