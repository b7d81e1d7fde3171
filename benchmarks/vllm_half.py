"""How often the same method chooses other tokens in vLLM than in transformers when both run in bfloat16, and why.

    python benchmarks/vllm_half.py benchmarks/results/vllm/half.md

Small checkpoints with random weights, 40 pictures of coloured squares, a quarter of the tokens kept. Three comparisons,
each of the sets of kept tokens: vLLM with transformers in float32 (a control: they should be equal), vLLM with
transformers in bfloat16, and transformers in bfloat16 with itself in float32, which is what rounding alone does. The
second table compares the features that the methods choose from. Needs the environment of `make test-vllm`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "plugins" / "tokenprune-vllm" / "tests"))
import torch  # noqa: E402
import transformers as tf  # noqa: E402
from checkpoints import save, shown  # noqa: E402
from equality import Prompt, Reference, engine, picture  # noqa: E402
from torch import Tensor  # noqa: E402

import conftest  # noqa: E402, F401
import tokenprune as tp  # noqa: E402
from tokenprune.adapters import adapter_for  # noqa: E402
from tokenprune_vllm import model as served  # noqa: E402

FAMILIES = ("llava", "qwen2_5_vl", "internvl")
METHODS = ("divprune", "mmr", "scope", "visionzip", "vispruner", "holov")
RATIO = 0.25
DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Choice:
    """What was chosen for one picture.

    Attributes:
        kept: Places of the kept tokens among the picture's.
        features: What the method chose from, ``[tokens, dim]``.
    """

    kept: frozenset[int]
    features: Tensor


def in_transformers(folder: Path, dtype: torch.dtype, prompts: Sequence[Prompt]) -> dict[str, list[Choice]]:
    """Method -> the choice for each picture."""
    reference, found = Reference(folder), {}
    reference.model = tf.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    for name in METHODS:
        found[name] = [_chosen(reference, tp.load_method(name, keep_ratio=RATIO), prompt) for prompt in prompts]
    return found


@torch.no_grad()
def _chosen(reference: Reference, how: tp.Method, prompt: Prompt) -> Choice:
    features: list[Tensor] = []
    select = type(how.pruner).select

    def watched(pruner: Any, context: Any) -> Any:
        features.append(context.hidden[0].float())
        return select(pruner, context)

    inputs = reference.inputs(prompt)
    with _replaced(type(how.pruner), "select", watched), tp.apply(reference.model, how) as run:
        reference.model(**inputs)
    visual = torch.isin(inputs["input_ids"][0], torch.tensor(adapter_for(reference.model).visual_ids)).nonzero()[:, 0]
    number = {place: number for number, place in enumerate(visual.tolist())}
    return Choice(frozenset(number[place] for place in run.stages[0].kept[0].tolist()), features[0])


def in_vllm(folder: Path, dtype: torch.dtype, prompts: Sequence[Prompt]) -> dict[str, list[Choice]]:
    """Method -> the choice for each picture."""
    from vllm import SamplingParams

    seen: list[Choice] = []
    choose = served.choose

    def watched(how: tp.Method, states: Tensor, *arguments: Any) -> Any:
        keep, new = choose(how, states, *arguments)
        seen.append(Choice(frozenset(keep.nonzero()[:, 0].tolist()), states.float()))
        return keep, new

    found = {}
    with _replaced(served, "choose", watched):
        llm = engine(folder, dtype=str(dtype).removeprefix("torch."), settings={"method": "unpruned"})
        for name in METHODS:
            seen.clear()
            for prompt in prompts:
                request = {"prompt": prompt.text, "multi_modal_data": prompt.data}
                request["mm_processor_kwargs"] = {"tokenprune": {"method": name, "ratio": RATIO}}
                llm.generate([request], SamplingParams(max_tokens=1), use_tqdm=False)
            assert len(seen) == len(prompts)
            found[name] = list(seen)
    return found


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value for a while."""
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def compared(ones: Sequence[Choice], others: Sequence[Choice]) -> str:
    """Pictures with another choice, and the mean share of the kept tokens that are the same there."""
    pairs = [(one.kept, other.kept) for one, other in zip(ones, others, strict=True)]
    shared = [len(one & other) / len(one) for one, other in pairs if one != other]
    return "0" if not shared else f"{len(shared)} ({100 * statistics.mean(shared):.0f} %)"


def apart(ones: Sequence[Choice], others: Sequence[Choice]) -> float:
    """The median over pictures of the distance of two sets of features, relative to their size."""
    pairs = zip(ones, others, strict=True)
    return statistics.median(
        float((one.features - other.features).norm() / other.features.norm()) for one, other in pairs
    )


INTRODUCTION = """# Selections in bfloat16: vLLM and transformers

`python benchmarks/vllm_half.py benchmarks/results/vllm/half.md`

Of {pictures} pictures: those for which other tokens are kept, and the mean share of the kept tokens that are the same
for these. *vLLM* is compared with transformers in the same dtype; the last column compares transformers with itself.
The second table has the median distance of the features that are chosen from, relative to their size: 0 where most
pictures have the same features to the bit.

| family | method | vLLM: float32 | vLLM: bfloat16 | transformers: bfloat16, float32 |
|---|---|---:|---:|---:|"""


def main() -> None:
    """Write the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="the Markdown file")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    given = parser.parse_args()
    lines, notes = [INTRODUCTION.format(pictures=given.pictures)], []
    for family in given.families:
        folder = save(family, Path(tempfile.mkdtemp()))
        prompts = [Prompt(f"w10 {shown(family)} w40", (picture(224, 224, seed),)) for seed in range(given.pictures)]
        ours = {dtype: in_transformers(folder, dtype, prompts) for dtype in DTYPES}
        theirs = {dtype: in_vllm(folder, dtype, prompts) for dtype in DTYPES}
        single, half = DTYPES
        for name in METHODS:
            cells = [compared(theirs[dtype][name], ours[dtype][name]) for dtype in DTYPES]
            cells.append(compared(ours[half][name], ours[single][name]))
            lines.append(f"| {family} | {name} | {' | '.join(cells)} |")
        distances = [apart(theirs[dtype]["divprune"], ours[dtype]["divprune"]) for dtype in DTYPES]
        distances.append(apart(ours[half]["divprune"], ours[single]["divprune"]))
        notes.append(f"| {family} | {' | '.join(f'{distance:.1e}' for distance in distances)} |")
    lines += ["\n| family | vLLM: float32 | vLLM: bfloat16 | transformers: bfloat16, float32 |", "|---|---:|---:|---:|"]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text("\n".join([*lines, *notes]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
