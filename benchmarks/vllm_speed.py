"""The speed of tokenprune-vllm beside vLLM unpruned, and beside vLLM's own EVS for videos; paired in one run.

    python benchmarks/vllm_speed.py [--size 7b] [--rounds 5] [--output FOLDER] [--quick] [--keep-one]

The engines live in one run and are measured in turn, round by round: each answers the same new pictures in a closed
loop with 1, 8 or 32 requests in flight. A ratio is that of one round. Nothing is cached: not the processor's output,
not prefixes, and no picture is shown to an engine twice with the same settings. ``--keep-one`` measures only what the
plugin costs where nothing is pruned: many short rounds, with the seconds of CPU, which other work disturbs less.

Needs the environment of `make test-vllm`, or vLLM for CUDA with the plugin. Weights are random: they cost the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "plugins" / "tokenprune-vllm" / "tests"))
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # an engine, and beside it the process that reads pictures
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all engines would sit on the same cores
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(name, value)

import checkpoints  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
import transformers as tf  # noqa: E402
import yaml  # noqa: E402
from equality import clip, picture  # noqa: E402

import tokenprune_vllm  # noqa: E402
from tokenprune import load_method  # noqa: E402
from tokenprune.flops.decoder import head_flops, kv_cache_bytes, prefill_flops, step_flops  # noqa: E402
from tokenprune.flops.vision import vision_flops  # noqa: E402
from tokenprune.measure.latency import Spread, ratios  # noqa: E402
from tokenprune_vllm.private import installed_version  # noqa: E402

METHODS = ("divprune", "visionzip", "random")
KEEP = (0.5, 0.25, 0.1)
IN_FLIGHT = (1, 8, 32)
ANSWER = 16
UNPRUNED = "unpruned"


# ---- models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """The proportions of the models.

    Attributes:
        text: Fields of the language model of LLaVA.
        tower: Fields of LLaVA's tower.
        qwen_text: Fields of the language model of Qwen2.5-VL.
        qwen_tower: Fields of its tower.
        frames: Frames of a video; two are one to the model.
        video: Width and height of a video.
        dtype: The precision.
        weights: Whether weights are written; else vLLM makes its own.
    """

    text: dict[str, Any]
    tower: dict[str, Any]
    qwen_text: dict[str, Any]
    qwen_tower: dict[str, Any]
    frames: int
    video: tuple[int, int]
    dtype: str
    weights: bool


def _language(width: int, hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int = 200) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }


def _clip(width: int, layers: int, heads: int, side: int) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": 14,
        "projection_dim": width,
    }


def _qwen_tower(width: int, hidden: int, depth: int, heads: int, full: Sequence[int], out: int) -> dict[str, Any]:
    names = {"hidden_size": width, "intermediate_size": hidden, "depth": depth, "num_heads": heads}
    more = {"fullatt_block_indexes": list(full), "out_hidden_size": out, "window_size": 112}
    return {**checkpoints.PATCHES, **names, **more}


_SMALL = _language(384, 1024, 8, 12, 12)
_TINY = _language(128, 256, 2, 4, 2)
SIZES = {
    # for tests: 64 visual tokens
    "tiny": Size(
        text=_TINY,
        tower=_clip(64, 3, 2, 112),
        qwen_text=_TINY,
        qwen_tower=_qwen_tower(64, 128, 2, 2, [1], 128),
        frames=12,
        video=(112, 84),
        dtype="float32",
        weights=True,
    ),
    # the proportions of LLaVA-1.5-7B, a thousandth of its work per picture
    "cpu": Size(
        text=_SMALL,
        tower=_clip(128, 4, 4, 336),
        qwen_text=_SMALL,
        qwen_tower=_qwen_tower(128, 256, 4, 4, [3], 384),
        frames=24,
        video=(224, 168),
        dtype="float32",
        weights=True,
    ),
    # LLaVA-1.5-7B and Qwen2.5-VL-7B
    "7b": Size(
        text=_language(4096, 11008, 32, 32, 32, 32064),
        tower=_clip(1024, 24, 16, 336),
        qwen_text=_language(3584, 18944, 28, 28, 4, 152064),
        qwen_tower=_qwen_tower(1280, 3420, 32, 16, [7, 15, 23, 31], 3584),
        frames=24,
        video=(448, 336),
        dtype="bfloat16",
        weights=False,
    ),
}


def llava(size: Size) -> tuple[Any, Any, Any]:
    """Config, class and processor of LLaVA-1.5."""
    side = size.tower["image_size"]
    config = tf.LlavaConfig(
        vision_config=size.tower,
        text_config=checkpoints.text_config(model_type="llama", **size.text),
        image_token_id=checkpoints.IMAGE,
        image_seq_length=(side // 14) ** 2,
    )
    images = tf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = tf.LlavaProcessor(images, checkpoints.tokenizer("<image>"), **checkpoints.LLAVA)
    return config, tf.LlavaForConditionalGeneration, processor


def qwen(size: Size) -> tuple[Any, Any, Any]:
    """Config, class and processor of Qwen2.5-VL."""
    eighth = size.qwen_text["hidden_size"] // size.qwen_text["num_attention_heads"] // 8
    rope = {**checkpoints.MROPE, "mrope_section": [eighth, eighth * 3 // 2, eighth * 3 // 2]}
    config = tf.Qwen2_5_VLConfig(
        text_config=checkpoints.text_config(rope_parameters=rope, **size.qwen_text),
        vision_config=size.qwen_tower,
        **checkpoints.QWEN_IDS,
    )
    pixels = size.frames * size.video[0] * size.video[1]
    videos = tf.Qwen2VLVideoProcessor(patch_size=14, size={"shortest_edge": 28 * 28 * 4, "longest_edge": 2 * pixels})
    words = checkpoints.tokenizer(shown=checkpoints.QWEN_SHOWN)
    processor = tf.Qwen2_5_VLProcessor(checkpoints.qwen_images(), words, videos)
    return config, tf.Qwen2_5_VLForConditionalGeneration, processor


def write(config: Any, model_class: Any, processor: Any, size: Size, folder: Path) -> Path:
    """The checkpoint's folder; without weights for large models."""
    if size.weights:
        return checkpoints.write(model_class(config), processor, folder)
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# ---- the bound -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a request costs at least.

    Args:
        config: The model's config.
        model_class: Its class.
        visual: Visual tokens of a picture or video before pruning.
        images: Frames that the tower treats as pictures of their own.
        bytes_per_value: Of weights and caches.
    """

    config: Any
    model_class: Any
    visual: int
    images: int
    bytes_per_value: int

    def flops(self, prompt: int) -> int:
        """Tower, projector, prefill of the prompt that is left, and the steps of the answer; without the choice."""
        text = self.config.get_text_config(decoder=True)
        layers = text.num_hidden_layers
        tower = self.images * sum(vision_flops(self.config, self.visual // self.images))
        steps = sum(step_flops(text, [prompt + step] * layers) for step in range(ANSWER - 1))
        return tower + prefill_flops(text, [prompt] * layers) + steps + ANSWER * head_flops(text)

    def bytes(self, prompt: int, in_flight: int) -> float:
        """Weights, read once per step of all requests in flight, and the cache, written once and read by each step."""
        text = self.config.get_text_config(decoder=True)
        cache = kv_cache_bytes(text, [prompt] * text.num_hidden_layers, self.bytes_per_value)
        tower, language = (count * self.bytes_per_value for count in self.weights)
        return (tower + ANSWER * language) / in_flight + ANSWER * cache

    @cached_property
    def weights(self) -> tuple[int, int]:
        """Weights of tower and projector, and of the language model without its embedding, which is a look-up."""
        with torch.device("meta"):
            model = self.model_class(self.config)
        parts = {False: 0, True: 0}
        for name, weight in model.named_parameters():
            if "embed_tokens" not in name:
                parts["language_model" in name or "lm_head" in name] += weight.numel()
        return parts[False], parts[True]

    def __str__(self) -> str:
        tower, language = (f"{count / 1e6:.1f} million weights" for count in self.weights)
        return (
            f"{type(self.config).__name__.removesuffix('Config')}: a tower of {tower}, a language model of {language},"
            f" {self.visual} visual tokens"
        )


# ---- measuring -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One engine with one setting, for one round.

    Attributes:
        requests_per_s: Answers per second, over all.
        first_token_ms: Median over requests, from when it was sent.
        tokens_per_s: Median over requests, of one request from its first token to its last.
        prompt_tokens: Of one request, as the language model gets it.
        cpu_ms: CPU time of this process and of all its engines, per request.
    """

    requests_per_s: float
    first_token_ms: float
    tokens_per_s: float
    prompt_tokens: int
    cpu_ms: float


