"""What a load shows while it runs, and what a load that fails leaves behind."""

import json
import logging
import os
import pty
import subprocess
import sys

import pytest
import stepladder
import tiny
from stepladder.base import progress


def on_terminal(command):
    """Standard output, and what standard error, a terminal, was told."""
    host, terminal = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal) as run:
        os.close(terminal)
        told = b""
        while True:
            try:
                told += (part := os.read(host, 1 << 16))
            except OSError:  # nobody writes any more
                break
            if not part:
                break
        out = run.stdout.read()
    os.close(host)
    assert run.returncode == 0, told
    return out.decode(), told.decode()


GENERATE = [
    "generate",
    "--raw",
    "--max-tokens",
    "4",
    "--threads",
    "1",
    "--draft",
    "cast:int8,lookup",
]


def test_a_terminal_is_shown_what_is_loaded_and_for_how_long(tiny_dir):
    command = [sys.executable, "-m", "stepladder", *GENERATE, str(tiny_dir), "the"]
    quiet = subprocess.run(command, capture_output=True, text=True, check=True)
    assert quiet.stderr == ""
    out, told = on_terminal(command)
    assert out == quiet.stdout
    assert f"preparing {tiny_dir.name}" in told and "MB" in told and "0:00:0" in told


SLOWLY = """
import sys, time, stepladder
from stepladder.base.progress import bar
with bar("loading it", ending="preparing it") as report:
    for i in range(11):
        report(i * 1000, 10000)
        time.sleep(0.12)
    print("done")
"""


def test_a_bar_tells_the_time_to_go():
    out, told = on_terminal([sys.executable, "-c", SLOWLY])
    assert out == "done\n" and "loading it" in told
    assert "5.0/10.0 kB" in told and "0:00:01" in told
    assert told.rindex("preparing it") > told.rindex("loading it")


def test_a_log_tells_how_far_it_is(tiny_dir, caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="stepladder"):
        stepladder.load(tiny_dir, "lookup", threads=1).close()
    first, *between, last = [record.getMessage() for record in caplog.records]
    assert first == f"{tiny_dir}: loading, with lookup below it"
    assert any(" s to go" in line and "% " not in line and "%" in line for line in between)
    assert " MB in " in last
    caplog.clear()
    monkeypatch.undo()
    with caplog.at_level(logging.INFO, logger="stepladder"):
        stepladder.load(tiny_dir, threads=1).close()
    assert len(caplog.records) == 2  # sooner done than there is anything to tell


FAILS = """
import json, os, sys, stepladder
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

def error_of(directory):
    try:
        stepladder.load(directory, threads=2, progress=lambda done, total: done < total)
    except stepladder.Error as error:
        return error
    raise AssertionError("it loads")

small, large, sound = sys.argv[1:]
kept = [error_of(small)]  # what is imported on the way stays
before = resident()
kept.append(error_of(large))
failed = resident()
kept.append(stepladder.load(sound, threads=2, progress=False))
print(json.dumps([type(kept[1]).__name__, failed - before, resident() - before]))
"""


def write(directory, tokens=0, break_text=False):
    """A model of some megabytes if it has `tokens` more."""
    more = {"vocab_size": 288 + tokens, "hidden_size": 128} if tokens else {}
    tiny.write_model(directory, **more)
    tree = tiny.tokenizer_json(**({"decoder": None} if break_text else {}))
    size = len(tree["model"]["vocab"])
    tree["model"]["vocab"] |= {f"token {i}": size + i for i in range(tokens)}
    tiny.write_tokenizer(directory, tree)
    return directory


@pytest.mark.parametrize(
    "break_text, error", [(False, "CancelledError"), (True, "UnsupportedError")]
)
def test_a_load_that_fails_gives_its_memory_back(tmp_path, break_text, error):
    """Also while its error is kept. Up to half a tokenizer may stay with the C library: the end of the
    heap of the thread that read it."""
    small = write(tmp_path / "small", break_text=break_text)
    large = write(tmp_path / "large", 120_000, break_text)
    sound = write(tmp_path / "sound", 120_000)
    run = subprocess.run(
        [sys.executable, "-c", FAILS, small, large, sound],
        capture_output=True,
        text=True,
        check=True,
    )
    kind, failed, loaded = json.loads(run.stdout)
    assert kind == error and loaded > 100 and failed < loaded / 3
