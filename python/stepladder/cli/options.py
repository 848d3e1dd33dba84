"""What the command `stepladder` takes: its commands, their options, and the defaults it names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from .._core import __version__, backends
from ..files.compressed_tensors import ALIASES, LAYOUTS


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in two lines, and not first what all its options are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help says what there is\n")


def command_parser(
    runs: dict[str, Callable[[argparse.Namespace], int]],
) -> argparse.ArgumentParser:
    """The parser; `runs` has the function of each command, which becomes `run` of its arguments."""
    parser = _Parser(
        prog="stepladder", description="Language models through a hierarchy of draft levels."
    )
    parser.add_argument("--version", action="version", version=f"stepladder {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.add_argument(
            "-v", "--verbose", action="store_true", help="say what is loaded, on standard error"
        )
        sub.set_defaults(run=runs[name], parser=sub)
        return sub

    sub = command("generate", "Answer one prompt.")
    _add_model(sub)
    sub.add_argument("prompt", nargs="?", help="the prompt; standard input when left out or -")
    sub.add_argument(
        "-p", "--prompt", dest="prompt_option", metavar="TEXT", help="the prompt, as an option"
    )
    sub.add_argument(
        "--raw", action="store_true", help="continue the text itself, without the chat template"
    )
    sub.add_argument("--system", metavar="TEXT", help="a system message")
    sub.add_argument("--stats", action="store_true", help="show statistics, on standard error")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="show the log-probability of each token and of the N likeliest (none)",
    )
    _add_load(sub)
    _add_sampling(sub, 256)

    sub = command("chat", "Talk with a model.")
    _add_model(sub)
    sub.add_argument("--system", metavar="TEXT", help="a system message")
    sub.add_argument(
        "--stats", action="store_true", help="show statistics after each answer, on standard error"
    )
    _add_load(sub)
    _add_sampling(sub, 256)

    sub = command(
        "inspect",
        "Show what a model is, without loading its weights; with --draft, load it and show its levels.",
    )
    _add_model(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--sequences", type=int, default=1, metavar="N", help="load for N at once (1)")
    _add_load(sub)

    sub = command("convert", "Convert a GGUF file to a model directory.")
    sub.add_argument("source", metavar="FILE.gguf")
    sub.add_argument("target", metavar="DIRECTORY")
    sub.add_argument(
        "--dtype", choices=["bf16", "f16"], default="bf16", help="of the weights (bf16)"
    )
    sub.add_argument("--force", action="store_true", help="replace a model that is there")

    sub = command("quantize", "Write a model with its weights in fewer bits.")
    sub.add_argument("source", metavar="MODEL")
    sub.add_argument("target", metavar="DIRECTORY")
    sub.add_argument("--format", required=True, help=_formats())
    sub.add_argument(
        "--group",
        type=int,
        default=0,
        metavar="N",
        help="weights a scale (32, where there are groups)",
    )
    sub.add_argument(
        "--head", metavar="FORMAT", help="the output matrix too, in any of these (as it is)"
    )
    sub.add_argument("--force", action="store_true", help="replace a model that is there")

    sub = command("verify", "Compare levels on with levels off, bit for bit.")
    _add_model(sub)
    sub.add_argument("prompt", nargs="?", help="one question (the built-in ones)")
    _add_questions(sub)
    sub.add_argument(
        "--sequences",
        type=int,
        default=1,
        metavar="N",
        help="run N at once with levels, each alone without (1)",
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_load(sub, "none")
    _add_sampling(sub, 64)

    sub = command("bench", "Time hierarchies against plain decoding, and say which to use.")
    _add_model(sub)
    _add_questions(sub)
    sub.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="times that each question is asked (5)"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_load(sub, "lookup")
    _add_sampling(sub, 128)
    return parser


def _formats() -> str:
    aliases = {name: f" ({alias})" for alias, name in ALIASES.items()}
    *first, last = [name + aliases.get(name, "") for name in LAYOUTS]
    return f"{', '.join(first)} or {last}"


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "model", metavar="MODEL", help="a directory, or ORG/NAME in the local Hugging Face cache"
    )


class _Once(argparse.Action):
    """An option whose second value would hide the first."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(
                f"{option} is given twice, and one hierarchy is run; name its levels in one list, "
                f'outermost first: {option} "{getattr(namespace, self.dest)},{value}"'
            )
        setattr(namespace, self.dest, value)


def _add_load(sub: argparse.ArgumentParser, many: str | None = None) -> None:
    """`many`: the levels when several --draft may be given, and none is."""
    group = sub.add_argument_group("loading")
    levels = 'such as "cast:mxfp4:shared:tokens=4,lookup"'
    if many:
        group.add_argument("--draft", action="append", metavar="LEVELS",
                           help=f"{levels}; several are compared in turns ({many})")  # fmt: skip
    else:
        group.add_argument("--draft", action=_Once, metavar="LEVELS", help=f"{levels} (none)")
    group.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens a sequence may hold (the model's own, at most 8192)",
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help="that compute (the cores there are)"
    )
    devices = ", ".join(d for backend in backends() for d in backend.devices)
    group.add_argument("--device", default="auto", help=f"where to compute: auto, {devices} (auto)")
    group.add_argument("--isa", metavar="NAME", help="portable, avx2 or avx512 (the best there is)")
    group.add_argument("--head", metavar="FORMAT", help="the output matrix's format (as stored)")


_SAMPLING = (
    ("temperature", float, "divides the logits; 0 takes the likeliest token (0)"),
    ("top-p", float, "keep the likeliest tokens of this share of the probability (1)"),
    ("top-k", int, "keep the N likeliest tokens; 0 is all (0)"),
    ("min-p", float, "keep tokens this likely against the likeliest (0)"),
    ("repetition-penalty", float, "divides what has occurred, prompt included (1)"),
    ("frequency-penalty", float, "taken off for each time a token was made (0)"),
    ("presence-penalty", float, "taken off once a token was made (0)"),
    ("seed", int, "what makes the same text again (another each time; verify and bench: 0)"),
)


def _add_sampling(sub: argparse.ArgumentParser, max_tokens: int) -> None:
    group = sub.add_argument_group("sampling (greedy unless a temperature is given)")
    group.add_argument(
        "--max-tokens",
        "--tokens",
        type=int,
        metavar="N",
        help=f"tokens to make at most ({max_tokens})",
    )
    for name, kind, help in _SAMPLING:
        metavar = "X" if kind is float else "N"
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=help)
    group.add_argument(
        "--logit-bias",
        action="append",
        type=_bias,
        metavar="TOKEN=BIAS",
        help="added to the logit of a token id; may be given more than once (none)",
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="ends the text; may be given more than once (none)",
    )
    group.add_argument(
        "--stop-token-ids",
        action="extend",
        type=_ids,
        metavar="ID,ID",
        help="tokens that end the text, besides the model's own (none)",
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on at end tokens")
    group.add_argument(
        "--generation-config",
        action="store_true",
        help="the model's own sampling settings in the place of these defaults",
    )


def _bias(text: str) -> tuple[int, float]:
    token, equals, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN=BIAS, such as 42=-100") from None


def _ids(text: str) -> list[int]:
    try:
        return [int(id) for id in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids: 1,2") from None


def _add_questions(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--questions",
        metavar="FILE",
        help="JSON lines with category and turns, as Spec-Bench has them (the built-in ones)",
    )
    sub.add_argument(
        "--per-group", type=int, default=0, metavar="N", help="questions of each group (all)"
    )
