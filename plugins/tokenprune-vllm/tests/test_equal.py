"""Equal to ``tokenprune.apply`` on transformers: ids, and log-probabilities within 1e-5 in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import FAMILIES, shown
from equality import Answer, Prompt, Reference, Request, answers, engine, prompts, seed_of_prompt

from tokenprune import load_method

#: Another order of sums; the largest difference that was seen is 4e-6.
TOLERANCE = 1e-5
Find = Callable[[str], Path]

#: Methods that read features only, and those that read the vision tower.
METHODS = ("divprune", "diversity", "entropyprune-tower", "energy-diversity", "holov", "mmr", "otprune", "prunesid")
METHODS += ("scope", "svd-prune", "tome", "vision-attention", "visionzip", "vispruner")


def at_layer_0(name: str, **budget: float) -> dict[str, Any]:
    """The definition of a method whose own layer is another one, set to layer 0."""
    data = load_method(name, **budget).model_dump(mode="json", exclude_none=True)
    return {**data, "layers": {"name": "fixed", "layers": [0]}}


def on_the_way(family: str, method: str) -> str | dict[str, Any]:
    """A method for a family: LLaVA takes its features from layer -2 of its tower, and vLLM runs no other behind it."""
    data = load_method(method, keep_ratio=0.25).model_dump(mode="json", exclude_none=True)
    if family not in ("llava", "llava_next") or -1 not in load_method(method).pruner.vision_layers:
        return method

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            fields = {key: moved(item) for key, item in value.items()}
            return {**fields, **{key: -2 for key in ("tower_layer", "layer") if fields.get(key) == -1}}
        return value

    return {**moved(data), "label": method}


def close(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same tokens with the same log-probabilities."""
    pairs = zip(one.log_probabilities, other.log_probabilities, strict=True)
    return one.ids == other.ids and all(math.isclose(x, y, rel_tol=0, abs_tol=TOLERANCE) for x, y in pairs)


class Served:
    """A family's reference and engine; all requests of its tests run in one engine."""

    def __init__(self, family: str, folder: Path) -> None:
        self.reference, self.llm = Reference(folder), None
        self.folder, self.prompts = folder, prompts(shown(family))

    def check(self, asked: Sequence[tuple[Prompt, Request]]) -> None:
        """Compare the answers to prompts; a difference names all prompts that differ."""
        wanted = [self.reference.answer(prompt, request) for prompt, request in asked]
        self.llm = self.llm or engine(self.folder, settings={"method": "unpruned"})
        got = answers(self.llm, asked)
        pairs = zip(asked, wanted, got, strict=True)
        wrong = [(prompt.text, request, one, other) for (prompt, request), one, other in pairs if not close(one, other)]
        assert not wrong


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family."""
    return str(request.param)


@pytest.fixture(scope="module")
def served(family: str, checkpoint: Find) -> Served:
    """The family's engine."""
    return Served(family, checkpoint(family))


def test_unpruned(served: Served) -> None:
    served.check([(prompt, {"method": "unpruned"}) for prompt in served.prompts])


@pytest.mark.parametrize("positions", ["original", "renumbered"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method(family: str, served: Served, method: str, positions: str) -> None:
    request = {"method": on_the_way(family, method), "ratio": 0.25, "positions": positions}
    served.check([(prompt, request) for prompt in served.prompts if len(prompt.images) == 1])


@pytest.mark.parametrize("positions", ["original", "renumbered"])
def test_several_pictures(served: Served, positions: str) -> None:
    """Counts are divided between the pictures of a prompt as they are alone: sizes are multiples of four."""
    request = {"method": "divprune", "ratio": 0.25, "positions": positions}
    served.check([(prompt, request) for prompt in served.prompts])


def test_one_token_and_all_tokens(served: Served) -> None:
    one = served.prompts[0]
    served.check([(one, {"method": "divprune", "tokens": 1}), (one, {"method": "divprune", "ratio": 1.0})])


def test_random_choices_are_seeded_by_the_picture(served: Served) -> None:
    request = {"method": at_layer_0("random", keep_ratio=0.25)}
    found = [prompt for prompt in served.prompts if len(prompt.images) == 1]
    wanted = [served.reference.answer(prompt, request, [seed_of_prompt(served.reference, prompt)]) for prompt in found]
    served.llm = served.llm or engine(served.folder, settings={"method": "unpruned"})
    for prompt, one, other in zip(found, wanted, answers(served.llm, [(p, request) for p in found]), strict=True):
        assert close(one, other), prompt.text
