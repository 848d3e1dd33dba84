"""Stop strings end the text exactly before them, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepladder import InvalidArgumentError
from stepladder.text.stops import StopMatcher, checked_stops

ALPHABET = "ab\né🙂"
TEXTS = st.text(ALPHABET, max_size=30)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


def expected(text, stops):
    """The text before the stop string that is complete first, the longest of those."""
    found = [(at + len(s), at) for s in stops if (at := text.find(s)) >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


def fed(pieces, stops):
    matcher, out = StopMatcher(stops), ""
    for piece in pieces:
        shown, stopped = matcher.feed(piece)
        out += shown
        if stopped:
            return out, True
    return out + matcher.finish(), False


@given(TEXTS, STOPS, st.lists(st.integers(0, 30)))
def test_any_cut_gives_the_same_text(text, stops, cuts):
    borders = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(borders, borders[1:])]
    assert fed(pieces, stops) == expected(text, stops)


@given(TEXTS, STOPS)
def test_nothing_that_went_out_belongs_to_a_stop_string(text, stops):
    matcher, out = StopMatcher(stops), ""
    for character in text:
        shown, stopped = matcher.feed(character)
        out += shown
        assert not any(s in out for s in stops)
        if stopped:
            break


def test_the_first_complete_stop_string_wins():
    assert fed(["ab", "cd"], ["abcd", "bc"]) == ("a", True)
    assert fed("abc", ["c", "bc", "abc"]) == ("", True)


@pytest.mark.parametrize("stop", ["", [""], 3, ["a", None], [["a"]], ["x"] * 3 + [""], {"a": 1}])
def test_stop_must_be_texts(stop):
    with pytest.raises(InvalidArgumentError, match="stop"):
        checked_stops(stop)


def test_stop_is_bounded():
    with pytest.raises(InvalidArgumentError, match="at most"):
        checked_stops([str(i) for i in range(65)])
    with pytest.raises(InvalidArgumentError, match="at most"):
        checked_stops("x" * 5000)
    assert (
        checked_stops(None) == []
        and checked_stops("a") == ["a"]
        and checked_stops(["a", "a"]) == ["a"]
    )
