"""The command `stepladder`. Only results go to standard output; all else goes to standard error.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad model, 4 out of memory, 130 interrupted, 128 + n
ended by signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..base.errors import (
    Error,
    FileError,
    InvalidArgumentError,
    ModelFormatError,
    OutOfMemoryError,
    UnsupportedError,
    VocabMismatchError,
)
from ..base.progress import bar
from ..base.signals import end_quietly_if_interrupted, ending_in_order, take_interrupts
from ..files.hub import resolve
from ..model.levels import fixed
from ..model.loading import inspect, load
from ..model.model import Model
from ..model.questions import load_questions
from ..model.results import TokenLogprob
from ..model.verify import compare
from .bench import Hierarchy, check_drafts, turns
from .bench_table import legend, summary, turn_line, verdict_of
from .options import command_parser
from .talk import INTERRUPTED, interruptible, show_stats, talk
from .terminal import prepare_streams

FAILED, USAGE, BAD_MODEL, NO_MEMORY = 1, 2, 3, 4


class _BadModelFile(Exception):
    """A file error met while a model was opened."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    prepare_streams()
    runs = {"generate": _generate, "chat": _chat, "inspect": _inspect, "convert": _convert,
            "quantize": _quantize, "verify": _verify, "bench": _bench}  # fmt: skip
    args, left = command_parser(runs).parse_known_args(arguments)
    _place(args, left)
    logging.basicConfig(
        stream=sys.stderr,
        format="%(message)s",
        level=logging.INFO if args.verbose else logging.WARNING,
    )
    try:
        take_interrupts()
        # A plain kill, or a terminal that goes, cleans up as Ctrl-C does.
        with ending_in_order():
            code = args.run(args)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read standard output has gone; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UnicodeDecodeError:
        return _complain(ValueError("standard input is not text in its encoding"), USAGE)
    except MemoryError as error:
        return _complain(error, NO_MEMORY)
    except InvalidArgumentError as error:
        return _complain(error, USAGE)
    except (ModelFormatError, UnsupportedError, VocabMismatchError, _BadModelFile) as error:
        return _complain(error, BAD_MODEL)
    except (Error, OSError) as error:
        return _complain(error, FAILED)
    finally:
        end_quietly_if_interrupted()


def _place(args: argparse.Namespace, left: list[str]) -> None:
    """A prompt may follow the options; whatever else is left over is an error of the command."""
    after_all = left[:1] == ["--"]
    left = left[after_all:]
    if not left:
        return
    if (
        len(left) == 1
        and (after_all or not left[0].startswith("-"))
        and getattr(args, "prompt", "") is None
    ):
        args.prompt = left[0]
        return
    wrong = next((x for x in left if x.startswith("-")), left[0])
    known = [o for o in args.parser._option_string_actions if o.startswith("--")]
    near = difflib.get_close_matches(wrong.split("=")[0], known, 1) if wrong[0] == "-" else []
    hint = f"; did you mean {near[0]}?" if near else ""
    args.parser.error(f"unrecognized arguments: {' '.join(left)}{hint}")


def _complain(error: BaseException, code: int) -> int:
    print(f"stepladder: {error or type(error).__name__}", file=sys.stderr)
    return code


def _request(args: argparse.Namespace) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "frequency_penalty",
             "presence_penalty", "stop", "stop_token_ids", "max_tokens", "logprobs")  # fmt: skip
    given = {n: getattr(args, n) for n in names if getattr(args, n, None) is not None}
    if args.logit_bias:
        given["logit_bias"] = dict(args.logit_bias)
        if len(given["logit_bias"]) < len(args.logit_bias):
            raise InvalidArgumentError("--logit-bias: a token is named twice")
    return given | {"ignore_eos": args.ignore_eos, "generation_config": args.generation_config}


def _load(args: argparse.Namespace, draft: str | None, max_sequences: int = 1) -> Model:

    with _opening():
        return load(args.model, draft, context=args.context, threads=args.threads, device=args.device, isa=args.isa,
                    head=args.head, max_sequences=max_sequences)  # fmt: skip


@contextlib.contextmanager
def _opening() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        raise _BadModelFile(str(error)) from error


