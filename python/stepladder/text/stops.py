"""Stop strings, found across the borders of tokens."""

from __future__ import annotations

from ..base.arguments import shown, string
from ..base.errors import InvalidArgumentError

MAX_STOPS, MAX_STOP = 64, 4096


def checked_stops(stop: object) -> list[str]:
    """`stop` as a list of strings; None and [] mean none."""
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, (list, tuple)) or not all(isinstance(s, str) and s for s in stops):
        raise InvalidArgumentError(
            f"stop: {shown(stop)} is not a text, or a list of texts, none empty"
        )
    if len(stops) > MAX_STOPS or any(len(s) > MAX_STOP for s in stops):
        raise InvalidArgumentError(
            f"stop: at most {MAX_STOPS} texts of at most {MAX_STOP} characters"
        )
    return list(dict.fromkeys(string("stop", s) for s in stops))


class StopMatcher:
    """Lets text through up to where a stop string begins.

    The stop string that is complete first ends the text (of several that end together, the
    longest), so the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: list[str]):
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Text that may go out, and whether a stop string was found."""
        text = self._held + piece
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = self._pending(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """The text that was held back for a stop string that did not come."""
        text, self._held = self._held, ""
        return text

    def _pending(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(s.startswith(text[-size:]) for s in self._stops):
                return size
        return 0
