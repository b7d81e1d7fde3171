"""Does a pruned model pay as the draft of the unpruned one? Same weights, two caches, the answer of greedy decoding.

    python benchmarks/draft.py > benchmarks/results/draft.md

The pruned model proposes tokens one by one; one forward of the unpruned model verifies them. The loop here is the
shortest that there is, so what it costs is less than what `generate(assistant_model=...)` would. All times are
processor time of the process, one thread; ratios are taken within rounds. The draft's prompt is an extra prefill. What
random weights accept says nothing, so the speedup is a function of the acceptance: the probability that the next
proposal is right. It is measured on the embedded model `digits`, which is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

import tokenprune as tp
from benchmarks.static_decode import small
from tokenprune.core.call_arguments import returned_cache
from tokenprune.core.clock import environment
from tokenprune.measure.decoding import Decoding, step_bytes
from tokenprune.measure.latency import Spread
from tokenprune.models.presets import Request, preset
from tokenprune_embedded.models import Digits
from tokenprune_embedded.tasks.digits import Digits as DigitsTask

Inputs = dict[str, Tensor]
T = TypeVar("T")

KEPT = (0.25, 0.11)
#: Proposals of one round; the speedups use the best of them.
LENGTHS = (1, 2, 4, 8)
ACCEPTANCES = (0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
NEW, PROPOSALS, REPEATS = 24, 4, 3
SAMPLES, WRITTEN = 24, 16
PUBLISHED = ("llava-0.5b", "llava-1.5-7b", "qwen2.5-vl-7b")


def clocked(work: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and its processor time in milliseconds."""
    start = time.process_time()
    value = work()
    return value, (time.process_time() - start) * 1e3


# ---- the loop ---


class Decoder:
    """One cache of the model: it reads tokens, and takes back the last ones.

    Args:
        model: The model, inside an ``apply`` block.
        inputs: The prompt of one sample.
    """

    def __init__(self, model: Any, inputs: Inputs) -> None:
        self._decoding = Decoding(model, 0)
        self._prompt = inputs["input_ids"].shape[1]
        output = model(**inputs, logits_to_keep=1, use_cache=True)
        self._cache = returned_cache(output)
        self.first = int(output.logits[0, -1].argmax())
        self.read = 0  # tokens behind the prompt

    def next(self, tokens: Sequence[int]) -> list[int]:
        """Read tokens, and return what greedy decoding writes behind each."""
        mask = torch.ones(1, self._prompt + self.read + len(tokens), dtype=torch.long)
        output = self._decoding.step(torch.tensor([tokens]), mask, self._cache)
        self.read += len(tokens)
        return [int(token) for token in output.logits[0].argmax(-1)]

    def crop(self, read: int) -> None:
        """Take tokens back, so that as many are left behind the prompt as given."""
        if read < self.read:
            self._cache.crop(read - self.read)
            self.read = read


def plain(target: Decoder, new: int) -> list[int]:
    """Greedy decoding."""
    tokens = [target.first]
    while len(tokens) < new:
        tokens += target.next(tokens[-1:])
    return tokens


@dataclass
class Counts:
    """Tokens that were proposed, and of these accepted; and rounds in which one was wrong."""

    proposed: int = 0
    accepted: int = 0
    wrong: int = 0


def drafted(target: Decoder, draft: Decoder, new: int) -> tuple[list[int], Counts]:
    """The same tokens, verified in rounds."""
    tokens, counts = [target.first], Counts()
    while len(tokens) < new:
        count = min(PROPOSALS, new - len(tokens) - 1)
        proposals: list[int] = []
        unread = tokens[draft.read :]
        for _ in range(count):
            proposals.append(draft.next(unread)[-1])
            unread = proposals[-1:]
        written = target.next([tokens[-1], *proposals])
        right = next((i for i, token in enumerate(proposals) if token != written[i]), count)
        tokens += written[: right + 1]
        target.crop(len(tokens) - 1)
        draft.crop(len(tokens) - 1)
        counts = Counts(counts.proposed + count, counts.accepted + right, counts.wrong + (right < count))
    return tokens, counts


# ---- what it costs ---


@dataclass
class DraftCost:
    """One budget, a value for each round: times divided by that of an unpruned step, and the run from end to end.

    Attributes:
        step: One step of the draft.
        prefill: Its prefill.
        whole: Unpruned greedy decoding divided by drafted decoding, prefills included.
        counts: What the last run proposed.
        same: Rounds in which it wrote the tokens of greedy decoding.
    """

    step: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    same: int = 0


