"""Samples as conversations: earlier turns, system texts, and where the pictures stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.test_checkpoints import load
from tests.support.checkpoints import pictures
from tokenprune.errors import SampleError
from tokenprune.models.chat import ChatEncoder
from tokenprune.tasks.base import Sample

HISTORY = (("is this brief", "w20 w21"), ("what is w22", "w23"))


def asked(**fields: Any) -> Sample:
    return Sample("talk", pictures()[:1], "what is this", "", "", "", **fields)


def roles(chat: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(turn["role"], [part.get("text", part["type"]) for part in turn["content"]]) for turn in chat]


@pytest.mark.slow
def test_earlier_turns_are_turns(folders: dict[str, Path]) -> None:
    """The pictures stand in the first one; the instruction follows the last question alone."""
    loaded = load(folders["llava"], system="w30")
    assert isinstance(loaded.encoder, ChatEncoder)
    assert roles(loaded.encoder.chat(asked(history=HISTORY))) == [
        ("system", ["w30"]),
        ("user", ["image", "is this brief"]),
        ("assistant", ["w20 w21"]),
        ("user", ["what is w22"]),
        ("assistant", ["w23"]),
        ("user", ["what is this Answer with one word."]),
    ]
    text = loaded.processor.tokenizer.decode(loaded.encode([asked(history=HISTORY)])["input_ids"][0])
    words = [word for word in text.split() if word != "<image>"]
    # the chat template of the tests writes the roles of users and systems alone as words that the tokenizer knows
    assert " ".join(words).replace("<unk>", "ASSISTANT") == (
        "SYSTEM w30 USER is this brief ASSISTANT w20 w21 USER what is w22 ASSISTANT w23 USER what is this Answer with"
        " one word."
    )


@pytest.mark.slow
def test_the_system_text_of_a_sample_comes_before_that_of_the_model(folders: dict[str, Path]) -> None:
    encoder = load(folders["llava"], system="w30").encoder
    assert isinstance(encoder, ChatEncoder)
    assert roles(encoder.chat(asked(system="w31")))[0] == ("system", ["w31"])


@pytest.mark.slow
def test_a_template_that_shows_only_the_last_question_is_refused(folders: dict[str, Path]) -> None:
    template = "<image> {{ messages[-1].content[-1].text }}"
    loaded = load(folders["llava"], chat_template=template)
    loaded.encode([asked()])
    with pytest.raises(SampleError, match=r"has earlier turns, but a prompt of llava does not show 'is this brief'"):
        loaded.encode([asked(history=HISTORY)])
