"""How much of the true foreground each method keeps (`python benchmarks/foreground_kept.py`, prints markdown).

On held-out pictures of the digits task, per named method at 16 of 144 tokens, before the layers where it prunes by
itself: the share of the tokens that show a digit which survive. Random and oracle are the lower and the upper line. It
is not accuracy: it says where a score looks.
"""

from __future__ import annotations

import torch

import tokenprune as tp
from tokenprune import plugins
from tokenprune.config import Method
from tokenprune.models.embedded import Digits as Model
from tokenprune.named import list_methods
from tokenprune.tasks.base import foreground_tokens
from tokenprune.tasks.digits import Digits as Task

PICTURES, BATCH, TOKENS = 48, 16, 16


def methods() -> dict[str, Method]:
    """Every named method that keeps tokens of single pictures, at the same count."""
    with plugins.builtin_only():
        names = [method.name for method in list_methods()]
    found = {name: tp.load_method(name, budget="keep_count", tokens=TOKENS) for name in names if name != "vtw"}
    # the published object layer is the ninth of 24, the embedded model's tower has six
    found["hiprune"] = found["hiprune"].model_copy(
        update={"pruner": found["hiprune"].pruner.model_copy(update={"object_layer": 2})}
    )
    return found


@torch.no_grad()
def main() -> None:
    loaded = Model(dtype="bfloat16").load()
    samples = Task(split="validation", questions=PICTURES, types=("recognise",)).samples()
    print(f"Share of the foreground tokens kept at {TOKENS} of 144, {PICTURES} validation pictures:\n")
    print("| method | before layers | foreground kept |\n|---|---|---:|")
    lines = []
    for name, method in methods().items():
        kept = shown = 0
        try:
            with tp.apply(loaded.model, method) as run:
                for start in range(0, PICTURES, BATCH):
                    batch = samples[start : start + BATCH]
                    inputs = loaded.encode(batch)
                    shares = [foreground_tokens(sample, 12, 12) for sample in batch]
                    run.annotate(sample_ids=range(start, start + len(batch)), foreground=shares)
                    loaded.model(**inputs, logits_to_keep=1)
                    for row, share, ids in zip(run.stages[-1].kept, shares, inputs["input_ids"], strict=True):
                        first = int((ids == loaded.model.config.image_token_id).nonzero()[0])
                        chosen = row[row >= 0] - first
                        kept += int((share[chosen] > 0).sum())
                        shown += int((share > 0).sum())
                layers = ", ".join(map(str, run.choice.layers))
        except tp.TokenPruneError as error:
            lines.append((-1.0, f"| {name} | - | did not run: {error} |"))
            continue
        lines.append((kept / shown, f"| {name} | {layers} | {100 * kept / shown:.1f} % |"))
    for _, line in sorted(lines, key=lambda item: -item[0]):
        print(line)


if __name__ == "__main__":
    main()
