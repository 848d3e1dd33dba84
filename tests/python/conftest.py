"""What the tests share: tiny models made once a session, and the real one where it has been made."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

# A shell's background job ignores Ctrl-C, and so would every process started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes decides nothing.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import tiny  # noqa: E402


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """A tiny Llama; do not write into it."""
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_model(tiny_dir):
    """The tiny Llama with levels, loaded once."""
    import stepladder

    with stepladder.load(
        tiny_dir, draft="cast:int8:tokens=4,lookup", max_sequences=3, threads=1
    ) as model:
        yield model


@pytest.fixture(scope="session")
def real_dir() -> Path:
    """SmolLM2-135M-Instruct, where `make model` or STEPLADDER_MODEL has put it."""
    path = Path(os.environ.get("STEPLADDER_MODEL", ROOT / "models/SmolLM2-135M-Instruct"))
    if not (path / "config.json").is_file():
        pytest.skip(f"the real model is not at {path} (make model)")
    return path


@contextmanager
def refused(error: type[Exception], *words: str, seconds: float = 2.0, mebibytes: int = 64):
    """The block raises `error` with all `words` in its message, soon and without much memory. `seconds` are
    the processor's: what else runs on the machine counts no more than a wait that never ends would."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, began = time.process_time(), time.monotonic()
    with pytest.raises(error) as caught:
        yield caught
    spent, waited = time.process_time() - start, time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    message = str(caught.value)
    assert all(str(w) in message for w in words), message
    assert len(message) < 2000
    assert spent < seconds, f"took {spent:.1f} s of the processor"
    assert waited < 30 * seconds, f"took {waited:.1f} s"
    assert grown < mebibytes, f"took {grown:.0f} MiB"


def run_command(capsys, *arguments):
    """Exit code, standard output, standard error of a command."""
    from stepladder.cli import main

    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err
