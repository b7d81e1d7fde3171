"""Videos are equal to ``tokenprune.apply`` on transformers, too, alone and among pictures and other videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import VIDEO_FAMILIES, shown, shown_video
from equality import Prompt, clip, picture, videos
from every import ACROSS, POSITIONS, EqualToApply, Served

Find = Callable[[str], Path]


@pytest.fixture(scope="module", params=VIDEO_FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family that gets videos."""
    return str(request.param)


@pytest.fixture(scope="module")
def served(family: str, checkpoint: Find, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The family's engine."""
    asked = videos(shown_video(family), shown(family))
    return Served(checkpoint(family), tmp_path_factory.mktemp("methods"), asked)


class TestVideos(EqualToApply):
    """Alone, among pictures and other videos."""


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("method", ACROSS)
def test_methods_that_compare_frames(served: Served, method: str, positions: str) -> None:
    """At a share that is rounded, and at one at which the first frame does not fit."""
    requests = [{"method": method, "ratio": ratio, "positions": positions} for ratio in (0.7, 0.45, 0.25)]
    served.check([(prompt, request) for prompt in served.alone for request in requests])


def test_few_tokens_and_all_tokens(family: str, served: Served) -> None:
    """Frames that keep nothing have their text still; of frames that are images, each keeps a token."""
    few = 6 if family == "internvl" else 1
    one = served.prompts[0]
    served.check([(one, {"method": "divprune", "tokens": few}), (one, {"method": "divprune", "ratio": 1.0})])


def test_a_number_of_tokens_is_one_per_video(served: Served) -> None:
    request = {"method": "divprune", "tokens": 13}
    served.check([(prompt, request) for prompt in served.alone])


def test_a_video_that_is_one_frame_to_the_model(served: Served, family: str) -> None:
    short = Prompt(f"w10 {shown_video(family)} w60", (), (clip(2, 112, 112, 7),))
    served.check([(short, {"method": "unpruned"}), (short, {"method": "divprune", "ratio": 0.25})])


def test_an_odd_number_of_frames(served: Served, family: str) -> None:
    odd = Prompt(f"w10 {shown_video(family)} w60", (), (clip(5, 112, 56, 8, fps=3.0),))
    served.check([(odd, {"method": name, "ratio": 0.25}) for name in ("divprune", "evs")])


def test_pictures_are_pruned_beside_videos(served: Served, family: str) -> None:
    """The engine of this file takes both."""
    prompt = Prompt(f"w10 {shown(family)} w44", (picture(224, 224, 1),))
    served.check([(prompt, {"method": name, "ratio": 0.25}) for name in ("divprune", served.method("visionzip"))])
