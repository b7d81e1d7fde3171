"""Tasks of lmms-eval in a folder: pictures, several pictures, videos, multiple choice and text, each with its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[3]
#: The documents of every task.
COUNT = 4
TOKENS = 3
UTILS = '''
"""What the tasks say of their documents."""


def pictures(doc):
    return [picture.convert("RGB") for name in ("image", "other") if (picture := doc.get(name)) is not None]


def videos(doc):
    return [doc["video"]]


def mixed(doc):
    images = [] if doc["image"] is None else [doc["image"].convert("RGB")]
    return images + ([doc["video"]] if doc["video"] else [])


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def interleaved(doc):
    parts = [{"type": "text", "text": "this "}, {"type": "image", "url": doc["image"].convert("RGB")}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]


def conversation(doc):
    first = [{"type": "image", "url": doc["image"].convert("RGB")}, {"type": "text", "text": "what is this"}]
    return [
        {"role": "system", "content": [{"type": "text", "text": "brief"}]},
        {"role": "user", "content": first},
        {"role": "assistant", "content": [{"type": "text", "text": "one word."}]},
        {"role": "user", "content": [{"type": "text", "text": doc["question"]}]},
    ]


def scored(doc, results):
    return {"right": float(results[0].strip() == doc["answer"])}


def broken_score(doc, results):
    raise RuntimeError("this task cannot score")
'''


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture of random pixels; ``size`` is its width and height."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(image: Image.Image, path: Path) -> bytes:
    """The bytes of a picture's file, which is written, too."""
    image.save(path)
    return path.read_bytes()


def write_video(path: Path, seed: int, frames: int = 6) -> Path:
    """A short video of noise."""
    noise = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A Parquet file; the columns ``image`` and ``other`` hold pictures."""
    kinds: dict[str, Any] = {
        "image": datasets.Image(),
        "other": datasets.Image(),
        "gold": datasets.Value("int64"),
        "choices": datasets.List(datasets.Value("string")),
    }
    features = datasets.Features({name: kinds.get(name, datasets.Value("string")) for name in rows[0]})
    datasets.Dataset.from_list(list(rows), features=features).to_parquet(str(path))


def cell(image: Image.Image, path: Path) -> dict[str, Any]:
    """A picture as a cell of a table."""
    return {"bytes": png(image, path), "path": None}


class LocalTasks:
    """The tasks.

    Args:
        folder: Where they are written.
        questions: The question of every document.
        images: Their pictures; by default random ones of different sizes.

    Attributes:
        folder: The folder, for ``--include_path``.
    """

    def __init__(
        self,
        folder: Path,
        questions: Sequence[str] = ("what is this",) * COUNT,
        images: Sequence[Image.Image] | None = None,
    ) -> None:
        self.folder, self.questions = folder, list(questions)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "utils.py").write_text(UTILS, encoding="utf-8")
        self.images = list(images or [picture(seed, ((64, 64), (64, 32))[seed % 2]) for seed in range(len(questions))])
        self.others = [picture(100 + seed) for seed in range(len(questions))]

    def add(self, name: str, rows: Sequence[dict[str, Any]], **fields: Any) -> str:
        """Write a task with its data.

        Args:
            name: Its name.
            rows: Its documents.
            **fields: Fields of its YAML file; a text that begins with ``utils.`` is a function.

        Returns:
            The name.
        """
        data = self.folder / f"{name}.parquet"
        write_table(data, rows)
        task: dict[str, Any] = {
            "task": name,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(self.folder / "cache")},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "utils.question",
            "doc_to_target": "answer",
            "generation_kwargs": {"max_new_tokens": TOKENS},
            "process_results": "utils.scored",
            "metric_list": [{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
        } | fields
        lines = yaml.safe_dump({key: value for key, value in task.items() if value is not None}, sort_keys=False)
        for function in (
            "pictures",
            "videos",
            "mixed",
            "question",
            "interleaved",
            "conversation",
            "scored",
            "broken_score",
        ):
            lines = lines.replace(f": utils.{function}\n", f": !function utils.{function}\n")
        (self.folder / f"{name}.yaml").write_text(lines, encoding="utf-8")
        return name

    def rows(self) -> list[dict[str, Any]]:
        """Documents with a picture."""
        return [
            {"image": cell(image, self.folder / f"{place}.png"), "question": question, "answer": "w62"}
            for place, (image, question) in enumerate(zip(self.images, self.questions, strict=True))
        ]

    def pictures(self, name: str = "tp_pictures", **fields: Any) -> str:
        """One picture per document."""
        return self.add(name, self.rows(), **{"doc_to_visual": "utils.pictures", **fields})

    def pairs(self) -> str:
        """Two pictures per document."""
        others = [cell(image, self.folder / f"other-{place}.png") for place, image in enumerate(self.others)]
        rows = [{**row, "other": other} for row, other in zip(self.rows(), others, strict=True)]
        return self.add("tp_pairs", rows, doc_to_visual="utils.pictures")

    def videos(self) -> str:
        """One video per document."""
        rows = [
            {
                "video": str(write_video(self.folder / f"{place}.mp4", place)),
                "question": question,
                "answer": "w62",
            }
            for place, question in enumerate(self.questions)
        ]
        return self.add("tp_videos", rows, doc_to_visual="utils.videos")

    def texts(self) -> str:
        """No pictures at all."""
        rows = [{"question": question, "answer": "w62"} for question in self.questions]
        return self.add("tp_texts", rows)

    def choices(self, names: Sequence[str] = ("w20", "w21 w22", "w23"), **fields: Any) -> str:
        """Multiple choice by the probability of each choice."""
        rows = [{**row, "choices": list(names), "gold": 0} for row in self.rows()]
        return self.add(
            "tp_choices",
            rows,
            **{
                "output_type": "multiple_choice",
                "doc_to_visual": "utils.pictures",
                "doc_to_choice": "choices",
                "doc_to_target": "gold",
                "generation_kwargs": None,
                "process_results": None,
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
                **fields,
            },
        )
