"""Plain decoding and a hierarchy over questions, alternating, as one table of ratios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from .._core import AnswerHash, count_grams
from ..base.arguments import callback, whole
from ..base.errors import InvalidArgumentError
from ..model.model import Model
from ..model.options import check_names
from ..model.questions import Question
from ..model.results import Result


@dataclass
class Row:
    """The sums of one group of questions, in milliseconds and counts."""

    group: str
    questions: int = 0
    tokens: int = 0
    plain_ms: float = 0
    levels_ms: float = 0
    plain_first_ms: float = 0
    levels_first_ms: float = 0
    emitted: int = 0
    rounds: int = 0
    repeated: int = 0
    grams: int = 0
    level_ms: list[dict[str, Any]] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        return self.plain_ms / self.levels_ms if self.levels_ms else 0.0

    @property
    def first_token_ratio(self) -> float:
        return self.levels_first_ms / self.plain_first_ms if self.plain_first_ms else 0.0

    @property
    def acceptance_length(self) -> float:
        return self.emitted / self.rounds if self.rounds else 0.0

    @property
    def repeated_share(self) -> float:
        return self.repeated / self.grams if self.grams else 0.0

    def add(self, plain: Result, levels: Result) -> None:
        """Counts one question."""
        self.questions += 1
        self.tokens += len(plain.tokens)
        self.plain_ms += plain.stats.decode_ms
        self.levels_ms += levels.stats.decode_ms
        self.plain_first_ms += plain.stats.first_token_ms
        self.levels_first_ms += levels.stats.first_token_ms
        if levels.stats.levels:
            self.emitted += levels.stats.levels[0].emitted
            self.rounds += levels.stats.levels[0].rounds
        repeated, grams = count_grams(plain.tokens)
        self.repeated += repeated
        self.grams += grams
        for i, level in enumerate(levels.stats.levels):
            if i == len(self.level_ms):
                self.level_ms.append({"name": level.name, "draft_ms": 0.0, "verify_ms": 0.0, "rounds": 0, "emitted": 0,
                                      "drafted": 0, "accepted": 0})  # fmt: skip
            for key in ("draft_ms", "verify_ms", "rounds", "emitted", "drafted", "accepted"):
                self.level_ms[i][key] += getattr(level, key)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "speedup": self.speedup,
            "first_token_ratio": self.first_token_ratio,
            "acceptance_length": self.acceptance_length,
            "repeated_share": self.repeated_share,
        }


@dataclass
class Table:
    """One hierarchy against plain decoding."""

    draft: str
    rows: list[Row]
    plain_hash: str
    hash: str

    @property
    def equal(self) -> bool:
        return self.plain_hash == self.hash

    @property
    def mean_speedup(self) -> float:
        """Of the groups."""
        return sum(r.speedup for r in self.rows) / len(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"draft": self.draft, "mean_speedup": self.mean_speedup, "plain_hash": self.plain_hash,
                "hash": self.hash, "equal": self.equal, "groups": [r.as_dict() for r in self.rows]}  # fmt: skip

    def __str__(self) -> str:
        head = f"{'group':<18}{'questions':>10}{'tokens':>8}{'plain tok/s':>13}{'tok/s':>8}{'speedup':>9}"
        lines = [self.draft, head + f"{'tok/round':>10}{'8-grams again':>15}{'first token':>13}"]
        for r in self.rows:
            rate = [
                (r.tokens - r.questions) * 1e3 / ms if ms else 0 for ms in (r.plain_ms, r.levels_ms)
            ]
            lines.append(
                f"{r.group:<18}{r.questions:>10}{r.tokens:>8}{rate[0]:>13.1f}{rate[1]:>8.1f}{r.speedup:>8.2f}x"
                f"{r.acceptance_length:>10.2f}{r.repeated_share:>15.3f}{r.first_token_ratio:>12.2f}x"
            )
        lines.append(f"{'mean of groups':<49}{'':>8}{self.mean_speedup:>8.2f}x")
        for i, level in enumerate(self.rows[0].level_ms):
            sums = {
                k: sum(r.level_ms[i][k] for r in self.rows if i < len(r.level_ms))
                for k in level
                if k != "name"
            }
            share = sums["accepted"] / sums["drafted"] if sums["drafted"] else 0
            if not sums["rounds"]:
                lines.append(f"{level['name']}: did not run")
                continue
            length = sums["emitted"] / sums["rounds"]
            lines.append(
                f"{level['name']}: {sums['rounds']} rounds of {length:.2f} tokens, {share:.3f} of drafts accepted, "
                f"drafting {sums['draft_ms']:.0f} ms, verifying {sums['verify_ms']:.0f} ms"
            )
        lines.append(f"plain  hash={self.plain_hash}")
        lines.append(f"levels hash={self.hash}" + ("" if self.equal else "  DIFFERENT"))
        return "\n".join(lines)


def run(
    model: Model,
    draft: str,
    questions: list[Question],
    *,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
    **options: Any,
) -> Table:
    """Each question plain and with levels, one after the other; which goes first alternates."""
    check_names("bench", options, more=("seed", "progress"))
    seed = whole("seed", seed, 0, (1 << 64) - 1)
    callback("progress", progress)
    if not questions:
        raise InvalidArgumentError("questions: there are none")
    rows: dict[str, Row] = {}
    plain_hash, hash = AnswerHash(), AnswerHash()
    warm = {**options, "max_tokens": 8}
    for on in (False, True):
        model.generate(questions[0].messages(), draft=on, **warm)
    for i, question in enumerate(questions):
        pair: dict[bool, Result] = {}
        for on in (False, True) if i % 2 == 0 else (True, False):
            # The first of the two reads a prompt that the cache may know from the other's turn: a
            # different beginning in between makes both read all of it.
            model.generate(f"{i} {on}", draft=False, max_tokens=1)
            pair[on] = model.generate(question.messages(), draft=on, seed=seed + i, **options)
        rows.setdefault(question.group, Row(question.group)).add(pair[False], pair[True])
        plain_hash.add(pair[False].tokens, pair[False].logits)
        hash.add(pair[True].tokens, pair[True].logits)
        if progress:
            progress(i + 1, len(questions))
    return Table(draft, list(rows.values()), str(plain_hash), str(hash))
