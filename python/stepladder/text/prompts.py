"""What a prompt may be: text, messages, token ids, or a list of any of these."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..base.arguments import listed, shown
from ..base.errors import InvalidArgumentError, UnsupportedError

Message = dict[str, Any]


class Messages(list[Message]):
    """Messages as checked_messages() gives them."""


Prompt = str | list[Message] | list[int]
_FORMS = "give text, a list of messages, a list of token ids, or a list of these"


class Context(NamedTuple):
    """Tokens that a sequence may hold, and what loading could raise them to."""

    tokens: int
    most: int

    def refusal(self, name: str, what: str) -> InvalidArgumentError:
        """The error for an argument `name` that is too long, in the engine's words."""
        larger = f" or load with a larger context, at most {self.most}"
        return InvalidArgumentError(
            f"{name}: {what} do not fit the context of {self.tokens}; shorten it"
            + (larger if self.most > self.tokens else "")
        )


def split_prompts(prompt: Any, name: str = "prompt") -> tuple[list[Prompt], bool]:
    """The prompts in an argument, and whether it was a list of prompts."""
    values = _values(prompt, name)
    if isinstance(values, str) or not _is_prompt(values[0]):
        return [values], False
    return [_one(value, f"{name}[{i}]") for i, value in enumerate(values)], True


def _values(prompt: Any, name: str) -> str | list[Any]:
    """A prompt, or a list of them, as text or as a list that is not empty."""
    if isinstance(prompt, (str, Messages)) and len(prompt):
        return prompt
    prompt = listed(name, prompt)
    if isinstance(prompt, dict):
        raise InvalidArgumentError(
            f"{name}: {shown(prompt)} is a dict; messages are a list, even a single one: [{{...}}]"
        )
    if not isinstance(prompt, (list, tuple)):
        raise InvalidArgumentError(f"{name}: {shown(prompt)} is not a prompt; {_FORMS}")
    if not prompt:
        raise InvalidArgumentError(f"{name}: it is empty; {_FORMS}")
    return list(prompt)


def _is_prompt(value: Any) -> bool:
    """Whether the first thing in a list is a prompt of its own, and not a message or a token."""
    if isinstance(value, (str, list, tuple)):
        return True
    return hasattr(value, "tolist") and isinstance(listed("prompt", value), list)


def _one(value: Any, name: str) -> Prompt:
    values = _values(value, name)
    if not isinstance(values, str) and _is_prompt(values[0]):
        raise InvalidArgumentError(f"{name}: {shown(values)} is a list of prompts inside another")
    return values


def checked_messages(messages: Any, name: str = "messages") -> Messages:
    """Messages with a role and content, their content as one text."""
    if isinstance(messages, Messages):
        return messages
    if not isinstance(messages, (list, tuple)):
        raise InvalidArgumentError(f"{name}: {shown(messages)} is not a list of messages")
    return Messages(_checked_message(m, f"{name}[{i}]") for i, m in enumerate(messages))


def _checked_message(message: Any, name: str) -> Message:
    if not isinstance(message, dict):
        raise InvalidArgumentError(f"{name}: {shown(message)} is not a dict with role and content")
    for key in message:
        if not isinstance(key, str):
            raise InvalidArgumentError(f"{name}: the key {shown(key)} is not text")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InvalidArgumentError(
            f"{name}: role is {shown(role) if 'role' in message else 'missing'}; "
            "give a text such as 'user', 'assistant' or 'system'"
        )
    if content is None and not message.get("tool_calls"):
        raise InvalidArgumentError(f"{name}: content is missing or None; give its text")
    if content is not None and not isinstance(content, (str, list)):
        raise InvalidArgumentError(
            f"{name}: content is {shown(content)}, a {type(content).__name__}; give its text"
        )
    return {**message, "content": _joined(content, name)}


def _joined(content: str | list[Any] | None, name: str) -> str:
    """Content given in parts ({"type": "text", "text": ...}) as one text."""
    if not isinstance(content, list):
        return content or ""
    for part in content:
        if (
            not isinstance(part, dict)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise UnsupportedError(f"{name}: content has a part that is not text")
    return "".join(part["text"] for part in content)
