"""Progress bars on standard error, shown on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], object]


@contextmanager
def bar(label: str, show: bool | None = None, bytes: bool = True) -> Iterator[Report]:
    """Yields report(done, total), in bytes or else in things; draws nothing unless standard error is
    a terminal."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda done, total: True
        return
    from rich import progress as rich
    from rich.console import Console

    counts = (rich.DownloadColumn(), rich.TransferSpeedColumn()) if bytes else (rich.MofNCompleteColumn(),)  # fmt: skip
    columns = ("{task.description}", rich.BarColumn(), *counts, rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)

        def report(done: int, total: int) -> bool:
            progress.update(task, completed=done, total=total)
            return True

        yield report
