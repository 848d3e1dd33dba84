"""Questions to run a model over: a few built-in ones, or a file of JSON lines as Spec-Bench has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..base.arguments import regular_file, whole
from ..base.errors import FileError, ModelFormatError

# MT-Bench's eight categories are one task of Spec-Bench.
_MULTI_TURN = {
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
}
_MAX_FILE = 256 << 20


class Question(NamedTuple):
    """A question, and the group it is counted in."""

    group: str
    text: str

    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.text}]


BUILT_IN = [
    Question("explain", "Explain in a few sentences why the sky is blue."),
    Question(
        "code",
        "Write a Python function that returns the n-th Fibonacci number, with a short docstring.",
    ),
    Question(
        "math",
        "A train travels 120 km in 1.5 hours. What is its average speed? Show your reasoning.",
    ),
    Question(
        "repeat",
        "Repeat this list three times: apple, banana, cherry, date, elderberry, fig, grape.",
    ),
    Question(
        "translate",
        "Translate into French: The weather is nice today and we are going to the beach.",
    ),
    Question(
        "story", "Tell a short story about a lighthouse keeper who finds a message in a bottle."
    ),
]


def load_questions(path: str | Path | None, per_group: int = 0) -> list[Question]:
    """The questions of a file ({"category", "turns"} or {"question"} a line), the first turn of each;
    the built-in ones without a file. `per_group` keeps that many of each group, spread evenly."""
    whole("per_group", per_group, 0)
    questions = BUILT_IN if path is None else _read(Path(path))
    if per_group == 0:
        return questions
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.group, []).append(question)
    return [q for members in groups.values() for q in _spread(members, per_group)]


def _spread(members: list[Question], count: int) -> list[Question]:
    count = min(count, len(members))
    return [members[i * len(members) // count] for i in range(count)]


def _read(path: Path) -> list[Question]:
    try:
        regular_file(path)
        if path.stat().st_size > _MAX_FILE:
            raise ModelFormatError(f"{path}: larger than {_MAX_FILE} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ModelFormatError(f"{path}: not UTF-8 text") from None
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = entry["turns"][0] if "turns" in entry else entry["question"]
            category = str(entry.get("category", "all"))
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise ModelFormatError(
                f"{path}: line {number} is no question with turns or question"
            ) from None
        questions.append(Question("multi-turn" if category in _MULTI_TURN else category, text))
    if not questions:
        raise ModelFormatError(f"{path}: holds no questions")
    return questions
