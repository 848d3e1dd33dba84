"""Text to tokens and back: tokenizer files, special tokens, and detokenization token by token."""

from __future__ import annotations

import codecs
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import flag, regular_file, shown, string, token_ids, whole
from .errors import FileError, InvalidArgumentError, ModelFormatError, UnsupportedError
from .prompts import Context, checked_messages
from .text_template import ChatTemplate

MAX_FILE_BYTES = 256 << 20
MAX_TEXT = 16 << 20  # characters given to a tokenizer at once
MAX_JSON_STRING = 2 << 20
MAX_TOKEN_BYTES = 1 << 16
MAX_SPECIAL = 512  # characters of a special token
MAX_TOKENS = 1 << 19
MAX_CONFIG_BYTES = 8 << 20
MAX_CONFIG_ENTRIES = 500_000
MAX_ENTRIES = 3_000_000  # the largest vocabularies have two million, merges included


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES, entries: int = MAX_CONFIG_ENTRIES) -> Any:
    """The JSON value in `path`, or None when there is no such file. Raises ModelFormatError over
    `limit` bytes, or `entries` list and object entries."""
    try:
        if not path.exists():
            return None
        regular_file(path)
        if path.stat().st_size > limit:
            raise ModelFormatError(f"{path}: larger than {limit} bytes")
        _check_strings(path)
        data = path.read_bytes()
        if _count_entries(data, entries) > entries:
            raise ModelFormatError(f"{path}: more than {entries} entries of lists and objects")
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique(path))
    except (ModelFormatError, FileError):
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot read: {error.strerror}") from error
    except RecursionError:
        raise ModelFormatError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ModelFormatError(f"{path}: not valid JSON: {str(error)[:200]}") from None


def _count_entries(data: bytes, enough: int) -> int:
    """How many lists, objects and entries JSON text has, before they are made: each takes many times
    the memory of its text. At least that many while that is `enough`."""
    count = sum(map(data.count, (b"[", b"{", b",")))
    if count <= enough:
        return count
    # Those inside texts do not count.
    plain = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    count, inside = 0, 0
    for first in range(0, plain.size, 1 << 20):
        block = plain[first : first + (1 << 20)]
        quotes = (np.cumsum(block == ord('"'), dtype=np.uint8) + inside) & 1
        count += int((np.isin(block, tuple(b"[{,")) & (quotes == 0)).sum())
        inside = int(quotes[-1])
    return count


def _check_strings(path: Path) -> None:
    """Refuses a text of megabytes before the file is in memory as a whole."""
    run = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 16):
            run = 0 if b'"' in block else run + len(block)
            if run > MAX_JSON_STRING:
                raise ModelFormatError(f"{path}: holds a text of more than {MAX_JSON_STRING} bytes")


def _unique(path: Path):
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise ValueError(f"key {twice[:80]!r} appears twice")
        return value

    return build


class Special:
    """A token that stands for itself in text and is never merged with its neighbours."""

    def __init__(
        self, id: int, content: str, special: bool, lstrip: bool = False, rstrip: bool = False
    ):
        self.id, self.content, self.special = id, content, special
        self.lstrip, self.rstrip = lstrip, rstrip


