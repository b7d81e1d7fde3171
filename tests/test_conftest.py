"""The guards of the test suite themselves."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import matplotlib
import platformdirs
import pytest
from huggingface_hub import constants

# an address reserved for documentation: nothing answers there
ELSEWHERE = ("192.0.2.1", 80)


def test_the_network_is_off() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"192\.0\.2\.1"), socket.socket() as client:
        client.connect(ELSEWHERE)
    with pytest.raises(pytest.fail.Exception, match="example"):
        socket.getaddrinfo("example.org", 443)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_this_machine_can_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")
        assert server.accept()[0].recv(1) == b"x"


def test_no_cache_of_the_user_is_used() -> None:
    """Neither by this process nor by those that it starts."""
    folder = Path(__file__).parents[1] / ".pytest_cache"
    places = [platformdirs.user_cache_path("tokenprune"), matplotlib.get_cachedir(), constants.HF_HOME]
    places += [os.environ["TRITON_CACHE_DIR"]]
    assert all(Path(place).is_relative_to(folder) for place in places)
