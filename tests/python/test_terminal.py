"""The command where its streams are closed, narrow or interrupted, and where options do not fit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

RUN = f"{sys.executable} -m stepladder"


def shell(line, **more):
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, env={**os.environ, **more}
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("form", ["", "--json"])
def test_text_that_standard_output_cannot_hold_is_escaped(tiny_dir, form):
    line = f"{RUN} generate {tiny_dir} the --raw --ignore-eos --max-tokens 120 --temperature 3 --seed 1 {form}"
    code, wide, _ = shell(line, PYTHONIOENCODING="utf-8")
    assert code == 0 and not wide.isascii()
    code, narrow, _ = shell(line, PYTHONIOENCODING="ascii")
    assert code == 0 and narrow.isascii()
    if not form:
        assert narrow == wide.encode("ascii", "backslashreplace").decode()


def test_closed_streams(tiny_dir):
    assert shell(f"{RUN} generate {tiny_dir} the --max-tokens 3 >&-")[0] == 0
    code, _, err = shell(f"{RUN} generate {tiny_dir} --max-tokens 3 <&-")
    assert code in (0, 2), err
    assert shell(f"{RUN} chat {tiny_dir} <&-")[0] == 0
    assert shell(f"{RUN} inspect {tiny_dir}x 2>&-")[0] == 3


def test_standard_input_that_is_no_text(tiny_dir):
    for command in ("generate", "chat"):
        code, _, err = shell(
            f"printf '\\xff\\xfe\\n' | {RUN} {command} {tiny_dir}", PYTHONIOENCODING="utf-8:strict"
        )
        assert code == 2 and "standard input" in err


@pytest.mark.parametrize("wait", [0.08, 0.15, 0.3, 0.5])
@pytest.mark.parametrize("options", [[], ["-u"], ["-X", "utf8"]])
def test_ctrl_c_while_the_command_starts(tiny_dir, wait, options):
    process = subprocess.Popen([sys.executable, *options, "-m", "stepladder", "chat", str(tiny_dir)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    # Earlier, the interpreter itself is still starting.
    if "stepladder" in err or not err:
        assert process.returncode in (130, -signal.SIGINT, 0) and "stepladder" not in err, err


@pytest.mark.parametrize(
    "arguments, word",
    [
        ("bench {} --per-group -1", "per_group"),
        ("verify {} --per-group -1 --draft lookup", "per_group"),
        ("verify {} the --questions x --draft lookup", "--questions"),
        ("verify {} the --per-group 2 --draft lookup", "--per-group"),
        ("chat {} --temperature 7777", "temperature"),
        ("chat {} --max-tokens 0", "max_tokens"),
    ],
)
def test_options_that_cannot_be_end_the_program_at_once(tiny_dir, arguments, word):
    code, out, err = shell(f"{RUN} {arguments.format(tiny_dir)} <<< hi")
    assert (code, out) == (2, "") and word in err


def test_a_prompt_from_standard_input_is_the_one_of_the_argument(tiny_dir):
    command = f"{RUN} generate {tiny_dir} --raw --json --max-tokens 6"
    said = shell(f"{command} 'say it'")
    piped = shell(f"echo 'say it' | {command}")
    assert said[0] == piped[0] == 0
    assert json.loads(said[1])["tokens"] == json.loads(piped[1])["tokens"]


@pytest.mark.parametrize(
    "line, code, word",
    [
        ("printf '' | {} generate {} --max-tokens 2", 2, "empty"),
        ("{} generate {} one -p two", 2, "both"),
        ("{} quantize /not/there {}x --format w8a16", 3, "/not/there"),
        ("{} quantize {} /tmp/never --format int8 --group 64", 2, "group"),
        ("{} quantize {} /tmp/never --format mxfp4 --group 64", 2, "group"),
    ],
)
def test_what_the_command_refuses(tiny_dir, line, code, word):
    got, out, err = shell(line.format(RUN, tiny_dir))
    assert (got, out) == (code, "") and word in err


def test_verify_drafts_whether_it_pays_or_not(tiny_dir):
    """The tiny model's copy costs as much as the model, so that planned levels come to rest."""
    line = f"{RUN} verify {tiny_dir} hello --draft cast:mxfp4 --tokens 60 --ignore-eos --json --threads 1"
    code, out, _ = shell(line)
    report = json.loads(out)
    assert code == 0 and report["equal"] and report["tokens"] == 60
    assert report["drafted"] > 60 and 0 < report["accepted"] < report["drafted"]