class Text:
    """The tokenizer of a model directory.

    `encode` recognises special tokens in template text and raw prompts; `encode_chat` does so in
    the template's text only, never in the contents of the messages.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        config = read_json(self.directory / "tokenizer_config.json")
        self.config = {} if config is None else config
        if not isinstance(self.config, dict):
            raise ModelFormatError(f"{self.directory / 'tokenizer_config.json'}: not a JSON object")
        self._core = _open_core(self.directory, self.config)
        self.size = self._core.size
        self.specials = {s.content: s for s in self._core.specials}
        self._control = {s.id for s in self._core.specials if s.special}
        self.bos = self._named("bos_token")
        self.eos = self._named("eos_token")
        self.template = ChatTemplate.find(self.directory, self.config, read_json)
        words = sorted((s for s in self.specials if s), key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, words))) if words else None

    def _named(self, key: str) -> Special | None:
        value = self.config.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        if content is None:
            return None
        if not isinstance(content, str):
            raise ModelFormatError(
                f"{self.directory / 'tokenizer_config.json'}: {key} is not a string"
            )
        if content not in self.specials:
            id = self._core.token_id(content)
            if id is None:
                raise ModelFormatError(
                    f"{self.directory / 'tokenizer_config.json'}: {key} {shown(content)} is no token"
                )
            return Special(id, content, True)
        return self.specials[content]

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token adds to the text; those of a special token are its own name."""
        return self._core.token_bytes(whole("token", id, 0, self.size - 1))

    def is_control(self, id: int) -> bool:
        """Whether the token is left out of text."""
        return id in self._control

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return self._core.longest

    def check_length(self, text: str, context: Context | None, name: str) -> None:
        """Refuses text that cannot fit `context`, before a tokenizer works on it."""
        what = f"{len(text)} characters"
        if context is not None and len(text) > context.tokens * self.longest:
            raise context.refusal(name, what)
        if len(text) > MAX_TEXT:
            raise InvalidArgumentError(f"{name}: {what} are more than {MAX_TEXT}; shorten it")

    def encode(self, text: str, special: bool = True, bos: bool | None = None) -> list[int]:
        """Tokens of `text`. `special`: special tokens in it are recognised. `bos`: whether one is
        put in front (None: as the model's files say); never a second one."""
        text = string("text", text)
        flag("special", special)
        if bos is not None:
            flag("bos", bos)
        self.check_length(text, None, "text")
        ids = self._core.encode(text, special=special)
        if bos if bos is not None else self._core.adds_bos:
            if self.bos is None and bos:
                raise InvalidArgumentError("bos=True, but the model has no bos token")
            if self.bos is not None and ids[:1] != [self.bos.id]:
                ids = [self.bos.id, *ids]
        return ids

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        context: Context | None = None,
        **variables: Any,
    ) -> list[int]:
        """Tokens of `messages` in the model's chat template."""
        messages = checked_messages(messages)
        self.check_length(_all_text(messages), context, "messages")
        guard = _Guard([s.content for s in self._core.specials if s.special])
        messages, variables = guard.hide(messages), guard.hide(variables)
        rendered = self.render(messages, add_generation_prompt, **variables)
        self.check_length(rendered, context, "messages")
        self._check_controls(rendered, messages, add_generation_prompt, variables)
        if not guard.used:
            ids = self._core.encode(rendered, special=True)
        else:
            ids = self._encode_marked(rendered, guard)
        if self._core.adds_bos and self.bos is not None and ids[:1] != [self.bos.id]:
            ids = [self.bos.id, *ids]
        return ids

    def render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of `messages` in the model's chat template."""
        if self.template is None:
            raise InvalidArgumentError(
                f"{self.directory}: the model has no chat template; give the prompt as text, or set chat_template "
                "in tokenizer_config.json"
            )
        messages = checked_messages(messages)
        names = {
            "bos_token": self.bos.content if self.bos else "",
            "eos_token": self.eos.content if self.eos else "",
        }
        return self.template.render(messages, add_generation_prompt, {**names, **variables})

    def _controls(self, rendered: str) -> list[str]:
        found = self._splitter.findall(rendered) if self._splitter else []
        return [name for name in found if self.specials[name].special]

    def _check_controls(
        self,
        rendered: str,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        variables: dict[str, Any],
    ) -> None:
        """Refuses text out of which the template makes control tokens, by lower case, a replacement or a join:
        with plain words in its place it must write the same ones, in the same order, or more."""
        found = self._controls(rendered)
        if not found:
            return
        try:
            plain = self.render(_with_plain_words(messages), add_generation_prompt, **variables)
        except (InvalidArgumentError, ModelFormatError):
            return  # a template that wants a text of a certain form cannot be compared
        allowed = iter(self._controls(plain))
        for name in found:
            if name not in allowed:
                raise InvalidArgumentError(
                    f"messages: {self.template.where} makes the control token {shown(name)} out of "
                    "their text; take what becomes one out of it"
                )

    def _encode_marked(self, rendered: str, guard: "_Guard") -> list[int]:
        """Splits at the special tokens the template wrote; all between is plain text."""
        ids: list[int] = []
        at, strip = 0, False
        for match in self._splitter.finditer(rendered) if self._splitter else ():
            token = self.specials[match.group()]
            plain = rendered[at : match.start()]
            plain = plain.lstrip() if strip else plain
            ids += self._plain(guard.show(plain.rstrip() if token.lstrip else plain), at == 0)
            ids.append(token.id)
            at, strip = match.end(), token.rstrip
        plain = rendered[at:]
        return ids + self._plain(guard.show(plain.lstrip() if strip else plain), at == 0)

    def _plain(self, text: str, first: bool) -> list[int]:
        return self._core.encode(text, special=False, first=first) if text else []

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of tokens; control tokens are left out unless `special`."""
        flag("special", special)
        if isinstance(ids, Iterator):
            ids = list(ids)
        checked = token_ids("tokens", ids, self.size)
        kept = [i for i in checked if special or not self.is_control(i)]
        text = b"".join(self.token_bytes(i) for i in kept).decode("utf-8", "replace")
        return text[1:] if self._core.adds_space and text.startswith(" ") else text

    def detokenizer(self) -> "Detokenizer":
        """A decoder of a stream that continues some prompt."""
        return Detokenizer(self)

    def vocabulary(self) -> list[bytes | None]:
        """What each id stands for; None where an id is unused."""
        return self._core.vocabulary()


def _with_plain_words(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a word in the place of what users and tools wrote, but for the space around."""
    word = "w" + secrets.token_hex(8)

    def plain(message: dict[str, Any]) -> dict[str, Any]:
        text = message["content"]
        inner = text.strip()
        if message["role"] in ("system", "developer", "assistant") or not inner:
            return message
        return {**message, "content": text.replace(inner, word)}

    return [plain(message) for message in messages]


