"""What runs on workers have in common: workers that belong together, and jobs that are tried again."""

import secrets
import shutil
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from tokenprune.errors import ForwardError, OutputError, TokenPruneError, TokenPruneWarning
from tokenprune.executors.base import Crew
from tokenprune.executors.pool import TRIES, Pool, Work
from tokenprune.executors.service import Service, Setup
from tokenprune.fingerprint.origin import Origin
from tokenprune.output.run_folder import RunFolder

#: How the folders begin through which workers speak that have no other way.
SCRATCH = ".workers-"
#: Batches that a worker is given at once, at most. What it has not begun when it dies is given to others.
MOST_BATCHES = 16
#: So many jobs that fail one after the other, with none done between them, are no fault of the samples.
IN_A_ROW = 8
#: Failed jobs that an error names; it counts the others.
NAMED = 5


def remove_scratch(folder: RunFolder) -> None:
    """Remove what dead drivers have left. Workers of theirs that still live find that, and end.

    Args:
        folder: The folder of the files; this process holds its lock.
    """
    for path in folder.folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


class Hello(Protocol):
    """What a worker says when it is ready."""

    @property
    def origin(self) -> Origin:
        """The weights of its model, and versions of its code."""


class Team:
    """The workers of a run, all with the same model and code. They are started when they are needed first.

    The workers write nothing into the folder: they report to this process, which does. So a worker that outlives it can
    do no harm to the run that goes on.

    Args:
        crew: The workers.
        most: More of them would have nothing to do.
        make: Makes the service inside a worker; picklable.
        folder: The folder of the run's files.

    Attributes:
        hello: What the first worker said; None before.
    """

    def __init__(self, crew: Crew, most: int, make: Callable[[], Service], folder: RunFolder) -> None:
        self._crew, self._make, self._folder = crew, make, folder
        self.count = max(1, min(crew.number, most))
        self._pool: Pool | None = None
        self.hello: Any = None

    @property
    def pool(self) -> Pool:
        """The workers; started if they are not."""
        if self._pool is None:
            scratch = self._folder.folder.absolute() / f"{SCRATCH}{secrets.token_hex(4)}"
            workers = self._crew.executor.open(self.count, Setup(self._make, scratch))
            self._pool = Pool(workers, self.count, self._accept)
        return self._pool

    def close(self) -> None:
        """End all workers."""
        if self._pool is not None:
            self._pool.close()

    def _accept(self, hello: Hello) -> None:
        """Take up what a worker has loaded.

        Raises:
            OutputError: It is another model, or other code, than that of the first worker or of the folder.
        """
        if self.hello is None:
            self._folder.check_origin(hello.origin)
            self.hello = hello
            return
        found = self.hello.origin.difference(hello.origin)
        if found is not None:
            what, mine, theirs = found
            raise OutputError(
                f"it has another {what}: {theirs}, and the first worker has {mine}",
                "let all workers have the same checkpoint and versions",
            )
        unknown = self.hello.origin.unknown(hello.origin)
        if unknown:
            text = f"whether all workers have the same {' and '.join(unknown)} is unknown: they could not be read"
            warnings.warn(text, TokenPruneWarning, stacklevel=2)


class BatchItem(Protocol):
    """A batch of samples, and what is to be done with it."""

    @property
    def number(self) -> int:
        """The number of the batch."""

    @property
    def keys(self) -> tuple[str, ...]:
        """A job each: the names of what is to run on it."""


Item = TypeVar("Item", bound=BatchItem)


class Jobs(Work, Generic[Item]):
    """Jobs: a key with one batch each. The keys of an item go to one worker.

    A job whose worker dies, or which fails, is tried again; one that always does is given up. The size of a job does
    not depend on the workers.

    Args:
        asked: The batches.
        count: How many these are, about.
        batch_size: Samples of a batch, for names of jobs.
    """

    def __init__(self, asked: Iterator[Item], count: int, batch_size: int) -> None:
        self._asked, self._left, self._batch_size = asked, count, batch_size
        self._again: deque[Item] = deque()
        #: Order that a worker has, by its identity -> its batches that are not done, with the keys that are missing
        self._work: dict[int, list[Item]] = {}
        self._exhausted = False
        self._tries: dict[tuple[int, str], int] = {}
        self._given_up: dict[str, TokenPruneError] = {}
        self._in_a_row = 0

    @abstractmethod
    def order(self, items: tuple[Item, ...]) -> Any:
        """What a worker is told to do these batches."""

    @abstractmethod
    def left(self, item: Item, content: Any) -> Item:
        """What is left of a batch when a job of it is done."""

    @abstractmethod
    def without(self, item: Item, error: TokenPruneError) -> Item | None:
        """What is left of a batch whose first job is given up; None for nothing."""

    @property
    def finished(self) -> bool:
        """See :meth:`Work.finished`."""
        return self._exhausted and not self._again and not self._work

    def take(self, workers: int) -> Any | None:
        """See :meth:`Work.take`."""
        share = self._left // (4 * workers)  # few at the end, so that all workers end together
        items: list[Item] = []
        for _ in range(1 if self._again else max(1, min(MOST_BATCHES, share))):
            item = self._next()
            if item is None:
                break
            items.append(item)
        if not items:
            return None
        order = self.order(tuple(items))
        self._work[id(order)] = items
        return order

    def _next(self) -> Item | None:
        if self._again:
            return self._again.popleft()
        item = next(self._asked, None)
        self._left -= 1
        self._exhausted = item is None
        return item

    def report(self, order: Any, content: Any) -> None:
        """See :meth:`Work.report`."""
        self._in_a_row = 0
        items = self._work[id(order)]
        for place, item in enumerate(items):
            if item.number == content.number and content.key in item.keys:
                items[place] = self.left(item, content)
        items[:] = [item for item in items if item.keys]

    def done(self, order: Any, content: None) -> None:
        """See :meth:`Work.done`."""
        assert not self._work.pop(id(order)), "a worker says that it is done, and it is not"

    def failed(self, order: Any, error: TokenPruneError, died: bool) -> None:
        """See :meth:`Work.failed`."""
        if not died and not self.tries_again(error):
            raise error
        items = self._work.pop(id(order))
        if items:  # else it died when all was done
            first = self._tried(items[0], error)
            self._again.extendleft(reversed(items[1:] if first is None else [first, *items[1:]]))

    def tries_again(self, error: TokenPruneError) -> bool:
        """Whether another worker may succeed where one failed with this error."""
        return False

    def _tried(self, item: Item, error: TokenPruneError) -> Item | None:
        """What is left of a batch whose first job failed.

        Raises:
            TokenPruneError: So many jobs fail one after the other that the samples are not the reason.
        """
        key = item.keys[0]
        tries = self._tries[item.number, key] = self._tries.get((item.number, key), 0) + 1
        if tries < TRIES:
            return item
        first = item.number * self._batch_size + 1
        self._given_up[f"{key!r} on samples {first} to {first + self._batch_size - 1}"] = error
        self._in_a_row += 1
        if self._in_a_row == IN_A_ROW:
            raise self.error(f"{IN_A_ROW} jobs in a row fail, so it is not the samples")
        return self.without(item, error)

    def error(self, fix: str) -> TokenPruneError:
        """The jobs that were given up, as an error."""
        count = len(self._given_up)
        named = [f"{name} ({error.what})" for name, error in list(self._given_up.items())[:NAMED]]
        more = f", and {count - NAMED} more" if count > NAMED else ""
        what = f"{count} {'job' if count == 1 else 'jobs'} failed {TRIES} times each: {', '.join(named)}{more}"
        return ForwardError(what, fix)
