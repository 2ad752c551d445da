"""What a build looks like: a live bar on a terminal, plain lines elsewhere, nothing but warnings when quiet.

Everything here goes to stderr; stdout belongs to the answer (wheel paths, JSON, TOML).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_PLAIN_INTERVAL_S = 5.0


class ConsoleProgress:
    """Shows stages and keeps their wall times and all warnings for the summary.

    ``quiet`` shows warnings only. Plain output repeats a running stage's progress at most every five seconds.
    """

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.times_s: dict[str, float] = {}
        self.warnings: list[str] = []
        self._console = console
        self._quiet = quiet
        self._clock = clock
        self._title = ""
        self._last_line = 0.0
        self._live: tuple[Progress, TaskID] | None = None

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Enter a stage; its time is kept under ``title`` (added up when a title comes twice)."""
        start = self._last_line = self._clock()
        self._title = title
        with self._bar(title):
            if not self._quiet and self._live is None:
                self._console.print(f"{title} ...", highlight=False, markup=False)
            yield
        elapsed = self._clock() - start
        self.times_s[title] = self.times_s.get(title, 0.0) + elapsed
        if not self._quiet:
            self._console.print(f"[green]done[/] {escape(title)} [dim]{elapsed:.1f} s[/]", highlight=False)

    def step(self, done: int, total: int, what: str = "") -> None:
        """Move the bar; on plain output say so now and then."""
        if self._live is not None:
            bar, task = self._live
            bar.update(task, completed=done, total=total, what=what)
        elif not self._quiet and done < total and self._clock() - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = self._clock()
            self._console.print(f"{self._title}: {done}/{total} {what}".rstrip(), highlight=False, markup=False)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._console.print(f"  {text}", highlight=False, markup=False, style="dim", soft_wrap=True)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._console.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)

    @contextmanager
    def _bar(self, title: str) -> Iterator[None]:
        if self._quiet or not self._console.is_terminal:
            yield
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total} {task.fields[what]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            self._live = bar, bar.add_task(escape(title), total=None, what="")
            try:
                yield
            finally:
                self._live = None
