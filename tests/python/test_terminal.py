"""The command where its streams are closed, narrow or interrupted, and where options do not fit."""

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
def test_ctrl_c_while_the_command_starts(tiny_dir, wait):
    process = subprocess.Popen([sys.executable, "-m", "stepladder", "chat", str(tiny_dir)], stdin=subprocess.PIPE,
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
