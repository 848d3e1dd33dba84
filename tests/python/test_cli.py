"""The command line: results on standard output, all else on standard error, exit codes as promised."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
import stepladder
import tiny
from conftest import ROOT
from conftest import run_command as run
from stepladder.cli import main

QUESTIONS = [
    {"category": "writing", "turns": ["the cat", "more"]},
    {"category": "coding", "turns": ["an other"]},
    {"category": "qa", "turns": ["in the"]},
    {"category": "qa", "turns": ["out"]},
    {"category": "qa", "turns": ["over"]},
]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(q) for q in QUESTIONS) + "\n")
    return str(path)


@pytest.fixture(autouse=True)
def handlers():
    """main() sets signal handlers; the tests' own come back."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_generate_prints_the_answer_alone(capsys, tiny_dir, tiny_model):
    want = tiny_model.generate([{"role": "user", "content": "the cat"}], max_tokens=12).text
    code, out, err = run(
        capsys, "generate", tiny_dir, "the cat", "--max-tokens", 12, "--threads", 1
    )
    assert (code, out, err) == (0, want + "\n", "")
    code, out, _ = run(
        capsys, "generate", tiny_dir, "-p", "the cat", "--max-tokens", 12, "--draft", "lookup"
    )
    assert (code, out) == (0, want + "\n")
    want = tiny_model.generate("the cat", max_tokens=12).text
    code, out, err = run(
        capsys, "generate", tiny_dir, "the cat", "--raw", "--max-tokens", 12, "--stats"
    )
    assert (code, out) == (0, want + "\n") and "tokens/s" in err and "target" in err


def test_generate_as_json(capsys, tiny_dir, tiny_model):
    options = [
        "--temperature",
        "0.8",
        "--top-p",
        "0.9",
        "--seed",
        "5",
        "--max-tokens",
        "20",
        "--ignore-eos",
    ]
    code, out, err = run(capsys, "generate", tiny_dir, "the", "--raw", "--json", *options)
    answer = json.loads(out)
    want = tiny_model.generate(
        "the", temperature=0.8, top_p=0.9, seed=5, max_tokens=20, ignore_eos=True
    )
    assert (code, err) == (0, "")
    assert (answer["text"], answer["tokens"], answer["finish_reason"]) == (
        want.text,
        want.tokens,
        "length",
    )
    assert answer["seed"] == 5 and answer["stats"]["tokens"] == 20


def test_generate_reads_standard_input(capsys, tiny_dir, monkeypatch):
    import io

    outputs = []
    for arguments in (["the cat"], ["-"], []):
        monkeypatch.setattr(sys, "stdin", io.StringIO("the cat"))
        outputs.append(run(capsys, "generate", tiny_dir, *arguments, "--max-tokens", 5))
    assert outputs[0] == outputs[1] == outputs[2]


def test_chat_keeps_its_turns(capsys, tiny_dir, monkeypatch):
    import io

    with stepladder.load(tiny_dir, threads=1) as model, model.chat(max_tokens=8) as chat:
        want = ["".join(map(str, chat.send(t))) for t in ("the cat", "an other")]
        again = "".join(map(str, model.chat(max_tokens=8).send("an other")))
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n\nan other\n/clear\nan other"))
    code, out, err = run(capsys, "chat", tiny_dir, "--max-tokens", 8, "--threads", 1)
    assert (code, out, err) == (0, "\n".join([*want, again]) + "\n", "")


def test_a_turn_that_does_not_fit_ends_nothing(capsys, tiny_dir, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("é" * 500 + "\nthe\n"))
    code, out, err = run(capsys, "chat", tiny_dir, "--max-tokens", 4)
    assert code == 1 and out.strip() and "context" in err and "/clear" in err


def test_inspect(capsys, tiny_dir):
    code, out, err = run(capsys, "inspect", tiny_dir)
    assert code == 0 and "LlamaForCausalLM" in out and "bf16" in out and err == ""
    code, out, _ = run(capsys, "inspect", tiny_dir, "--json")
    assert code == 0 and json.loads(out)["layers"] == 2


