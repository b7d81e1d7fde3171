"""What holds for every test: no network, none of the user's caches, one thread per process, the same seeds."""

from __future__ import annotations

import os
from pathlib import Path

# libraries read these when they are imported, so before anything else
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.update(
    (name, str(Path(__file__).parent / ".pytest_cache" / "user" / name.lower()))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR")
)

import gc
import ipaddress
import random
import socket
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.fast import fast


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --fast`."""
    parser.addoption("--fast", action="store_true", help="the first case of every test that is not marked slow")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and test items stay until the end: the garbage collector need not look at them, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionfinish() -> None:
    """Libraries that count what is left when the interpreter ends find nothing."""
    gc.unfreeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests come first. With `--fast`, deselect what :mod:`tests.support.fast` leaves out."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    if config.getoption("--fast"):
        chosen = fast(items)
        left_out = set(items) - set(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = chosen


def is_local(host: object) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host in (None, "", "localhost") or ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def refuse(target: object) -> None:
    """Fail the test; the exception is none that a library would catch and retry."""
    pytest.fail(f"a test tried to reach {target} over the network")


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Entropy curves and verdicts are neither read from the user's cache nor left there."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenprune.engine.trials.profile_cache.user_cache_path", lambda *names: folder)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Any connection, or look-up of a name, that leaves this machine fails the test."""
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guard(original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
                refuse(address)
            return original(self, address)

        return guarded

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host):
            refuse(host)
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guard(connect))
        patch.setattr(socket.socket, "connect_ex", guard(connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Test processes share the cores; more threads than cores would only wait for each other."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands print as into a pipe, whichever terminal the tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a test leaves in the environment (transformers does, when it compiles) is not seen by the next one."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same state of the global generators."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
