"""Prints the table of the README: what is left of the accuracy and of the work at three shares of the visual tokens.

    python benchmarks/front.py
    python benchmarks/front.py --ratios > benchmarks/results/ratio.md  # accuracies alone, task by task, down to 5 %

It measures nothing. Accuracies are those of the cells that docs/comparison/ shows, times those of
``benchmarks/results/speed/batch1.json``; FLOPs are computed as ``tokenprune flops`` does. A test compares the README
with this table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator

import yaml
from comparison import CLIPS, DOWNSAMPLED, PICTURES, TASKS, Method, Page, Result, first_random, table
from tables import OWN, PLAN, ROOT, cells

import tokenprune as tp
from tokenprune.measure.estimate import estimate

SPEED = ROOT / "benchmarks" / "results" / "speed" / "batch1.json"
#: Share of the visual tokens in % -> tokens of LLaVA-1.5's 576, averaged over the layers.
SHARES = {"33.3": 192, "22.2": 128, "11.1": 64}
ROWS: dict[str, Callable[[Result], Method | None]] = {
    f"`{OWN}`": lambda cell: cell.methods[OWN],
    "best rival of each cell": lambda cell: cell.rival,
    "random tokens": first_random,
    "smaller pictures, no pruning": lambda cell: cell.methods.get(DOWNSAMPLED),
}


def results() -> list[Result]:
    """The finished cells with equal layer averages, task by task, the largest share first."""
    return Page(cells(yaml.safe_load(PLAN.read_text(encoding="utf-8")))).of("average", (*PICTURES, *CLIPS))


def ratios() -> list[str]:
    """The lines of the table of docs/ratio.md."""
    shares = list(dict.fromkeys(item.share for item in results()))
    lines = []
    for task, title in TASKS.items():
        of_task = {item.share: item for item in results() if item.cell.task == task}
        lines += [[title, name, *(kept(pick(of_task[share])) for share in shares)] for name, pick in ROWS.items()]
    return table(["task", "method", *(f"{share} %" for share in shares)], lines)


def rows() -> Iterator[list[str]]:
    """The rows: accuracies, FLOPs, times."""
    by_share = {share: [item for item in results() if item.share == share] for share in SHARES}
    for name, pick in ROWS.items():
        yield [name, *(" · ".join(kept(pick(item)) for item in by_share[share]) for share in SHARES)]
    yield ["FLOPs of LLaVA-1.5-7B, computed", *(f"-{flops(tokens):.2f} %" for tokens in SHARES.values())]
    yield ["prefill of a 0.5B LLaVA, two CPU cores", *(f"{speed(tokens):.2f} × as fast" for tokens in SHARES.values())]


def kept(method: Method | None) -> str:
    """The share of the unpruned model's accuracy in %."""
    return "-" if method is None else f"{100 * method.kept:.0f}"


def flops(tokens: int) -> float:
    """What is saved of the FLOPs of a prompt with 60 text tokens, in %."""
    method = tp.load_method(OWN, average_tokens=tokens)
    return float(estimate("llava-1.5-7b", method, 60, None, False)["reduction_percent"])


def speed(tokens: int) -> float:
    """The median of the prefill's time, unpruned divided by pruned."""
    measured = json.loads(SPEED.read_text(encoding="utf-8"))
    (batch,) = measured["batches"]
    own = [row for row in batch["rows"] if row["name"] == OWN]  # in the order of the budgets
    by_budget = dict(zip(measured["config"]["tokens"], own, strict=True))
    return float(by_budget[tokens]["speedup"]["median"])


def main(ratio: bool = False) -> None:
    """Print a table."""
    columns = ["method, share of the visual tokens", *(f"{share} %" for share in SHARES)]
    print("\n".join(ratios() if ratio else table(columns, rows())).rstrip("\n"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", action="store_true", help="print the table of docs/ratio.md")
    main(parser.parse_args().ratios)
