"""FLOPs of the published architectures, unpruned and pruned (`python benchmarks/flops.py`, prints markdown).

The first tables show the reduction by the length of the prompt, the last one compares the closed form with both
counters.
"""

from __future__ import annotations

import tokenprune as tp
from tokenprune.flops.decoder import model_flops, prefill_flops
from tokenprune.measure.counted import decoder_counted, decoder_traced, pruned_decoder_counted, vision_counted
from tokenprune.measure.estimate import estimate
from tokenprune.models.presets import PRESETS, Request

TEXTS = (0, 16, 32, 40, 48, 52, 56, 57, 60, 64, 80, 100, 128, 256, 512)


def reductions(model: str, budgets: list[tuple[str, dict[str, float]]], visual: int | None = None) -> None:
    """Print the reduction in percent, of the model / of the decoder alone, by text tokens and budget."""
    rows, heads = [], []
    for text in TEXTS:
        estimates = [
            estimate(model, tp.load_method("entropyprune", name, **fields), text, visual) for name, fields in budgets
        ]
        heads = [
            f"{name.replace('_', ' ')} {next(iter(fields.values())):g} (k = {row['kept'][0]})"
            for (name, fields), row in zip(budgets, estimates, strict=True)
        ]
        percent = [(row["reduction_percent"], row["parts"]["decoder"]["reduction_percent"]) for row in estimates]
        rows.append(f"| {text} | " + " | ".join(f"{total:.2f} / {decoder:.2f}" for total, decoder in percent) + " |")
    print("| text tokens | " + " | ".join(heads) + " |\n|" + "---:|" * (len(heads) + 1))
    print("\n".join(rows) + "\n")


def agreement() -> None:
    """Print closed form, torch's counter and fvcore on the device meta, unpruned and with 160 tokens from layer 2."""
    print("| model | part | closed form | torch | fvcore | largest difference |\n|---|---|---:|---:|---:|---:|")
    for name, chosen in PRESETS.items():
        model = chosen.build("meta")
        text = model.config.get_text_config()
        layers, tokens = text.num_hidden_layers, chosen.visual_tokens + 60
        closed = model_flops(model.config, chosen.visual_tokens, [tokens] * layers)
        pruned = [tokens] * 2 + [160] * (layers - 2)
        rows = {
            "tower and projector": (
                closed.vision + closed.projector,
                vision_counted(model, chosen.inputs([Request(1)])),
                None,
            ),
            f"decoder, {tokens} tokens": (
                closed.decoder,
                decoder_counted(model, tokens),
                decoder_traced(model, tokens),
            ),
            "decoder, 160 tokens from layer 2": (
                prefill_flops(text, pruned),
                pruned_decoder_counted(model, pruned),
                None,
            ),
        }
        for part, (formula, torch_count, traced) in rows.items():
            counts = [count for count in (torch_count, traced) if count is not None]
            worst = max(abs(count / formula - 1) for count in counts)
            columns = ["-" if flops is None else f"{flops / 1e12:.5f}" for flops in (formula, torch_count, traced)]
            print(f"| {name} | {part} | " + " | ".join(columns) + f" | {100 * worst:.4f} % |")
    print()


def main() -> None:
    """Print all tables."""
    averages = [("layer_average", {"tokens": tokens}) for tokens in (192, 128, 64)]
    print("Reduction of the prefill's FLOPs in percent, whole model / decoder alone. The paper's headline is 68.2 %")
    print("at 128 tokens; it does not state the length of its prompt.\n")
    print("### LLaVA-1.5-7B, 576 visual tokens, layer 2\n")
    reductions("llava-1.5-7b", averages)
    print("### LLaVA-1.5-13B, 576 visual tokens, layer 2\n")
    reductions("llava-1.5-13b", averages)
    print("### LLaVA-NeXT-7B, 2880 visual tokens, layer 2\n")
    print("160 can only mean kept tokens: two of 32 layers at 2880 alone average 180 over all layers.\n")
    kept = [("keep_count", {"tokens": tokens}) for tokens in (640, 320, 160)]
    next_averages = [("layer_average", {"tokens": tokens}) for tokens in (640, 320)]
    reductions("llava-next-7b", kept + next_averages, 2880)
    print("### Qwen2.5-VL-7B, 1296 visual tokens, layer 1\n")
    shares = [(kind, {"ratio": ratio}) for kind in ("keep_ratio", "layer_average") for ratio in (0.25, 0.125)]
    reductions("qwen2.5-vl-7b", shares)
    print("### Closed form and counters, TFLOPs\n")
    agreement()


if __name__ == "__main__":
    main()
