"""Text and messages to tokens and back, as the files of a model directory say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..base.arguments import flag, shown, string, token_ids, whole
from ..base.errors import InvalidArgumentError, ModelFormatError, UnsupportedError
from ..base.json_file import read_json
from .added_tokens import added_tokens, special_names
from .detokenizer import Detokenizer
from .json_tokenizer import JsonTokenizer
from .prompts import Context, Message, checked_messages
from .provenance import Traced, marked
from .sentencepiece_tokenizer import SentencePieceTokenizer
from .template import Templates
from .vocabulary import MAX_SPECIAL, MAX_TEXT, Special


class Text:
    """The tokenizer of a model directory.

    `encode` recognises special tokens in raw prompts; `encode_chat` does so in the template's own
    words only, never in what the messages bring.
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
        self.templates = Templates.find(self.directory, self.config)
        words = sorted((s for s in self.specials if s), key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, words))) if words else None
        # Stands for what messages bring where control tokens are looked for.
        self._other = next(
            c for c in map(chr, range(0xFFFF, 0, -1)) if not any(c in w for w in words)
        )

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

    @property
    def has_template(self) -> bool:
        """Whether messages can be prompts."""
        return bool(self.templates.named)

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
        add_generation_prompt: bool | None = None,
        context: Context | None = None,
        continue_final_message: bool = False,
        bos: bool | None = None,
        **variables: Any,
    ) -> list[int]:
        """Tokens of `messages` in the model's chat template, which ends with the beginning of an answer
        unless `add_generation_prompt` is False or the last message is to be gone on with.

        `bos`: whether a bos token comes first (None: where the template writes one)."""
        messages = checked_messages(messages)
        self.check_length(_all_text(messages), context, "messages")
        rendered = self._render(messages, add_generation_prompt, continue_final_message, variables)
        self.check_length(rendered, context, "messages")
        ids = self._encode_traced(rendered)
        if bos is not None and flag("bos", bos):
            if self.bos is None:
                raise InvalidArgumentError("bos=True, but the model has no bos token")
            if ids[:1] != [self.bos.id]:
                ids = [self.bos.id, *ids]
        elif bos is False and self.bos is not None and ids[:1] == [self.bos.id]:
            ids = ids[1:]
        return ids

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The text of `messages` in the model's chat template."""
        checked = checked_messages(messages)
        text = self._render(checked, add_generation_prompt, continue_final_message, variables)
        return text.plain() if isinstance(text, Traced) else text

    def _render(
        self,
        messages: list[Message],
        add_generation_prompt: bool | None,
        goes_on: bool,
        variables: dict[str, Any],
    ) -> str:
        """Traced: every character that messages and variables bring is marked."""
        template = self.templates.choose(bool(variables.get("tools")))
        if flag("continue_final_message", goes_on):
            messages = _with_end(messages, add_generation_prompt)
        names = {
            "bos_token": self.bos.content if self.bos else "",
            "eos_token": self.eos.content if self.eos else "",
        }
        prompted = not goes_on if add_generation_prompt is None else add_generation_prompt
        messages, variables = marked(messages), marked(variables)
        text = template.render(messages, prompted, {**names, **variables})
        return _cut_at_end(text, template.where) if goes_on else text

    def _encode_traced(self, text: str) -> list[int]:
        """Splits at the special tokens that unmarked characters spell; all between is plain text."""
        plain, shadow = text, text
        if isinstance(text, Traced):
            plain, at, pieces = text.plain(), 0, []
            for run in re.finditer(b"\x01+", text.mask):
                pieces += [plain[at : run.start()], self._other * (run.end() - run.start())]
                at = run.end()
            shadow = "".join([*pieces, plain[at:]])
        found = list(self._splitter.finditer(shadow)) if self._splitter else []
        if not self._core.normalizes_specials:
            everywhere = self._splitter.finditer(plain) if self._splitter else ()
            if [m.span() for m in everywhere] == [m.span() for m in found]:
                return self._core.encode(plain, special=True)
        ids: list[int] = []
        at, strip = 0, False
        for match in found:
            token = self.specials[match.group()]
            piece = plain[at : match.start()]
            piece = piece.lstrip() if strip else piece
            ids += self._plain(piece.rstrip() if token.lstrip else piece, at == 0)
            ids.append(token.id)
            at, strip = match.end(), token.rstrip
        piece = plain[at:]
        return ids + self._plain(piece.lstrip() if strip else piece, at == 0)

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


# Stands behind the message that is to be gone on with; the space shows whether the template keeps it.
_END = "\U000f5ad0\U000f5ad1 "


def _with_end(messages: list[Message], add_generation_prompt: bool | None) -> list[Message]:
    if not messages:
        raise InvalidArgumentError("continue_final_message: there is no message to go on with")
    if add_generation_prompt:
        raise InvalidArgumentError(
            "continue_final_message: with add_generation_prompt a new message would begin; leave one out"
        )
    if any(_END[:2] in message["content"] for message in messages):
        raise InvalidArgumentError(
            f"messages: the private-use characters {_END[:2]!a} cannot be used with continue_final_message"
        )
    last = messages[-1]
    return [*messages[:-1], {**last, "content": last["content"] + _END}]


def _cut_at_end(text: str, where: str) -> str:
    """The text up to the end of the last message; what a template trims there is trimmed."""
    at = text.rfind(_END[:2])
    if at < 0:
        raise InvalidArgumentError(
            f"continue_final_message: {where}: the chat template leaves the last message out"
        )
    return text[:at] if text.startswith(_END, at) else text[:at].rstrip()


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
