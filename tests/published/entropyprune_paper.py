"""EntropyPrune with the trace, which the paper defines and the published code leaves out.

If every token's matrix has the same trace, both rank alike: such are the cases that agree. For the usual queries they
are two methods. How the code is run, and where it is from, is in `entropyprune_reference.py`.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tests.published import entropyprune_reference as reference
from tests.published.source import Case, Result

SOURCE = reference.SOURCE
DIFFERS = "the code does not divide by the trace; see entropyprune-reference"
CASES: list[Case] = [
    *({**case, "trace": 1.0} for case in reference.CASES[:12]),
    *({**case, "differs": DIFFERS} for case in reference.CASES[:12:6]),
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Queries as those of the reference; with a `trace`, scaled so that every token's matrix has this trace."""
    query = reference.inputs(case)["query"]
    if "trace" not in case:
        return {"query": query}
    centred = query - query.mean(2, keepdim=True)
    trace = centred.square().sum((2, 3), keepdim=True) / case["heads"]
    return {"query": query * (case["trace"] / trace).sqrt()}


def theirs(checkout: Path, case: Case) -> Result:
    """The authors' selection."""
    return reference.run(checkout, case, inputs(case)["query"])


def ours(case: Case) -> Result:
    """With the trace."""
    return reference.chosen(case, inputs(case)["query"], "trace")
