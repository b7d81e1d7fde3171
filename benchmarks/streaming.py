"""Memory of a corpus of one's own, from 1,000 to 100,000 lines: what the task holds, and what the tables are made from.

python benchmarks/streaming.py > benchmarks/results/streaming.md
"""

from __future__ import annotations

import gc
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tokenprune.experiment.answers import Answers
from tokenprune.experiment.results import Results
from tokenprune.tasks.vqa import Vqa

SIZES = (1_000, 10_000, 100_000)
PICTURES = 10
SERIES = 5


def corpus(folder: Path, count: int) -> Vqa:
    """A JSONL file of questions about a few pictures of 336 x 336 pixels."""
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = generator.integers(0, 256, (336, 336, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    path = folder / f"{count}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"image": f"{number % PICTURES}.jpg", "question": f"What is number {number}?", "answer": "a cat"}
            file.write(json.dumps(row) + "\n")
    return Vqa(data=str(path))


def rows(count: int) -> Iterator[dict[str, object]]:
    """The rows that an experiment writes: one per question and series."""
    for position in range(count):
        for number in range(SERIES):
            yield {
                "series": f"method {number} / keep_ratio 0.25",
                "method": f"method {number}" if number else "unpruned",
                "budget": "keep_ratio 0.25" if number else None,
                "seed": None,
                "position": position,
                "sample": f"line-{position + 1}",
                "type": "all",
                "group": f"{position % PICTURES}.jpg",
                "answer": "a cat",
                "prediction": "cat",
                "score": 1.0,
                "visual_before": 576,
                "visual_after": 144,
                "layer_average": 170.5,
                "flops": 10**12,
                "flops_unpruned": 4 * 10**12,
                "kv_bytes": 10**8,
                "kv_bytes_unpruned": 3 * 10**8,
            }


def held(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that the result of a function keeps, and the most that were in use while it ran."""
    gc.collect()
    tracemalloc.start()
    result = work()
    gc.collect()
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return now, peak


def read_all(task: Vqa) -> Vqa:
    """Read and decode every hundredth sample; the task holds the same after each."""
    samples = task.samples()
    for position in range(0, len(samples), 100):
        samples[position]
    task.fingerprints()
    return task


def main() -> None:
    """Print the table."""
    print("`python benchmarks/streaming.py`; bytes per line, largest use in MiB\n")
    print("| lines | task: held | task: most, MiB | answers of 5 series: held | answers: most, MiB |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held(lambda: read_all(corpus(folder, 100)))  # imports
        for count in SIZES:
            task = corpus(folder, count)
            own, most = held(lambda task=task: read_all(task))  # type: ignore[misc]
            results = Results(folder / f"results-{count}")
            results.folder.mkdir()
            results.append(list(rows(0)))
            with results.samples.open("w", encoding="utf-8") as file:
                for row in rows(count):
                    file.write(json.dumps(row) + "\n")
            kept, peak = held(lambda results=results: Answers.read(results.rows()))  # type: ignore[misc]
            print(
                f"| {count:,} | {own / count:.0f} | {most / 2**20:.1f} | {kept / count:.0f} | {peak / 2**20:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
