"""Progress bars on standard error, shown on a terminal only, and lines in a log where none is shown."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], object]
LOG_SECONDS = 10.0  # between two lines of a log


@contextmanager
def bar(
    label: str, show: bool | None = None, bytes: bool = True, ending: str | None = None
) -> Iterator[Report]:
    """Yields report(done, total), in bytes or else in things; draws nothing unless standard error is
    a terminal. `ending`: the label once all is done and the block goes on."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda done, total: True
        return
    from rich import progress as rich
    from rich.console import Console

    counts = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if bytes else (rich.MofNCompleteColumn(),)  # fmt: skip
    columns = ("{task.description}", rich.BarColumn(), *counts, rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        task = progress.add_task(label, total=None)

        def report(done: int, total: int) -> bool:
            now = ending if ending and done >= total else label
            progress.update(task, completed=done, total=total, description=now)
            return True

        yield report


def logging_too(log: logging.Logger, label: str, report: Report) -> Report:
    """`report` that also tells `log` now and then how far it is and how long it has to go."""
    started = told = time.monotonic()

    def both(done: int, total: int) -> object:
        nonlocal told
        now = time.monotonic()
        if 0 < done < total and now - told >= LOG_SECONDS:
            told = now
            left = (now - started) * (total - done) / done
            log.info("%s: %.0f%%, %.0f s to go", label, 100 * done / total, left)
        return report(done, total)

    return both
