"""A comparison as lines of 80 columns: one as each question ends, and a summary with the hierarchies ranked."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence

from .bench import Hierarchy, Row, Turn
from .verdict import Speedup, speedup, verdict

WIDTH = 80


def letters(count: int) -> list[str]:
    """Short names of hierarchies: A, B, ..., and A1, ... where those do not suffice."""
    return [string.ascii_uppercase[i % 26] + str(i // 26 or "") for i in range(count)]


def _cells(lead: str, cells: Iterable[str]) -> str:
    """A line of cells of 7 columns behind `lead`, going on below where it is full."""
    lines = [lead]
    for cell in cells:
        if len(lines[-1]) + 8 > WIDTH:
            lines.append(" " * len(lead))
        lines[-1] += f" {cell:>7}"
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def legend(drafts: Sequence[str]) -> str:
    """What the letters stand for, and the head of the lines that follow."""
    names = letters(len(drafts))
    return "\n".join([
        *(f"{name}  {draft}" for name, draft in zip(names, drafts)),
        "\n" + _cells(f"{'repeat':>6} {'question':<14} {'plain tok/s':>12}", names),
    ])  # fmt: skip


def turn_line(turn: Turn, drafts: Sequence[str]) -> str:
    """How fast one question was, with each hierarchy that has been run."""
    stats = turn.plain.stats
    lead = (
        f"{turn.repeat + 1:>6} {_cut(turn.question.group, 14):<14} {stats.tokens_per_second:>12.1f}"
    )
    return _cells(lead, (f"{turn.speedup(d):.2f}x" if d in turn.answers else "" for d in drafts))


def summary(ways: Sequence[Hierarchy]) -> str:
    """Groups, the hierarchies ranked, their levels, and the verdict in the last line."""
    tables = (_groups(ways), _ranking(ways), _levels(ways), [verdict_of(ways)[1]])
    return "\n\n".join("\n".join(table) for table in tables)


def verdict_of(ways: Sequence[Hierarchy], short: bool = True) -> tuple[list[str], str]:
    """The hierarchies to use and the last line; `short`: with letters for several named together."""
    letter = dict(zip((way.draft for way in ways), letters(len(ways))))

    def named(drafts: list[str]) -> str:
        return " or ".join(letter[d] if short and len(drafts) > 1 else d for d in drafts)

    return verdict({way.draft: way.times for way in ways}, named)


def _groups(ways: Sequence[Hierarchy]) -> Iterator[str]:
    head = f"{'group':<14} {'questions':>9} {'tokens':>6} {'again':>6} {'plain tok/s':>12}"
    yield _cells(head, letters(len(ways)))

    def line(name: str, rows: list[Row]) -> str:
        one, plain_ms = rows[0], min(row.plain_ms for row in rows)
        lead = (
            f"{_cut(name, 14):<14} {one.questions:>9} {one.tokens:>6} {one.repeated_share:>6.1%} "
        )
        return _cells(
            lead + f"{one.rate(plain_ms):>12.1f}", (f"{row.speedup:.2f}x" for row in rows)
        )

    every = [way.groups for way in ways]
    for group in every[0]:
        yield line(group, [groups[group] for groups in every])
    yield line("all", [way.total for way in ways])
    yield "of the fastest repeat of each question"
    yield "again: runs of 8 tokens that an answer held before; lookup lives on them"


def _ranking(ways: Sequence[Hierarchy]) -> Iterator[str]:
    yield f"{'':<5} {'speedup':>8} {'spread':>14} {'tok/s':>8} {'tok/round':>9} {'first token':>11}  hash"
    totals = [way.total for way in ways]
    plain = totals[0].rate(min(total.plain_ms for total in totals))
    rows = [("plain", Speedup(1, 1, 1), "", plain, 1.0, 1.0, ways[0].plain_hash)]
    for name, way, total in zip(letters(len(ways)), ways, totals):
        fast = speedup(way.times)
        rows.append((name, fast, str(fast) if len(way.hashes) > 1 else "?", total.rate(total.levels_ms),
                     way.acceptance_length, total.first_token_ratio,
                     way.hash + ("" if way.equal else " DIFFERENT")))  # fmt: skip
    for name, fast, shown, rate, length, first, hash in sorted(rows, key=lambda row: -row[1].value):
        yield f"{name:<5} {fast.value:>7.2f}x {shown:>14} {rate:>8.1f} {length:>9.2f} {first:>10.2f}x  {hash}"


def _levels(ways: Sequence[Hierarchy]) -> Iterator[str]:
    yield f"{'':<5} {'level':<26} {'rounds':>7} {'tok/round':>9} {'accepted':>8} {'draft ms':>9} {'verify ms':>9}"
    for name, way in zip(letters(len(ways)), ways):
        for level in way.levels:
            if not level["rounds"]:
                yield f"{name:<5} {_cut(level['name'], 26):<26} did not run"
                continue
            length = level["emitted"] / level["rounds"]
            kept = f"{level['accepted'] / level['drafted']:.1%}" if level["drafted"] else "-"
            yield (f"{name:<5} {_cut(level['name'], 26):<26} {level['rounds']:>7} {length:>9.2f} {kept:>8} "
                   f"{level['draft_ms']:>9.0f} {level['verify_ms']:>9.0f}")  # fmt: skip
