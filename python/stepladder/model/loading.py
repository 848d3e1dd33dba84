"""From a directory to a loaded model."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _core
from ..base.arguments import INT_MAX, callback, suggesting, whole, word
from ..base.beside import Beside
from ..base.errors import Error
from ..base.progress import Report, bar, logging_too
from ..files.hub import resolve
from ..text.tokenizer import Text
from .levels import DraftOption, to_specs
from .model import Model

log = logging.getLogger("stepladder")


@suggesting
def load(
    model: str | os.PathLike[str],
    draft: DraftOption = None,
    *,
    context: int | None = None,
    max_sequences: int = 1,
    threads: int | None = None,
    device: str = "auto",
    isa: str | None = None,
    head: str | None = None,
    progress: bool | Callable[[int, int], Any] | None = None,
) -> Model:
    """Loads a model directory, or "org/name" from the local Hugging Face cache.

    `draft`: the levels below it, outermost first: Cast, Switch, Lookup, Draft, a path, a list of
    them, or a line such as "cast:mxfp4:shared:tokens=4,lookup". `context`: tokens a sequence may
    hold (the model's own, at most 8192). `max_sequences`: how many are served side by side.
    `head`: the format of the output matrix. `progress`: a function of done and total bytes that
    may return False to stop; or False for no bar, which otherwise shows on a terminal.
    """
    directory = resolve(model)
    options = _core.Options()
    options.draft = to_specs(draft)
    if context is not None:
        # What no model holds is refused with the number that this one does.
        options.context = min(whole("context", context, 1, 1 << 62), INT_MAX)
    options.max_sequences = whole("max_sequences", max_sequences, 1)
    options.threads = 0 if threads is None else whole("threads", threads, 1)
    for name, value in (("device", device), ("isa", isa), ("head", head)):
        if value is not None:
            setattr(options, name, word(name, value))
    if not isinstance(progress, bool):
        callback("progress", progress)
    started = time.monotonic()
    below = _core.draft_to_string(options.draft)
    log.info("%s: loading%s", directory, f", with {below} below it" if below else "")
    try:
        if callable(progress):
            engine, text = _open(directory, options, progress)
        else:
            show = False if progress is False else None
            name = directory.name
            with bar(f"loading {name}", show, ending=f"preparing {name}") as report:
                engine, text = _open(directory, options, report)
    except BaseException as error:
        _give_back(error)
        raise
    _log_load(engine.info, directory, time.monotonic() - started)
    return Model(engine, text, directory, options.max_sequences)


def _open(
    directory: Path, options: _core.Options, progress: Report
) -> tuple[_core.Engine, Text | None]:
    """The engine, and beside its weights the text, which takes long to read and nothing that the engine
    refuses needs. Where both fail, it is the text's error that is raised."""
    told = logging_too(log, f"{directory}: loading", progress)
    with contextlib.ExitStack() as held:
        text: Beside[Text | None] | None = None

        def start() -> Beside[Text | None]:
            return held.enter_context(Beside(lambda: _open_text(directory)))

        def report(done: int, total: int) -> object:
            nonlocal text
            text = text or start()  # what config.json says is known to be sound by now
            return False if text.failed else told(done, total)

        engine = None
        try:
            engine = _core.Engine.load(str(directory), options, report)
        except Exception:
            if text is None or text.wait():
                raise
        text = text or start()
        if not text.wait():
            engine = None  # the error will hold this frame, and must not hold the weights
        return engine, text.result()


def _give_back(error: BaseException) -> None:
    """The memory of a load that failed, before its error is dealt with: frames that a refusal came
    through hold pieces of the model for as long as it is kept."""
    if isinstance(error, Error):
        traceback.clear_frames(error.__traceback__)
    _core.trim_memory()


def _open_text(directory: Path) -> Text | None:
    if any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return Text(directory)
    return None


def _log_load(info: _core.Info, directory: Path, seconds: float) -> None:
    levels = " <- ".join(f"{v.name} {v.format}".strip() for v in info.levels)
    log.info("%s: %s, %s, context %d, %.0f MB in %.1f s", directory, levels, info.backend, info.context,
             info.total_bytes / 1e6, seconds)  # fmt: skip
    for note in info.notes:
        log.info("%s: %s", directory, note)


@suggesting
def inspect(model: str | os.PathLike[str]) -> _core.Info:
    """What can be told of a model without loading its weights."""
    return _core.inspect(str(resolve(model)))
