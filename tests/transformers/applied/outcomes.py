"""What became of a test in each mode, and whose fault it is. Pure functions: no torch, no transformers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

PASSED, REFUSED, FAILED, SKIPPED = "passed", "refused", "failed", "skipped"
SEVERITY = {SKIPPED: 0, PASSED: 1, REFUSED: 2, FAILED: 3}
"""Of the parts of one test (subtests) the worst counts, and one that runs counts more than one that is skipped."""


@dataclass(frozen=True)
class Outcome:
    """One test in one mode.

    Attributes:
        test: ``family::class::test``.
        result: ``passed``, ``refused`` (by an error of ours), ``failed`` or ``skipped``.
        why: The message of the refusal or failure.
        where: The innermost lines of the traceback.
        drops: Prompts of which visual tokens were dropped.
        outputs: A digest per call of a model, down to the bit.
    """

    test: str
    result: str
    why: str = ""
    where: tuple[str, ...] = ()
    drops: int = 0
    outputs: tuple[str, ...] = field(default=(), repr=False)

    @property
    def family(self) -> str:
        """The folder of the test's file."""
        return self.test.split("::")[0]


@dataclass(frozen=True)
class Verdict:
    """A mode against the baseline.

    Attributes:
        passed: Tests that passed.
        pruned: Those among them in which visual tokens were dropped.
        refused: Tests that an error of ours ended, by message.
        failures: Tests that fail for our fault, with what happened.
        not_ours: Tests that fail without us, too.
        left_out: Tests that are skipped without us, too, and those that are excused.
        idle: Families in which no test dropped anything.
    """

    passed: int
    pruned: int
    refused: Mapping[str, list[str]]
    failures: Mapping[str, str]
    not_ours: int
    left_out: int
    idle: list[str]


def name_of(node: str) -> str:
    """``family::class::test`` of pytest's ``tests/models/FAMILY/FILE.py::CLASS::TEST``."""
    path, _, rest = node.partition("::")
    return f"{Path(path).parent.name}::{rest}"


def refusal(error: BaseException | None, ours: type[BaseException]) -> BaseException | None:
    """The error of ours in a chain of exceptions (raised from, or while another was handled)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, ours):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def write(path: Path, outcome: Outcome) -> None:
    """Append an outcome to a file of lines of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")


def read(path: Path) -> dict[str, Outcome]:
    """The outcomes of a file, by test. A test with subtests has a line for each, with what was there until then."""
    parts: dict[str, list[Outcome]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        values: dict[str, Any] = json.loads(line)
        values["where"], values["outputs"] = tuple(values["where"]), tuple(values["outputs"])
        parts.setdefault(values["test"], []).append(Outcome(**values))
    return {test: _together(lines) for test, lines in parts.items()}


def _together(parts: list[Outcome]) -> Outcome:
    worst = max(parts, key=lambda part: SEVERITY[part.result])
    outputs = max((part.outputs for part in parts), key=len)
    return replace(worst, drops=max(part.drops for part in parts), outputs=outputs)


def judge(
    baseline: Mapping[str, Outcome],
    outcomes: Mapping[str, Outcome],
    equal: bool,
    drops: bool,
    excused: Container[str] = (),
) -> Verdict:
    """Compare a mode with the baseline.

    Args:
        baseline: Without a method.
        outcomes: With one.
        equal: Whether every output has to be equal to the baseline's, down to the bit.
        drops: Whether something has to be dropped in every family.
        excused: Names of tests that need not pass.
    """
    refused: dict[str, list[str]] = {}
    failures: dict[str, str] = {}
    passed, not_ours, left_out = [], 0, 0
    for test, before in baseline.items():
        now = outcomes.get(test)
        if before.result == SKIPPED:
            left_out += 1
        elif now is None:
            failures[test] = "it did not run"
        elif now.result == REFUSED:
            refused.setdefault(grouped(now.why), []).append(test)
        elif before.result == FAILED:
            not_ours += 1
        elif now.result == FAILED and test.split("::")[-1] in excused:
            left_out += 1
        elif now.result != PASSED:
            failures[test] = " | ".join([now.result, now.why, *now.where[-3:]])
        elif equal and now.outputs != before.outputs:
            failures[test] = f"other outputs than without a method: {differing(before.outputs, now.outputs)}"
        else:
            passed.append(now)
    families = {outcome.family for outcome in baseline.values()}
    busy = {outcome.family for outcome in outcomes.values() if outcome.drops}
    pruned = sum(bool(outcome.drops) for outcome in passed)
    return Verdict(len(passed), pruned, refused, failures, not_ours, left_out, sorted(families - busy) if drops else [])


def differing(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """The first call whose output differs."""
    if len(before) != len(now):
        return f"{len(now)} calls for {len(before)}"
    number = next(n for n, pair in enumerate(zip(before, now, strict=True)) if pair[0] != pair[1])
    return f"call {number} of {len(before)}: {now[number]} for {before[number]}"


def grouped(message: str) -> str:
    """A message without its numbers: refusals of one kind are told once."""
    return re.sub(r"\d+", "N", " ".join(message.split()))


def table(verdicts: Mapping[str, Verdict]) -> str:
    """One line per mode."""
    rows: list[tuple[str, ...]] = [
        ("mode", "passed", "with a drop", "refused", "failed", "failed without us", "skipped")
    ]
    for mode, one in verdicts.items():
        refused = sum(map(len, one.refused.values()))
        numbers = (one.passed, one.pruned, refused, len(one.failures), one.not_ours, one.left_out)
        rows.append((mode, *map(str, numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def details(mode: str, verdict: Verdict) -> str:
    """The refusals of a mode by reason, and its failures one by one."""
    lines = []
    for why, tests in sorted(verdict.refused.items(), key=lambda item: -len(item[1])):
        lines += [f"{mode}: {len(tests)} refused: {why}", f"    {most_common(test.split('::')[-1] for test in tests)}"]
    lines += [f"{mode}: FAILED {test}: {what}" for test, what in verdict.failures.items()]
    lines += [f"{mode}: FAILED {family}: no test of this family dropped a visual token" for family in verdict.idle]
    return "\n".join(lines)


def most_common(names: Iterable[str], shown: int = 6) -> str:
    """``name (times), ...``, the most frequent first."""
    counts = Counter(names)
    rest = len(counts) - shown
    listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common(shown))
    return f"{listed} and {rest} more" if rest > 0 else listed
