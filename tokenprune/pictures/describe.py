"""Looks in words, for captions and for readers who do not see the picture."""

import itertools
from collections.abc import Sequence

import numpy as np

from tokenprune.pictures.look import Look, StageLook, words
from tokenprune.pictures.sheets import sheets

RIGHT, WRONG, SAME, CHANGED = "\N{CHECK MARK}", "\N{BALLOT X}", "=", "\N{NOT EQUAL TO}"
LONGEST = 160

#: Names of the thirds of a picture, by row and column.
THIRDS = (
    ("at the top left", "at the top", "at the top right"),
    ("at the left", "in the middle", "at the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)


def describe(look: Look) -> str:
    """A look in one to three plain sentences, for readers who do not see the picture.

    Args:
        look: The look.
    """
    if not look.stages:
        text = f"{look.method} keeps all {tokens(look.tokens)}."
    elif all(stage.reason for stage in look.stages):
        text = f"{look.method} drops nothing: {why(look.stages[0])}."
    else:
        counts = ", ".join(f"{int(stage.kept.sum())} before layer {stage.layer}" for stage in look.stages)
        share = 100 * int(look.kept.sum()) / max(look.tokens, 1)
        text = f"Of {tokens(look.tokens)} {look.method} keeps {counts} ({share:.3g} %){where(look)}."
    if look.answer is not None:
        text += f' It answers "{shorter(look.answer)}"'
        text += f", which is {verdict(look)}." if look.right is not None else "."
    return text


def tokens(count: int) -> str:
    """A number of visual tokens."""
    return f"{count} visual token{'' if count == 1 else 's'}"


def caption(look: Look, stage: StageLook | None) -> str:
    """The text under the picture of a stage."""
    if stage is None:
        return f"all {tokens(look.tokens)}"
    if stage.reason is not None:
        return f"layer {stage.layer}: nothing dropped ({why(stage)})"
    text = f"layer {stage.layer}: {int(stage.kept.sum())} of {tokens(look.tokens)}"
    apart = look.cells[:, 0] < 0
    if apart.any():
        text += f" (off the picture: {int(stage.kept[apart].sum())} of {int(apart.sum())})"
    return text


def why(stage: StageLook) -> str:
    """The reason for which a stage dropped nothing."""
    return (stage.reason or "").removeprefix("not pruned: ")


def verdict(look: Look) -> str:
    """``right``, or what was expected."""
    if look.right:
        return "right"
    return f"wrong (expected: {shorter(look.expected, 60)})" if look.expected else "wrong"


def judgement(look: Look, unpruned: Look | None) -> list[tuple[str, str]]:
    """Signs and words about an answer: right or wrong, changed or not; those that are known."""
    parts = []
    if look.right is not None:
        parts.append((RIGHT if look.right else WRONG, verdict(look)))
    if unpruned is not None and unpruned.answer is not None and look.stages and look.answer is not None:
        same = same_answer(look.answer, unpruned.answer)
        parts.append((SAME, "as unpruned") if same else (CHANGED, "changed"))
    return parts


def same_answer(one: str, other: str) -> bool:
    """Whether two answers have the same words."""
    return words(one) == words(other) if words(one) else one.strip() == other.strip()


def printable(text: str) -> str:
    """A text on one line, without what cannot be printed."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def shorter(text: str | None, longest: int = LONGEST) -> str:
    """A text on one line, without what cannot be printed, cut after a word with an ellipsis."""
    clean = printable(text or "")
    if len(clean) <= longest:
        return clean
    cut = clean[: longest - 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut[longest // 2 :] else cut) + "\N{HORIZONTAL ELLIPSIS}"


def numbers(chosen: Sequence[int]) -> str:
    """Numbers from 1 with ranges: ``1-3, 7``, or ``every 4th from 1 to 29``."""
    ones = [number + 1 for number in chosen]
    steps = {after - before for before, after in itertools.pairwise(ones)}
    if len(ones) > 3 and len(steps) == 1 and (step := steps.pop()) > 1:
        return f"every {step}{ {2: 'nd', 3: 'rd'}.get(step, 'th') } from {ones[0]} to {ones[-1]}"
    parts: list[list[int]] = []
    for number in ones:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def where(look: Look) -> str:
    """The place of most kept tokens, after a comma, if a ninth of the only picture holds a large share of them."""
    panels = sheets(look)
    if len({panel.picture for panel in panels}) != 1:
        return ""
    here = look.kept & np.isin(look.cells[:, 0], panels[0].numbers)
    counts = np.zeros((3, 3), dtype=int)
    columns, rows = (3 * look.centres(np.flatnonzero(here))).clip(0, 2).astype(int).T
    np.add.at(counts, (rows, columns), 1)
    share = counts.max() / max(counts.sum(), 1)
    if counts.sum() < 3 or share < 0.3:
        return ""
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    return f", {100 * share:.0f} % of these {THIRDS[row][column]}"
