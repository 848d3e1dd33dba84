"""Backends and drafters as Python sees them: lists, and any drafter by its word."""

import pytest
import stepladder
from stepladder import Cast, Drafter, Lookup


def test_backends_say_what_they_are_and_what_they_lack():
    known = {b.name: b for b in stepladder.backends()}
    assert known["cpu"].runs and known["cpu"].devices == ["cpu"]
    for backend in known.values():
        assert backend.runs == (not backend.missing) == bool(backend.devices)


def test_a_device_that_is_not_there_is_told_those_that_are(tiny_dir):
    for device in ("abacus", "cpu:1", "cpu:x", ""):
        with pytest.raises(stepladder.UnsupportedError, match="there is cpu"):
            stepladder.load(tiny_dir, device=device)
    with stepladder.load(tiny_dir, device="cpu:0", threads=1) as model:
        assert model.info.backend.startswith("cpu/")


def test_a_drafter_by_its_word_is_the_level_of_that_name(tiny_dir):
    (lookup,) = (d for d in stepladder.drafters() if d.word == "lookup")
    assert {o.name: (o.low, o.high) for o in lookup.options} == {"max": (1, 16), "min": (1, 16)}
    prompt = [5, 6, 7, 8, 9, 5, 6, 7]
    results = []
    for draft in (Lookup(tokens=3, longest=2), Drafter("lookup", tokens=3, max=2),
                  "lookup:tokens=3:max=2", [Cast("int8"), Drafter("lookup")]):  # fmt: skip
        with stepladder.load(tiny_dir, draft=draft, threads=1) as model:
            results.append(model.generate(prompt, max_tokens=24, ignore_eos=True))
            leaf = model.info.levels[-1]
            assert leaf.name == "lookup" and leaf.tokens == (
                3 if draft.__class__ is not list else 10
            )
    assert all(r.tokens == results[0].tokens for r in results)


@pytest.mark.parametrize(
    "draft, word",
    [
        (Drafter("abacus"), "no drafter 'abacus'; there are eagle, lookup"),
        (Drafter("lookup", "dir"), "takes no 'dir'"),
        (Drafter("lookup", max=17), "1 to 16"),
        (Drafter("lookup", max=1.5), "max"),
        (Drafter("lookup", speed=3), "speed="),
        (Drafter("lookup", tokens=0), "tokens"),
        (Drafter(""), "word"),
        (Drafter(5), "word"),
        ([Drafter("lookup"), Cast("int8")], "put it last"),
    ],
    ids=str,
)
def test_a_drafter_that_cannot_be_is_refused(tiny_dir, draft, word):
    with pytest.raises(stepladder.InvalidArgumentError, match=word):
        stepladder.load(tiny_dir, draft=draft)


def test_a_drafter_shows_what_it_was_given():
    assert repr(Drafter("lookup", tokens=3, max=2)) == "Drafter('lookup', tokens=3, max=2)"
    assert repr(Drafter("eagle", "dir")) == "Drafter('eagle', 'dir')"
