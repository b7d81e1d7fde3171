"""The ends of the command line: one line for a mistake of the user, and what to do after a bug."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tokenprune.cli.interrupt import nothing_kept, stoppable
from tokenprune.core.blame import place, plugin_of, plugins_installed
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
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            _bug(error)
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None


def in_one_line(error: Exception) -> str | None:
    """What is wrong on the machine, in a file or in a plugin, and how to mend it; None for a bug of ours."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of torch, which may not be there
        return "the memory is full; use a smaller batch_size, smaller pictures, or another dtype or device"
    line = _of_a_file(error) if isinstance(error, OSError) else None
    if line is not None:
        return line
    plugin = plugin_of(error)
    if plugin is not None:
        what = f"the plugin {plugin} failed ({type(error).__name__}: {one_line(error)}; {place(error)})"
        return f"{what}; report it to its authors, or leave it out"
    if isinstance(error, UnicodeError):
        return f"a file is no text in UTF-8 ({one_line(error)}); save it as UTF-8"
    return None


def _of_a_file(error: OSError) -> str | None:
    """What the system refuses, in words; None where it is no file, or one of our own."""
    where = f" {os.fspath(error.filename)}" if isinstance(error.filename, str | os.PathLike) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full{f' while writing{where}' if where else ''}; make room and run the same command again"
    if error.strerror is None or where.strip().startswith(str(Path(__file__).parents[1])):
        return None
    if not where:
        return f"the system refuses something ({error.strerror})"
    if len(where) > 300:
        where = f"{where[:100]}..."
    return f"{one_line(where)} cannot be used ({error.strerror}); check the path and its permissions"


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


def _bug(error: Exception) -> NoReturn:
    """Print the traceback of an exception and what to do with it."""
    traceback.print_exception(error)
    hint = "; `--no-plugins` shows whether a plugin is the cause" if plugins_installed() else ""
    print(
        f"this is a bug in tokenprune{' or in a plugin' if hint else ''}: please report the lines above, the command"
        f" and the version (tokenprune {__version__}){hint}",
        file=sys.stderr,
    )
    raise SystemExit(1) from None
