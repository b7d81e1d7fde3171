"""Generation settings and messages: what is understood, and what is refused."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from local_tasks import picture

from tokenprune import TokenPruneError
from tokenprune.authoring import ConfigError, SampleError, UnsupportedFeatureError
from tokenprune_lmms_eval import private
from tokenprune_lmms_eval.generation import generation_of
from tokenprune_lmms_eval.prompts import sample_of, turn_of, turns_of
from tokenprune_lmms_eval.settings import Settings

PLAIN = Settings(pretrained="m", method="unpruned")


@pytest.mark.parametrize(
    "given, settings, stops",
    [
        ({}, {}, ()),
        ({"temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, {"num_beams": 1}, ()),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}, ()),
        ({"temperature": 0.7, "do_sample": False}, {}, ()),
        ({"do_sample": True, "temperature": 1.0, "top_p": 0}, {"do_sample": True, "temperature": 1.0}, ()),
        ({"until": ["\n\n", "", "Q:"], "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}, ("\n\n", "Q:")),
        ({"until": "stop", "num_return_sequences": 1}, {}, ("stop",)),
    ],
)
def test_what_is_honoured(given: dict[str, Any], settings: dict[str, Any], stops: tuple[str, ...]) -> None:
    found = generation_of(given, PLAIN, "t")
    assert (found.settings, found.stops, found.tokens) == (settings, stops, 256)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio='pad' cannot be honoured; add ignore=image_aspect_ratio"),
        ({"do_sample": True, "temperature": 0}, "do_sample with temperature 0"),
        ({"num_return_sequences": 3}, "num_return_sequences=3"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; give a whole number"),
        ({"until": [3]}, "until="),
        ({"temperature": "warm"}, "is no number"),
        ({"do_sample": "maybe"}, "neither true nor false"),
        ({"output_scores": True}, "output_scores=True cannot be honoured"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        generation_of(given, PLAIN, "t")
    assert message in str(error.value)


def test_settings_that_the_user_ignores_are_in_the_report() -> None:
    ignoring = Settings(pretrained="m", method="unpruned", ignore=("until", "seed"))
    found = generation_of({"until": ["\n\n"], "seed": 1, "max_new_tokens": 5}, ignoring, "t")
    assert found.shown == {"max_new_tokens": 5, "until": [], "ignored": ["until", "seed"]}


def message(role: str, *parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": content}


IMAGE = {"type": "image", "url": picture(1)}


def test_a_conversation() -> None:
    talk = [
        message("system", "brief"),
        message("user", IMAGE, "first?"),
        message("assistant", "one"),
        message("user", "second", "?"),
    ]
    sample = sample_of(turns_of(talk, "d"), PLAIN, "d")
    assert (sample.system, sample.history, sample.question) == ("brief", (("first?", "one"),), "second?")
    assert len(sample.images) == 1


@pytest.mark.parametrize(
    "talk, reason",
    [
        ([], "gives no messages"),
        ([message("tool", "x")], "no role that is known"),
        ([message("user", "x"), message("user", "y")], "its turns are user, user"),
        ([message("user", "x"), message("assistant", "y")], "its turns are user, assistant"),
        ([message("user", "x", IMAGE)], "text stands before or between its pictures"),
        ([message("user", IMAGE, "x"), message("assistant", "y"), message("user", IMAGE, "z")], "text stands before"),
        ([message("user", {"type": "audio", "url": "a.wav"}, "x")], "a part of a message is 'audio'"),
        ([message("user", {"type": "video", "url": "v.mp4", "start_time": 1.0}, "x")], "a video has start_time"),
        ([message("user", {"type": "video", "url": {"url": "v.mp4", "video_end": 2}}, "x")], "it has video_end"),
        ([message("user", {"type": "image", "url": b"no picture"}, "x")], "d, picture 1"),
    ],
)
def test_conversations_that_are_refused(talk: list[Any], reason: str) -> None:
    with pytest.raises(SampleError) as error:
        sample_of(turns_of(talk, "d"), PLAIN, "d")
    assert reason in str(error.value)


def test_pictures_first_where_the_user_allows_it() -> None:
    moving = Settings(pretrained="m", method="unpruned", interleaved="media-first")
    sample = sample_of(turns_of([message("user", "look ", IMAGE, "here")], "d"), moving, "d")
    assert (sample.question, len(sample.images)) == ("look here", 1)


def test_a_simple_prompt() -> None:
    sample = sample_of(turn_of("what?", [picture(1), picture(2)], "d"), PLAIN, "d")
    assert (sample.question, len(sample.images)) == ("what?", 2)
    with pytest.raises(SampleError, match="a visual is 'audio'"):
        turn_of("what?", [{"type": "audio"}], "d")


@pytest.mark.parametrize(
    "name, number, reason", [("lmms-eval", "0.8.0", "0.8.0 is installed"), ("filelock", "4.1", "4.1")]
)
def test_versions_that_do_not_fit(name: str, number: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "version", lambda asked: number if asked == name else metadata.version(asked))
    with pytest.raises(UnsupportedFeatureError) as error:
        private.check()
    assert reason in str(error.value)


def test_a_private_name_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    private.check()
    monkeypatch.setattr(private, "NAMES", (("lmms_eval.evaluator", ("ResponseCache", "Gone")),))
    with pytest.raises(TokenPruneError, match=r"lacks what tokenprune-lmms-eval uses: lmms_eval\.evaluator\.Gone"):
        private.check()
