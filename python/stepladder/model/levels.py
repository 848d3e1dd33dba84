"""Levels below the target, as Python objects or as one line of text."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .. import _core
from ..base.arguments import INT_MAX, choice, shown, whole, word
from ..base.arguments import path as path_text
from ..base.errors import FileError, InvalidArgumentError
from ..files.hub import resolve


@dataclass(frozen=True)
class Cast:
    """The nearest checkpoint above, rounded to another format: "mxfp4", "w4a16", "int8", "w8a8".

    `cache`: "own", or "shared" to use the cache of the level it copies. `tokens`: drafts a
    round, as many as pay unless given. `head`: the format of its output matrix; int8 unless given.
    """

    format: str
    cache: str = "own"
    tokens: int | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        _specs_of(self)


@dataclass(frozen=True)
class Switch:
    """The weights and cache of the level above with other activations: "a8"."""

    act: str = "a8"
    tokens: int | None = None

    def __post_init__(self) -> None:
        _specs_of(self)


@dataclass(frozen=True)
class Lookup:
    """Drafts what followed the last tokens where they occurred before in the text.

    `longest` and `shortest` bound the number of tokens that must agree.
    """

    tokens: int | None = None
    longest: int | None = None
    shortest: int | None = None

    def __post_init__(self) -> None:
        _specs_of(self)


@dataclass(frozen=True)
class Draft:
    """Another model with the same vocabulary, by path or by name in the Hugging Face cache."""

    path: str | os.PathLike[str]
    tokens: int | None = None
    head: str | None = None


@dataclass(frozen=True)
class Eagle:
    """Trees of an EAGLE-2 head, by path or by name in the Hugging Face cache. The head reads the hidden
    states of the level right above it and must have been trained for that model.

    `tokens`: levels of a tree, as many as pay unless given; `nodes`: guesses of a tree at most;
    `top`: children of a node, and nodes of a level that are given children.
    """

    path: str | os.PathLike[str]
    tokens: int | None = None
    nodes: int | None = None
    top: int | None = None


class Drafter:
    """Any drafter of the build by its word: `Drafter("lookup", max=5)`.

    `argument`: what the drafter is given, where it takes something; `tokens`: drafts a round, as
    many as pay unless given; the rest are options of its own, whole numbers.
    """

    def __init__(
        self,
        word: str,
        argument: str | os.PathLike[str] | None = None,
        *,
        tokens: int | None = None,
        **options: int,
    ):
        self.word, self.argument, self.tokens, self.options = word, argument, tokens, options

    def __repr__(self) -> str:
        given = [repr(self.word)] + ([] if self.argument is None else [repr(self.argument)])
        named = {} if self.tokens is None else {"tokens": self.tokens}
        return f"Drafter({', '.join(given + [f'{k}={v!r}' for k, v in (named | self.options).items()])})"


Level = Cast | Switch | Lookup | Draft | Eagle | Drafter
_KNOWN = _core.draft_forms()
_FORMS = f"give Lookup(), Cast('int8'), Switch('a8'), Draft('path'), a text of {_KNOWN}, or a list of these"
_NO_LISTS = (bytes, bytearray, memoryview, dict, set, frozenset)
DraftOption = str | os.PathLike | Level | Iterable[str | os.PathLike | Level] | None


def to_specs(draft: DraftOption) -> list[_core.LevelSpec]:
    """The engine's form of any `draft` argument; models are resolved to directories."""
    if draft is None or draft is False:
        return []
    if isinstance(draft, (str, os.PathLike, Level)):
        draft = [draft]
    if not isinstance(draft, Iterable) or isinstance(draft, _NO_LISTS) or hasattr(draft, "dtype"):
        raise InvalidArgumentError(f"draft: {shown(draft)} is no level; {_FORMS}")
    return [spec for level in draft for spec in _specs_of(level)]


def fixed(draft: DraftOption) -> str | None:
    """The levels of a `draft` argument with their draft lengths fixed: they draft whether it pays or not."""
    specs = to_specs(draft)
    return _core.draft_to_string(_core.fixed_draft(specs)) if specs else None


