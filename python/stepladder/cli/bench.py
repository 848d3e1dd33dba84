"""Plain decoding and hierarchies over questions, in turn and several times: times, texts, counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .._core import AnswerHash, count_grams
from ..base.arguments import whole
from ..base.errors import Error, InvalidArgumentError
from ..model.levels import to_specs
from ..model.model import Model
from ..model.options import check_names
from ..model.questions import Question
from ..model.results import Result
from .verdict import Times, speedup

PLAIN = ""  # the name of decoding without levels


def check_drafts(drafts: Sequence[str]) -> None:
    """Refuses the first line of levels that cannot be, or that is there twice, by its place."""
    for i, draft in enumerate(drafts):
        place = f"--draft {i + 1} of {len(drafts)} ({draft})"
        if draft in drafts[:i]:
            raise InvalidArgumentError(f"{place}: the same levels twice; leave one out")
        try:
            specs = to_specs(draft)
        except Error as error:
            raise type(error)(f"{place}: {error}") from None
        if not specs:
            raise InvalidArgumentError(f"{place}: no levels; plain decoding is always measured")


@dataclass
class Turn:
    """One question, once with each hierarchy and once without."""

    repeat: int
    index: int
    question: Question
    answers: dict[str, Result]  # by the levels; PLAIN is without

    @property
    def plain(self) -> Result:
        return self.answers[PLAIN]

    def speedup(self, draft: str) -> float:
        """Of decoding, behind the first token."""
        return ratio(self.plain.stats.decode_ms, self.answers[draft].stats.decode_ms)


def ratio(over: float, under: float) -> float:
    """A quotient of sums of times or counts; 1 where neither is anything."""
    return over / under if under else 1.0


def turns(
    models: dict[str, Model],
    questions: Sequence[Question],
    *,
    repeats: int = 5,
    seed: int = 0,
    **options: Any,
) -> Iterator[Turn]:
    """Every question `repeats` times with the levels of each model and plainly, one after the other;
    who goes first rotates, and so does the model that decodes plainly."""
    check_names("bench", options, more=("seed", "repeats"))
    seed = whole("seed", seed, 0, (1 << 64) - 1)
    repeats = whole("repeats", repeats, 1, 1000)
    if not questions:
        raise InvalidArgumentError("questions: there are none")
    return _turns(models, list(questions), repeats, seed, options)


def _turns(
    models: dict[str, Model], questions: list[Question], repeats: int, seed: int, options: Any
) -> Iterator[Turn]:
    names, all_models = [PLAIN, *models], list(models.values())
    for model in all_models:  # what levels learn from their first rounds is not the machine's speed
        for draft in (False, True):
            model.generate(questions[0].messages(), draft=draft, seed=seed, **options)
    for repeat in range(repeats):
        for i, question in enumerate(questions):
            answers = {}
            for k in range(len(names)):
                name = names[(repeat + i + k) % len(names)]
                model = models[name] if name else all_models[(repeat + i) % len(all_models)]
                # A different beginning in between: no prompt is in the cache from a turn before.
                model.generate(f"{repeat} {i} {k}", draft=False, max_tokens=1)
                answers[name] = model.generate(
                    question.messages(), draft=bool(name), seed=seed + i, **options
                )
            yield Turn(repeat, i, question, answers)


@dataclass
class Row:
    """Sums over some questions, of the fastest repeat of each."""

    questions: int = 0
    tokens: int = 0
    plain_ms: float = 0
    levels_ms: float = 0
    plain_first_ms: float = 0
    levels_first_ms: float = 0
    repeated: int = 0
    grams: int = 0

    def __add__(self, other: Row) -> Row:
        return Row(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    @property
    def speedup(self) -> float:
        return ratio(self.plain_ms, self.levels_ms)

    @property
    def first_token_ratio(self) -> float:
        return ratio(self.levels_first_ms, self.plain_first_ms)

    @property
    def repeated_share(self) -> float:
        """Of the runs of 8 tokens in the answers, those that the answer held before."""
        return self.repeated / self.grams if self.grams else 0.0

    def rate(self, ms: float) -> float:
        """Tokens a second, behind the first of each answer."""
        return (self.tokens - self.questions) * 1e3 / ms if ms else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ratios = ("speedup", "first_token_ratio", "repeated_share")
        return asdict(self) | {name: getattr(self, name) for name in ratios}


@dataclass
class Asked:
    """One question: its answer's counts, and milliseconds of each repeat, plainly and with levels."""

    group: str
    tokens: int
    grams: tuple[int, int]  # that came again, and all
    decode_ms: list[tuple[float, float]] = field(default_factory=list)
    first_ms: list[tuple[float, float]] = field(default_factory=list)

    @property
    def row(self) -> Row:
        plain, levels = map(min, zip(*self.decode_ms))
        plain_first, levels_first = map(min, zip(*self.first_ms))
        return Row(1, self.tokens, plain, levels, plain_first, levels_first, *self.grams)


