"""How much of the true foreground each method keeps (`python benchmarks/foreground_kept.py`, prints markdown).

On held-out pictures of the digits task, per method at 16 of 144 tokens: the share of the tokens that show a digit which
survive (recall), against the share that random pruning would keep, and the reference figure of the oracle.
"""

from __future__ import annotations

import torch

import tokenprune as tp
from tokenprune.models.embedded import Digits as Model
from tokenprune.tasks.base import foreground_tokens
from tokenprune.tasks.digits import Digits as Task

PICTURES, BATCH = 48, 16
METHODS = (
    "entropyprune",
    "entropyprune-reference",
    "fastv",
    "random",
    "oracle",
    "norm-query-large",
    "norm-query-small",
)


@torch.no_grad()
def main() -> None:
    loaded = Model(dtype="bfloat16").load()
    samples = Task(split="validation", questions=PICTURES, types=("recognise",)).samples()
    print(f"Share of the foreground tokens kept at 16 of 144, layer 2, {PICTURES} validation pictures:\n")
    print("| method | foreground kept |\n|---|---|")
    for name in METHODS:
        kept = shown = 0
        with tp.apply(loaded.model, tp.load_method(name, budget="keep_count", tokens=16)) as run:
            for start in range(0, PICTURES, BATCH):
                batch = samples[start : start + BATCH]
                inputs = loaded.encode(batch)
                shares = [foreground_tokens(sample, 12, 12) for sample in batch]
                run.annotate(sample_ids=range(start, start + len(batch)), foreground=shares)
                loaded.model(**inputs, logits_to_keep=1)
                for row, share, ids in zip(run.stages[0].kept, shares, inputs["input_ids"], strict=True):
                    first = int((ids == loaded.model.config.image_token_id).nonzero()[0])
                    chosen = row[row >= 0] - first
                    kept += int((share[chosen] > 0).sum())
                    shown += int((share > 0).sum())
        print(f"| {name} | {100 * kept / shown:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