@dataclass
class Costs:
    """One model and prompt, a value for each round.

    Attributes:
        step: Milliseconds of an unpruned step.
        prefill: The unpruned prefill divided by it.
        verify: The verification of so many proposals divided by it.
        drafts: By share of kept tokens.
    """

    step: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    verify: dict[int, list[float]] = field(default_factory=lambda: {length: [] for length in LENGTHS})
    drafts: dict[float, DraftCost] = field(default_factory=lambda: {ratio: DraftCost() for ratio in KEPT})


def forward_ms(decoder: Decoder, width: int) -> float:
    """Median milliseconds of reading so many tokens."""

    def once() -> float:
        _, took = clocked(lambda: decoder.next([7] * width))
        decoder.crop(0)
        return took

    return Spread.of([once() for _ in range(REPEATS)]).median


@torch.no_grad()
def measured(model: Any, inputs: Inputs, rounds: int) -> Costs:
    """Run all rounds; the method is DivPrune."""
    costs = Costs()
    with tp.apply(model, None) as run:
        for _ in range(rounds):
            target, prefill = clocked(lambda: Decoder(model, inputs))
            expected, steps = clocked(lambda: plain(target, NEW))  # noqa: B023
            target.crop(0)
            step = forward_ms(target, 1)
            costs.step.append(step)
            costs.prefill.append(prefill / step)
            for length, values in costs.verify.items():
                values.append(forward_ms(target, length + 1) / step)
            for ratio, cost in costs.drafts.items():
                with run.using(tp.load_method("divprune", average_ratio=ratio)):
                    draft, extra = clocked(lambda: Decoder(model, inputs))
                cost.step.append(forward_ms(draft, 1) / step)
                cost.prefill.append(extra / step)
                (tokens, cost.counts), took = clocked(lambda: drafted(target, draft, NEW))  # noqa: B023
                cost.whole.append((prefill + steps) / (prefill + extra + took))
                cost.same += tokens == expected
                target.crop(0)
    return costs


# ---- what follows from it ---


def speedup(acceptance: float, step: float, verify: dict[int, float]) -> float:
    """Unpruned decoding divided by drafted decoding, without prefills, at the best length of a round.

    Args:
        acceptance: Probability that a proposal is right where those before it were.
        step: A step of the draft, in steps of the unpruned model.
        verify: The verification of so many proposals, in the same unit.
    """
    written = {length: sum(acceptance**power for power in range(length + 1)) for length in verify}
    return max(written[length] / (length * step + cost) for length, cost in verify.items())


def break_even(step: float, verify: dict[int, float]) -> float:
    """The lowest acceptance in percent at which the draft is no loss; above 100 where there is none."""
    return next((percent for percent in range(101) if speedup(percent / 100, step, verify) >= 1), 101)


def shown(values: Sequence[float], digits: int = 2) -> str:
    """Median (quartiles)."""
    spread = Spread.of(values)
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


def percent(value: float) -> str:
    """A break-even."""
    return "never" if value > 100 else f"{value:.0f} %"


def paid_back(prefill: float, speed: float) -> str:
    """Tokens after which the draft's prefill is paid back."""
    return "never" if speed <= 1 else f"{prefill / (1 - 1 / speed):.0f}"


def cost_tables(costs: Costs) -> Iterator[str]:
    """The tables of one model."""
    verify = ", ".join(f"{length}: {shown(values)}" for length, values in costs.verify.items())
    yield f"An unpruned step takes {shown(costs.step, 0)} ms, and is the unit of all other times. "
    yield f"The unpruned prefill takes {shown(costs.prefill, 0)}. Verification by number of proposals: {verify}.\n"
    yield (
        "| kept | draft step | draft prefill | break-even acceptance | "
        + " | ".join(f"at {acceptance:.0%}" for acceptance in ACCEPTANCES)
        + " | prefill paid back after, at 90 % | at 100 % |"
    )
    yield "|---|" + "--:|" * (5 + len(ACCEPTANCES))
    for ratio, cost in costs.drafts.items():
        rounds = [{length: values[i] for length, values in costs.verify.items()} for i in range(len(cost.step))]
        pairs = list(zip(cost.step, rounds, strict=True))
        speeds = [[speedup(acceptance, *pair) for pair in pairs] for acceptance in ACCEPTANCES]
        middle = [Spread.of(values).median for values in speeds]
        evens = sorted(break_even(*pair) for pair in pairs)
        prefill = Spread.of(cost.prefill).median
        later = [paid_back(prefill, middle[ACCEPTANCES.index(acceptance)]) for acceptance in (0.9, 1.0)]
        yield (
            f"| {ratio:.0%} | {shown(cost.step)} | {shown(cost.prefill, 0)}"
            f" | {percent(evens[len(evens) // 2])} ({percent(evens[0])} to {percent(evens[-1])})"
            f" | {' | '.join(f'{value:.2f}' for value in middle)} | {' | '.join(later)} |"
        )
    yield f"\nFrom end to end, {NEW} tokens, {PROPOSALS} proposals a round:\n"
    yield "| kept | proposed | accepted | times faster than greedy | rounds with the same tokens |"
    yield "|---|--:|--:|--:|--:|"
    for ratio, cost in costs.drafts.items():
        same = f"{cost.same} of {len(cost.whole)}"
        yield f"| {ratio:.0%} | {cost.counts.proposed} | {cost.counts.accepted} | {shown(cost.whole)} | {same} |"


