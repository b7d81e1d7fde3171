"""The figure of one or several looks: the places of panels and texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.figure import Figure

from tokenprune.adapters.views import WHOLE
from tokenprune.drawing.palette import styles
from tokenprune.pictures.canvas import LEADING, Canvas, length
from tokenprune.pictures.describe import CHANGED, WRONG, caption, judgement, numbers, shorter
from tokenprune.pictures.look import Look, StageLook
from tokenprune.pictures.panels import Scale, crosses_pictures, draw_merges, draw_picture, draw_scale, draw_scores
from tokenprune.pictures.sheets import Sheet, sheets

#: Points of the fonts.
TITLE, HEAD, BODY, SIGNS, SMALL = 9.5, 8.5, 7.5, 7.0, 6.5
#: Inches.
MARGIN, GAP, WIDE_GAP, LINE = 0.08, 0.06, 0.16, 0.05
TALLEST, STRIP = 3.4, 1.5
NARROW = 3.6
#: Width of an overview beside the finer sheet of its picture.
OVERVIEW = 0.4
SCALE = 0.07
GREY = "0.3"


@dataclass(frozen=True)
class Block:
    """One stage of a look, or the unpruned model: its picture, and ``heat`` and ``merge`` among its extra panels."""

    look: Look
    stage: StageLook | None
    sheets: tuple[Sheet, ...]
    number: int
    extras: tuple[str, ...]

    @property
    def name(self) -> str:
        """The beginning of its panels' names."""
        layer = "unpruned" if self.stage is None else f"layer {self.stage.layer}"
        return f"{self.number}: {self.look.method}, {layer}"


