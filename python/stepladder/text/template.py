"""Chat templates: where a model directory has them, and their text over messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.errors import InvalidArgumentError, ModelFormatError
from ..base.json_file import read_json
from .budget import Budget, TooMuch, budget, spend

MAX_SOURCE = 64 << 10


class ChatTemplate:
    """One compiled template; `where` names its source in messages."""

    def __init__(self, source: str, where: str):
        if not isinstance(source, str):
            raise ModelFormatError(f"{where}: the chat template is not a string")
        if len(source) > MAX_SOURCE:
            raise ModelFormatError(f"{where}: a chat template of {len(source)} characters")
        self.source, self.where = source, where
        self._compiled: Any = None
        self._names: frozenset[str] | None = None

    def uses(self, name: str) -> bool:
        """Whether the template looks at a variable. One that cannot be compiled may."""
        if self._names is None:
            from jinja2 import TemplateError, meta

            from .sandbox import environment

            try:
                tree = environment().parse(self.source)
            except (TemplateError, TooMuch, RecursionError):
                return True
            self._names = frozenset(meta.find_undeclared_variables(tree))
        return name in self._names

    def render(
        self, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: dict[str, Any]
    ) -> str:
        """The prompt's text, Traced where texts of messages are. Raises ModelFormatError when the template is broken or works too hard,
        InvalidArgumentError when it refuses the messages."""
        # A fifth of the time that importing the package takes, and only prompts of messages need it.
        from jinja2 import TemplateError

        from .sandbox import concat, environment

        token = budget.set(Budget(len(messages)))
        try:
            if self._compiled is None:
                self._compiled = environment().from_string(self.source)
            template = self._compiled
            context = template.new_context(
                {**variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
            )
            return concat(self._pieces(template.root_render_func(context)))
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


class Templates:
    """The chat templates of a model directory by name; `default` is the one for any messages."""

    def __init__(self, directory: Path, named: dict[str, ChatTemplate]):
        self._directory, self.named = directory, named

    @staticmethod
    def find(directory: Path, config: dict[str, Any]) -> "Templates":
        """chat_template.jinja, chat_template.json or tokenizer_config.json (`config`), and what lies in
        additional_chat_templates."""
        found = {
            name: ChatTemplate(*source) for name, source in _sources(directory, config).items()
        }
        return Templates(directory, found)

    def choose(self, tools: bool) -> ChatTemplate:
        """As transformers does: tool_use for tools, where there is one."""
        if not self.named:
            raise InvalidArgumentError(
                f"{self._directory}: the model has no chat template; give the prompt as text, or set chat_template "
                "in tokenizer_config.json"
            )
        chosen = (tools and self.named.get("tool_use")) or self.named.get("default")
        if chosen is None:
            raise ModelFormatError(
                f"{self._directory}: no chat template is called default, only {', '.join(sorted(self.named))}"
            )
        if tools and not chosen.uses("tools"):
            raise InvalidArgumentError(
                f"tools: {chosen.where}: the chat template does not look at tools, and the model would not see "
                "them; leave them out, or describe them in a message"
            )
        return chosen


def _sources(directory: Path, config: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Templates and where they stand, by name."""
    found: dict[str, tuple[Any, str]] = {}
    path = directory / "chat_template.json"
    value = (read_json(path) or {}).get("chat_template") if path.is_file() else None
    if value is None:
        path = directory / "tokenizer_config.json"
        value = config.get("chat_template")
    if isinstance(value, dict):
        value = [{"name": name, "template": source} for name, source in value.items()]
    for each in value if isinstance(value, list) else [{"name": "default", "template": value}]:
        if not isinstance(each, dict) or not isinstance(each.get("name"), str):
            raise ModelFormatError(f"{path}: a chat template without a name")
        if each.get("template") is not None:
            found[each["name"]] = each["template"], str(path)
    files = {"default": directory / "chat_template.jinja"}
    more = directory / "additional_chat_templates"
    if more.is_dir():
        files |= {path.stem: path for path in sorted(more.glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            if path.stat().st_size > MAX_SOURCE * 4:
                raise ModelFormatError(f"{path}: a chat template of {path.stat().st_size} bytes")
            found[name] = path.read_text(encoding="utf-8", errors="replace"), str(path)
    return found
