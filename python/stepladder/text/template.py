"""Chat templates: where a model directory has them, and their text over messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import InvalidArgumentError, ModelFormatError
from ..base.json_file import read_json
from .budget import Budget, TooMuch, budget, spend

MAX_SOURCE = 64 << 10


class Rendered(NamedTuple):
    """A prompt's text, and whether the template changed any text on its way there: cut it, replaced in
    it, wrote it in lower case. Else the text is the template's own and that of the messages as they
    are, one behind the other."""

    text: str
    changed: bool


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
    def find(directory: Path, config: dict[str, Any]) -> "ChatTemplate | None":
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
    ) -> Rendered:
        """The prompt's text. Raises ModelFormatError when the template is broken or works too hard,
        InvalidArgumentError when it refuses the messages."""
        # A fifth of the time that importing the package takes, and only prompts of messages need it.
        from jinja2 import TemplateError

        from .sandbox import concat, environment

        spent = Budget()
        token = budget.set(spent)
        try:
            if self._compiled is None:
                self._compiled = environment().from_string(self.source)
            template = self._compiled
            context = template.new_context(
                {**variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
            )
            text = concat(self._pieces(template.root_render_func(context)))
            return Rendered(text, spent.changed)
        except InvalidArgumentError:
            raise
        except TooMuch as error:
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
            budget.reset(token)

    @staticmethod
    def _pieces(pieces: Any) -> Any:
        for piece in pieces:
            spend()
            yield piece
