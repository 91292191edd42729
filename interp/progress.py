"""How far a long job is: a bar with the time left on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import os
import sys
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY = float(os.environ.get("INTERP_PROGRESS_EVERY", "10"))
"""Seconds between the lines in a log."""


class Progress:
    """`with Progress("recording", total) as progress: progress.advance(n)`; nothing at all where it is not `shown`.

    `done` of `total` were done before, by a run that this one continues. `total` None: not known yet.
    """

    def __init__(self, title: str, total: int | None, shown: bool = True, *, done: int = 0):
        console = Console(stderr=True)
        self.title, self.total, self.first, self.done, self.told = title, total, done, done, ""
        self._lines = shown and not console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"),
                   TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        self._bar = Bar(*columns, console=console, transient=True, disable=not shown or self._lines)
        self._task = self._bar.add_task(title, total=total, completed=done, told="")
        self._started = self._said = monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Done a second, by this run."""
        return (self.done - self.first) / max(monotonic() - self._started, 1e-9)

    def note(self, told: str) -> None:
        """What is told beside how much is done, from now on."""
        self.told = told

    def advance(self, n: int = 1, *, total: int | None = None) -> None:
        """`n` more are done; `total` where there is a better guess of it."""
        self.done += n
        finished = total is None and self.done == self.total
        self.total = self.total if total is None else total
        told = f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,}"
        told += f"  {self.told}" if self.told else ""
        self._bar.update(self._task, completed=self.done, total=self.total, told=told)
        if self._lines and (monotonic() - self._said > EVERY or finished):
            self._said = monotonic()
            left = f", {(self.total - self.done) / max(self.rate, 1e-9):,.0f} s left" if self.total else ""
            print(f"{self.title}: {told}{left}", file=sys.stderr, flush=True)
