"""What stages say, on a terminal, in a log, and quietly."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from cpupack.console import ConsoleProgress, flow


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Screen:
    """A console that writes into a string, and the clock of its progress."""

    console: Console
    clock: Clock

    @property
    def text(self) -> str:
        file = self.console.file
        assert isinstance(file, io.StringIO)
        return file.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def progress(self, *, quiet: bool = False) -> ConsoleProgress:
        return ConsoleProgress(self.console, quiet=quiet, clock=self.clock)


@pytest.fixture
def log() -> Screen:
    return Screen(Console(file=io.StringIO(), width=80), Clock())


@pytest.fixture
def terminal() -> Screen:
    return Screen(Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard"), Clock())


def test_a_stage_in_a_log(log: Screen) -> None:
    progress = log.progress()
    with progress.stage("load"):
        log.clock.now_s += 2.0
        progress.note("25 layers [see docs]")
    assert log.lines == ["load ...", "  25 layers [see docs]", "done load                                2.0 s"]


def test_times_of_a_stage_add_up(log: Screen) -> None:
    progress = log.progress()
    for seconds in (1.0, 2.5):
        with progress.stage("load"):
            log.clock.now_s += seconds
    with progress.stage("fuse"):
        pass
    assert progress.times_s == {"load": 3.5, "fuse": 0.0}


def test_a_failed_stage_is_not_done(log: Screen) -> None:
    progress = log.progress()
    with pytest.raises(ValueError, match="broken"), progress.stage("load"):
        raise ValueError("broken")
    assert progress.times_s == {}
    assert log.lines == ["load ..."]


def test_a_log_says_how_far_it_is_every_five_seconds(log: Screen) -> None:
    progress = log.progress()
    with progress.stage("calibrate"):
        for done in range(1, 13):
            log.clock.now_s += 1.0
            progress.step(done, 12, "samples")
    assert log.lines[1:-1] == ["  calibrate: 5/12 samples", "  calibrate: 10/12 samples"]


def test_a_warning_is_said_once(log: Screen) -> None:
    progress = log.progress()
    with progress.stage("read data"):
        progress.warn("only 3 samples [of 300]")
        progress.warn("only 3 samples [of 300]")
    assert progress.warnings == ["only 3 samples [of 300]"]
    assert log.lines.count("warning: only 3 samples [of 300]") == 1


def test_long_lines_are_not_wrapped(log: Screen) -> None:
    text = "a path that somebody may want to copy: /" + "x" * 120
    progress = log.progress()
    progress.warn(text)
    progress.note(text)
    assert log.lines == [f"warning: {text}", f"  {text}"]


def test_quiet_shows_warnings_alone(log: Screen) -> None:
    progress = log.progress(quiet=True)
    with progress.stage("load"):
        log.clock.now_s += 60.0
        progress.step(1, 2)
        progress.note("a note")
        progress.warn("a warning")
    assert log.lines == ["warning: a warning"]
    assert progress.times_s == {"load": 60.0}


def test_quiet_on_a_terminal_has_no_bar(terminal: Screen) -> None:
    progress = terminal.progress(quiet=True)
    with progress.stage("load"):
        progress.step(1, 2)
    assert terminal.text == ""


def test_a_terminal_shows_the_count_in_a_bar_that_goes(terminal: Screen) -> None:
    progress = terminal.progress()
    with progress.stage("calibrate"):
        progress.step(30, 300, "samples")
    assert "30/300 samples" in terminal.text
    assert "calibrate ..." not in terminal.text
    assert "\x1b[?25l" in terminal.text  # hides the cursor
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # and shows it again
    assert "done" in terminal.lines[-1]


def test_the_first_note_on_a_terminal_has_its_title(terminal: Screen) -> None:
    progress = terminal.progress()
    with progress.stage("tune"):
        progress.note("1 thread: 10 samples/s")
        progress.note("2 threads: 18 samples/s")
    assert terminal.text.count("tune ...") == 1
    assert terminal.text.index("tune ...") < terminal.text.index("1 thread: 10")


def test_the_cursor_comes_back_when_a_stage_fails(terminal: Screen) -> None:
    progress = terminal.progress()
    with pytest.raises(KeyboardInterrupt), progress.stage("calibrate"):
        raise KeyboardInterrupt
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")


def test_flow_breaks_between_items_only() -> None:
    assert flow(["load 2.0", "run FP32 1.5", "tune 60.0"], 23) == ["load 2.0, run FP32 1.5,", "tune 60.0"]
    assert flow(["load 2.0", "run FP32 1.5"], 22) == ["load 2.0,", "run FP32 1.5"]
    assert flow(["much longer than the width"], 5) == ["much longer than the width"]
    assert flow(["one", "two", "three"], 8, joint=" ") == ["one two", "three"]
    assert flow([], 5) == []
