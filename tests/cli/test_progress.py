"""Progress where there is no terminal: lines, with a clock that the test moves."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tokenprune.cli.progress import Log, in_words, progress_bar


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def log(clock: Clock, lines: list[str]) -> Log:
    return Log(lines.append, clock)


def test_every_method_is_a_line_once(log: Log, clock: Clock, lines: list[str]) -> None:
    for step in range(6):
        log.show(f"method {step % 2}", step + 1, 6)
        clock.now += 1
    assert lines == ["after 0 s: method 0: 1 of 6", "after 1 s: method 1: 2 of 6, 1 a second, about 4 s left"]


def test_at_least_a_line_a_minute_with_rate_and_rest(log: Log, clock: Clock, lines: list[str]) -> None:
    log.show("a", 10, 100)  # a run that goes on: what was there before tells nothing of the rate
    for second in range(1, 181):
        clock.now += 1
        if second % 6 == 0:
            log.show("a", 10 + second // 6, 100)
        log.tick()
    assert lines == [
        "after 0 s: a: 10 of 100",
        "after 60 s: a: 20 of 100, 10 a minute, about 8 min left",
        "after 2 min: a: 30 of 100, 10 a minute, about 7 min left",
        "after 3 min: a: 40 of 100, 10 a minute, about 6 min left",
    ]


def test_a_step_that_takes_minutes_is_not_silent(log: Log, clock: Clock, lines: list[str]) -> None:
    for _ in range(130):
        clock.now += 1
        log.tick()
    log.show("a", 1, 2)
    for _ in range(60):
        clock.now += 1
        log.tick()
    assert lines == [
        "after 60 s: no step is done",
        "after 2 min: no step is done",
        "after 2 min: a: 1 of 2",
        "after 3 min: a: 1 of 2",
    ]


def test_a_new_phase_has_a_rate_of_its_own(log: Log, clock: Clock, lines: list[str]) -> None:
    log.show("a", 1, 10)
    clock.now += 90
    log.show("a", 10, 10)
    log.show("timing", 1, 6)
    clock.now += 60
    log.show("timing", 3, 6)
    log.tick()
    assert lines[-2:] == ["after 90 s: timing: 1 of 6", "after 2 min: timing: 3 of 6, 2 a minute, about 90 s left"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_terminal_has_a_bar_and_a_file_has_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for terminal in (False, True):
        out = io.StringIO()
        with progress_bar(Console(file=out, force_terminal=terminal)) as show:
            show("fastv", 1, 2)
        assert bool(out.getvalue()) == terminal
        assert capsys.readouterr().err == ("" if terminal else "after 0 s: fastv: 1 of 2\n")


def test_nothing_is_shown_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(Console(file=io.StringIO(), force_terminal=False)):
        pass
    assert capsys.readouterr().err == ""
