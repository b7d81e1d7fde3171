"""``tokenprune doctor``."""

import os
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

import typer
from packaging.requirements import Requirement

from tokenprune.cli.list import listed
from tokenprune.cli.printing import AsJson, print_json, print_lines, print_table
from tokenprune.core import plugins
from tokenprune.core.text import one_line
from tokenprune.tables.column import Column, fill, text
from tokenprune.version import __version__

#: Extras for work on tokenprune itself.
OURS = {"test", "dev", "docs"}


@dataclass(frozen=True)
class Finding:
    """A row.

    Attributes:
        part: What it belongs to.
        name: What was looked at.
        found: What is there.
        state: ``ok``; ``missing``, which only what needs it notices; ``broken``, which has to be mended.
        fix: What to do; empty where nothing is.
    """

    part: str
    name: str
    found: str
    state: Literal["ok", "missing", "broken"] = "ok"
    fix: str = ""


COLUMNS: tuple[Column[Finding], ...] = (
    text("part", lambda row: row.part),
    text("name", lambda row: row.name),
    text("found", lambda row: row.found if row.state == "ok" else f"{row.state.upper()}: {row.found}"),
    text("to do", lambda row: row.fix).ranked(1),
)


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices, attention kernels, extras and plugins; what is broken or missing, and how to mend it.

    Every component is imported. The exit code is 1 if something is broken.
    """
    found = [*_versions(), *_devices(), *_kernels(), *_extras(), *_components()]
    broken = [row for row in found if row.state == "broken"]
    if as_json:
        print_json([asdict(row) for row in found])
    else:
        print_table(fill("doctor", COLUMNS, found))
        verdict = f"{len(broken)} broken: the last column says how to mend them." if broken else "Nothing is broken."
        print_lines("", f"{verdict} What is missing is optional.")
    if broken:
        raise typer.Exit(1)


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "tokenprune", __version__)
    yield Finding("versions", "Python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for requirement in _requirements(None):
        yield _installed("versions", requirement, "broken", f"pip install '{requirement}'")


def _extras() -> Iterator[Finding]:
    provided = metadata.metadata(plugins.DISTRIBUTION).get_all("Provides-Extra") or []
    for extra in (name for name in provided if name not in OURS):
        for requirement in _requirements(extra):
            yield _installed(f"extra {extra}", requirement, "missing", f"pip install '{plugins.DISTRIBUTION}[{extra}]'")


def _requirements(extra: str | None) -> Iterator[Requirement]:
    """What the distribution needs on this machine: always, or for one extra."""
    for line in metadata.requires(plugins.DISTRIBUTION) or ():
        requirement = Requirement(line)
        always = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        wanted = always if extra is None else not always and requirement.marker.evaluate({"extra": extra})  # type: ignore[union-attr]
        if wanted:
            requirement.marker = None
            yield requirement


def _installed(part: str, requirement: Requirement, state: Literal["missing", "broken"], fix: str) -> Finding:
    """Whether a distribution is there in a version that will do; another one is broken wherever it is needed."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(part, requirement.name, "not installed", state, fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(part, requirement.name, f"{version}, needs {requirement.specifier}", "broken", fix)
    return Finding(part, requirement.name, version)


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("devices", "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch")
    for number in range(torch.cuda.device_count()):
        known = torch.cuda.get_device_properties(number)
        yield Finding("devices", f"cuda:{number}", f"{known.name}, {known.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.device_count():
        yield Finding("devices", "cuda", "no GPU is seen" if torch.version.cuda else "this torch is built for CPUs")
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "available")


def _kernels() -> Iterator[Finding]:
    yield Finding("attention", "sdpa, eager", "part of torch")
    fix = "pip install flash-attn, on a machine with CUDA; sdpa is the default"
    yield _installed("attention", Requirement("flash-attn"), "missing", fix)


def _components() -> Iterator[Finding]:
    """Each component that cannot be used; and how many can, of each distribution."""
    if plugins.plugins_disabled():
        yield Finding("components", "plugins", "switched off", "missing", "leave out --no-plugins")
    usable: Counter[str] = Counter()
    for kind in (*plugins.COMPONENT_KINDS, "methods"):
        for row in listed(kind, check=True):
            usable[row.distribution] += row.problem is None
            if row.problem is not None:
                fix = f"repair or uninstall {row.distribution}"
                yield Finding("components", f"{kind} {row.name}", one_line(row.problem), "broken", fix)
    for distribution, count in usable.items():
        yield Finding("components", distribution, f"{count} components and methods can be used")
