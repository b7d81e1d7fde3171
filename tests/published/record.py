"""Record a transcript: `python -m tests.published.record METHOD --checkout PATH`.

PATH is a checkout of the authors' repository at the commit that the method's module names.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from tests.published.source import FOLDER, published, text


def record(method: str, checkout: Path) -> Path:
    """Run the authors' code on all cases of a method, and write what it gave."""
    torch.set_num_threads(1)  # sums do not depend on the machine's cores
    module = published(method)
    digest = hashlib.sha256((checkout / module.SOURCE.file).read_bytes()).hexdigest()
    with torch.no_grad():
        cases = [(case, module.theirs(checkout, case)) for case in module.CASES]
    file = FOLDER / f"{method}.json"
    FOLDER.mkdir(exist_ok=True)
    file.write_text(text(method, module.SOURCE, digest, cases), encoding="utf-8")
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
