"""Runs transformers' own tests of vision-language models with pruning applied; see README.md.

``python -m tests.transformers.run --checkout FOLDER``
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers

from tests.transformers.applied import outcomes
from tests.transformers.applied.chosen import EVERY_ROW, FAMILIES, test_file

HERE = Path(__file__).parent
PRUNED = ("nothing-dropped", "half")
MODES = ("baseline", *PRUNED)
UNSTEADY = "unsteady"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "_INSIDE_SUB_PROCESS": "1",  # some of their tests start a pytest of their own, to which nothing is applied
}
ENDED_BY_ITSELF = (0, 1)
"""Exit codes of pytest: all passed; some failed."""


def version_of(checkout: Path) -> str:
    """The version of a checkout of transformers.

    Raises:
        SystemExit: The folder is none, or it holds no tests.
    """
    init = checkout / "src" / "transformers" / "__init__.py"
    found = re.search(r'^__version__ = "(.+)"', init.read_text(encoding="utf-8"), re.M) if init.is_file() else None
    if found is None or not (checkout / "tests" / "models").is_dir():
        raise SystemExit(
            f"{checkout} is no checkout of transformers: it needs src/transformers/__init__.py with the version, and"
            " tests/models. See tests/transformers/README.md."
        )
    return found[1]


def check_version(checkout: str, installed: str, any_version: bool) -> str | None:
    """What to say about the two versions; None where they are equal.

    Raises:
        SystemExit: They differ, and that is not allowed.
    """
    if checkout == installed:
        return None
    differ = f"the checkout is transformers {checkout}, and transformers {installed} is installed"
    if not any_version:
        raise SystemExit(f"{differ}. Check out v{installed}, install {checkout}, or allow it with --any-version.")
    return f"WARNING: {differ}: tests may fail without us (they do not count)."


def run_mode(mode: str, checkout: Path, families: Sequence[str], outcomes_file: Path, options: Sequence[str]) -> None:
    """Run the tests in a process of their own, in the checkout.

    Raises:
        SystemExit: pytest did not come to an end.
    """
    # their tests are a package called tests, as ours are: the plugin is found beside it
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        *(sys.executable, "-m", "pytest", "--noconftest", "-c", str(HERE / "applied" / "pytest.ini")),
        *("--rootdir", str(checkout)),
        *("-p", "applied.plugin", "--pruning", mode, "--outcomes", str(outcomes_file)),
        *(str(checkout / test_file(family)) for family in families),
        *options,
    ]
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode not in ENDED_BY_ITSELF:
        raise SystemExit(f"{mode}: pytest ended with {done.returncode}:\n{done.stdout[-3000:]}")


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and those of pytest."""
    parser = argparse.ArgumentParser(prog="python -m tests.transformers.run", description=__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="a checkout of transformers, with its tests")
    parser.add_argument("--any-version", action="store_true", help="allow another version than the installed one")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="default: all of them")
    parser.add_argument("--outcomes", type=Path, help="folder for the outcomes of all tests (default: a temporary one)")
    parser.add_argument(
        "--unsteady",
        action="store_true",
        help="instead of the three modes: another choice in every call, so that comparisons have to fail",
    )
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the modes one after the other; the exit status is 1 if anything fails for our fault."""
    options, of_pytest = parse(arguments)
    checkout: Path = options.checkout.resolve()
    warning = check_version(version_of(checkout), transformers.__version__, options.any_version)
    if warning:
        print(warning)
    modes = ("baseline", UNSTEADY) if options.unsteady else MODES
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = (options.outcomes or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        results = {}
        for mode in modes:
            file = folder / f"{mode}.jsonl"
            file.unlink(missing_ok=True)
            print(f"==> {mode}", flush=True)
            run_mode(mode, checkout, options.families, file, of_pytest)
            results[mode] = outcomes.read(file)
    return report(results)


def judge(mode: str, baseline: dict[str, outcomes.Outcome], found: dict[str, outcomes.Outcome]) -> outcomes.Verdict:
    """What has to hold in a mode."""
    if mode == "nothing-dropped":
        return outcomes.judge(baseline, found, equal=True, drops=False)
    return outcomes.judge(baseline, found, equal=False, drops=True, excused=EVERY_ROW)


def report(results: dict[str, dict[str, outcomes.Outcome]]) -> int:
    """Print what happened; 1 if anything failed for our fault."""
    baseline = results.pop("baseline")
    verdicts = {mode: judge(mode, baseline, found) for mode, found in results.items()}
    for mode, verdict in verdicts.items():
        print(outcomes.details(mode, verdict))
    counts = outcomes.judge(baseline, baseline, equal=False, drops=False)
    print(outcomes.table({"baseline": counts, **verdicts}))
    return int(not baseline or any(one.failures or one.idle for one in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
