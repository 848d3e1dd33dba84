"""Which hierarchy to use: what several repeats of one comparison say, and what they leave open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

# A lead below this is none: another run, or other questions, would say something else.
MARGIN = 1.05
_WITHIN, _LEAD = "within 5%", "more than 5%"

# Milliseconds of [question][repeat], plainly and with levels.
Times = Sequence[Sequence[tuple[float, float]]]


class Speedup(NamedTuple):
    """Of the fastest repeat of each question, and the least and the most of it, whole or were any one
    repeat missing."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.2f} to {self.high:.2f}"


def speedup(times: Times) -> Speedup:
    """Of all questions together. A machine that is busy with other things only ever adds time, so the
    fastest of several repeats says most. One repeat alone has no bounds."""
    value, repeats = _best(times), len(times[0])
    if repeats == 1:
        return Speedup(value, 0.0, float("inf"))
    # The whole lies outside what is left without a repeat where plain decoding and the levels
    # owe their least times to different ones.
    bounds = [value, *(_best(times, skip) for skip in range(repeats))]
    return Speedup(value, min(bounds), max(bounds))


def _best(times: Times, skip: int = -1) -> float:
    """The quotient of the sums of the least times, one repeat left out."""
    kept = [[pair for r, pair in enumerate(each) if r != skip] for each in times]
    plain, levels = (sum(min(pair[i] for pair in each) for each in kept) for i in (0, 1))
    return plain / levels if levels else 1.0


def _leads(a: Times, b: Times) -> bool:
    """Whether `a` is faster than `b` by more than the margin, whichever repeat is left out."""
    skips = range(-1, len(a[0]))
    return all(_best(a, skip) > MARGIN * _best(b, skip) for skip in skips)


def verdict(
    ways: dict[str, Times], named: Callable[[list[str]], str] = " or ".join
) -> tuple[list[str], str]:
    """The hierarchies to use and one line that says so. `ways`: the times of each, of the same questions
    as often; `named`: how one or several of them are written.

    What is named is faster than plain decoding by more than the margin, whichever repeat is left out;
    one alone if it leads each of the others so too.
    """
    if min(len(times[0]) for times in ways.values()) < 2:
        return [], "One repeat shows no spread; --repeats 2 or more tell which levels to use."
    speedups = {name: speedup(times) for name, times in ways.items()}
    ranked = sorted(speedups, key=lambda name: -speedups[name].value)
    best = speedups[ranked[0]]
    faster = [name for name in ranked if speedups[name].low > MARGIN]
    if not faster:
        if best.high < 1 / MARGIN:
            how = "is faster"
        else:
            how = "overlaps" if best.low <= 1 <= best.high else f"is {_WITHIN}"
        return [], f"Use no levels here: {best.value:.2f}x ({best}) at best, plain decoding {how}."
    first = faster[0]
    equals = [name for name in ways if name in faster and not _leads(ways[first], ways[name])]
    if len(equals) > 1:  # in the order given, which is the same next time
        spreads = [speedups[name] for name in equals]
        least = min(s.value for s in spreads)
        overlap = max(s.low for s in spreads) <= min(s.high for s in spreads)
        how = "their spreads overlap" if overlap else f"none leads by {_LEAD}"
        return equals, f"Use {named(equals)}: {least:.2f}x plain decoding or more; {how}."
    best = speedups[first]
    return equals, f"Use {named(equals)}: {best.value:.2f}x plain decoding ({best})."
