"""Talking with a model: in a terminal with arrows, a history and pasted lines, and over a pipe."""

import json
import os
import subprocess
import sys
import time

import pytest
import stepladder

try:
    from pexpect import EOF
except ImportError:
    EOF = None  # and the tests of a terminal are skipped

ARGUMENTS = ["--max-tokens", "6", "--threads", "1"]


def piped(directory, *lines, code=0):
    run = subprocess.run(
        [sys.executable, "-m", "stepladder", "chat", str(directory), *ARGUMENTS],
        input="".join(line + "\n" for line in lines), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    return run.stdout, run.stderr


def answers(directory, *turns):
    """What a model says to each of some texts, one after the other."""
    with stepladder.load(directory, threads=1) as model:
        chat = model.chat(max_tokens=6)
        return [chat.send(text).result().text for text in turns]


def test_commands_over_a_pipe(tiny_dir, tmp_path):
    first, second = answers(tiny_dir, "the", "an")
    out, err = piped(
        tiny_dir, "the", "/clear", "the", "an", "/retry", "/stats", "/quit", "never said"
    )
    assert out == f"{first}\n{first}\n{second}\n{second}\n"
    assert "tokens/s" in err
    saved = tmp_path / "talk.json"
    out, err = piped(tiny_dir, "the", f"/save {saved}", "/clear", f"/load {saved}", "an", "/help")
    assert out == f"{first}\n{second}\n" and "2 messages" in err and "/system TEXT" in err
    assert [m["role"] for m in json.loads(saved.read_text())] == ["user", "assistant"]


def test_a_system_message_and_going_on(tiny_dir):
    with stepladder.load(tiny_dir, threads=1) as model:
        chat = model.chat("Be brief.", max_tokens=6)
        want = [chat.send("the").result().text, chat.resume().result().text]
    out, _ = piped(tiny_dir, "/system Be brief.", "the", "/continue")
    assert out.splitlines() == "\n".join(want).splitlines()


REFUSED = {
    "/foo": "/foo is no command; /help lists them",
    "/retry": "nothing has been asked",
    "/stats": "nothing has been answered",
    "/continue": "does not end with an answer",
    "/save": "name a file",
    "/load none.json": "none.json: there is no such file",
    "/save /none/such/file": "cannot write",
    "/save ~nobody-of-this-name/x": "no such home directory",
    "/load a\0b": "is not a path",
    "word " * 400: "/clear begins another conversation",
}


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:12])
def test_what_cannot_be_is_said_and_counted(tiny_dir, line):
    """The conversation goes on, and the exit code tells of it."""
    out, err = piped(tiny_dir, line, "the", code=1)
    assert REFUSED[line] in err and out == answers(tiny_dir, "the")[0] + "\n"


def test_a_space_says_what_begins_with_a_stroke(tiny_dir):
    assert piped(tiny_dir, " /foo")[0] == answers(tiny_dir, "/foo")[0] + "\n"


def test_any_white_space_ends_the_name_of_a_command(tiny_dir):
    """A tab, and the return of lines that end in one, as over a pipe from elsewhere."""
    out, err = piped(tiny_dir, "/system\tBe brief.", "the", "/quit\r", "never said")
    assert len(out.splitlines()) and "no command" not in err
    assert out == piped(tiny_dir, "/system Be brief.", "the")[0]


def test_what_utf8_cannot_hold_is_neither_taken_nor_written(tiny_dir, tmp_path):
    (tmp_path / "x.json").write_text('[{"role": "user", "content": "\\ud800"}]')
    target = tmp_path / "y.json"
    _, err = piped(tiny_dir, f"/load {tmp_path / 'x.json'}", f"/save {target}", code=1)
    assert "/save: a lone surrogate" in err and not target.exists()


def test_files_that_hold_no_conversation(tiny_dir, tmp_path):
    for text in ("5", '[{"role": "user"}]', "{"):
        (tmp_path / "x.json").write_text(text)
        assert "x.json" in piped(tiny_dir, f"/load {tmp_path / 'x.json'}", code=1)[1]
    _, err = piped(tiny_dir, f"/save {tmp_path / 'x.json'}", code=1)
    assert "File exists" in err


PROMPT = r"\?2004h> "  # as readline writes it


@pytest.fixture
def terminal(tiny_dir):
    pexpect = pytest.importorskip(
        "pexpect", reason="pexpect is not installed (pip install '.[test]')"
    )
    pytest.importorskip("readline", reason="this Python was built without readline")
    child = pexpect.spawn(
        sys.executable, ["-m", "stepladder", "chat", str(tiny_dir), *ARGUMENTS],
        encoding="utf-8", codec_errors="replace", timeout=30, dimensions=(40, 200),
        env={**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null"},
    )  # fmt: skip
    child.expect("/help lists")
    child.expect(PROMPT)
    yield child
    child.close(force=True)


UP, LEFT = "\x1b[A", "\x1b[D"


def said(terminal, path):
    """The messages so far, as a saved file has them."""
    terminal.send(f"/save {path}\r")
    terminal.expect(PROMPT)
    return [m["content"] for m in json.loads(path.read_text()) if m["role"] == "user"]


def test_arrows_edit_the_line_and_bring_back_old_ones(terminal, tmp_path):
    terminal.send("cat" + LEFT * 3 + "the \r")
    terminal.expect("/continue goes on")
    terminal.expect(PROMPT)
    terminal.send(UP + " two\r")
    terminal.expect("/continue goes on")
    terminal.expect(PROMPT)
    terminal.send("/help\r")
    terminal.expect("/system TEXT")
    terminal.expect(PROMPT)
    terminal.send("/nonsense\r")
    terminal.expect("is no command")
    terminal.expect(PROMPT)
    assert said(terminal, tmp_path / "talk.json") == ["the cat", "the cat two"]


def test_lines_that_are_pasted_are_one_message(terminal, tmp_path):
    terminal.send("\x1b[200~one\ntwo\nthree\x1b[201~")
    terminal.send("\r")
    terminal.expect("/continue goes on")
    terminal.expect(PROMPT)
    assert said(terminal, tmp_path / "talk.json") == ["one\ntwo\nthree"]


def interrupt(terminal):
    """Ctrl-C while a line is waited for: readline looks at a signal that comes between two keys only
    when the next key does."""
    time.sleep(0.2)
    terminal.sendintr()


def test_ctrl_c_clears_the_line_and_twice_ends(terminal, tmp_path):
    terminal.send("not this")
    terminal.expect("not this")
    interrupt(terminal)
    terminal.expect("Ctrl-C again ends")
    terminal.expect(PROMPT)
    terminal.send("the\r")
    terminal.expect("/continue goes on")
    terminal.expect(PROMPT)
    assert said(terminal, tmp_path / "talk.json") == ["the"]
    interrupt(terminal)
    terminal.expect("Ctrl-C again ends")
    interrupt(terminal)
    terminal.expect(EOF)
    terminal.wait()
    assert terminal.exitstatus == 130


def test_ctrl_d_ends(terminal):
    terminal.sendeof()
    terminal.expect(EOF)
    terminal.wait()
    assert terminal.exitstatus == 0
