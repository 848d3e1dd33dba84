"""A conversation in a terminal, or over lines of standard input: what is said, and what is asked of the
program itself in words that begin with a stroke."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..base.arguments import path as checked_path
from ..base.arguments import string
from ..base.errors import Error, FileError, InvalidArgumentError
from ..base.json_file import read_json
from ..model.chat import Chat, ChatStream
from ..model.stream import Stream

INTERRUPTED = 130
HELP = """\
/help            this
/clear           begin another conversation, with the same system message
/system TEXT     say who the model is; without TEXT: nobody
/retry           take the last answer back and ask again
/continue        go on with the last answer
/save FILE       write the conversation, as JSON
/load FILE       read one
/stats           what the last answer took
/quit            end, as Ctrl-D does
A line that begins with a space is said as it is, also where a stroke follows. Several lines that are
pasted are one message. Ctrl-C stops an answer, clears the line, and twice on an empty line ends."""

_COMMAND = re.compile(r"/(\S*)\s*(.*)", re.DOTALL)


class Talk:
    """One conversation, and what the last answer took. Everything but answers goes to standard error."""

    def __init__(self, start: Callable[[], Chat], stats: bool):
        self._start, self._stats = start, stats
        self._chat = start()
        self._answer: ChatStream | None = None
        self.failed = False  # whether anything was refused
        self._commands: dict[str, Callable[[str], object]] = {
            "help": lambda _: _tell(HELP), "clear": self._clear, "system": self._system,
            "retry": self._retry, "continue": lambda _: self._say(self._chat.resume),
            "save": self._save, "load": self._load, "stats": self._show, "quit": self._quit,
        }  # fmt: skip

    def take(self, line: str) -> bool:
        """Does or says what a line is: whether the conversation goes on."""
        if not line.strip():
            return True
        try:
            if not line.startswith("/"):
                self._say(lambda: self._chat.send(line.removeprefix(" ")))
                return True
            name, rest = _COMMAND.fullmatch(line).groups()
            command = self._commands.get({"exit": "quit", "bye": "quit"}.get(name, name))
            if command is None:
                raise InvalidArgumentError(
                    f"/{name} is no command; /help lists them, and a space before it says it to the model"
                )
            return command(rest.strip()) is not False
        except Error as error:
            # A turn that cannot be ends neither the program nor the conversation.
            self.failed = True
            full = "" if "context" not in str(error) else "; /clear begins another conversation"
            _tell(f"stepladder: {error}{full}")
            return True

    def _say(self, begin: Callable[[], ChatStream]) -> None:
        answer = self._answer = begin()
        with interruptible(answer):
            for piece in answer:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        print(flush=True)
        if answer.finish_reason == "length" and sys.stdin.isatty():
            _tell("(cut at --max-tokens; /continue goes on)")
        if self._stats:
            show_stats(answer.stream)

    def _clear(self, _: str) -> None:
        system = [m for m in self._chat.messages[:1] if m["role"] == "system"]
        self._chat = self._start()
        self._chat.messages = system

    def _system(self, text: str) -> None:
        string("/system", text)
        rest = [m for m in self._chat.messages if m["role"] != "system"]
        self._chat.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def _retry(self, _: str) -> None:
        messages = list(self._chat.messages)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages or messages[-1]["role"] != "user":
            raise InvalidArgumentError("/retry: nothing has been asked yet")
        asked = messages.pop()
        self._chat.messages = messages
        self._say(lambda: self._chat.send(asked["content"]))

    def _save(self, name: str) -> None:
        path = _file("/save", name)
        text = string("/save", json.dumps(self._chat.messages, ensure_ascii=False, indent=1))
        try:
            # Never over a file that is there: that may be anything.
            with open(path, "x", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise FileError(f"{path}: cannot write: {error.strerror}") from None

    def _load(self, name: str) -> None:
        path = _file("/load", name)
        messages = read_json(path)
        if messages is None:
            raise FileError(f"{path}: there is no such file")
        if not isinstance(messages, list) or not all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in messages
        ):
            raise InvalidArgumentError(f"{path}: is no list of messages with role and content")
        self._chat = self._start()
        self._chat.messages = messages
        _tell(f"{len(messages)} messages")

    def _show(self, _: str) -> None:
        if self._answer is None:
            raise InvalidArgumentError("/stats: nothing has been answered yet")
        show_stats(self._answer.stream)

    def _quit(self, _: str) -> bool:
        return False


def talk(start: Callable[[], Chat], stats: bool) -> int:
    """Runs a conversation until its end; the exit code."""
    session = Talk(start, stats)
    if not sys.stdin.isatty():
        for line in iter(sys.stdin.readline, ""):
            if not session.take(line.rstrip("\n")):
                break
        return int(session.failed)
    _tell("Ctrl-C stops an answer, Ctrl-D ends the conversation, /help lists what else there is.")
    read = _editor()
    pressed = False
    while True:
        try:
            line = read()
        except EOFError:
            _tell("")
            return 0
        except KeyboardInterrupt:
            if pressed:
                _tell("")
                return INTERRUPTED
            pressed = True
            _tell("\n(Ctrl-C again ends)")
            continue
        pressed = False
        if not session.take(line):
            return 0


def _editor() -> Callable[[], str]:
    """What reads a line: with arrows and a history where both streams are the terminal."""
    if not sys.stdout.isatty():

        def plain() -> str:
            print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")

        return plain
    try:
        import readline
    except ImportError:  # a Python built without it: lines as the terminal gives them
        return lambda: input("> ")
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.parse_and_bind("set disable-completion on")
    return lambda: input("> ")


@contextlib.contextmanager
def interruptible(stream: Any) -> Iterator[None]:
    """The first Ctrl-C ends the stream, the second the program."""
    presses = 0

    def press(*_: object) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            os._exit(INTERRUPTED)
        stream.cancel()

    previous = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def show_stats(stream: Stream) -> None:
    """What an answer took, on standard error."""
    _tell(f"{stream.stats}\n{stream.finish_reason}; seed {stream.seed}")


def _file(command: str, name: str) -> Path:
    if not name:
        raise InvalidArgumentError(f"{command}: name a file")
    try:
        return Path(checked_path(command, name)).expanduser()
    except RuntimeError:  # ~ of nobody who is known here
        raise FileError(f"{command}: {name}: there is no such home directory") from None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
