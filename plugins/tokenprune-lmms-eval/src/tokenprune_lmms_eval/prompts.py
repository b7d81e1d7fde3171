"""Documents of lmms-eval's tasks as samples of tokenprune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.authoring import Sample, SampleError, Video, picture_of, video_of
from tokenprune_lmms_eval.settings import Settings

#: Endings of the files that a task may name in place of a picture.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")


@dataclass(frozen=True)
class Part:
    """A part of a turn.

    Attributes:
        kind: ``text``, ``image`` or ``video``.
        value: The text, or what stands for the picture or video.
    """

    kind: str
    value: Any


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        parts: Its parts.
    """

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its texts, joined as chat templates do."""
        return "".join(part.value for part in self.parts if part.kind == "text")

    @property
    def media(self) -> list[Part]:
        """Its pictures and videos."""
        return [part for part in self.parts if part.kind != "text"]


def turns_of(messages: Any, name: str) -> list[Turn]:
    """The messages of a chat task.

    Args:
        messages: What the task's ``doc_to_messages`` gave.
        name: The document, for errors.

    Raises:
        SampleError: A message or a part of one is of a form that is not known, e.g. sound.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise SampleError(f"{name}: the task gives no messages", "check its doc_to_messages")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in ("system", "user", "assistant"):
            raise SampleError(f"{name}: a message has no role that is known", "use system, user and assistant")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        turns.append(Turn(message["role"], tuple(_part(part, name) for part in parts)))
    return turns


def turn_of(context: Any, visuals: Any, name: str) -> list[Turn]:
    """The one turn of a simple task: its pictures and videos, and then its text.

    Args:
        context: The text.
        visuals: What the task's ``doc_to_visual`` gave.
        name: The document, for errors.

    Raises:
        SampleError: A visual is of a type that is not known.
    """
    parts = [Part(_kind(visual, name), visual) for visual in visuals or ()]
    return [Turn("user", (*parts, Part("text", str(context))))]


def sample_of(turns: Sequence[Turn], settings: Settings, name: str) -> Sample:
    """A conversation as a sample: pictures and videos come first in it, before the text of the first question.

    Args:
        turns: The conversation.
        settings: ``frames`` and ``interleaved`` count.
        name: The document: the sample's id, also for errors.

    Raises:
        SampleError: A picture or video cannot be read, or the conversation is none that a sample can hold.
    """
    system = "".join(turn.text for turn in turns if turn.role == "system")
    talk = [turn for turn in turns if turn.role != "system"]
    roles = [turn.role for turn in talk]
    if not talk or roles != [("user", "assistant")[place % 2] for place in range(len(talk))] or roles[-1] != "user":
        raise SampleError(f"{name}: its turns are {', '.join(roles) or 'none'}", "let user and assistant take turns")
    if turns[0].role != "system" and system:
        raise SampleError(f"{name}: the system's turn is not the first one", "put it first")
    _check_order(talk, settings, name)
    media = [part for turn in talk for part in turn.media]
    images = [part.value for part in media if part.kind == "image"]
    videos = [part.value for part in media if part.kind == "video"]
    pairs = zip(talk[:-1:2], talk[1::2], strict=True)
    return Sample(
        id=name,
        images=tuple(picture_of(image, f"{name}, picture {place + 1}") for place, image in enumerate(images)),
        question=talk[-1].text,
        answer="",
        type="",
        group=name,
        videos=tuple(
            _video(video, settings.frames, f"{name}, video {place + 1}") for place, video in enumerate(videos)
        ),
        history=tuple((asked.text, said.text) for asked, said in pairs),
        system=system,
    )


def _check_order(talk: Sequence[Turn], settings: Settings, name: str) -> None:
    """Refuse prompts whose pictures would move, unless the user allows it."""
    first = [part.kind for part in talk[0].parts]
    later = any(turn.media for turn in talk[1:])
    if (later or first != sorted(first, key=("image", "video", "text").index)) and settings.interleaved == "refuse":
        raise SampleError(
            f"{name}: text stands before or between its pictures, and a sample shows pictures, videos, text",
            "add interleaved=media-first to model_args to show them in this order, or use --force_simple",
        )


def _part(part: Any, name: str) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Part("text", part["text"])
    if kind in ("image", "video") and part.get("url") is not None:
        times = [key for key in ("start_time", "end_time") if part.get(key) is not None]
        if times:
            raise SampleError(f"{name}: a video has {' and '.join(times)}", "cut the video: whole files are shown")
        return Part(kind, part["url"])
    raise SampleError(f"{name}: a part of a message is {kind!r}", "only text, images and videos are shown")


def _kind(visual: Any, name: str) -> str:
    """Whether a visual of a simple task is a picture or a video."""
    if isinstance(visual, Mapping):
        kind = visual.get("type", "image" if "bytes" in visual else "video")
        if kind in ("image", "video"):
            return str(kind)
        raise SampleError(f"{name}: a visual is {kind!r}", "only pictures and videos are shown")
    if isinstance(visual, str):
        return "image" if visual.lower().endswith(PICTURES) else "video"
    return "image"


def _video(value: Any, frames: int, where: str) -> Video:
    if isinstance(value, Mapping):
        more = sorted(set(value) - {"type", "url", "path", "bytes"})
        if more:
            raise SampleError(f"{where}: it has {', '.join(more)}", "cut the video: whole files are shown")
        value = value.get("url") or value.get("path") or value.get("bytes")
    return video_of(value, frames, where)