@torch.no_grad()
def acceptances(loaded: Any) -> Iterator[str]:
    """Real acceptance: what the pruned model writes behind each token of the unpruned model's answer."""
    samples = list(DigitsTask(split="test", questions=SAMPLES).samples())
    model, end = loaded.model, loaded.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    found: dict[tuple[str, float], list[list[bool]]] = {}
    lengths = []
    with tp.apply(model, None) as run:
        for sample in samples:
            inputs = loaded.encode([sample])
            tokens = plain(Decoder(model, inputs), WRITTEN)
            lengths.append(tokens.index(end) + 1 if end in tokens else WRITTEN)
            for name in ("fastv", "divprune"):
                for ratio in KEPT:
                    with run.using(tp.load_method(name, average_ratio=ratio)):
                        draft = Decoder(model, inputs)
                    guesses = [draft.first, *draft.next(tokens[:-1])]
                    found.setdefault((name, ratio), []).append(
                        [guess == token for guess, token in zip(guesses, tokens, strict=True)]
                    )
    yield f"The answers have {shown(lengths, 0)} tokens with their end; {len(samples)} questions.\n"
    yield f"| method | kept | first token | whole answer | all of {WRITTEN} tokens, past the answer's end |"
    yield "|---|---|--:|--:|--:|"
    for (name, ratio), rows in found.items():
        answers = [row[:length] for row, length in zip(rows, lengths, strict=True)]
        shares = [sum(map(sum, part)) / sum(map(len, part)) for part in ([row[:1] for row in rows], answers, rows)]
        yield f"| {name} | {ratio:.0%} | {' | '.join(f'{share:.0%}' for share in shares)} |"


def bounds() -> Iterator[str]:
    """Published models in bfloat16: what bytes alone allow."""
    yield "| model | visual tokens | kept | draft step | break-even acceptance | at 90 % | at 100 % |"
    yield "|---|--:|---|--:|--:|--:|--:|"
    for name in PUBLISHED:
        model = preset(name).build("meta", torch.bfloat16)
        text = model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = text.hidden_size // text.num_attention_heads
        token = 2 * text.num_hidden_layers * heads * size * 2  # keys and values, two bytes each
        for visual in (2025, 8100):
            for ratio in KEPT:
                pruned, whole = (step_bytes(model, int(token * (60 + visual * share))) for share in (ratio, 1))
                step, verify = pruned / whole, dict.fromkeys(LENGTHS, 1.0)
                speeds = " | ".join(f"{speedup(acceptance, step, verify):.2f}" for acceptance in (0.9, 1.0))
                even = percent(break_even(step, verify))
                yield f"| {name} | {visual:,} | {ratio:.0%} | {step:.2f} | {even} | {speeds} |"


def main() -> None:
    """Print all tables."""
    torch.set_num_threads(1)
    facts = environment(torch.device("cpu"))
    print("`python benchmarks/draft.py`; processor time of the process, one thread; median (quartiles) of the rounds  ")
    print(", ".join([facts["device"], *(f"{name} {facts[name]}" for name in ("torch", "transformers", "tokenprune"))]))
    for side, rounds in ((45, 5), (90, 3)):
        made = small(side)
        model = made.build("cpu", torch.float32)
        print(f"\n## {side * side:,} visual tokens, a small decoder, random weights, float32\n")
        print(*cost_tables(measured(model, made.inputs([Request(60)]), rounds)), sep="\n", flush=True)
    loaded = Digits().load()
    sample = DigitsTask(split="test", questions=1).samples()[0]
    print("\n## `digits`: 144 visual tokens, trained, float32\n")
    print(*cost_tables(measured(loaded.model, loaded.encode([sample]), 3)), sep="\n", flush=True)
    print("\nAcceptance, token by token behind what the unpruned model wrote:\n")
    print(*acceptances(loaded), sep="\n", flush=True)
    print("\n## Published models, bfloat16: bounds by bytes read\n")
    print("A verification counts as one step, the draft's prefill and all else as nothing.\n")
    print(*bounds(), sep="\n")


if __name__ == "__main__":
    main()
