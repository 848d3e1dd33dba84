"""Text and messages to tokens and back, as the files of a model directory say."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..base.arguments import flag, shown, string, token_ids, whole
from ..base.errors import InvalidArgumentError, ModelFormatError, UnsupportedError
from ..base.json_file import read_json
from .added_tokens import added_tokens, special_names
from .detokenizer import Detokenizer
from .guard import Guard
from .json_tokenizer import JsonTokenizer
from .prompts import Context, Message, checked_messages
from .sentencepiece_tokenizer import SentencePieceTokenizer
from .template import ChatTemplate, Rendered
from .vocabulary import MAX_SPECIAL, MAX_TEXT, Special


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
        self.template = ChatTemplate.find(self.directory, self.config)
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
        guard = Guard([s.content for s in self._core.specials if s.special])
        messages, variables = guard.hide(messages), guard.hide(variables)
        rendered, changed = self._render(messages, add_generation_prompt, **variables)
        self.check_length(rendered, context, "messages")
        # Where the template only joins texts, the marks of the guard are enough.
        if changed or guard.has_middles(_users_texts(messages)):
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
        return self._render(checked_messages(messages), add_generation_prompt, **variables).text

    def _render(
        self, messages: list[Message], add_generation_prompt: bool, **variables: Any
    ) -> Rendered:
        if self.template is None:
            raise InvalidArgumentError(
                f"{self.directory}: the model has no chat template; give the prompt as text, or set chat_template "
                "in tokenizer_config.json"
            )
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
            plain = self._render(
                _with_plain_words(messages), add_generation_prompt, **variables
            ).text
        except (InvalidArgumentError, ModelFormatError):
            return  # a template that wants a text of a certain form cannot be compared
        allowed = iter(self._controls(plain))
        for name in found:
            if name not in allowed:
                raise InvalidArgumentError(
                    f"messages: {self.template.where} makes the control token {shown(name)} out of "
                    "their text; take what becomes one out of it"
                )

    def _encode_marked(self, rendered: str, guard: "Guard") -> list[int]:
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


_TRUSTED = ("system", "developer", "assistant")


def _users_texts(messages: list[Message]) -> list[str]:
    """What users and tools wrote."""
    return [m["content"] for m in messages if m["role"] not in _TRUSTED]


def _with_plain_words(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a word in the place of what users and tools wrote, but for the space around."""
    word = "w" + secrets.token_hex(8)

    def plain(message: dict[str, Any]) -> dict[str, Any]:
        text = message["content"]
        inner = text.strip()
        if message["role"] in _TRUSTED or not inner:
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


def _open_core(directory: Path, config: dict[str, Any]):
    added, names = added_tokens(directory, config), special_names(directory, config)
    if (directory / "tokenizer.json").exists():
        core = JsonTokenizer(directory / "tokenizer.json", config, added, names)
    elif (directory / "tokenizer.model").exists():
        core = SentencePieceTokenizer(directory / "tokenizer.model", config, added, names)
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