def _all_text(value: Any, depth: int = 0) -> str:
    """All strings inside messages, one after the other."""
    if depth > 32:
        raise InvalidArgumentError("messages: nested too deeply")
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return ""
    return "".join(_all_text(v, depth + 1) for v in value)


class Detokenizer:
    """Turns tokens into text one at a time, holding back bytes that do not yet make a character."""

    def __init__(self, text: Text):
        self._text = text
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters this token completes."""
        if self._text.is_control(id):
            return ""
        return self._utf8.decode(self._text.token_bytes(id))

    def finish(self) -> str:
        """What was held back, a replacement character for each broken sequence."""
        return self._utf8.decode(b"", True)


def _begins_inside(text: str, special: str) -> bool:
    """Whether `text` begins with an end of `special`."""
    at = special.find(text[0], 1)
    while at > 0:
        if text.startswith(special[at:]):
            return True
        at = special.find(text[0], at + 1)
    return False


def _ends_inside(text: str, special: str) -> bool:
    """Whether `text` ends with a beginning of `special`."""
    at = special.rfind(text[-1], 0, -1)
    while at >= 0:
        if text.endswith(special[: at + 1]):
            return True
        at = special.rfind(text[-1], 0, at)
    return False


class _Guard:
    """Keeps the text of special tokens inside messages from becoming special tokens.

    A mark that occurs nowhere else is put inside each such text before the template runs, and at
    an edge that could complete one together with the template's own words; it is taken out again
    once the template's special tokens have been found. What a template makes by changing
    characters is found by Text._check_controls.
    """

    def __init__(self, specials: list[str]):
        self._specials = [s for s in specials if s]
        found = sorted(self._specials, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None
        self._mark = "\U000f5ad0"
        self._stand_in = {
            s: chr(0xF5B00 + i) for i, s in enumerate(s for s in self._specials if len(s) == 1)
        }
        self._first = {c for s in self._specials for c in s[1:]}
        self._last = {c for s in self._specials for c in s[:-1]}
        self.used = False

    def hide(self, value: Any, depth: int = 0) -> Any:
        """`value` with every string in it marked where needed."""
        if isinstance(value, str):
            return self._hide(string("messages", value))
        if depth > 32:
            raise InvalidArgumentError("messages: nested too deeply")
        if isinstance(value, dict):
            return {self.hide(k, depth + 1): self.hide(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(v, depth + 1) for v in value]
        return value

    def _hide(self, text: str) -> str:
        if self._mark in text or any(c in text for c in self._stand_in.values()):
            raise InvalidArgumentError(
                f"messages: the private-use character {self._mark!a} cannot be used"
            )
        marked = text
        while self._pattern and self._pattern.search(marked):
            marked = self._pattern.sub(
                lambda m: (
                    self._stand_in.get(m.group()) or m.group()[0] + self._mark + m.group()[1:]
                ),
                marked,
            )
        if text[:1] in self._first and any(_begins_inside(text, s) for s in self._specials):
            marked = self._mark + marked
        if text[-1:] in self._last and any(_ends_inside(text, s) for s in self._specials):
            marked += self._mark
        self.used |= marked != text
        return marked

    def show(self, text: str) -> str:
        """`text` without the marks."""
        for content, stand_in in self._stand_in.items():
            text = text.replace(stand_in, content)
        return text.replace(self._mark, "")


def _open_core(directory: Path, config: dict[str, Any]):
    from .text_json import JsonTokenizer
    from .text_sentencepiece import SentencePieceTokenizer

    if (directory / "tokenizer.json").exists():
        core = JsonTokenizer(directory / "tokenizer.json", config)
    elif (directory / "tokenizer.model").exists():
        core = SentencePieceTokenizer(directory / "tokenizer.model", config)
    else:
        raise UnsupportedError(f"{directory}: neither tokenizer.json nor tokenizer.model is there")
    seen: dict[int, str] = {}
    for special in core.specials:
        if len(special.content) > MAX_SPECIAL:
            raise ModelFormatError(
                f"{directory}: special token {shown(special.content)} has {len(special.content)} "
                f"characters; at most {MAX_SPECIAL} are taken"
            )
        if not 0 <= special.id < core.size:
            raise ModelFormatError(
                f"{directory}: special token {shown(special.content)} has id {special.id}, "
                f"outside the vocabulary of {core.size}"
            )
        if seen.setdefault(special.id, special.content) != special.content:
            raise ModelFormatError(f"{directory}: id {special.id} has two special tokens")
    return core