@dataclass(frozen=True)
class Way:
    """What is measured.

    Attributes:
        engine: The name of its engine: ``stock``, ``ours``, or one with vLLM's EVS.
        keep: Share of the visual tokens.
        method: The method.
    """

    engine: str
    keep: float
    method: str

    def asked(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request with what it asks of the plugin."""
        if self.engine != "ours":
            return request
        budget = {} if self.method == UNPRUNED else {"ratio": self.keep}
        return {**request, "mm_processor_kwargs": {"tokenprune": {"method": self.method, **budget}}}


class Engine:
    """A running engine.

    Args:
        folder: The checkpoint.
        size: Its proportions.
        share: Share of a GPU's memory.
        options: More options of vLLM.
    """

    def __init__(self, folder: Path, size: Size, share: float, **options: Any) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor import Executor

        if on_gpu():
            options["gpu_memory_utilization"] = share
        else:
            options |= {"enforce_eager": True, "block_size": 32}
        if not size.weights:
            options["load_format"] = "dummy"
        arguments = AsyncEngineArgs(
            model=str(folder),
            dtype=size.dtype,
            max_model_len=4096,
            max_num_seqs=max(IN_FLIGHT),
            max_num_batched_tokens=4096,
            limit_mm_per_prompt={"image": 1} if "llava" in folder.name else {"image": 0, "video": 1},
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            disable_log_stats=True,
            **options,
        )
        config = arguments.create_engine_config()
        if not on_gpu():
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # a start of seconds; one thread can be forked
        self.engine = AsyncLLM(config, Executor.get_class(config), log_stats=False)
        self.names = count()

    async def ask(self, request: dict[str, Any]) -> tuple[float, float, float, int]:
        """When it was sent, its first and its last token came; and the length of its prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=0,
            max_tokens=ANSWER,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE,
        )
        sent, first, tokens, prompt = time.perf_counter(), 0.0, 0, 0
        async for output in self.engine.generate(request, sampling, str(next(self.names))):
            first = first or time.perf_counter()
            tokens, prompt = len(output.outputs[0].token_ids), len(output.prompt_token_ids)
        if tokens != ANSWER:
            raise RuntimeError(f"{tokens} tokens instead of {ANSWER}")
        return sent, first, time.perf_counter(), prompt

    async def measure(self, requests: Sequence[dict[str, Any]], in_flight: int) -> Measured:
        """Answer requests, ``in_flight`` at a time."""
        waiting = iter(requests)
        begin, cpu = time.perf_counter(), cpu_seconds()

        async def worker() -> list[tuple[float, float, float, int]]:
            return [await self.ask(request) for request in waiting]

        found = [one for part in await asyncio.gather(*(worker() for _ in range(in_flight))) for one in part]
        seconds = time.perf_counter() - begin
        return Measured(
            requests_per_s=len(found) / seconds,
            first_token_ms=1e3 * statistics.median(first - sent for sent, first, _, _ in found),
            tokens_per_s=statistics.median((ANSWER - 1) / (last - first) for _, first, last, _ in found),
            prompt_tokens=found[0][3],
            cpu_ms=1e3 * (cpu_seconds() - cpu) / len(found),
        )

    def stop(self) -> None:
        """End its process."""
        self.engine.shutdown()
        del self.engine  # it would shut down again at the very end, without the modules for it


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started; an engine that is not asked sleeps."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def on_gpu() -> bool:
    """Whether vLLM runs on a GPU here."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


Rows = dict[tuple[Way, int], list[Measured]]


async def rounds_of(
    engines: dict[str, Engine], ways: Sequence[Way], items: Iterator[dict[str, Any]], args: argparse.Namespace
) -> Rows:
    """Measure all ways in turn; every second round in reverse order.

    Args:
        engines: By name.
        ways: What is measured; the first is the base.
        items: New requests without settings.
        args: The command's arguments.
    """

    for way in ways:  # first calls read methods and allocate
        await engines[way.engine].measure([way.asked(next(items)) for _ in range(args.warm)], args.warm)
    rows: Rows = {(way, in_flight): [] for in_flight in IN_FLIGHT for way in ways}
    for number in range(args.rounds):
        for in_flight in IN_FLIGHT:
            given = [next(items) for _ in range(max(in_flight * args.times, args.least))]
            for way in ways[:: -1 if number % 2 else 1]:
                asked = [way.asked(one) for one in given]
                rows[way, in_flight].append(await engines[way.engine].measure(asked, in_flight))
            print(f"round {number + 1} of {args.rounds}, {in_flight} in flight", file=sys.stderr, flush=True)
    return rows


def table_rows(rows: Rows, cost: Cost) -> list[dict[str, Any]]:
    """Medians, ratios to the unpruned engine round by round, and what FLOPs and bytes allow."""
    base = {in_flight: found for (way, in_flight), found in rows.items() if way.engine == "stock"}
    made = []
    for (way, in_flight), found in rows.items():
        other, prompt, whole = base[in_flight], found[0].prompt_tokens, base[in_flight][0].prompt_tokens
        names = ("requests_per_s", "first_token_ms", "tokens_per_s", "cpu_ms")
        series = {name: [getattr(one, name) for one in found] for name in names}
        against = {name: ratios(values, [getattr(one, name) for one in other]) for name, values in series.items()}
        made.append(
            {
                **asdict(way),
                "in_flight": in_flight,
                "prompt_tokens": prompt,
                **{name: Spread.of(values).to_dict() for name, values in series.items()},
                "ratios": {name: value.to_dict() for name, value in against.items()},
                "flops_ratio": cost.flops(whole) / cost.flops(prompt),
                "bytes_ratio": cost.bytes(whole, in_flight) / cost.bytes(prompt, in_flight),
                "rounds": [asdict(one) for one in found],
            }
        )
    return made


def random_choice(folder: Path) -> Path:
    """The file of ``random`` before the language model: what pruning costs if the choice costs nothing."""
    data = load_method("random", keep_ratio=0.25).model_dump(mode="json", exclude_none=True)
    file = folder / "random.yaml"
    file.write_text(yaml.safe_dump({**data, "layers": {"name": "fixed", "layers": [0]}}), encoding="utf-8")
    return file


async def pictures(size: Size, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Pictures: three methods beside vLLM unpruned."""
    config, model_class, processor = llava(size)
    path = write(config, model_class, processor, size, folder / "llava")
    side = size.tower["image_size"]
    items = (
        {"prompt": "w10 w20 <image> w30 w31 w32 w33", "multi_modal_data": {"image": picture(side, side, seed)}}
        for seed in count()
    )
    ways = [Way("stock", 1, "vLLM unpruned"), Way("ours", 1, UNPRUNED)]
    ways += [Way("ours", keep, name) for keep in KEEP for name in METHODS if not args.keep_one]
    methods = [random_choice(folder) if name == "random" else name for name in METHODS]
    overrides = tokenprune_vllm.overrides(path, method=UNPRUNED, methods=[*methods, UNPRUNED])
    engines = {"stock": Engine(path, size, 0.4), "ours": Engine(path, size, 0.4, hf_overrides=overrides)}
    try:
        rows = await rounds_of(engines, ways, items, args)
    finally:
        for engine in engines.values():
            engine.stop()
    cost = Cost(config, model_class, (side // 14) ** 2, 1, torch.finfo(getattr(torch, size.dtype)).bits // 8)
    return {"models": str(cost), "rows": table_rows(rows, cost)}


async def videos(size: Size, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Videos: ``evs`` and vLLM's own beside vLLM unpruned. vLLM's rate is the engine's, so each has its own."""
    config, model_class, processor = qwen(size)
    path = write(config, model_class, processor, size, folder / "qwen2_5_vl")
    text = f"w10 w20 {checkpoints.shown_video('qwen2_5_vl')} w30 w31 w32"

    def item(seed: int) -> dict[str, Any]:
        made = clip(size.frames, *size.video, seed)
        about = {**made.about, "do_sample_frames": False}
        return {"prompt": text, "multi_modal_data": {"video": [(made.frames, about)]}}

    visual = size.frames // 2 * (size.video[0] // 28) * (size.video[1] // 28)
    values = torch.finfo(getattr(torch, size.dtype)).bits // 8
    cost = Cost(config, model_class, visual, size.frames // 2, values)
    overrides = tokenprune_vllm.overrides(path, method=UNPRUNED)
    shares = args.keep_videos
    room = 0.85 / (2 + len(shares))
    ways = [Way("stock", 1, "vLLM unpruned"), Way("ours", 1, UNPRUNED)]
    ways += [way for keep in shares for way in (Way("ours", keep, "evs"), Way(f"evs {keep}", keep, "vLLM's EVS"))]
    # whole prompts only: an engine with vLLM's EVS dies of a prompt that a step ends in (0.32)
    whole = {"enable_chunked_prefill": False}
    engines = {"stock": Engine(path, size, room, **whole)}
    engines["ours"] = Engine(path, size, room, hf_overrides=overrides, **whole)
    engines |= {f"evs {keep}": Engine(path, size, room, video_pruning_rate=1 - keep, **whole) for keep in shares}
    try:
        rows = await rounds_of(engines, ways, (item(seed) for seed in count()), args)
    finally:
        for engine in engines.values():
            engine.stop()
    return {"models": str(cost), "rows": table_rows(rows, cost)}


# ---- tables ----------------------------------------------------------------------------------------------------

HEAD = (
    "In flight",
    "Keep",
    "Method",
    "Prompt tokens",
    "Requests/s",
    "Ratio to vLLM unpruned",
    "FLOPs allow",
    "Bytes allow",
    "First token, ms",
    "Ratio",
    "Tokens/s",
)


def spread(value: dict[str, float], digits: int = 2) -> str:
    """A median with quartiles."""
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}-{value['high']:.{digits}f})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---:|---:|---|" + "---:|" * (len(HEAD) - 3)]
    for row in rows:
        cells = [
            str(row["in_flight"]),
            f"{row['keep']:g}",
            row["method"],
            str(row["prompt_tokens"]),
            f"{row['requests_per_s']['median']:.2f}",
            "1" if row["engine"] == "stock" else spread(row["ratios"]["requests_per_s"]),
            f"{row['flops_ratio']:.2f}",
            f"{row['bytes_ratio']:.2f}",
            f"{row['first_token_ms']['median']:.0f}",
            f"{row['ratios']['first_token_ms']['median']:.2f}",
            f"{row['tokens_per_s']['median']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def targets(result: dict[str, Any]) -> list[str]:
    """What was asked for, and what was measured."""
    lines = []
    for kind in [name for name in ("pictures", "videos") if name in result]:
        rows = result[kind]["rows"]
        cut = [row for row in rows if row["engine"] == "ours" and row["keep"] < 1 and row["in_flight"] == 32]
        for row in rows:
            if row["engine"] == "ours" and row["keep"] == 1:
                ratio = row["ratios"]["requests_per_s"]
                cpu = row["ratios"]["cpu_ms"]
                lines.append(
                    f"- Keep 1, {kind}, {row['in_flight']} in flight: {spread(ratio)} times the throughput of vLLM"
                    f" unpruned in {len(row['rounds'])} rounds, and {spread(cpu)} times its CPU time per request; a"
                    " throughput of at least 0.98 was asked for."
                )
        if not cut:
            continue
        least = min(cut, key=lambda row: row["ratios"]["requests_per_s"]["median"])
        lines.append(
            f"- Pruned, {kind}, 32 in flight: at least {least['ratios']['requests_per_s']['median']:.2f} times the"
            f" throughput of vLLM unpruned ({least['method']}, keep {least['keep']:g}); at least 1 was asked for."
        )
    return lines


#: What is said of the kinds of items.
KINDS = {
    "pictures": "",
    "videos": " `evs` is this plugin's; vLLM's own has an engine for each share. No prompt is divided between two"
    " steps: engines with vLLM's EVS (0.32) die of that, and this plugin does not.",
}


def section(kind: str, words: str, measured: dict[str, Any]) -> list[str]:
    """The lines of a kind."""
    return ["", f"## {kind.title()}", "", f"{measured['models']}.{words}", "", table(measured["rows"])]


def markdown(result: dict[str, Any]) -> str:
    """The whole file."""
    lacks = [] if result["gpu"] else NOT_HERE
    return "\n".join(
        [
            "# Speed of tokenprune-vllm",
            "",
            f"`{result['command']}`",
            "",
            f"{result['where']}; random weights.",
            "",
            *ABOUT,
            *([] if result["gpu"] else ON_CPU),
            "",
            "## Targets",
            "",
            *targets(result),
            *(line for kind, words in KINDS.items() if kind in result for line in section(kind, words, result[kind])),
            *lacks,
            "",
        ]
    )


ABOUT = [
    "All engines are of one run, measured in turn with the same new pictures or videos. A ratio is that of one round;",
    f"medians over rounds, with quartiles in brackets. A request answers {ANSWER} tokens. *First token* is the median",
    "from sending a request, *tokens/s* that of one request between its first and its last token. *FLOPs allow* is the",
    "ratio of throughputs if only multiplications cost time: tower, projector, prefill of the tokens that are left,",
    "and decoding; the choice is not counted. *Bytes allow*: if only reading weights and the cache did.",
]
ON_CPU = [
    "Neither counts what a request and a step cost the host, which these small models feel most: with one request in",
    "flight, the steps of an answer take about half of the time, and pruning hardly shortens them.",
]
NOT_HERE = [
    "",
    "## What did not run here",
    "",
    "- A GPU: models of real size (`--size 7b`), kernels of CUDA, copies between host and device.",
    "- Model Runner V2, the default on GPUs: vLLM refuses it on CPUs.",
    "- CUDA graphs and compiled models: `enforce_eager` is on for CPUs.",
    "- bfloat16: CPUs without such units are slow with it.",
    "- Real weights and real pictures: neither changes the number of operations.",
]


def parsed() -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), help="the model's; by default what suits the machine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=2, help="requests of a round, for each in flight")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "vllm")
    parser.add_argument("--keep-one", action="store_true", help="only what the plugin costs where nothing is pruned")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round, one rate of vLLM's EVS")
    args = parser.parse_args()
    args.size = args.size or ("tiny" if args.quick else "7b" if on_gpu() else "cpu")
    args.warm, args.least = 2, 4
    args.keep_videos = () if args.keep_one else KEEP[1:2] if args.quick or on_gpu() else KEEP  # each is an engine
    if args.quick:
        args.rounds, args.times, args.least = 1, 1, 1
    return args


def main() -> None:
    """Measure, and write both files."""
    args = parsed()
    how = "--quick" if args.quick else f"--size {args.size} --rounds {args.rounds} --times {args.times}"
    name = "keep-one" if args.keep_one else "speed"
    how += " --keep-one" if args.keep_one else ""
    size = SIZES[args.size]
    device = gpu_name() if on_gpu() else f"{processor_name()}, {torch.get_num_threads()} threads"
    result = {
        "command": f"python benchmarks/vllm_speed.py {how}",
        "gpu": on_gpu(),
        "where": f"vLLM {installed_version()}, torch {torch.__version__}, transformers {tf.__version__}, {device},"
        f" {size.dtype}, {args.rounds} rounds, models of size `{args.size}`",
        "size": asdict(size),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for measure in (pictures, videos):
            result[measure.__name__] = asyncio.run(measure(size, Path(folder), args))
            (args.output / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
            (args.output / f"{name}.md").write_text(markdown(result))
    print(markdown(result))


def gpu_name() -> str:
    """The GPU's name; CUDA is not initialised for it, as engines are forked."""
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name())


def processor_name() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
