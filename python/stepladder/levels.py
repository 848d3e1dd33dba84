"""Levels below the target, as Python objects or as one line of text."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import _core
from .errors import InvalidArgumentError, UnsupportedError
from .hub import resolve


@dataclass(frozen=True)
class Cast:
    """The nearest checkpoint above, rounded to another format: "mxfp4", "w4a16", "int8", "w8a8".

    `cache`: "own", or "shared" to use the cache of the level it copies. `tokens`: drafts a round.
    `head`: the format of its output matrix; int8 unless given.
    """

    format: str
    cache: str = "own"
    tokens: int | None = None
    head: str | None = None


@dataclass(frozen=True)
class Switch:
    """The weights and cache of the level above with other activations: "a8"."""

    act: str = "a8"
    tokens: int | None = None


@dataclass(frozen=True)
class Lookup:
    """Drafts what followed the last tokens where they occurred before in the text.

    `longest` and `shortest` bound the number of tokens that must agree.
    """

    tokens: int | None = None
    longest: int | None = None
    shortest: int | None = None


@dataclass(frozen=True)
class Draft:
    """Another model with the same vocabulary, by path or by name in the Hugging Face cache."""

    path: str | os.PathLike[str]
    tokens: int | None = None
    head: str | None = None


Level = Cast | Switch | Lookup | Draft
DraftOption = str | os.PathLike | Level | Iterable[str | os.PathLike | Level] | None


def to_specs(draft: DraftOption) -> list[_core.LevelSpec]:
    """The engine's form of any `draft` argument; models are resolved to directories."""
    if draft is None or draft is False:
        return []
    if isinstance(draft, (str, os.PathLike, Cast, Switch, Lookup, Draft)):
        draft = [draft]
    if not isinstance(draft, Iterable):
        raise InvalidArgumentError(f"draft: {draft!r} is no drafter, text or list of them")
    return [spec for level in draft for spec in _specs_of(level)]


def _specs_of(level: Any) -> list[_core.LevelSpec]:
    if isinstance(level, str) and not os.path.isdir(level):
        specs = _core.parse_draft(level)
        for spec in specs:
            if spec.kind == _core.LevelKind.model:
                spec.path = str(resolve(spec.path))
        return specs
    if isinstance(level, (str, os.PathLike)):
        level = Draft(level)
    if not isinstance(level, (Cast, Switch, Lookup, Draft)):
        raise InvalidArgumentError(
            f"draft: {level!r} is no drafter; use Cast, Switch, Lookup, Draft or a path"
        )
    spec = _core.LevelSpec()
    spec.tokens = _count("tokens", level.tokens)
    if isinstance(level, Cast):
        if level.cache not in ("own", "shared"):
            raise InvalidArgumentError(f"Cast: cache={level.cache!r}; it is 'own' or 'shared'")
        spec.kind, spec.format = _core.LevelKind.cast, level.format
        spec.shared_cache, spec.head = level.cache == "shared", level.head or ""
    elif isinstance(level, Switch):
        if level.act != "a8":
            raise UnsupportedError(f"Switch: activations {level.act!r}; a8 is the mode there is")
        spec.kind, spec.format = _core.LevelKind.activations, level.act
    elif isinstance(level, Draft):
        spec.kind, spec.path, spec.head = (
            _core.LevelKind.model,
            str(resolve(level.path)),
            level.head or "",
        )
    else:
        spec.kind = _core.LevelKind.lookup
        spec.ngram_max = _count("longest", level.longest)
        spec.ngram_min = _count("shortest", level.shortest)
    return [spec]


def _count(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 16:
        raise InvalidArgumentError(f"draft: {name}={value!r} is not a whole number from 1 to 65535")
    return value
