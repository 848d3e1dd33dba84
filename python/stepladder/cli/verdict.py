"""Which hierarchy to use: what repeats of one comparison say for certain, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Student's t: the mean of n + 1 values lies within so many standard errors, 19 times in 20.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Spread(NamedTuple):
    """A ratio measured several times: its mean, and between which bounds it lies 19 times in 20."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "?" if math.isinf(self.high) else f"{self.low:.2f} to {self.high:.2f}"


def spread(ratios: Sequence[float]) -> Spread:
    """Of ratios above 0, by their logarithms. One alone tells no bounds."""
    logs = [math.log(r) for r in ratios]
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return Spread(math.exp(mean), 0.0, math.inf)
    variance = sum((x - mean) ** 2 for x in logs) / (len(logs) - 1)
    reach = _STUDENT[min(len(logs) - 1, len(_STUDENT)) - 1] * math.sqrt(variance / len(logs))
    return Spread(*(math.exp(x) for x in (mean, mean - reach, mean + reach)))


def verdict(
    speedups: dict[str, Sequence[float]], named: Callable[[list[str]], str] = " or ".join
) -> str:
    """One line. `speedups`: of each hierarchy over plain decoding, one a repeat. `named`: how one or
    several of them are written.

    A hierarchy is named if it is faster than plain decoding for certain, and if it leads every other
    that is, repeat by repeat: what slows the machine down for a while slows them all.
    """
    if min(len(s) for s in speedups.values()) < 2:
        return "One repeat shows no spread; --repeats 2 or more tell which levels to use."
    spreads = {name: spread(s) for name, s in speedups.items()}
    ranked = sorted(spreads, key=lambda name: -spreads[name].mean)
    faster = [name for name in ranked if spreads[name].low > 1]
    if not faster:
        best = spreads[ranked[0]]
        if all(s.high < 1 for s in spreads.values()):
            return (
                f"Use no levels here: plain decoding is faster (at best {best.mean:.2f}x, {best})."
            )
        return (
            f"Use no levels here: at best {best.mean:.2f}x ({best}), which plain decoding overlaps."
        )
    first, *others = faster
    close = [name for name in others if _lead(speedups, first, name).low <= 1]
    if close:
        # In the order given, which is the same next time.
        equals = [name for name in speedups if name in (first, *close)]
        slowest = min(spreads[name].mean for name in equals)
        return f"Use {named(equals)}: {slowest:.2f}x plain decoding or more; their spreads overlap."
    best = spreads[first]
    return f"Use {named([first])}: {best.mean:.2f}x plain decoding ({best})."


def _lead(speedups: dict[str, Sequence[float]], first: str, other: str) -> Spread:
    return spread([a / b for a, b in zip(speedups[first], speedups[other])])