class Layout:
    """Puts looks on a canvas; the arguments are those of :func:`tokenprune.draw`."""

    def __init__(
        self,
        looks: Sequence[Look],
        *,
        width: float,
        columns: int | None,
        pictures: int,
        row: int,
        scores: bool,
        merges: bool,
    ) -> None:
        self.looks, self.row, self.scores, self.merges = looks, row, scores, merges
        self.wanted_columns, self.most_pictures = columns, pictures
        self.inner = width - 2 * MARGIN
        self.canvas = Canvas(width)
        self.unpruned = next((look for look in looks if not look.stages), None)
        self.colours = {name: style.colour for name, style in styles(look.method for look in looks).items()}
        self.blocks = [self._blocks(number, look) for number, look in enumerate(looks)]
        self.sheets = [blocks[0].sheets for blocks in self.blocks]
        self.strip = any(len({sheet.picture for sheet in drawn}) > 1 for drawn in self.sheets)

    def _blocks(self, number: int, look: Look) -> list[Block]:
        pictures = self._shown(look)
        drawn = tuple(sheet for sheet in sheets(look) if sheet.picture in pictures)
        return [Block(look, stage, drawn, number, self._extras(stage)) for stage in look.stages or (None,)]

    def _extras(self, stage: StageLook | None) -> tuple[str, ...]:
        if stage is None:
            return ()
        heat = self.scores and stage.scores is not None
        merge = self.merges and stage.merged is not None and bool((stage.merged >= 0).any())
        return ("heat",) * heat + ("merge",) * merge

    def _shown(self, look: Look) -> list[int]:
        """Numbers of the pictures that are drawn: all, or as many as wanted at even distances."""
        pictures = sorted({view.picture for view in look.views})
        if len(pictures) <= self.most_pictures:
            return pictures
        return [pictures[int(place)] for place in np.linspace(0, len(pictures) - 1, self.most_pictures).round()]

    # ---- rows of looks ----

    def figure(self) -> Figure:
        """The figure."""
        y = MARGIN
        question = next((look.question for look in self.looks if look.question), "")
        if question:
            y = self.canvas.paragraph(MARGIN, y, self.inner, shorter(question, 400), TITLE, bold=True) + 2 * LINE
        for row in self._rows(self.columns):
            y = self._row(row, y) + WIDE_GAP
        y -= WIDE_GAP / 2
        for note in self._notes():
            y = self.canvas.paragraph(MARGIN, y, self.inner, note, SMALL, most=4, colour=GREY)
        return self.canvas.figure(y + MARGIN)

    @cached_property
    def most(self) -> int:
        """Panels that fit side by side."""
        if self.strip:
            return 1
        aspect = max(sum(map(_shape, drawn)) for drawn in self.sheets)
        return 1 if aspect > 4 else 2 if aspect > 2.2 else 3 if aspect > 1.7 else 4 if aspect > 0.6 else 6

    @cached_property
    def beside(self) -> bool:
        """Whether scores and merges have room beside their picture, and not below it."""
        panels = sum(1 + len(block.extras) for blocks in self.blocks for block in blocks)
        return self.wanted_columns is None and not self.strip and panels <= self.most

    @cached_property
    def columns(self) -> int:
        """Stages side by side."""
        count = sum(map(len, self.blocks))
        if self.wanted_columns is not None:
            return min(self.wanted_columns, count)
        if self.beside:
            return count
        # as few rows as can be, then stages together, then as large panels
        rows = {columns: self._rows(columns) for columns in range(1, self.most + 1)}
        return min(rows, key=lambda columns: (len(rows[columns]), sum(map(len, rows[columns])), columns))

    def _rows(self, columns: int) -> list[list[list[Block]]]:
        """Looks in rows; the stages of one stay together if they fit in a row."""
        rows: list[list[list[Block]]] = []
        room = 0
        for blocks in self.blocks:
            for start in range(0, len(blocks), columns):
                part = blocks[start : start + columns]
                if room < len(part):
                    rows.append([])
                    room = columns
                rows[-1].append(part)
                room -= len(part)
        return rows

    def _row(self, groups: list[list[Block]], top: float) -> float:
        blocks = [block for group in groups for block in group]
        # a row that is not full has room beside its pictures, too
        beside = self.beside or (not self.strip and sum(1 + len(block.extras) for block in blocks) <= self.columns)
        more = [len(block.extras) if beside else 0 for block in blocks]
        gap = GAP if self.beside else WIDE_GAP
        narrow = sum(more) if self.beside else 0
        width = (self.inner - (self.columns - 1) * WIDE_GAP - narrow * GAP) / (self.columns + narrow)
        # pictures, then captions and answers, then what explains them, each in a line across the row
        x, lefts, spans = MARGIN, [], []
        extras = iter(more)
        for group in groups:
            start = x
            for _ in group:
                lefts.append(x)
                x += width + next(extras) * (width + gap) + WIDE_GAP
            spans.append((group, start, x - WIDE_GAP - start))
        stages = list(zip(blocks, lefts, strict=True))
        y = max(self._head(group, start, top, span) for group, start, span in spans) + LINE
        bottom = max(self._kind("picture", block, left, y, width) for block, left in stages) + LINE / 2
        bottom = max(self._caption(block, left, bottom, width) for block, left in stages)
        bottom = max(self._answer(group, start, bottom, width if beside else span) for group, start, span in spans)
        ends = [bottom]
        for block, left in stages:
            under = bottom + LINE
            for kind in block.extras:
                if beside:
                    left += width + gap
                    ends.append(self._kind(kind, block, left, y, width))
                else:
                    under = self._kind(kind, block, left, under, width) + LINE
                    ends.append(under)
        return max(ends)

    def _caption(self, block: Block, x: float, y: float, width: float) -> float:
        text = caption(block.look, block.stage)
        short = text.replace(" visual tokens", " tokens")
        text = short if length(text, BODY) > width >= length(short, BODY) else text
        return self.canvas.paragraph(x, y, width, text, BODY, most=4)

    def _head(self, group: list[Block], x: float, y: float, span: float) -> float:
        look = group[0].look
        self.canvas.bar(x, y, span, 0.025, self.colours[look.method])
        y += 0.025 + LINE / 2
        bottom = self.canvas.paragraph(x, y, span, look.method, HEAD, most=2, bold=True)
        if look.budget:
            room = span - length(look.method, HEAD, True) - 0.08
            if length(look.budget, BODY) <= room:
                self.canvas.paragraph(x + span - room, y + 0.014, room, look.budget, BODY, most=1, colour=GREY)
            else:
                bottom = self.canvas.paragraph(x, bottom, span, look.budget, BODY, most=2, colour=GREY)
        return bottom

    def _answer(self, group: list[Block], x: float, y: float, span: float) -> float:
        look, last = group[-1].look, group[-1]
        if look.answer is None or (look.stages and last.stage is not look.stages[-1]):  # it is below the last stage
            return y
        answer = f'"{shorter(look.answer, 600)}'
        said = judgement(look, self.unpruned)
        x_signs, y_signs = x, y
        y = y_signs = self.canvas.paragraph(x, y + LINE / 2, span, answer, BODY + 0.5, most=4, end='"')
        room = span - length(answer + '"', BODY + 0.5) - WIDE_GAP
        lengths = [length(f"{sign} {words}", SIGNS, True) + WIDE_GAP for sign, words in said]
        if span > NARROW and sum(lengths) <= room:  # behind the answer, where a line holds it all
            x_signs, y_signs = x + span - room, y - (BODY + 0.5) * LEADING
        for (sign, words), long in zip(said, lengths, strict=True):
            bold = sign in (WRONG, CHANGED)
            bottom = self.canvas.paragraph(x_signs, y_signs, span, f"{sign} {words}", SIGNS, most=2, bold=bold)
            if x_signs > x:
                x_signs += long
            else:
                y = y_signs = bottom
        return y

    # ---- the panels of a stage ----

    def _kind(self, kind: str, block: Block, x: float, y: float, width: float) -> float:
        """Add all panels of a kind, in rows; returns their bottom."""
        chunks = _chunks(block.sheets, self.row)
        # all pictures are equally high; a row is as long as its widths add up to
        high = min((width - (len(chunk) - 1) * GAP) / sum(map(_shape, chunk)) for chunk in chunks)
        high = min(high, STRIP if self.strip else TALLEST)
        scores = block.stage.scores if block.stage is not None and kind == "heat" else None
        scale = None if scores is None else Scale.of(block.look, scores)
        titled = len(block.sheets) > 1
        right = x
        for chunk in chunks:
            left, bottom = x, y
            head = SMALL * LEADING if titled else 0.0
            for sheet in chunk:
                wide = high * _shape(sheet)
                tall = wide / sheet.aspect
                if titled:
                    self.canvas.paragraph(left, y, wide, sheet.title, SMALL, most=1, colour=GREY)
                name = f"{block.name}, {kind}, picture {sheet.picture + 1}" + (", overview" if sheet.small else "")
                axes, size = self.canvas.panel(left, y + head, wide, tall, name), (wide, tall)
                if kind == "picture" or block.stage is None:
                    draw_picture(axes, sheet, block.stage, size)
                elif scale is not None:
                    draw_scores(axes, sheet, block.stage, scale, size)
                else:
                    draw_merges(axes, sheet, block.stage, size)
                left += wide + GAP
                bottom = max(bottom, y + head + tall)
            right = max(right, left - GAP)
            y = bottom + GAP
        y = bottom
        if scale is not None:
            wide = min(max(right - x, min(width, 1.2)), 2.2)
            word = length("score", SMALL) + 0.05
            self.canvas.paragraph(x, y + 0.045, word, "score", SMALL, most=1, colour=GREY)
            draw_scale(self.canvas.panel(x + word, y + 0.05, wide - word, SCALE, f"{block.name}, scale"), scale)
            y += 0.05 + SCALE + SMALL * LEADING
        if block.stage is None or kind != "merge":
            return y
        return self._merged(block.look, block.stage, block.name, x, y + LINE / 2, width)

    def _merged(self, look: Look, stage: StageLook, name: str, x: float, y: float, width: float) -> float:
        """Say in words and colours where the merged tokens went."""
        moved = int(((stage.targets >= 0) & ~stage.kept).sum())
        if not crosses_pictures(look, stage.targets):
            text = f"{moved} merged into the token of the same colour with a dot"
            return self.canvas.paragraph(x, y, width, text, SMALL, colour=GREY)
        word = f"{moved} merged into tokens of picture"
        long = length(word, SMALL) + 0.06
        self.canvas.paragraph(x, y, long, word, SMALL, most=1, colour=GREY)
        draw_scale(self.canvas.panel(x + long, y + 0.01, 1.6, SCALE, f"{name}, pictures"), Scale.of_pictures(look))
        return y + 0.01 + SCALE + SMALL * LEADING

    # ---- below everything ----

    def _notes(self) -> list[str]:
        look = max(self.looks, key=lambda look: len(look.stages))
        notes = []
        if any(not stage.kept.all() for one in self.looks for stage in one.stages):
            notes.append("Faded: dropped. Outlined: kept.")
        if any(
            stage.scores is not None and np.isnan(stage.scores[one.cells[:, 0] >= 0]).any()
            for one in self.looks
            for stage in one.stages
        ):
            notes.append("Hatched: no score.")
        every = [sheet for drawn in self.sheets for sheet in drawn]
        if any(sheet.unseen for sheet in every):
            notes.append("Hatched on a picture: not seen by the model.")
        if any(sheet.extent != WHOLE for sheet in every):
            notes.append("Grey around a picture: padding.")
        shown, pictures = self._shown(look), {view.picture for view in look.views}
        lines = [" ".join(notes)] if notes else []
        if len(shown) < len(pictures):
            lines.append(f"{len(shown)} of {len(pictures)} pictures are shown: {numbers(shown)}.")
        return lines


def _shape(sheet: Sheet) -> float:
    """Width of a sheet divided by the height of one that is no overview."""
    return sheet.aspect * (OVERVIEW if sheet.small else 1.0)


def _chunks(panels: Sequence[Sheet], most: int) -> list[list[Sheet]]:
    """Sheets in rows of at most so many pictures; the sheets of a picture stay together."""
    pictures = list(dict.fromkeys(sheet.picture for sheet in panels))
    rows = [pictures[start : start + most] for start in range(0, len(pictures), most)]
    return [[sheet for sheet in panels if sheet.picture in row] for row in rows]