def test_inspect_with_levels_tells_what_a_load_holds(capsys, tiny_dir):
    code, out, _ = run(
        capsys,
        "inspect",
        tiny_dir,
        "--draft",
        "cast:int8:shared,lookup",
        "--sequences",
        "8",
        "--json",
    )
    assert code == 0
    levels = json.loads(out)["levels"]
    assert [level["name"] for level in levels] == ["target", "cast:int8:shared", "lookup"]
    # Rounds of any size share their recordings.
    assert all(0 < level["recordings"] < 50 for level in levels[:2])
    assert levels[2]["recordings"] == 0
    table = run(capsys, "inspect", tiny_dir, "--draft", "lookup")[1]
    assert "recorded" in table and "target" in table


def test_convert_and_quantize(capsys, tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf")
    assert run(capsys, "convert", tmp_path / "m.gguf", tmp_path / "out") == (0, "", "")
    assert run(
        capsys, "quantize", tmp_path / "out", tmp_path / "q", "--format", "w4a16", "--group", 64
    ) == (0, "", "")
    assert "w4a16" in run(capsys, "inspect", tmp_path / "q")[1]
    code, out, err = run(capsys, "convert", tmp_path / "m.gguf", tmp_path / "out")
    assert (code, out) == (1, "") and "--force" in err
    assert run(capsys, "convert", tmp_path / "m.gguf", tmp_path / "out", "--force")[0] == 0


@pytest.mark.parametrize("sequences", [1, 3])
def test_verify_compares_and_prints_both_hashes(capsys, tiny_dir, questions, sequences):
    arguments = [
        "--questions",
        questions,
        "--per-group",
        2,
        "--tokens",
        16,
        "--sequences",
        sequences,
        "--ignore-eos",
    ]
    drafts = ["--draft", "lookup", "--draft", "cast:mxfp4:shared,lookup"]
    code, out, err = run(capsys, "verify", tiny_dir, *arguments, *drafts)
    assert code == 0 and err == ""
    hashes = {line.split("hash=")[1] for line in out.splitlines() if "hash=" in line}
    assert len(hashes) == 1 and out.count("hash=") == 4 and out.count("equal") == 2
    assert all(len(h) == 16 and int(h, 16) for h in hashes)
    assert "4 questions, 64 tokens" in out
    code, out, _ = run(
        capsys,
        "verify",
        tiny_dir,
        *arguments,
        *drafts,
        "--temperature",
        0.8,
        "--top-p",
        0.95,
        "--json",
    )
    reports = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [r["draft"] for r in reports] == ["lookup", "cast:mxfp4:shared,lookup"]
    assert all(r["equal"] and r["hash"] == r["plain_hash"] for r in reports)
    assert {r["hash"] for r in reports} == {reports[0]["hash"]} != hashes


def test_verify_fails_where_something_differs(capsys, tiny_dir, monkeypatch):
    generate = stepladder.Model._start

    def bent(self, prompt, **options):
        if options.get("draft") is not False:
            options["temperature"], options["seed"] = 5.0, 1
        return generate(self, prompt, **options)

    monkeypatch.setattr(stepladder.Model, "_start", bent)
    code, out, _ = run(
        capsys, "verify", tiny_dir, "the", "--draft", "lookup", "--tokens", 16, "--ignore-eos"
    )
    assert code == 1 and "DIFFER" in out and "question 1, token" in out
    hashes = [line.split("hash=")[1] for line in out.splitlines() if "hash=" in line]
    assert hashes[0] != hashes[1]


def test_count_grams():
    from stepladder._core import count_grams

    assert count_grams(list(range(20))) == (0, 13)
    assert count_grams([1, 2, 3] * 6) == (8, 11)
    assert count_grams([1] * 7) == (0, 0)


CODES = {
    "no command": ([], 2, ""),
    "unknown command": (["dance"], 2, "dance"),
    "unknown option": (["inspect", "{tiny}", "--loud"], 2, "--loud"),
    "no model": (["generate"], 2, "MODEL"),
    "missing model": (["generate", "{tmp}/none", "x"], 3, "none"),
    "empty model": (["inspect", "{tmp}"], 3, "config.json"),
    "a name that is not cached": (["inspect", "org/none-such"], 3, "hf download org/none-such"),
    "bad model": (["inspect", "{bad}"], 3, "config.json"),
    "not a number": (["generate", "{tiny}", "x", "--max-tokens", "ten"], 2, "ten"),
    "no tokens": (["generate", "{tiny}", "x", "--max-tokens", "0"], 2, "max_tokens"),
    "top_p": (["generate", "{tiny}", "x", "--temperature", "1", "--top-p", "7"], 2, "top_p"),
    "empty prompt": (["generate", "{tiny}", "", "--raw"], 2, "prompt"),
    "bad draft": (["generate", "{tiny}", "x", "--draft", "cast:w1a1"], (2, 3), "w1a1"),
    "draft missing": (["generate", "{tiny}", "x", "--draft", "model:{tmp}/none"], 3, "none"),
    "draft misspelt": (
        ["generate", "{tiny}", "x", "--draft", "foo"],
        3,
        "lookup, cast:FORMAT, switch:a8, model:PATH",
    ),
    "bare name": (["generate", "nope", "x"], 3, "no such directory"),
    "how to fetch": (["generate", "nope", "x"], 3, "hf download"),
    "bad head": (["generate", "{tiny}", "x", "--head", "q9"], (2, 3), "q9"),
    "convert nothing": (["convert", "{tmp}/none.gguf", "{tmp}/out"], (1, 3), "none.gguf"),
    "convert garbage": (["convert", "{bad}/config.json", "{tmp}/out"], 3, "GGUF"),
    "quantize format": (["quantize", "{tiny}", "{tmp}/out", "--format", "w2"], 2, "w2"),
    "quantize group": (
        ["quantize", "{tiny}", "{tmp}/out", "--format", "w4a16", "--group", "5"],
        2,
        "5",
    ),
    "questions missing": (["verify", "{tiny}", "--questions", "{tmp}/none.jsonl"], 1, "none.jsonl"),
    "questions broken": (["verify", "{tiny}", "--questions", "{bad}/config.json"], 3, "line 1"),
    "no sequences": (["verify", "{tiny}", "--sequences", "0"], 2, "sequences"),
    "too much context": (["generate", "{tiny}", "x", "--context", "100000000"], (2, 4), "context"),
}


@pytest.mark.parametrize("case", CODES)
def test_exit_codes(capsys, tiny_dir, tmp_path, case):
    arguments, wanted, word = CODES[case]
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{broken")
    places = {"{tiny}": str(tiny_dir), "{tmp}": str(tmp_path), "{bad}": str(bad)}
    for name, place in places.items():
        arguments = [a.replace(name, place) for a in arguments]
    code, out, err = run(capsys, *arguments)
    assert code in (wanted if isinstance(wanted, tuple) else (wanted,))
    assert out == "" and word in err and "Traceback" not in err


def test_out_of_memory_has_its_code(capsys, tiny_dir, monkeypatch):
    def full(*args, **options):
        raise stepladder.OutOfMemoryError("needs 9 GB, 1 GB is free")

    monkeypatch.setattr("stepladder.cli.command.load", full)
    code, out, err = run(capsys, "generate", tiny_dir, "x")
    assert (code, out) == (4, "") and "9 GB" in err


@pytest.mark.parametrize(
    "error, wanted",
    [
        (stepladder.InvalidArgumentError, 2),
        (stepladder.ModelFormatError, 3),
        (stepladder.UnsupportedError, 3),
        (stepladder.VocabMismatchError, 3),
        (stepladder.OutOfMemoryError, 4),
        (MemoryError, 4),
        (stepladder.FileError, 3),
        (stepladder.InternalError, 1),
        (stepladder.CancelledError, 1),
        (OSError, 1),
        (KeyboardInterrupt, 130),
    ],
)
def test_each_error_has_the_code_of_the_readme(capsys, tiny_dir, monkeypatch, error, wanted):
    def fail(*args, **options):
        raise error("what went wrong")

    monkeypatch.setattr("stepladder.cli.command.load", fail)
    code, out, err = run(capsys, "generate", tiny_dir, "x")
    assert (code, out) == (wanted, "") and "Traceback" not in err
    assert "what went wrong" in err or error is KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_with_its_code(tiny_dir, number):
    process = slow("generate", tiny_dir, "the", *LONG)
    assert process.stdout.read(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "Traceback" not in err


def test_the_readme_tells_errors_stats_and_exit_codes():
    text = (ROOT / "README.md").read_text()
    for name in (*(n for n in stepladder.__all__ if n.endswith("Error") and n != "Error"), *vars(stepladder.Stats(*[0] * 7)),
                 *stepladder.LevelStats.__dataclass_fields__):  # fmt: skip
        assert f"`{name}`" in text, name
    for code in (0, 1, 2, 3, 4, 129, 130, 143):
        assert f"| {code} |" in text, code


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "stepladder", *map(str, arguments)], text=True, **options
    )


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "stepladder", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"stepladder {stepladder.__version__}\n")
    done = subprocess.run(
        [sys.executable, "-m", "stepladder", "--help"], capture_output=True, text=True
    )
    for name in ("generate", "chat", "inspect", "convert", "quantize", "verify", "bench"):
        assert name in done.stdout


