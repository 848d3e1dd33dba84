"""What the files beside a tokenizer add to its vocabulary, and which tokens they call special."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.arguments import shown
from ..base.errors import ModelFormatError
from ..base.json_file import read_json
from .vocabulary import MAX_TOKENS, Special

_ROLES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def added_tokens(directory: Path, config: dict[str, Any]) -> list[Special]:
    """The tokens of added_tokens_decoder in tokenizer_config.json (`config`) and of added_tokens.json, by
    id. Raises ModelFormatError where the two contradict each other."""
    path = directory / "tokenizer_config.json"
    found: dict[str, Special] = {}
    try:
        for key, entry in (config.get("added_tokens_decoder") or {}).items():
            token = Special(int(key), str(entry["content"]), bool(entry.get("special")),
                            bool(entry.get("lstrip")), bool(entry.get("rstrip")),
                            bool(entry.get("normalized")), bool(entry.get("single_word")))  # fmt: skip
            found[token.content] = token
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelFormatError(f"{path}: added_tokens_decoder is malformed") from None
    path = directory / "added_tokens.json"
    side = read_json(path)
    if side is not None and not isinstance(side, dict):
        raise ModelFormatError(f"{path}: not a JSON object")
    for content, id in (side or {}).items():
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            raise ModelFormatError(f"{path}: the id of {shown(content)} is {shown(id)}")
        known = found.setdefault(content, Special(id, content, False))
        if known.id != id:
            raise ModelFormatError(
                f"{path}: token {shown(content)} has the id {id}, but {known.id} in tokenizer_config.json"
            )
    if len(found) > MAX_TOKENS:
        raise ModelFormatError(
            f"{directory}: {len(found)} added tokens; at most {MAX_TOKENS} are taken"
        )
    return sorted(found.values(), key=lambda token: token.id)


def special_names(directory: Path, config: dict[str, Any]) -> set[str]:
    """The texts that tokenizer_config.json (`config`) and special_tokens_map.json call special tokens."""
    path = directory / "special_tokens_map.json"
    more = read_json(path)
    if more is not None and not isinstance(more, dict):
        raise ModelFormatError(f"{path}: not a JSON object")
    names: set[str] = set()
    for settings in (config, more or {}):
        values = [settings.get(f"{role}_token") for role in _ROLES]
        for key in _LISTS:
            each = settings.get(key) or []
            values += (
                each.values() if isinstance(each, dict) else each if isinstance(each, list) else []
            )
        for value in values:
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str) and content:
                names.add(content)
    return names
