"""Tables of conversations, as files for training have them, with the columns of a table of questions."""

from collections.abc import Iterator, Mapping, Sequence

from tokenprune.datasets.base import Table
from tokenprune.datasets.columns import PICTURES, Named, Role
from tokenprune.datasets.lists import entries
from tokenprune.datasets.turns import conversation, read_turns
from tokenprune.datasets.values import missing
from tokenprune.errors import SampleError

#: The columns in which files have conversations.
NAMES = ("conversation", "conversations", "messages")
Columns = Mapping[Role, Named]


def conversations(table: Table, chosen: Columns) -> Table:
    """The table with a question, an answer and a history in each row if its rows hold conversations; else as it is.

    Args:
        table: The table.
        chosen: The columns that the user named. A table with questions has no conversations, unless ``conversation``
            is named.
    """
    found = next((name for name in NAMES if name in table.columns), None)
    asked = chosen.get("question", "question")
    column = chosen.get("conversation", None if isinstance(asked, tuple) or asked in table.columns else found)
    return table if column not in table.columns else Conversations(table, str(column), chosen)


class Conversations(Table):
    """A table whose rows are the last questions of conversations, with the turns before them as history.

    An answer of the conversation is only used where the table has no column for answers.

    Args:
        table: The table of conversations.
        column: The column that holds them.
        chosen: The columns that the user named.
    """

    def __init__(self, table: Table, column: str, chosen: Columns) -> None:
        self._table, self._column, self._chosen = table, column, chosen
        self._last: tuple[int, Mapping[str, object]] | None = None
        self.name, self.folder, self.unit, self.names_files = table.name, table.folder, table.unit, table.names_files
        made: list[Role] = ["question", "history", "system", "images", "video"]
        answered = {self._name("answer"), self._name("answers")} & set(table.columns)
        self._made: dict[Role, str] = {role: name for role in made if (name := self._name(role))}
        self.columns = tuple(dict.fromkeys([*table.columns, *self._made.values()]))
        if not answered and (name := self._name("answer")) and self._has_answers():
            self._made["answer"] = name
            self.columns += (name,)
        self.made = {name: column for name in self._made.values() if name not in table.columns}

    def __len__(self) -> int:
        return len(self._table)

    def number(self, index: int) -> int:
        """As in the table."""
        return self._table.number(index)

    def where(self, index: int) -> str:
        """As in the table."""
        return self._table.where(index)

    def row_id(self, index: int) -> str:
        """As in the table."""
        return self._table.row_id(index)

    def items(self, value: object) -> Sequence[object]:
        """As in the table."""
        return self._table.items(value)

    def row(self, index: int) -> Mapping[str, object]:
        """The row of the table, with the last question of its conversation. The last row is kept."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._read(index)
        return self._last[1]

    def values(self, column: str) -> Iterator[object]:
        """One column's values of all rows."""
        if column not in self._made.values():
            yield from self._table.values(column)
            return
        for index in range(len(self)):
            try:
                value = self.row(index).get(column)
            except SampleError:
                value = None
            yield value

    def _read(self, index: int) -> Mapping[str, object]:
        row, where = self._table.row(index), self.where(index)
        beside = self._beside(row, where)
        clips = entries(row.get(self._name("video") or ""), self.items, "video", where)
        turns = read_turns(row.get(self._column), where)
        found = conversation(turns, beside, not all(map(missing, clips)), where)
        if (found.images or found.videos) and beside[-1]:
            raise SampleError(f"{where}: pictures in the turns and in a column, too", "write them at one place")
        values = {name: getattr(found, role) for role, name in self._made.items() if role not in ("images", "video")}
        if found.images:
            values[self._made["images"]] = list(found.images)
        if found.videos:
            values[self._made["video"]] = list(found.videos)
        return {**row, **values}

    def _beside(self, row: Mapping[str, object], where: str) -> list[int]:
        """How many pictures and videos the columns of a row name. A list of videos may be the frames of one."""
        counts = []
        for role in PICTURES:
            value = row.get(self._name(role) or "")
            counts.append(len([item for item in entries(value, self.items, role, where) if not missing(item)]))
        image, images, videos = counts
        return sorted({image + images + videos, image + images + min(videos, 1)})

    def _has_answers(self) -> bool:
        return any(self._answer(value) for value in self._table.values(self._column))

    def _answer(self, value: object) -> bool:
        try:
            turns = read_turns(value, "")
        except SampleError:
            return False
        return bool(turns) and turns[-1].role == "assistant"

    def _name(self, role: Role) -> str | None:
        name = self._chosen.get(role, role)
        return name if isinstance(name, str) else None
