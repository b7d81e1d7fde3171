"""Record a transcript: `python -m tests.published.record METHOD --checkout PATH`.

PATH is a checkout of the authors' repository at the commit that the method's module names.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from tests.published.source import FOLDER, Source, published, text


def digest(source: Source, checkout: Path) -> str:
    """SHA-256 of the lines that a source names, joined by newlines: it tells whether a checkout has the same ones."""
    lines = (checkout / source.file).read_text(encoding="utf-8").splitlines()
    chosen = []
    for span in source.lines.split(", "):
        first, last = map(int, span.split("-"))
        chosen += lines[first - 1 : last]
    return hashlib.sha256("\n".join(chosen).encode()).hexdigest()


def record(method: str, checkout: Path) -> Path:
    """Run the authors' code on all cases of a method, and write what it gave."""
    torch.set_num_threads(1)  # sums do not depend on the machine's cores
    module = published(method)
    with torch.no_grad():
        cases = [(case, module.theirs(checkout, case)) for case in module.CASES]
    file = FOLDER / f"{method}.json"
    FOLDER.mkdir(exist_ok=True)
    file.write_text(text(method, module.SOURCE, digest(module.SOURCE, checkout), cases), encoding="utf-8")
    return file


def main() -> None:
    """Record one method's transcript."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--checkout", type=Path, required=True)
    options = parser.parse_args()
    print(record(options.method, options.checkout))


if __name__ == "__main__":
    main()
