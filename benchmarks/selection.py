"""The time of the selection: our pruners beside the authors' way, paired in one process.

    python benchmarks/selection.py [--device cuda] [--dtype bfloat16] [--methods dycoke,evs] [--rounds 11]
                                   [--checkout divprune=PATH] [--json FILE]

- *ours*: ``Pruner.select`` on a new context of the same tensors. Making the context and gathering the visual tokens is
  not timed; everything that the pruner derives from them is.
- *authors*: the function of `selection_literal.py`, which has the loops and the vectorisation of the published code.
- *published* (with ``--checkout NAME=PATH``): the authors' own function out of a checkout of their repository.

Both run in every round, in an order of its own, on seeded random tensors: 576 tokens (LLaVA-1.5; 8 frames of 8 x 9) and
2,880 tokens (LLaVA-NeXT; 20 frames of 12 x 12). On a CPU with one thread the time is that thread's own, which other
programs on the machine disturb little; else it is the time that passes. The ratio is ours / authors, round by round:
below 1 ours is faster. The last column compares the kept tokens. DyCoke's differ because the published loop leaves the
third frame of the last group whole (`tests/published/dycoke.py`). VisPruner's can differ by rounding, because one swap
of nearly equal scores changes all later rounds (`half_precision.py`).
ToMe's authors merge the tower's narrow states, so compare its row `tome-matching`, not the whole method.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import selection_literal as literal
import torch
from torch import Tensor

from tokenprune.measure.latency import Spread, Stopwatch, environment, ratios
from tokenprune.ops.bipartite import plan_rounds, soft_matching
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dpp import Dpp
from tokenprune.pruners.dycoke import DyCoke
from tokenprune.pruners.evs import Evs
from tokenprune.pruners.hiprune import HiPrune
from tokenprune.pruners.holov import HoloV
from tokenprune.pruners.max_min import MaxMin
from tokenprune.pruners.scope import Scope
from tokenprune.pruners.tome import ToMe
from tokenprune.pruners.topk import TopK
from tokenprune.pruners.visionzip import VisionZip
from tokenprune.pruners.vispruner import VisPruner
from tokenprune.pruners.vscan import VScan
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.signals.context import PruneContext
from tokenprune.testing import TowerTensors, make_context

Result = TypeVar("Result")

LAYER, SHALLOW = -2, 5  # of the tower, the layers that these methods read
COLUMNS = 24  # of the grid of an image
VIDEOS = {576: (8, 8, 9), 2880: (20, 12, 12)}  # frames, rows, columns


@dataclass(frozen=True)
class Inputs:
    """The tensors of one image or video.

    Attributes:
        states: Visual tokens, ``[n, 4096]``.
        keys: Keys of the tower, float32 ``[n, 64]``.
        query: Query states, ``[n, 32, 128]``.
        attention: Attention of the tower's class token, float32 ``[n]``.
        relevance: Relevance of each token, and attention from all tokens of the tower, float32 ``[n]``.
        grid: (frame, row, column), long ``[n, 3]``.
    """

    states: Tensor
    keys: Tensor
    query: Tensor
    attention: Tensor
    relevance: Tensor
    grid: Tensor

    @classmethod
    def of(cls, tokens: int, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Seeded tensors. Tokens share a component, and the tokens of one place of all frames share another."""
        generator = torch.Generator().manual_seed(tokens)
        frames, rows, columns = VIDEOS[tokens]
        own, place = (torch.randn(count, 4096, generator=generator) for count in (tokens, rows * columns))
        states = own + place.repeat(frames, 1) + torch.randn(4096, generator=generator)
        axes = [torch.arange(size) for size in (frames, rows, columns)]
        tensors = [
            states,
            torch.randn(tokens, 64, generator=generator) + torch.randn(64, generator=generator),
            torch.randn(tokens, 32, 128, generator=generator),
            torch.randn(tokens, generator=generator).softmax(0),
            torch.rand(tokens, generator=generator),
        ]
        grid = torch.cartesian_prod(*axes).to(device)
        return cls(tensors[0].to(device, dtype), *(tensor.to(device) for tensor in tensors[1:]), grid)

    def context(self, keep: int, video: bool, open_ended: bool) -> PruneContext:
        """A new context. The tokens of one place of a video are compared; an image has one grid without frames."""
        place = torch.arange(len(self.states), device=self.grid.device)
        grid = self.grid if video else torch.stack([place * 0, place // COLUMNS, place % COLUMNS], -1)
        shown = TowerTensors(self.attention[None], self.relevance[None], self.keys[None], self.states[None])
        context = make_context(
            self.states[None],
            keep=keep,
            grid=grid[None],
            query=self.query[None],
            tower=dict.fromkeys((SHALLOW, LAYER), shown),
            annotations={"relevance": self.relevance[None]},
            sizes=[[len(self.states)]],
            open_ended=open_ended,
        )
        context.hidden, context.query  # noqa: B018  gathered here, so that it is not timed
        return context


@dataclass(frozen=True)
class Case:
    """How a method is compared.

    Attributes:
        ours: Our pruner.
        authors: The literal selection from the inputs and the number of tokens to keep: the kept indices.
        keep: Share of the tokens to keep.
        video: Whether the tokens are those of a video, and the method has its own count (budget ``adaptive``).
        largest: Most tokens to measure; the authors' way of some methods takes minutes per round with 2,880.
    """

    ours: Pruner
    authors: Callable[[Inputs, int], Tensor]
    keep: float = 0.1112
    video: bool = False
    largest: int = 2880


CASES = {
    "dycoke": Case(DyCoke(rate=0.7), lambda x, keep: literal.dycoke(x.states, int(x.grid[-1, 0]) + 1, 0.7), video=True),
    "evs": Case(Evs(rate=0.75), lambda x, keep: literal.evs(x.states, int(x.grid[-1, 0]) + 1, 0.75), video=True),
    "holov": Case(HoloV(layer=LAYER), lambda x, keep: literal.holov(x.states, x.attention, 16, keep)),
    "tome": Case(ToMe(layer=LAYER), lambda x, keep: literal.tome(x.keys, x.states, keep, 24)),
    "cdpruner": Case(
        Dpp(relevance={"name": "annotation", "field": "relevance"}, theta=None),
        lambda x, keep: literal.cdpruner(x.states[None], x.relevance[None], keep),
    ),
    "divprune": Case(MaxMin(), lambda x, keep: literal.divprune(x.states, keep), keep=0.098),
    "vispruner": Case(
        VisPruner(layer=LAYER), lambda x, keep: literal.vispruner(x.states, x.attention, keep), largest=576
    ),
    "scope": Case(Scope(layer=LAYER), lambda x, keep: literal.scope(x.states, x.attention, keep), largest=576),
    "visionzip": Case(
        VisionZip(layer=LAYER),
        lambda x, keep: literal.visionzip(x.states, x.keys, x.attention, keep, int(keep * 10 / 64))[0],
    ),
    "vscan": Case(
        VScan(local_layer=SHALLOW, layer=LAYER),
        lambda x, keep: literal.vscan(x.states, x.attention, x.attention, keep, COLUMNS),
        largest=576,
    ),
    "hiprune": Case(
        HiPrune(object_layer=SHALLOW, deep_layer=LAYER),
        lambda x, keep: literal.hiprune(x.relevance, x.relevance, keep, 0.1, COLUMNS),
    ),
    "entropyprune-reference": Case(
        TopK(scorer=MatrixEntropy(normalization="none")), lambda x, keep: literal.entropyprune(x.query, keep)
    ),
}


class ThreadTime:
    """Times calls by the CPU time of this thread: on a shared machine it does not count other programs."""

    def time(self, call: Callable[[], Result]) -> tuple[Result, float]:
        """The result of a call, and its milliseconds."""
        before = time.thread_time()
        result = call()
        return result, (time.thread_time() - before) * 1e3


def matching(inputs: Inputs, keep: int) -> Tensor:
    """ToMe's matching alone, as our pruner calls it: no features are merged."""
    tokens, steps = len(inputs.keys), 24
    rounds = plan_rounds([(tokens, keep)], lambda length, target: -(-(length - target) // steps))
    representative = soft_matching(inputs.keys[None], rounds)
    return representative == torch.arange(tokens, device=representative.device)


def published(name: str, checkout: Path) -> Callable[[Inputs, int], object]:
    """The authors' function, out of their file, without importing their package.

    Args:
        name: Method.
        checkout: Folder of the authors' repository.

    Raises:
        SystemExit: The function of this method cannot be called alone.
    """

    def load(file: str, function: str, scope: dict[str, Any] | None = None) -> Callable[..., Any]:
        source = (checkout / file).read_text(encoding="utf-8")
        found = [
            node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        text = textwrap.dedent("\n".join(source.splitlines()[found[0].lineno - 1 : found[0].end_lineno]))
        names: dict[str, Any] = {"torch": torch, **(scope or {})}
        exec(compile(text, file, "exec"), names)  # code of a checkout that the user chose
        return names[function]  # type: ignore[no-any-return]

    if name == "dycoke":
        merge = load("llava/model/llava_arch.py", "dycole_ttm")
        return lambda x, keep: merge(x.states, len(x.states) // (int(x.grid[-1, 0]) + 1), 0.7)
    if name == "holov":
        select = load("llava/model/utils.py", "HoloV")
        return lambda x, keep: select(x.states[None], x.attention[None], 16, keep)
    if name == "divprune":
        file = "LLaVA/llava/model/llava_arch.py"
        owner = SimpleNamespace()
        owner.pairwise_cosine_similarity = load(file, "pairwise_cosine_similarity").__get__(owner)
        greedy = load(file, "DivPrune")
        return lambda x, keep: greedy(owner, x.states, len(x.states), None, keep / len(x.states))[0]
    raise SystemExit(f"the published function of {name!r} cannot be called alone; use dycoke, holov or divprune")


@torch.no_grad()
def measure(name: str, tokens: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: all ways run in every round, in an order of the round's own."""
    device = torch.device(args.device)
    inputs = Inputs.of(tokens, device, getattr(torch, args.dtype))
    case = CASES[name.removesuffix("-matching")]
    keep = int(tokens * case.keep)
    watch = ThreadTime() if device.type == "cpu" and args.threads == 1 else Stopwatch(device)

    def ours() -> tuple[Tensor, float]:
        if name == "tome-matching":
            return watch.time(lambda: matching(inputs, keep))
        context = inputs.context(1 if case.video else keep, case.video, open_ended=case.video)
        selection, milliseconds = watch.time(lambda: case.ours.select(context))
        return selection.keep, milliseconds

    def authors() -> tuple[Tensor, float]:
        if name == "tome-matching":
            return watch.time(lambda: literal.tome(inputs.keys, None, keep, 24))
        copy = replace(inputs, states=inputs.states.clone())  # as new as the context's, also in the processor's cache
        return watch.time(lambda: case.authors(copy, keep))

    ways: dict[str, Callable[[], tuple[Any, float]]] = {"ours": ours, "authors": authors}
    if name in args.checkout:
        theirs = published(name, args.checkout[name])

        def of_checkout() -> tuple[object, float]:
            copy = replace(inputs, states=inputs.states.clone())
            return watch.time(lambda: theirs(copy, keep))

        ways["published"] = of_checkout
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(-2, args.rounds):
        for way in random.Random(number).sample(list(ways), len(ways)):
            milliseconds = ways[way]()[1]
            if number >= 0:  # the first two rounds warm up
                times[way].append(milliseconds)
    mine = set(ours()[0][0].nonzero()[:, 0].tolist())
    other = set(authors()[0].tolist())
    return {
        "keep": len(mine),
        "ms": {way: Spread.of(values).to_dict() for way, values in times.items()},
        "ratio": {way: ratios(times["ours"], values).to_dict() for way, values in times.items() if way != "ours"},
        "jaccard": len(mine & other) / len(mine | other),
    }


def as_text(spread: dict[str, float], digits: int = 1) -> str:
    """A spread as text."""
    return f"{spread['median']:.{digits}f} ({spread['low']:.{digits}f}-{spread['high']:.{digits}f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CASES, "tome-matching"]
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="float32")
    parser.add_argument("--methods", help="names, separated by commas; default: all")
    parser.add_argument("--tokens", type=int, choices=list(VIDEOS), action="append", help="default: 576 and 2,880")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--checkout", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.checkout = {name: Path(path) for name, path in (item.split("=", 1) for item in args.checkout)}
    torch.set_num_threads(args.threads)
    where = environment(torch.device(args.device))
    print(
        f"torch {where['torch']}, {where['threads']} thread, {where['device']}, {args.dtype}; {args.rounds} rounds, "
        "median (quartiles)\n"
    )
    columns = ["Method", "Tokens", "Kept", "Ours, ms", "Authors' way, ms", "Ours / authors' way"]
    columns += ["Published, ms", "Ours / published"] if args.checkout else []
    columns += ["Same tokens (Jaccard)"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    rows = {}
    for tokens in args.tokens or VIDEOS:
        for name in args.methods.split(",") if args.methods else names:
            if tokens > CASES[name.removesuffix("-matching")].largest:
                continue
            row = rows[f"{name}, {tokens}"] = measure(name, tokens, args)
            ms, ratio = row["ms"], row["ratio"]
            cells = [name, f"{tokens:,}", str(row["keep"]), as_text(ms["ours"]), as_text(ms["authors"])]
            cells += [as_text(ratio["authors"], 2)]
            if args.checkout:
                both = "published" in ms
                cells += [as_text(ms["published"]), as_text(ratio["published"], 2)] if both else ["-", "-"]
            print("| " + " | ".join([*cells, f"{row['jaccard']:.3f}"]) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"where": where, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
