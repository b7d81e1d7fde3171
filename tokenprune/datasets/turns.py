"""The turns of a conversation as training files write them, and what of them is question, answer and history."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenprune.datasets.values import short
from tokenprune.errors import SampleError

#: The roles of turns, by the names that files give them.
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
#: Where a picture or video stands in a text.
PLACE = re.compile(r"<(?:image|video)>")
LEADING = re.compile(r"\s*(?:<(?:image|video)>\s*)*")
TRAILING = re.compile(r"(?:\s*<(?:image|video)>)*\s*\Z")
FORM = 'write [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}], or `role` and `content`'


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: ``user``, ``assistant`` or ``system``.
        text: Its text, with ``<image>`` or ``<video>`` where pictures stand.
        images: The pictures that it holds itself.
        videos: The videos that it holds itself.
    """

    role: str
    text: str
    images: tuple[object, ...] = ()
    videos: tuple[object, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A conversation up to its last question.

    Attributes:
        question: The last question.
        answer: What follows it; None if nothing does.
        history: The turns before it: questions with their answers.
        system: The text before the first turn; empty if there is none.
        images: The pictures that the turns hold themselves.
        videos: The videos that they hold themselves.
    """

    question: str
    answer: str | None
    history: tuple[tuple[str, str], ...]
    system: str
    images: tuple[object, ...]
    videos: tuple[object, ...]


def read_turns(value: object, where: str) -> list[Turn]:
    """The turns that a value of a row holds.

    Raises:
        SampleError: It is no list of turns, or a turn has an unknown role or content.
    """
    if isinstance(value, str):
        value = in_json(value)
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        # a Sequence of Hugging Face datasets is stored by its columns
        value = [dict(zip(value, turn, strict=False)) for turn in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise SampleError(f"{where}: the conversation is no list of turns: {short(value)}", FORM)
    return [read_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(value, 1)]


def in_json(text: str) -> object:
    """What a text says in JSON, as conversations stand in cells of CSV; the text itself if it is no JSON."""
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value


def read_turn(turn: Mapping[str, object], where: str) -> Turn:
    """One turn: ``from`` and ``value``, or ``role`` and ``content``.

    Raises:
        SampleError: The role or the content is unknown.
    """
    named, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    role = ROLES.get(str(named))
    if role is None:
        known = ", ".join(ROLES)
        raise SampleError(f"{where}: the role is {short(named)}", f"only {known} are understood: remove the line")
    if isinstance(content, str):
        return Turn(role, content)
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise SampleError(f"{where}: the content is {short(content)}", FORM)
    texts: list[str] = []
    held: dict[str, list[object]] = {"image": [], "video": []}
    for part in content:
        kind = str(part.get("type")).removesuffix("_url")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(str(part["text"]))
        elif kind in held:
            texts.append(f"<{kind}>")
            held[kind] += file_of(part, kind)
        else:
            raise SampleError(f"{where}: a part of the type {short(part.get('type'))}", "use text, image and video")
    return Turn(role, "\n".join(texts), tuple(held["image"]), tuple(held["video"]))


def file_of(part: Mapping[str, object], kind: str) -> list[object]:
    """The file that a part names; none where the row has it in a column."""
    found = [part.get(name) for name in (kind, f"{kind}_url", "path", "url", "base64")]
    found = [value.get("url", value) if isinstance(value, Mapping) else value for value in found]
    return [value for value in found if value not in (None, "")][:1]


def conversation(turns: Sequence[Turn], counts: Sequence[int], videos: bool, where: str) -> Conversation:
    """The last question of turns, with what was said before.

    Args:
        turns: The turns.
        counts: How many pictures and videos the row has beside those in the turns; more than one number where it can
            be read in several ways.
        videos: Whether the row has videos beside those in the turns. Files write <image> for a video, too.
        where: The row, for messages.

    Raises:
        SampleError: The turns do not alternate, or pictures stand elsewhere than before or behind the first question.
    """
    system = "\n".join(turn.text.strip() for turn in turns[:1] if turn.role == "system")
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for place, turn in enumerate(spoken):
        wanted = ("user", "assistant")[place % 2]
        if turn.role != wanted:
            what = f"{where}: turn {place + 1 + len(turns) - len(spoken)} is of the {turn.role}, not of the {wanted}"
            raise SampleError(what, "user and assistant take turns, after at most one turn of the system")
        if place and (PLACE.search(turn.text) or turn.images or turn.videos):
            raise SampleError(f"{where}: a picture in a later turn", "only those of the first turn can be shown")
    if not spoken:
        raise SampleError(f"{where}: the conversation has no question", FORM)
    held = len(spoken[0].images) + len(spoken[0].videos)
    if "<video>" in spoken[0].text and not (videos or spoken[0].videos):
        what = f"{where}: the first turn has a <video>, and the row has none"
        raise SampleError(what, "name it in the column `video`, or write <image> for a picture")
    first = without_places(spoken[0].text, [held] if held else counts, where)
    texts = [first, *(turn.text.strip() for turn in spoken[1:])]
    last = (len(texts) - 1) // 2 * 2
    pairs = tuple(zip(texts[:last:2], texts[1:last:2], strict=True))
    if not all(text for pair in pairs for text in pair):
        raise SampleError(f"{where}: an earlier turn is empty", "write it, or remove the line")
    answer = texts[last + 1] if last + 1 < len(texts) else None
    return Conversation(texts[last], answer, pairs, system, spoken[0].images, spoken[0].videos)


def without_places(text: str, counts: Sequence[int], where: str) -> str:
    """The first question without ``<image>`` and ``<video>``: the model gets pictures before it.

    Raises:
        SampleError: They stand within the text, or they are not as many as the row's pictures and videos.
    """
    places = len(PLACE.findall(text))
    if not places:
        return text.strip()
    if places not in counts:
        both = f"{places} and {' or '.join(map(str, counts))}"
        what = f"{where}: the question and the row have different numbers of pictures ({both})"
        raise SampleError(what, "write one <image> for each picture, or none")
    for edge in (LEADING, TRAILING):
        rest = edge.sub("", text, count=1)
        if not PLACE.search(rest):
            return rest.strip()
    what = f"{where}: <image> stands within the text of the question"
    raise SampleError(what, "pictures come before the question: write <image> there, or remove the line")
