"""What a build prints: a live bar on a terminal, plain lines elsewhere, only warnings when quiet.

Everything here goes to stderr. Only results go to stdout (wheel paths, JSON, TOML).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_PLAIN_INTERVAL_S = 5.0
_TITLE_WIDTH = 32


class ConsoleProgress:
    """Shows stages and keeps their wall times and all warnings for the summary.

    ``quiet`` shows only warnings. Plain output repeats a running stage's progress at most every five seconds. The same
    warning is shown and kept only once.
    """

    def __init__(self, console: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.times_s: dict[str, float] = {}
        self.warnings: list[str] = []
        self._console = console
        self._quiet = quiet
        self._clock = clock
        self._title = ""
        self._headed = False
        self._last_line = 0.0
        self._live: tuple[Progress, TaskID] | None = None

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Enter a stage; its time is kept under ``title``. Times of the same title are added."""
        start = self._last_line = self._clock()
        self._title, self._headed = title, False
        with self._bar(title):
            if self._live is None:
                self._head()
            yield
        elapsed_s = self._clock() - start
        self.times_s[title] = self.times_s.get(title, 0.0) + elapsed_s
        if not self._quiet:
            line = f"[green]done[/] {escape(f'{title:<{_TITLE_WIDTH}}')} {elapsed_s:6.1f} s"
            self._console.print(line, highlight=False, soft_wrap=True)

    def step(self, done: int, total: int, what: str = "") -> None:
        """Move the bar. Plain output gets a line at most every five seconds."""
        if self._live is not None:
            bar, task = self._live
            bar.update(task, completed=done, total=total, count=escape(f"{done}/{total} {what}".rstrip()))
        elif not self._quiet and done < total and self._clock() - self._last_line >= _PLAIN_INTERVAL_S:
            self._last_line = self._clock()
            line = f"  {self._title}: {done}/{total} {what}".rstrip()
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line below the stage's title, except when quiet."""
        if not self._quiet:
            self._head()
            self._console.print(f"  {text}", highlight=False, markup=False, style="dim", soft_wrap=True)

    def warn(self, text: str) -> None:
        """Show a warning, even when quiet, and keep it for the summary."""
        if text not in self.warnings:
            self.warnings.append(text)
            show_warning(self._console, text)

    def _head(self) -> None:
        """Print the stage's title once: at its start, or before its first note where the bar shows it."""
        if not (self._quiet or self._headed) and self._title:
            self._headed = True
            self._console.print(f"{self._title} ...", highlight=False, markup=False)

    @contextmanager
    def _bar(self, title: str) -> Iterator[None]:
        if self._quiet or not self._console.is_terminal:
            yield
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            self._live = bar, bar.add_task(escape(title), total=None, count="")
            try:
                yield
            finally:
                self._live = None


def show_warning(console: Console, text: str) -> None:
    """Print one warning without markup and without wrapping."""
    console.print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


def flow(items: Iterable[str], width: int, joint: str = ", ") -> list[str]:
    """Return ``items``, joined by ``joint``, as lines of at most ``width`` characters. No item is split."""
    end = joint.rstrip()
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(joint) + len(item) + len(end) <= width:
            lines[-1] += joint + item
        else:
            lines = [*lines[:-1], lines[-1] + end, item] if lines else [item]
    return lines