_SUMMED = ("rounds", "drafted", "accepted", "emitted", "draft_ms", "verify_ms")


@dataclass
class Hierarchy:
    """What was measured of one list of levels, and of plain decoding beside it."""

    draft: str
    asked: list[Asked] = field(default_factory=list)
    levels: list[dict[str, Any]] = field(default_factory=list)  # names and sums of LevelStats
    hashes: list[tuple[AnswerHash, AnswerHash]] = field(default_factory=list)  # plain, with levels

    def add(self, turn: Turn) -> None:
        """Counts its part of a turn."""
        plain, levels = turn.plain, turn.answers[self.draft]
        if turn.repeat == len(self.hashes):
            self.hashes.append((AnswerHash(), AnswerHash()))
        if turn.index == len(self.asked):
            self.asked.append(
                Asked(turn.question.group, len(plain.tokens), count_grams(plain.tokens))
            )
        asked = self.asked[turn.index]
        asked.decode_ms.append((plain.stats.decode_ms, levels.stats.decode_ms))
        asked.first_ms.append((plain.stats.first_token_ms, levels.stats.first_token_ms))
        for hash, answer in zip(self.hashes[turn.repeat], (plain, levels)):
            hash.add(answer.tokens, answer.logits)
        for i, level in enumerate(levels.stats.levels):
            if i == len(self.levels):
                self.levels.append({"name": level.name} | dict.fromkeys(_SUMMED, 0))
            for key in _SUMMED:
                self.levels[i][key] += getattr(level, key)

    @property
    def groups(self) -> dict[str, Row]:
        groups: dict[str, Row] = {}
        for asked in self.asked:
            groups[asked.group] = groups.get(asked.group, Row()) + asked.row
        return groups

    @property
    def total(self) -> Row:
        return sum((asked.row for asked in self.asked), Row())

    @property
    def times(self) -> Times:
        return [asked.decode_ms for asked in self.asked]

    @property
    def acceptance_length(self) -> float:
        return ratio(self.levels[0]["emitted"], self.levels[0]["rounds"]) if self.levels else 1.0

    @property
    def plain_hash(self) -> str:
        return str(self.hashes[0][0])

    @property
    def hash(self) -> str:
        """Of its first repeat, or of the first that differs from plain decoding."""
        return next((str(b) for a, b in self.hashes if str(a) != str(b)), str(self.hashes[0][1]))

    @property
    def equal(self) -> bool:
        """Whether every repeat with levels and without gave one text and one set of logits."""
        return len({str(hash) for pair in self.hashes for hash in pair}) == 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fast = speedup(self.times)
        groups = [{"group": name} | row.as_dict() for name, row in self.groups.items()]
        return {"draft": self.draft, "speedup": fast.value,
                "spread": [fast.low, fast.high] if len(self.hashes) > 1 else None,
                "acceptance_length": self.acceptance_length, "plain_hash": self.plain_hash, "hash": self.hash,
                "equal": self.equal, "groups": groups, "levels": self.levels}  # fmt: skip
