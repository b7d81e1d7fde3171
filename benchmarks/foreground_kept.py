"""How much of the true foreground each method keeps (`python benchmarks/foreground_kept.py`, prints markdown).

For every named method, at 16 of 144 tokens and before the method's own layers: the share of the tokens showing a digit
that survive, on held-out pictures of the digits task. Random and oracle are the lower and the upper bound. This is not
accuracy; it shows which tokens a score prefers.
"""

from __future__ import annotations

import torch

import tokenprune as tp
from tokenprune.config import Method
from tokenprune.core import plugins
from tokenprune.methods.named import list_methods
from tokenprune.tasks.base import foreground_tokens
from tokenprune_embedded.models import Digits as Model
from tokenprune_embedded.tasks.digits import Digits as Task

PICTURES, BATCH, TOKENS = 48, 16, 16


def methods() -> dict[str, Method]:
    """All named methods that can keep the same number of tokens of a picture."""
    with plugins.builtin_only():
        names = [method.name for method in list_methods()]
    by_name = {name: tp.load_method(name, keep_tokens=TOKENS) for name in names if name != "vtw"}
    # the published object layer is the ninth of 24; the tower of the embedded model has six
    pruner = by_name["hiprune"].pruner.model_copy(update={"object_layer": 2})
    by_name["hiprune"] = by_name["hiprune"].model_copy(update={"pruner": pruner})
    return by_name


@torch.no_grad()
def main() -> None:
    """Print the table, the best method first."""
    loaded = Model(dtype="bfloat16").load()
    samples = Task(split="validation", questions=PICTURES, types=("recognise",)).samples()
    print(f"Share of the foreground tokens kept at {TOKENS} of 144, {PICTURES} validation pictures:\n")
    print("| method | before layers | foreground kept |\n|---|---|---:|")
    lines = []
    for name, method in methods().items():
        kept_foreground = foreground = 0
        try:
            with tp.apply(loaded.model, method) as run:
                for start in range(0, PICTURES, BATCH):
                    batch = samples[start : start + BATCH]
                    inputs = loaded.encode(batch)
                    shares = [foreground_tokens(sample, 12, 12) for sample in batch]
                    run.annotate(sample_ids=range(start, start + len(batch)), foreground=shares)
                    loaded.model(**inputs, logits_to_keep=1)
                    for positions, share, ids in zip(run.stages[-1].kept, shares, inputs["input_ids"], strict=True):
                        first = int((ids == loaded.model.config.image_token_id).nonzero()[0])
                        kept = positions[positions >= 0] - first
                        kept_foreground += int((share[kept] > 0).sum())
                        foreground += int((share > 0).sum())
                layers = ", ".join(map(str, run.choice.layers))
        except tp.TokenPruneError as error:
            lines.append((-1.0, f"| {name} | - | did not run: {error} |"))
            continue
        kept_share = kept_foreground / foreground
        lines.append((kept_share, f"| {name} | {layers} | {100 * kept_share:.1f} % |"))
    for _, line in sorted(lines, key=lambda item: -item[0]):
        print(line)


if __name__ == "__main__":
    main()
