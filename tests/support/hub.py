"""A hub on this machine, which counts what it is asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@contextmanager
def hub(patch: pytest.MonkeyPatch, *has: str) -> Iterator[list[str]]:
    """A hub that has models and datasets of these names, and answers 404 for others.

    Yields:
        The paths that it was asked for.
    """
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.extend([self.path] if is_asked_by_us(self.path) else [])
            name = self.path.partition("?")[0].removeprefix("/api/").partition("/")[2]
            found = name in has
            self.send_response(200 if found else 404)
            if not found:
                self.send_header("X-Error-Code", "RevisionNotFound" if "/revision/" in name else "RepoNotFound")
            self.end_headers()
            self.wfile.write(json.dumps({"id": name, "siblings": []}).encode() if found else b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        reachable_at(patch, server.server_port)
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def is_asked_by_us(path: str) -> bool:
    """Whether a request is no statistics of the hub's client."""
    return path.startswith(("/api/models/", "/api/datasets/"))


@contextmanager
def silent_hub(patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that accepts connections and never says anything.

    Yields:
        The paths that it was asked for.
    """
    connections: list[socket.socket] = []
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connections.append(server.accept()[0])
                    path = connections[-1].recv(1000).split()[1].decode()
                    asked.extend([path] if is_asked_by_us(path) else [])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        reachable_at(patch, server.getsockname()[1])
        yield asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


def unreachable_hub(patch: pytest.MonkeyPatch) -> None:
    """A hub at a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    reachable_at(patch, port)


def reachable_at(patch: pytest.MonkeyPatch, port: int) -> None:
    """Tell the hub's client, which reads its environment when it is imported, where the hub is."""
    patch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
