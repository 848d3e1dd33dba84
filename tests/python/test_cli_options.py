"""The options of the command: each tells its default, and those of a request reach it."""

import functools
import json
import re

import pytest
import stepladder
import tiny
from conftest import run_command
from stepladder.cli.options import command_parser

COMMANDS = ("generate", "chat", "inspect", "convert", "quantize", "verify", "bench")
PLACES = dict.fromkeys(COMMANDS, ["model"]) | {
    "convert": ["a.gguf", "b"],
    "quantize": ["a", "b", "--format", "w8a8"],
}
SHORT = ("--raw", "--max-tokens", "8", "--ignore-eos", "--threads", "1")


@pytest.fixture
def run(capsys):
    """Exit code, standard output, standard error of a command."""

    return functools.partial(run_command, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_the_default_of_each_option_with_a_value(command):
    parser = command_parser(dict.fromkeys(COMMANDS)).parse_args([command, *PLACES[command]]).parser
    options = [a for a in parser._actions if a.option_strings and a.nargs is None]
    for option in options:
        # No text has a default.
        if not option.required and option.dest not in ("prompt_option", "system"):
            assert option.help.endswith(")"), option.option_strings


@pytest.mark.parametrize(
    "command, tokens", [("generate", 256), ("chat", 256), ("verify", 64), ("bench", 128)]
)
def test_help_tells_how_many_tokens_a_command_makes(run, command, tokens):
    assert re.search(rf"at most\s+\({tokens}\)", run(command, "--help")[1])


def test_logit_bias_moves_the_choice(run, tiny_dir, tiny_model):
    options = {"max_tokens": 8, "ignore_eos": True}
    want = tiny_model.generate("the", logit_bias={7: 1e6}, **options)
    bias = ["--logit-bias", "7=1e6", "--logit-bias", "9=-3"]
    code, out, _ = run("generate", tiny_dir, "the", "--json", *SHORT, *bias)
    assert code == 0 and json.loads(out)["tokens"] == want.tokens == [7] * 8


def test_stop_token_ids_end_the_text(run, tiny_dir, tiny_model):
    tokens = tiny_model.generate("the", max_tokens=8, ignore_eos=True).tokens
    stops = ["--stop-token-ids", f"258,{tokens[3]}", "--stop-token-ids", "259"]
    code, out, _ = run("generate", tiny_dir, "the", "--json", *SHORT, *stops)
    answer = json.loads(out)
    assert code == 0 and answer["finish_reason"] == "stop"
    assert answer["tokens"] == tokens[: tokens.index(tokens[3])]


def test_logprobs_are_shown(run, tiny_dir, tiny_model):
    want = tiny_model.generate("the", max_tokens=8, ignore_eos=True, logprobs=2)
    code, out, _ = run("generate", tiny_dir, "the", *SHORT, "--logprobs", 2, "--json")
    answer = json.loads(out)
    assert code == 0
    assert [(t["token"], t["logprob"]) for t in answer["logprobs"]] == [
        (t.token, t.logprob) for t in want.logprobs
    ]
    assert [[tuple(pair) for pair in t["top"]] for t in answer["logprobs"]] == [
        t.top for t in want.logprobs
    ]
    code, out, _ = run("generate", tiny_dir, "the", *SHORT, "--logprobs", 2)
    assert code == 0 and out.startswith(want.text + "\n")
    lines = out[len(want.text) + 1 :].splitlines()
    assert [float(line.split()[0]) for line in lines] == [
        pytest.approx(t.logprob, abs=1e-4) for t in want.logprobs
    ]
    assert all(line.count(", ") >= 1 for line in lines)


REFUSED = {
    "draft twice": (["--draft", "lookup", "--draft", "cast:int8"], '--draft "lookup,cast:int8"'),
    "bias without a value": (["--logit-bias", "7"], "TOKEN=BIAS"),
    "bias of no token": (["--logit-bias", "x=1"], "TOKEN=BIAS"),
    "bias twice": (["--logit-bias", "7=1", "--logit-bias", "7=2"], "named twice"),
    "bias outside": (["--logit-bias", "100000=1"], "logit_bias"),
    "stop tokens": (["--stop-token-ids", "1,x"], "token ids"),
    "logprobs": (["--logprobs", "21"], "logprobs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(run, tiny_dir, case):
    arguments, told = REFUSED[case]
    code, out, err = run("generate", tiny_dir, "the", *SHORT, *arguments)
    assert (code, out) == (2, "") and told in err


@pytest.mark.parametrize("alias", ["--format", "--head"])
def test_int8_is_a_name_of_w8a16_here_too(run, tmp_path, alias):
    tiny.write_model(tmp_path / "model")
    options = {"--format": "w8a16", "--head": "w8a16"}
    for name, changes in (("short", {alias: "int8"}), ("long", {})):
        arguments = [x for pair in (options | changes).items() for x in pair]
        assert run("quantize", tmp_path / "model", tmp_path / name, *arguments)[0] == 0
    short, long = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("short", "long"))
    assert short == long


def test_info_shows_its_fields(tiny_dir):
    info = stepladder.inspect(tiny_dir)
    shown = repr(info)
    assert shown.startswith("Info(architecture='LlamaForCausalLM', ") and str(info) == shown
    assert "vocab=" in shown and "levels=[LevelInfo(name='target', format='bf16', " in shown


def test_inspect_tells_the_threads_that_a_load_takes(run, tiny_dir):
    threads = json.loads(run("inspect", tiny_dir, "--json")[1])["threads"]
    with stepladder.load(tiny_dir) as model:
        assert threads == model.info.threads >= 1