LONG = ["--raw", "--max-tokens", "200", "--ignore-eos", "--threads", "1"]
SLOW = (
    "import sys, time, stepladder.model.stream as s\n"
    "take = s.Stream._take\n"
    "s.Stream._take = lambda self, chunk: (time.sleep(0.05), take(self, chunk))[1]\n"
    "from stepladder.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def slow(*arguments):
    """The command with a consumer so slow that a signal meets it in the middle of an answer."""
    return subprocess.Popen([sys.executable, "-c", SLOW, *map(str, arguments)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def test_ctrl_c_once_ends_the_answer(tiny_dir):
    process = slow("generate", tiny_dir, "the", "--json", *LONG)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    answer = json.loads(out)
    assert process.returncode == 130 and err == ""
    assert answer["finish_reason"] == "cancelled" and 0 < len(answer["tokens"]) < 200


def test_ctrl_c_twice_ends_the_program(tiny_dir):
    process = slow("generate", tiny_dir, "the", *LONG)
    assert process.stdout.read(1)
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
        if process.poll() is not None:
            break
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_reader_that_leaves_ends_the_program(tiny_dir):
    process = slow("generate", tiny_dir, "the", *LONG)
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.wait(30) == 1
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_bars_are_drawn_on_a_terminal_only(tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf")
    parent, terminal = pty.openpty()
    process = command(
        "convert", tmp_path / "m.gguf", tmp_path / "out", stderr=terminal, stdout=subprocess.PIPE
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
    out, _ = process.communicate(timeout=60)
    os.close(parent)
    assert (process.returncode, out) == (0, "") and b"converting" in shown


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_prompt_may_stand_before_between_or_behind_options(tiny_dir, order, capsys):
    options = ["--raw", "--max-tokens", "3"]
    arguments = [*options[:1], *options[1:]]
    arguments.insert([0, 1, 3][order], "the")
    assert main(["generate", str(tiny_dir), *arguments]) == 0
    said = capsys.readouterr().out
    assert main(["generate", "--raw", "--max-tokens", "3", str(tiny_dir), "the"]) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["the", "cat", "--raw"], "unrecognized arguments: cat"),
        (["the", "--temprature", "1"], "did you mean --temperature?"),
        (["the", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_what_is_left_over_is_refused_by_the_command(tiny_dir, arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(tiny_dir), *arguments])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
