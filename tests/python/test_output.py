"""A model directory appears whole or not at all, whatever ends its writing."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import tiny
from conftest import refused
from stepladder import FileError, InvalidArgumentError, convert, quantize

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
HALF = (
    "import sys, time, contextlib, signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "def report(done, total):\n"
    "    if done > total // 2: print('half', flush=True); time.sleep(20)\n"
    "@contextlib.contextmanager\n"
    "def bar(label, show=None): yield report\n"
    "import stepladder.base.progress as p\n"
    "p.bar = bar\n"
)
CALLS = {
    "command": "from stepladder.cli import main\nsys.exit(main([{call!r}, {source!r}, {out!r}, *{more!r}]))\n",
    "function": "import stepladder\nstepladder.{call}({source!r}, {out!r}, *{more!r}[1:], progress=report)\n",
}


@pytest.mark.parametrize("number, code", SIGNALS)
@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("call", ["convert", "quantize"])
def test_a_signal_leaves_nothing(tiny_dir, tmp_path, number, code, how, call):
    """The progress callback stops in the middle and tells us, so that the signal meets half a file."""
    source, more = tiny_dir, ["--format", "w8a16"]
    if call == "convert":
        tiny.write_gguf(tmp_path / "m.gguf")
        source, more = tmp_path / "m.gguf", []
    before = sorted(tmp_path.iterdir())
    call = CALLS[how].format(call=call, source=str(source), out=str(tmp_path / "out"), more=more)
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        [sys.executable, "-c", HALF + call], stdout=pipe, stderr=pipe, text=True
    )
    assert child.stdout.readline() == "half\n"
    assert sorted(tmp_path.iterdir()) != before
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    # Python itself ends by the signal when it leaves a program by Ctrl-C.
    assert child.returncode in (code, -signal.SIGINT if how == "function" else code), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def halfway(tmp_path):
    """A conversion into out/ in another process that has stopped in the middle."""
    tiny.write_gguf(tmp_path / "m.gguf")
    code = HALF + CALLS["function"].format(
        call="convert", source=str(tmp_path / "m.gguf"), out=str(tmp_path / "out"), more=[]
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "half\n"
        yield child
        child.kill()


def partials(directory):
    return [p.name for p in directory.iterdir() if ".partial-" in p.name]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, halfway, caplog):
    halfway.kill()
    halfway.wait()
    (left,) = partials(tmp_path)
    other = tmp_path / ".other.partial-01234567"
    other.mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert partials(tmp_path) == [other.name]
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / left}: left by a run that was killed; removed"
    ]


def test_what_a_live_run_writes_is_left_alone(tmp_path, halfway, caplog):
    before = partials(tmp_path)
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert partials(tmp_path) == before and not caplog.records


@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_run_moved_away_is_kept_and_named(tmp_path, there, caplog):
    tiny.write_gguf(tmp_path / "m.gguf")
    old = tmp_path / ".out.old-01234567"
    old.mkdir()
    if there:
        convert(tmp_path / "m.gguf", tmp_path / "other")
        (tmp_path / "other").rename(tmp_path / "out")
    convert(tmp_path / "m.gguf", tmp_path / "out", force=there)
    assert old.exists()
    assert str(old) in caplog.text and "rename it" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored(tmp_path, number):
    """As under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        tiny.write_gguf(tmp_path / "m.gguf")
        convert(
            tmp_path / "m.gguf", tmp_path / "out", progress=lambda *_: os.kill(os.getpid(), number)
        )
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_signals_are_as_they_were_afterwards(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]
    tiny.write_gguf(tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert before == [signal.getsignal(s) for s in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)]


def test_what_was_there_survives_a_failed_replacement(tmp_path, monkeypatch):
    tiny.write_gguf(tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "out")
    (tmp_path / "out/LICENSE").write_text("x")
    rename = os.rename

    def fails(source, target):
        if "partial" in str(source):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with refused(FileError, "out", "Input/output error"):
        convert(tmp_path / "m.gguf", tmp_path / "out", force=True)
    assert (tmp_path / "out/LICENSE").read_text() == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "out"]


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}


@pytest.mark.parametrize("place", ["same", "dots", "linked", "inside", "around"])
def test_a_model_is_never_written_over_its_source(tiny_dir, tmp_path, place):
    (tmp_path / "config.json").write_text("{}")
    model = shutil.copytree(tiny_dir, tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path)
    target = {
        "same": model,
        "dots": model / ".." / "model",
        "linked": tmp_path / "link/model",
        "inside": model / "sub",
        "around": tmp_path,
    }[place]
    before = contents(model)
    with refused(InvalidArgumentError, target, "source"):
        quantize(model, target, "w8a16", force=True)
    assert contents(model) == before


def test_nor_over_what_its_source_links_to(tiny_dir, tmp_path):
    real = shutil.copytree(tiny_dir, tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for file in real.iterdir():
        (tmp_path / "linked" / file.name).symlink_to(file)
    before = contents(real)
    with refused(InvalidArgumentError, "real", "source"):
        quantize(tmp_path / "linked", real, "w8a16", force=True)
    assert contents(real) == before
    quantize(tmp_path / "linked", tmp_path / "out", "w8a16")


@pytest.mark.parametrize("linked", [False, True])
def test_a_gguf_file_in_the_target_is_kept(tiny_dir, tmp_path, linked):
    out = shutil.copytree(tiny_dir, tmp_path / "out")
    tiny.write_gguf(out / "m.gguf")
    source = out / "m.gguf"
    if linked:
        source = tmp_path / "link.gguf"
        source.symlink_to(out / "m.gguf")
    with refused(InvalidArgumentError, "out", "source"):
        convert(source, out, force=True)
    assert (out / "m.gguf").is_file()
    convert(source, tmp_path / "other")