def _specs_of(level: Any) -> list[_core.LevelSpec]:
    if isinstance(level, str) and not os.path.isdir(word("draft", level)):
        return _parsed(level)
    if isinstance(level, (str, os.PathLike)):
        level = Draft(level)
    if not isinstance(level, Level):
        raise InvalidArgumentError(f"draft: {shown(level)} is no level; {_FORMS}")
    spec = _core.LevelSpec()
    spec.tokens = _count("tokens", level.tokens)
    if isinstance(level, Cast):
        if not isinstance(level.cache, str) or level.cache not in ("own", "shared"):
            raise InvalidArgumentError(f"Cast: cache={shown(level.cache)}; it is 'own' or 'shared'")
        spec.kind, spec.format = _core.LevelKind.cast, _format("Cast: format", level.format)
        spec.shared_cache, spec.head = level.cache == "shared", _head("Cast", level.head)
    elif isinstance(level, Switch):
        spec.kind = _core.LevelKind.activations
        spec.format = choice("draft: Switch: act", _text("Switch: act", level.act), ("a8",))
    elif isinstance(level, Drafter):
        spec.kind, spec.word = _core.LevelKind.drafter, _text("Drafter: word", level.word)
        if level.argument is not None:
            spec.path = _argument(spec.word, _path("Drafter: argument", level.argument))
        spec.options = [
            (_text("Drafter: an option", k), whole(f"draft: {k}", v, -INT_MAX, INT_MAX))
            for k, v in level.options.items()
        ]
    elif isinstance(level, Eagle):
        spec.kind, spec.word = _core.LevelKind.drafter, "eagle"
        spec.path = _argument(spec.word, _path("Eagle: path", level.path))
        given = (("nodes", level.nodes), ("top", level.top))
        spec.options = [(name, _count(name, value)) for name, value in given if value is not None]
    elif isinstance(level, Draft):
        spec.kind, spec.path = _core.LevelKind.model, str(resolve(_path("Draft: path", level.path)))
        spec.head = _head("Draft", level.head)
    else:
        spec.kind = _core.LevelKind.lookup
        spec.ngram_max = _count("longest", level.longest)
        spec.ngram_min = _count("shortest", level.shortest)
        if 0 < spec.ngram_max < spec.ngram_min:
            raise InvalidArgumentError(
                f"draft: Lookup: shortest={spec.ngram_min} is above longest={spec.ngram_max}"
            )
    return [spec]


def _parsed(line: str) -> list[_core.LevelSpec]:
    """The levels of a line of text. A word that is neither a level nor a model may be misspelt."""
    specs = _core.parse_draft(line)
    for spec in specs:
        if spec.kind == _core.LevelKind.drafter:
            spec.path = _argument(spec.word, spec.path)
        if spec.kind == _core.LevelKind.model:
            try:
                spec.path = str(resolve(spec.path))
            except FileError as error:
                near = difflib.get_close_matches(spec.path, _words(), 1)
                hint = f"; did you mean {near[0]}?" if near else "."
                raise FileError(
                    f"draft: {shown(spec.path)} is neither a level nor a model{hint} "
                    f"The levels are {_KNOWN} ({error})"
                ) from None
    return specs


def _argument(word: str, value: str) -> str:
    """What a drafter is given; one that takes a directory finds it as a model's is found."""
    takes = {drafter.word: drafter.argument for drafter in _core.drafters()}.get(word)
    return str(resolve(value)) if takes == "DIR" else value


def _words() -> list[str]:
    """The words that levels begin with, as the engine writes them."""
    words = [drafter.word for drafter in _core.drafters()]
    for kind in _core.LevelKind:
        spec = _core.LevelSpec()
        spec.kind = kind
        words.append(_core.draft_to_string([spec]).partition(":")[0])
    return sorted(set(words) - {""})


def _path(name: str, value: Any) -> str:
    try:
        return path_text(name, value)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"draft: {error}") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"draft: {name}={shown(value)} is not text; {_FORMS}")
    return word(f"draft: {name}", value)


def _format(name: str, value: Any) -> str:
    known = [f for f in _core.formats() if f.castable]
    return choice(
        f"draft: {name}",
        _text(name, value),
        [*(f.name for f in known), *(f.alias for f in known if f.alias)],
    )


def _head(name: str, value: Any) -> str:
    return "" if value is None else _format(f"{name}: head", value)


def _count(name: str, value: int | None) -> int:
    return 0 if value is None else whole(f"draft: {name}", value, 1, (1 << 16) - 1)
