"""The service of docs/service.md answers requests: whole answers, streams, at once, and refusals."""

from __future__ import annotations

import gc
import io
import runpy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.checkpoints import FAMILIES

ROOT = Path(__file__).parents[2]
SNIPPET = ROOT / "docs" / "snippets" / "service.py"
VISUAL = 16


def picture() -> bytes:
    """A PNG of noise."""
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def snippet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names of the file, with a tiny checkpoint in place of that of the hub."""
    pytest.importorskip("fastapi", reason="fastapi is not installed (extra test)")
    folder = tmp_path_factory.mktemp("service") / "llava"
    FAMILIES["llava"].save(folder)
    names = runpy.run_path(str(SNIPPET))
    names["load"].__globals__.update(CHECKPOINT=str(folder), NEW_TOKENS=6, AT_ONCE=2)
    return names


@pytest.fixture
def client(snippet: dict[str, Any]) -> Iterator[Any]:
    """A client of the running application."""
    from fastapi.testclient import TestClient

    with TestClient(snippet["load"]()) as running:
        yield running


def ask(client: Any, path: str, **fields: Any) -> Any:
    return client.post(path, files={"picture": ("p.png", picture())}, data={"question": "what is this", **fields})


def test_the_page_shows_this_file() -> None:
    assert '--8<-- "docs/snippets/service.py"' in (ROOT / "docs" / "service.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [({}, 4), ({"method": "visionzip"}, 4), ({"keep_ratio": 0.5}, 8), ({"method": "unpruned"}, VISUAL)],
    ids=["default", "method", "budget", "unpruned"],
)
def test_answer_and_stream_are_pruned_as_asked_and_say_the_same(client: Any, fields: Any, kept: int) -> None:
    whole = ask(client, "/answer", **fields)
    assert whole.status_code == 200, whole.text
    assert whole.json()["visual_tokens"] == kept
    assert whole.json()["answer"]
    streamed = ask(client, "/stream", **fields)
    assert streamed.status_code == 200, streamed.text
    assert streamed.headers["x-visual-tokens"] == str(kept)
    assert streamed.text == whole.json()["answer"]


@pytest.mark.parametrize("path", ["/answer", "/stream"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [({"keep_ratio": 3}, "ratio"), ({"method": "nothing"}, "fastv, visionzip, unpruned")],
    ids=["budget", "method"],
)
def test_refusals_are_of_the_one_request(client: Any, path: str, fields: Any, words: str) -> None:
    refused = ask(client, path, **fields)
    assert refused.status_code == 422
    assert words in refused.json()["detail"]
    assert ask(client, path).status_code == 200


def test_what_is_no_picture_is_refused(client: Any) -> None:
    refused = client.post("/answer", files={"picture": ("p.png", b"text")}, data={"question": "what"})
    assert (refused.status_code, "no picture" in refused.text) == (422, True)


def test_requests_at_once_have_their_own_methods(client: Any) -> None:
    asked = [{"method": "fastv"}, {"keep_ratio": 0.5}, {"method": "unpruned"}] * 2
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda fields: ask(client, "/answer", **fields).json()["visual_tokens"], asked))
    assert found == [4, 8, VISUAL] * 2


def test_a_stream_that_nobody_reads_ends_early(snippet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generation stops, and its place is free again."""
    app_model, made = None, snippet["make_app"]

    def keep(model: Any, processor: Any, methods: Any) -> Any:
        nonlocal app_model
        app_model = (model, processor, methods)
        return made(model, processor, methods)

    monkeypatch.setitem(snippet["load"].__globals__, "make_app", keep)
    monkeypatch.setitem(snippet["load"].__globals__, "NEW_TOKENS", 100_000)
    snippet["load"]()
    assert app_model is not None
    service = snippet["Service"](*app_model)
    before = set(threading.enumerate())
    _, pieces = service.stream(service.read(picture(), "what is this"), "fastv", {})
    (worker,) = set(threading.enumerate()) - before
    next(pieces)
    del pieces
    gc.collect()
    worker.join(60)
    assert not worker.is_alive()
    assert service.free.acquire(timeout=1)
    service.run.close()