def _generate(args: argparse.Namespace) -> int:
    if args.prompt_option is not None and args.prompt is not None:
        raise InvalidArgumentError("give the prompt as PROMPT or with -p, not both")
    prompt = args.prompt_option if args.prompt_option is not None else args.prompt
    if prompt in (None, "-"):
        prompt = sys.stdin.read().removesuffix("\n")
    if not prompt:
        raise InvalidArgumentError("prompt: it is empty")
    with _load(args, args.draft) as model:
        raw = args.raw or not model.text.has_template
        if args.system is not None:
            if raw:
                raise InvalidArgumentError(
                    "--system needs a model with a chat template, and no --raw"
                )
            said = ("system", args.system), ("user", prompt)
            prompt = [{"role": role, "content": text} for role, text in said]
        stream = model.stream(prompt, raw=raw, **_request(args))
        parts: list[Any] = []
        with interruptible(stream):
            for piece in stream:
                parts.append(piece)
                if not args.json:
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
        if args.json:
            answer = {"text": "".join(p.text for p in parts), "tokens": [t for p in parts for t in p.tokens],
                      "finish_reason": stream.finish_reason, "seed": stream.seed, "stats": stream.stats.as_dict()}  # fmt: skip
            if args.logprobs is not None:
                answer["logprobs"] = [asdict(t) for p in parts for t in p.logprobs or []]
            print(json.dumps(answer, ensure_ascii=False))
        else:
            print()
            for piece in parts:
                for token in piece.logprobs or []:
                    print(_logprob_line(model, token))
        if args.stats:
            show_stats(stream)
        return INTERRUPTED if stream.finish_reason == "cancelled" else 0


def _logprob_line(model: Model, token: TokenLogprob) -> str:
    """The log-probability and text of a token, then those of the likeliest ones."""

    def named(id: int) -> str:
        return repr(model.text.token_bytes(id).decode("utf-8", "replace"))

    likeliest = ", ".join(f"{named(id)} {value:.4f}" for id, value in token.top)
    return f"{token.logprob:9.4f}  {named(token.token):<16}  {likeliest}".rstrip()


def _chat(args: argparse.Namespace) -> int:
    with _load(args, args.draft) as model:
        # Options that no turn could have end the program before the first one.
        model.stream([0], **_request(args)).close()
        return talk(lambda: model.chat(args.system, **_request(args)), args.stats)


def _info_dict(value: Any) -> Any:
    if isinstance(value, list):
        return [_info_dict(v) for v in value]
    if type(value).__module__.startswith("stepladder"):
        return {n: _info_dict(getattr(value, n)) for n in dir(value) if not n.startswith("_")}
    return value


