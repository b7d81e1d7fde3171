"""The ends of the command line: one line for a mistake of the user, and what to do after a bug."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from tokenprune.cli.interrupt import nothing_kept, stoppable
from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError, TokenPruneError, TokenPruneWarning
from tokenprune.version import __version__


@contextmanager
def reported() -> Iterator[None]:
    """Print a mistake of the user inside the block as one line on stderr, and exit with status 2."""
    try:
        if any("\0" in argument for argument in sys.argv):
            raise ConfigError("an argument holds a NUL character, which no name or path can hold", "remove it")
        with stoppable(nothing_kept):
            yield
    except TokenPruneError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        _pipe_is_closed()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            what = f" while writing {error.filename}" if error.filename else ""
            print(f"error: disk full{what}; make room and run the same command again", file=sys.stderr)
            raise SystemExit(2) from None
        _bug()
    except Exception:
        _bug()


@contextmanager
def warnings_reported() -> Iterator[None]:
    """Print each of our own warnings once, as one line on stderr, without its place in the code."""
    said: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
            if not issubclass(category, TokenPruneWarning):
                show(message, category, filename, lineno, *rest)
            elif str(message) not in said:
                said.add(str(message))
                print(one_line(message), file=sys.stderr)

        warnings.simplefilter("always", TokenPruneWarning)
        warnings.showwarning = say  # type: ignore[assignment]
        yield


def _pipe_is_closed() -> NoReturn:
    """Exit quietly: who reads our output, like ``head``, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
    raise SystemExit(141) from None


def _bug() -> NoReturn:
    """Print the traceback of the running exception and what to do with it."""
    traceback.print_exc()
    print(
        "this is a bug in tokenprune or in a plugin: please report the lines above, the command and"
        f" the version (tokenprune {__version__}); `--no-plugins` shows whether a plugin is the cause",
        file=sys.stderr,
    )
    raise SystemExit(1) from None
