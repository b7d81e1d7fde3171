"""What is equal for pictures and for videos: every method, several items, random choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import VIDEO_FAMILIES
from equality import Prompt, Reference, Request, answers, close, engine, seed_of_prompt

from tokenprune import load_method

POSITIONS = ("original", "renumbered")

#: Methods that read features only, and those that read the vision tower.
METHODS = (
    "divprune",
    "diversity",
    "entropyprune-tower",
    "energy-diversity",
    "holov",
    "mmr",
    "otprune",
    "prunesid",
    "scope",
    "svd-prune",
    "tome",
    "vision-attention",
    "visionzip",
    "vispruner",
)
#: Methods that compare the frames of a video.
ACROSS = ("dycoke", "evs", "vidcom2")


def variant(folder: Path, method: str, layer: int) -> Path:
    """The YAML file of a method before layer 0 that reads one layer of the vision tower, ``METHOD-variant.yaml``."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            fields = {key: moved(item) for key, item in value.items()}
            return {**fields, **{key: layer for key in ("tower_layer", "layer") if key in fields}}
        return [moved(item) for item in value] if isinstance(value, list) else value

    data = load_method(method, keep_ratio=0.25).model_dump(mode="json", exclude_none=True)
    data = {**data, "pruner": moved(data["pruner"]), "layers": {"name": "fixed", "layers": [0]}}
    file = folder / f"{method}-variant.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


class Served:
    """A family's reference and engine; all requests of its tests run in one engine."""

    def __init__(self, folder: Path, files: Path, asked: list[Prompt]) -> None:
        self.reference, self.prompts = Reference(folder), asked
        self.variants = [variant(files, name, -2) for name in (*METHODS, "random")]
        across = ACROSS if folder.name in VIDEO_FAMILIES else ()
        names = ["unpruned", *METHODS, *across, *self.variants]
        self.llm = engine(folder, settings={"method": "unpruned", "methods": names})

    def method(self, name: str) -> str:
        """What requests call a method: that of the last layers of the tower, if vLLM runs them."""
        last = load_method(name).pruner.vision_layers
        return f"{name}-variant" if name == "random" or (-1 in last and self.skips_last) else name

    @property
    def skips_last(self) -> bool:
        """Whether the model takes its features from an earlier layer of the tower than the last."""
        return getattr(self.reference.model.config, "vision_feature_layer", -1) == -2

    def check(self, asked: Sequence[tuple[Prompt, Request]]) -> None:
        """Compare the answers to prompts; a difference names all prompts that differ."""
        wanted = [self.reference.answer(prompt, self._own(request), self._seeds(prompt)) for prompt, request in asked]
        got = answers(self.llm, asked)
        pairs = zip(asked, wanted, got, strict=True)
        wrong = [(prompt.text, request, one, other) for (prompt, request), one, other in pairs if not close(one, other)]
        assert not wrong

    def _seeds(self, prompt: Prompt) -> list[int] | None:
        """What random choices are seeded with."""
        return [seed_of_prompt(self.reference, prompt)] if _is_alone(prompt) else None

    def _own(self, request: Request) -> Request:
        """A request with the definition of a variant in the place of its name."""
        found = {file.stem: file for file in self.variants}.get(request["method"])
        return request if found is None else {**request, "method": yaml.safe_load(found.read_text())}

    @property
    def alone(self) -> list[Prompt]:
        """The prompts of one picture, or of one video."""
        return [prompt for prompt in self.prompts if _is_alone(prompt)]


def _is_alone(prompt: Prompt) -> bool:
    """Whether a prompt has one picture, or one video, and nothing else."""
    return len(prompt.images) + len(prompt.videos) == 1


class EqualToApply:
    """Tests that hold for the prompts of an engine, whatever they show."""

    def test_unpruned(self, served: Served) -> None:
        served.check([(prompt, {"method": "unpruned"}) for prompt in served.prompts])

    @pytest.mark.parametrize("positions", POSITIONS)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method(self, served: Served, method: str, positions: str) -> None:
        request = {"method": served.method(method), "ratio": 0.25, "positions": positions}
        served.check([(prompt, request) for prompt in served.alone])

    @pytest.mark.parametrize("positions", POSITIONS)
    def test_several_items(self, served: Served, positions: str) -> None:
        """Counts are divided between the items of a prompt as they are alone: sizes are multiples of four."""
        request = {"method": "divprune", "ratio": 0.25, "positions": positions}
        served.check([(prompt, request) for prompt in served.prompts])

    def test_random_choices_are_seeded_by_the_item(self, served: Served) -> None:
        seeds = [seed_of_prompt(served.reference, prompt) for prompt in served.alone]
        assert len(set(seeds)) == len(seeds) > 1, "other items, other places"
        served.check([(prompt, {"method": served.method("random"), "ratio": 0.25}) for prompt in served.alone])