def _inspect(args: argparse.Namespace) -> int:

    if args.draft is None:
        given = [
            f"--{name}"
            for name, initial in (
                ("device", "auto"),
                ("isa", None),
                ("threads", None),
                ("context", None),
                ("sequences", 1),
            )
            if getattr(args, name, initial) != initial
        ]
        if given:
            raise InvalidArgumentError(
                f"inspect: {given[0]} is for a load; give --draft LEVELS too, perhaps lookup"
            )
        with _opening():
            info = inspect(args.model)
    else:
        with _load(args, args.draft, args.sequences) as model:
            info = model.info
    if args.json:
        print(json.dumps(_info_dict(info)))
        return 0
    level = info.levels[0] if info.levels else None
    rows = [
        ("architecture", info.architecture),
        ("parameters", f"{info.parameters / 1e6:,.1f} M"),
        ("layers, width", f"{info.layers}, {info.width}"),
        ("vocabulary", f"{info.vocab}"),
        ("context", f"{info.model_context}"),
        ("end tokens", ", ".join(map(str, info.end_tokens)) or "none"),
        ("weights", f"{level.format}, head {level.head}" if level else "?"),
        ("bytes", f"{info.total_bytes:,}"),
        ("backend", info.backend),
        *([("threads", f"{info.threads}")] if args.draft is not None else []),
        *[("note", n) for n in info.notes],
    ]
    print("\n".join(f"{name:<16}{value}" for name, value in rows))
    if args.draft is not None:
        print(
            f"\n{'level':<24}{'weights':>10}{'head':>8}{'MB':>8}{'a pass':>8}{'cache':>8}{'recorded':>10}"
        )
        for of in info.levels:
            sizes = "".join(
                f"{n / 1e6:8.0f}" for n in (of.weight_bytes, of.pass_bytes, of.cache_bytes)
            )
            print(f"{of.name:<24}{of.format:>10}{of.head:>8}{sizes}{of.recordings:>10}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from ..files.convert import convert  # numpy, which only these two commands need

    with bar("converting") as report:
        convert(args.source, args.target, args.dtype, args.force, report)
    return 0


def _quantize(args: argparse.Namespace) -> int:
    from ..files.quantize import quantize

    with bar("quantizing") as report:
        with _opening():
            source = resolve(args.source)
        quantize(source, args.target, args.format, args.group, args.head, args.force, report)
    return 0


def _verify(args: argparse.Namespace) -> int:

    if args.sequences < 1:
        raise InvalidArgumentError("--sequences must be 1 or more")
    if args.prompt is not None and (args.questions is not None or args.per_group):
        raise InvalidArgumentError("give a PROMPT or --questions and --per-group, not both")
    questions = load_questions(args.questions, args.per_group)
    if not args.draft and args.sequences == 1:
        raise InvalidArgumentError(
            "verify compares levels on with levels off: name some with --draft LEVELS, "
            "or several streams with --sequences N"
        )
    texts = [args.prompt] if args.prompt is not None else [q.text for q in questions]
    options = _request(args)
    options.setdefault("max_tokens", 64)
    equal = True
    for draft in args.draft or [None]:
        with _opening():
            line = fixed(draft)
        with _load(args, line, args.sequences) as model:
            name = draft or "no levels"
            with bar(name, bytes=False) as progress:
                report = compare(model, list(texts), side_by_side=args.sequences, progress=progress,
                                 raw=not model.text.has_template, **options)  # fmt: skip
        equal = equal and report.equal
        if args.json:
            print(
                json.dumps(
                    {"draft": draft, "isa": args.isa, "threads": args.threads, **report.as_dict()}
                ),
                flush=True,
            )
        else:
            print(f"{name}: {report}", flush=True)
    return 0 if equal else FAILED


def _bench(args: argparse.Namespace) -> int:
    drafts = args.draft or ["lookup"]
    with _opening():
        check_drafts(drafts)
    questions = load_questions(args.questions, args.per_group)
    options = _request(args)
    options.setdefault("max_tokens", 128)
    ways = {draft: Hierarchy(draft) for draft in drafts}
    for i, models in enumerate(_side_by_side(args, drafts)):
        if i == 0 and not args.json:
            print(legend(drafts), flush=True)
        for turn in turns(models, questions, repeats=args.repeats, **options):
            for draft in models:
                ways[draft].add(turn)
            if args.json:
                speedups = {draft: turn.speedup(draft) for draft in models}
                print(json.dumps({"repeat": turn.repeat, "group": turn.question.group, "speedups": speedups}), flush=True)  # fmt: skip
            else:
                print(turn_line(turn, drafts), flush=True)
    if args.json:
        for way in ways.values():
            print(json.dumps(way.as_dict()))
        use, line = verdict_of([*ways.values()], short=False)
        print(json.dumps({"use": use, "verdict": line}))
    else:
        print("\n" + summary([*ways.values()]))
    return 0 if all(way.equal for way in ways.values()) else FAILED


def _side_by_side(args: argparse.Namespace, drafts: list[str]) -> Iterator[dict[str, Model]]:
    """All hierarchies loaded at once, so that they take turns; one after the other where memory does
    not hold them."""
    with contextlib.ExitStack() as held:
        try:
            models = {draft: held.enter_context(_load(args, draft)) for draft in drafts}
        except OutOfMemoryError as error:
            if len(drafts) == 1:
                raise
            print(f"stepladder: memory does not hold all hierarchies at once ({error}); "
                  "each is measured by itself, beside plain decoding", file=sys.stderr)  # fmt: skip
        else:
            yield models
            return
    for draft in drafts:
        with _load(args, draft) as model:
            yield {draft: model}
