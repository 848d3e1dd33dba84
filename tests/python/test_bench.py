"""`stepladder bench`: which hierarchy, by how much, and what it may not say."""

import functools
import io
import json
import random
import sys

import pytest
import stepladder
from conftest import refused, run_command
from stepladder import FileError, InvalidArgumentError, OutOfMemoryError, UnsupportedError
from stepladder.cli import command
from stepladder.cli.bench import check_drafts, turns
from stepladder.cli.bench_table import letters
from stepladder.cli.verdict import MARGIN, speedup, verdict
from stepladder.model.questions import BUILT_IN

THREE = ("lookup", "cast:int8:tokens=4", "cast:int8:shared,lookup")


@pytest.fixture
def run(capsys):
    return functools.partial(run_command, capsys)


@pytest.fixture
def questions(tmp_path):
    kinds = ["writing", "qa", "a group of a very long name", "qa"]
    lines = [json.dumps({"category": c, "turns": [f"the {i}"]}) for i, c in enumerate(kinds)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    return tmp_path / "q.jsonl"


def bench(run, tiny_dir, questions, *more, drafts=THREE):
    given = [x for draft in drafts for x in ("--draft", draft)]
    return run("bench", tiny_dir, "--questions", questions, "--tokens", 12, "--ignore-eos", "--threads", 1,
               *given, *more)  # fmt: skip


def test_lines_come_as_questions_end_and_fit_80_columns(run, tiny_dir, questions, monkeypatch):
    seen = []
    generate = stepladder.Model.generate
    monkeypatch.setattr(
        stepladder.Model,
        "generate",
        lambda *a, **k: seen.append(sys.stdout.getvalue()) or generate(*a, **k),
    )
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    code, _, err = bench(run, tiny_dir, questions, "--repeats", 2)
    text = out.getvalue()
    assert code == 0 and err == ""
    # Four lines of legend and a head; then a line stands before the next turn begins.
    starts = [len(s.splitlines()) for s in seen]
    assert starts[0] == 5 and sorted(set(starts)) == list(range(5, 13))
    assert max(map(len, text.splitlines())) <= 80
    head, groups, ranking, levels, last = text.strip().split("\n\n")[-5:]
    assert head.count("\n") == 8 and len(groups.splitlines()) == 7
    rows = [line.split() for line in ranking.splitlines()[1:]]
    assert sorted(r[0] for r in rows) == ["A", "B", "C", "plain"]
    speeds = [float(r[1].rstrip("x")) for r in rows]
    assert speeds == sorted(speeds, reverse=True)
    assert len({r[-1] for r in rows}) == 1 and len(rows[0][-1]) == 16  # one hash
    assert last.startswith("Use ") and "\n" not in last


def test_many_hierarchies_go_on_below(run, tiny_dir, questions):
    drafts = [f"lookup:tokens={n}" for n in range(1, 11)]
    code, out, _ = bench(run, tiny_dir, questions, "--repeats", 1, drafts=drafts)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert all(f"{name}  lookup:tokens={n}\n" in out for name, n in zip("ABCDEFGHIJ", range(1, 11)))
    assert out.splitlines()[-1].startswith("One repeat shows no spread")


def test_json_lines(run, tiny_dir, questions):
    code, out, _ = bench(run, tiny_dir, questions, "--repeats", 2, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 2 * 4 + 3 + 1
    assert [(x["repeat"], x["group"]) for x in lines[:4]] == [
        (0, "multi-turn"), (0, "qa"), (0, "a group of a very long name"), (0, "qa")]  # fmt: skip
    for draft, way in zip(THREE, lines[8:11]):
        assert way["draft"] == draft and way["equal"] and way["hash"] == way["plain_hash"]
        assert way["spread"][0] <= way["spread"][1] and way["speedup"] > 0
        assert [g["questions"] for g in way["groups"]] == [1, 2, 1]
        assert all(g["tokens"] == 12 * g["questions"] for g in way["groups"])
        plain = [g["plain_ms"] for g in way["groups"]]
        assert plain == [g["plain_ms"] for g in lines[8]["groups"]]  # one plain run for all
    assert lines[11]["verdict"].startswith("Use ") and set(lines[11]["use"]) <= set(THREE)


def test_a_text_that_differs_is_an_error(run, tiny_dir, questions, monkeypatch):
    start = stepladder.Model._start

    def bent(self, prompt, **options):
        if options.get("draft") is True and self.info.levels[1].name.startswith("cast"):
            options["temperature"], options["seed"] = 5.0, 1
        return start(self, prompt, **options)

    monkeypatch.setattr(stepladder.Model, "_start", bent)
    code, out, _ = bench(run, tiny_dir, questions, "--repeats", 1)
    different = [line.split()[0] for line in out.splitlines() if line.endswith("DIFFERENT")]
    assert code == 1 and sorted(different) == ["B", "C"]


def test_what_memory_does_not_hold_at_once_runs_one_by_one(run, tiny_dir, questions, monkeypatch):
    held, most = [], []

    def load(args, draft):
        if held:
            raise OutOfMemoryError("it does not fit")
        model = stepladder.load(args.model, draft, threads=1)
        close = model.close
        monkeypatch.setattr(model, "close", lambda: held.clear() or close())
        held.append(draft)
        most.append(draft)
        return model

    monkeypatch.setattr(command, "_load", load)
    code, out, err = bench(run, tiny_dir, questions, "--repeats", 2)
    assert code == 0 and "by itself" in err and out.splitlines()[-1].startswith("Use ")
    assert most == [THREE[0], *THREE]
    monkeypatch.setattr(
        command, "_load", lambda *_: (_ for _ in ()).throw(OutOfMemoryError("none"))
    )
    assert bench(run, tiny_dir, questions, drafts=THREE[:1])[0] == 4


WRONG = {
    "no level": (["lookup", "lookpu"], FileError, "--draft 2 of 2 (lookpu)", "lookup?"),
    "no format": (["lookup", "cast:int9", "x"], InvalidArgumentError, "--draft 2 of 3 (cast:int9)"),
    "twice": (["lookup", "lookup"], InvalidArgumentError, "--draft 2 of 2", "twice"),
    "nothing": ([""], InvalidArgumentError, "--draft 1 of 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_draft_is_looked_at_before_anything_is_loaded(run, tiny_dir, monkeypatch, case):
    drafts, error, *words = WRONG[case]
    monkeypatch.setattr(command, "_load", lambda *_: pytest.fail("loaded"))
    with refused(error, *words):
        check_drafts(drafts)
    code, out, err = run("bench", tiny_dir, *[x for d in drafts for x in ("--draft", d)])
    assert code in (2, 3) and out == "" and all(w in err for w in words)


def test_a_level_that_the_model_cannot_have_is_refused_before_anything_runs(run, tiny_dir):
    code, out, err = run("bench", tiny_dir, "--draft", "lookup", "--draft", "switch:a8")
    assert code == 3 and out == "" and err
    with pytest.raises(UnsupportedError):
        stepladder.load(tiny_dir, "switch:a8")


@pytest.mark.parametrize("value", ["1", None, 1.5, True], ids=str)
def test_arguments_of_wrong_types(tiny_model, value):
    models = {"lookup": tiny_model}
    for name in ("seed", "repeats"):
        with refused(InvalidArgumentError, name):
            turns(models, BUILT_IN, **{name: value})
    with refused(InvalidArgumentError, "bench", "max_tokens"):
        turns(models, BUILT_IN, max_token=value)
    with refused(InvalidArgumentError, "questions"):
        turns(models, [])


def test_turns_rotate(tiny_model, monkeypatch):
    order = []
    generate = stepladder.Model.generate

    def noted(self, prompt, **options):
        if not isinstance(prompt, str):
            order.append(options["draft"])
        return generate(self, prompt, **options)

    monkeypatch.setattr(stepladder.Model, "generate", noted)
    got = list(turns({"a": tiny_model, "b": tiny_model}, BUILT_IN[:3], repeats=3, max_tokens=2))
    assert [list(t.answers).index("") for t in got] == [0, 2, 1, 2, 1, 0, 1, 0, 2]
    assert len(order) == 4 + 9 * 3 and all(t.plain.tokens == t.answers["b"].tokens for t in got)


def test_letters():
    assert letters(3) == ["A", "B", "C"] and letters(28)[-2:] == ["A1", "B1"]


def times(factor, plain=(100.0, 50.0), repeats=5, noise=0.0, seed=0):
    """Of questions that take `plain` milliseconds, and levels `factor` times as fast, when nothing else
    runs; other work makes any run longer, by `noise` times what it takes on average."""
    rng = random.Random(seed)

    def busy():
        return 1 + rng.expovariate(1 / noise) if noise else 1.0

    return [[(p * busy(), p / factor * busy()) for _ in range(repeats)] for p in plain]


def test_a_speedup_is_of_the_fastest_repeats():
    got = speedup([[(100, 50), (90, 60), (120, 45)], [(10, 9), (10, 8), (11, 12)]])
    assert got.value == pytest.approx((90 + 10) / (45 + 8))
    every = [(90 + 10) / (45 + 8), (100 + 10) / (45 + 9), (90 + 10) / (50 + 8)]
    assert (got.low, got.high) == pytest.approx((min(every), max(every)))


def test_the_verdict_names_the_fastest():
    use, line = verdict({"slow": times(1.2), "fast": times(1.5), "none": times(0.9)})
    assert use == ["fast"] and line == "Use fast: 1.50x plain decoding (1.50 to 1.50)."


def test_equals_are_named_in_the_order_given():
    """Also where the one that is a little faster comes last, as it may next time."""
    for a, b in ((1.5, 1.51), (1.51, 1.5)):
        use, line = verdict({"x": times(a), "y": times(b), "z": times(1.1)})
        assert use == ["x", "y"]
        assert line == "Use x or y: 1.50x plain decoding or more; none leads by more than 5%."
    swaying = [[(100, 60), (100, 80)], [(50, 40), (50, 30)]]
    use, line = verdict({"x": swaying, "y": times(1.5, repeats=2)})
    assert use == ["x", "y"] and line.endswith("; their spreads overlap.")


def test_no_levels_slower_than_plain_are_ever_named():
    rng = random.Random(7)
    named = 0
    for seed in range(1000):
        factors = {f"way{i}": rng.uniform(0.7, 1.3) for i in range(3)}
        ways = {
            name: times(factor, noise=rng.choice((0, 0.1, 1)), seed=f"{seed} {name}")
            for name, factor in factors.items()
        }
        use, line = verdict(ways)
        named += len(use)
        assert all(speedup(ways[name])[i] > MARGIN for name in use for i in (0, 1))
        assert bool(use) != line.startswith("Use no levels here")
    assert named > 500
    assert verdict({"a": times(0.8), "b": times(0.9)})[1].endswith("plain decoding is faster.")
    assert verdict({"a": times(0.8), "b": times(1.01)})[1].endswith("plain decoding is within 5%.")
    assert verdict({"a": times(1.5, repeats=1)})[0] == []


def test_a_spread_holds_the_speedup_that_it_is_of():
    """Each repeat gives one question its least time in plain decoding: without either, that is slower."""
    ways = [[(1, 1), (2, 1)], [(2, 1), (1, 1)]]
    assert speedup(ways) == (1.0, 1.0, 1.5)
    assert verdict({"a": ways})[1].startswith("Use no levels here: 1.00x (1.00 to 1.50)")


def test_a_busy_machine_changes_no_verdict():
    """Work beside the bench makes most runs a quarter longer, some twice as long."""
    factors = {"x": 1.15, "y": 1.45, "z": 0.95}
    said = set()
    for seed in range(200):
        ways = {
            n: times(f, (100, 80, 60, 90, 70, 40), 5, 0.25, f"{seed} {n}")
            for n, f in factors.items()
        }
        said.add(tuple(verdict(ways)[0]))
    assert said == {("y",)}
