"""tokenizer.json through the tokenizers library."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

from ..base.arguments import shown
from ..base.errors import InvalidArgumentError, ModelFormatError, UnsupportedError
from ..base.json_file import JsonFile
from .growth import check_affixes, check_growth, check_pre_tokenizers, growth, steps
from .vocabulary import (
    MAX_FILE_BYTES,
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    Special,
    byte_alphabet,
    spell_piece,
)

MAX_ENTRIES = 3_000_000  # the largest vocabularies have two million, merges included
MAX_STEPS = 64  # decoders or post-processors
# Padding and truncation are the caller's business, and a bos token is put in by Text.
_LEFT_OUT = dict.fromkeys(("truncation", "padding", "post_processor"), "null")


class JsonTokenizer:
    """Encodes with the library; decodes single tokens from the vocabulary itself.

    `added` and `names`: what the files beside tokenizer.json add to it, and call special.
    """

    def __init__(self, path: Path, config: dict[str, Any], added: list[Special], names: set[str]):
        self._path = path
        file = JsonFile(path, MAX_FILE_BYTES, MAX_ENTRIES)
        tree = file.value
        if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
            raise ModelFormatError(f"{path}: no tokenizer model in it")
        _check_count(tree, path)
        for pattern in _patterns(tree):
            _check_pattern(pattern, path)
        check_affixes(tree["model"], path)
        check_pre_tokenizers(tree.get("pre_tokenizer"), path)
        self._growth = growth(tree.get("normalizer"), path)
        self.specials = _joined(self._read_specials(tree), tree, added, names, path)
        entries = json.dumps([_entry(s) for s in self.specials])
        changes = _LEFT_OUT | {"added_tokens": entries}
        first = "" if "added_tokens" in tree else f'"added_tokens":{entries},'
        # The library reads what was checked, character for character: no key is there twice.
        self._tokenizer = self._build(file.text_with(changes, first))
        self._check_ids()
        # Whether control tokens may be found in what a normalizer makes of other characters.
        self.normalizes_specials = tree.get("normalizer") is not None and any(
            s.special and s.normalized for s in self.specials
        )
        self._rest, self._rest_text = self._tokenizer, _without_prefix(file, changes, first)
        self._lock = (
            threading.Lock()
        )  # whether special tokens are seen is state of the library's object
        self._style = self._decoder_style(tree.get("decoder"))
        self.adds_space = self._style == "pieces" and self._strips_first_space(tree["decoder"])
        self._special_ids = {s.id: s for s in self.specials}
        vocabulary = self._named_tokens(tree)
        ids = set(vocabulary.values())
        if len(ids) != len(vocabulary):
            raise ModelFormatError(f"{path}: two tokens share an id")
        self.size = max(ids, default=-1) + 1
        if not vocabulary or self.size > 4 * len(vocabulary) + 65536:
            raise ModelFormatError(
                f"{path}: {len(vocabulary)} tokens, but ids up to {self.size - 1}"
            )
        self.longest = max(map(len, map(str.encode, vocabulary)))
        if self.longest > MAX_TOKEN_BYTES:
            raise ModelFormatError(f"{path}: a token of {self.longest} bytes")
        self.adds_bos = self._finds_bos(tree, config)
        self._alphabet = byte_alphabet()
        self._bytes: dict[int, bytes] = {}

    def _build(self, text: str):
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(text)
        except BaseException as error:
            # The library reports some bad files by a panic, which is no Exception.
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise ModelFormatError(f"{self._path}: {str(error)[:300]}") from None

    def _named_tokens(self, tree: dict[str, Any]) -> dict[str, int]:
        """All tokens and their ids, as the library has read them: of the file where it names each, since
        the library would make them all anew."""
        named = tree["model"].get("vocab")
        known = self._tokenizer.get_vocab_size(with_added_tokens=False)
        if not isinstance(named, dict) or len(named) != known:
            return self._tokenizer.get_vocab(with_added_tokens=True)
        return named | {s.content: s.id for s in self.specials}

    def _decoder_style(self, decoder: Any) -> str:
        kinds = [d["type"] for d in steps(decoder, "decoder", MAX_STEPS, self._path)]
        if "ByteLevel" in kinds:
            return "bytes"
        if {"ByteFallback", "Metaspace"} & set(kinds) or "Replace" in kinds:
            return "pieces"
        raise UnsupportedError(
            f"{self._path}: decoder {kinds or 'none'}; byte-level and SentencePiece vocabularies are read"
        )

    def _read_specials(self, tree: dict[str, Any]) -> list[Special]:
        found: dict[str, Special] = {}
        for entry in tree.get("added_tokens") or []:
            try:
                token = Special(int(entry["id"]), str(entry["content"]), bool(entry["special"]),
                                bool(entry.get("lstrip")), bool(entry.get("rstrip")),
                                bool(entry.get("normalized")), bool(entry.get("single_word")))  # fmt: skip
            except (KeyError, TypeError, ValueError):
                raise ModelFormatError(
                    f"{self._path}: added_tokens: {str(entry)[:120]} is not a token"
                ) from None
            found[token.content] = token
        return list(found.values())

    def _check_ids(self) -> None:
        """Refuses added tokens that cannot have the ids which the files give them."""
        for token in self.specials:
            id = self._tokenizer.token_to_id(token.content)
            if id != token.id:
                other = self._tokenizer.id_to_token(token.id)
                raise ModelFormatError(
                    f"{self._path.parent}: added token {shown(token.content)} has not the id {token.id}"
                    + (f", which is that of {shown(other)}" if other is not None else "")
                )

    def _finds_bos(self, tree: dict[str, Any], config: dict[str, Any]) -> bool:
        """Whether prompts start with bos: what the post-processor does, else add_bos_token."""
        for step in steps(tree.get("post_processor"), "processor", MAX_STEPS, self._path):
            if step["type"] == "TemplateProcessing":
                bos = config.get("bos_token")
                name = self._first_special(step.get("single"))
                if name is not None and name == (
                    bos.get("content") if isinstance(bos, dict) else bos
                ):
                    return True
        return bool(config.get("add_bos_token"))

    def _first_special(self, single: Any) -> str | None:
        """The special token that a template puts in front of a single text."""
        if single is not None and not isinstance(single, list):
            raise ModelFormatError(f"{self._path}: post_processor: single is {shown(single)}")
        first = single[0] if single else {}
        special = first.get("SpecialToken") if isinstance(first, dict) else first
        name = special.get("id") if isinstance(special, dict) else special
        if name is not None and (not isinstance(name, str) or not isinstance(special, dict)):
            raise ModelFormatError(
                f"{self._path}: post_processor: single begins with {shown(first)}"
            )
        return name

    def _strips_first_space(self, decoder: Any) -> bool:
        return any(
            (s["type"] == "Strip" and s.get("start"))
            or (s["type"] == "Metaspace" and s.get("prepend_scheme", "always") != "never")
            for s in steps(decoder, "decoder", MAX_STEPS, self._path)
        )

    def encode(self, text: str, special: bool, first: bool = True) -> list[int]:
        check_growth(text, self._growth, self._path)
        try:
            with self._lock:
                tokenizer = self._tokenizer if first else self._later()
                tokenizer.encode_special_tokens = not special
                return tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
                raise
            raise InvalidArgumentError(
                f"{self._path}: the tokenizer cannot read this text: {str(error)[:200]}"
            ) from None

    def _later(self):
        """The tokenizer for text that does not come first: no space is put before it."""
        if self._rest_text is not None:
            self._rest, self._rest_text = self._build(self._rest_text), None
        return self._rest

    def token_id(self, content: str) -> int | None:
        return self._tokenizer.token_to_id(content)

    def token_bytes(self, id: int) -> bytes:
        known = self._bytes.get(id)
        if known is None:
            known = self._bytes[id] = self._spell(id)
        return known

    def _spell(self, id: int) -> bytes:
        if id in self._special_ids:
            return self._special_ids[id].content.encode()
        token = self._tokenizer.id_to_token(id)
        if token is None:
            return b""
        if self._style == "bytes":
            try:
                return bytes(self._alphabet[c] for c in token)
            except KeyError:
                return token.encode()
        return spell_piece(token)

    def vocabulary(self) -> list[bytes | None]:
        return [
            None if self._tokenizer.id_to_token(i) is None else self.token_bytes(i)
            for i in range(self.size)
        ]


def _joined(
    specials: list[Special], tree: dict[str, Any], added: list[Special], names: set[str], path: Path
) -> list[Special]:
    """`specials` and what other files say: tokens of theirs, and other settings of the same ones."""
    found = {s.content: s for s in specials}
    named = tree["model"].get("vocab")
    vocabulary = named if isinstance(named, dict) else {}
    for token in added:
        known = found[token.content].id if token.content in found else vocabulary.get(token.content)
        if known is not None and known != token.id:
            raise ModelFormatError(
                f"{path}: token {shown(token.content)} has the id {known}, but {token.id} in a file beside it"
            )
        found[token.content] = token
    for content in sorted(names):
        if content in found:
            found[content].special = True
        elif isinstance(vocabulary.get(content), int):
            found[content] = Special(vocabulary[content], content, True)
    # The library counts on from its vocabulary in the order in which they stand here.
    return sorted(found.values(), key=lambda token: token.id)


def _entry(token: Special) -> dict[str, Any]:
    """The token as tokenizer.json has it."""
    return {
        "id": token.id,
        "content": token.content,
        "single_word": token.single_word,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": token.normalized,
        "special": token.special,
    }


def _without_prefix(file: JsonFile, changes: dict[str, str], first: str) -> str | None:
    """The text of a tokenizer that puts no space before the first word; None where none does."""
    cut = json.dumps(file.value.get("pre_tokenizer"))
    uncut = cut.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
    return None if uncut == cut else file.text_with(changes | {"pre_tokenizer": uncut}, first)


def _check_count(tree: dict[str, Any], path: Path) -> None:
    """Refuses too many tokens before the library makes its tables of them."""
    lists = (tree["model"].get("vocab"), tree.get("added_tokens"))
    count = sum(len(v) for v in lists if isinstance(v, (dict, list)))
    if count > MAX_TOKENS:
        raise ModelFormatError(f"{path}: {count} tokens; at most {MAX_TOKENS} are taken")


def _patterns(node: Any) -> list[str]:
    """Every regular expression of normalizers and pre-tokenizers."""
    found: list[str] = []
    todo = [node.get("normalizer"), node.get("pre_tokenizer"), node.get("decoder")]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            pattern = part.get("pattern")
            if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                found.append(pattern["Regex"])
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    return found


_ATOM = re.compile(
    r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\(\?(?:[:=!>]|<[=!]|[a-z-]+:)|.", re.DOTALL
)
_QUANTIFIER = re.compile(r"[*+?]|\{\d*,?\d*\}")


def _check_pattern(pattern: str, path: Path) -> None:
    """Refuses a repeated group that holds a repetition: matching it can take exponential time."""
    if len(pattern) > 1 << 16:
        raise ModelFormatError(f"{path}: a regular expression of {len(pattern)} characters")
    groups, at = [False], 0
    while at < len(pattern):
        atom = _ATOM.match(pattern, at)
        text, at = atom.group(), atom.end()
        if text.startswith("(") and text != "\\(":
            groups.append(False)
            continue
        inner = False
        if text == ")" and len(groups) > 1:
            inner = groups.pop()
            groups[-1] |= inner
        quantifier = _QUANTIFIER.match(pattern, at)
        if quantifier:
            many = quantifier.group()[0] in "*+" or quantifier.group().endswith(",}")
            if many and inner:
                raise UnsupportedError(
                    f"{path}: the regular expression {pattern[:80]!r} repeats a repetition, "
                    "which can take exponential time"
                )
            groups[-1] |= many
            at = quantifier.end()
            if pattern[at : at + 1] in ("?", "+"):
                at += 1
