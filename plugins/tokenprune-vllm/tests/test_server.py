"""A real server on the loopback: many requests at once, their answers, its memory, its refusals, and its end."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from checkpoints import PLAIN, shown
from equality import ANSWER, Answer, Prompt, Reference, Request, close, picture
from page import CHECKPOINT, examples

Find = Callable[[str], Path]
FAMILY = "qwen2_5_vl"
#: The engine keeps little, so that many requests keep more than it does.
DEFAULT: Request = {"method": "divprune", "ratio": 0.1}
REQUESTS: tuple[Request, ...] = (
    {},
    {"method": "unpruned"},
    {"ratio": 0.5},
    {"method": "scope", "ratio": 0.15},
    {"method": "visionzip", "ratio": 0.25, "positions": "renumbered"},
)
SIZES = [((224, 224),), ((112, 336),), ((280, 112), (112, 112)), ((448, 336),)]
MEBIBYTE = 2**20
#: Mebibytes by which 400 pictures may let a server grow that has answered 400. Kept by mistake, their features and the
#: states of the tower take 160.
GROWTH = 40
#: Torch keeps kernels for the shapes that it has seen, and the allocator a heap per thread, with holes that tensors
#: leave. Servers with and without the plugin grow by that for some thousand requests; here they keep little of it:
#: what has the size of a tensor goes back to the system when it is let go.
KEEPS_LITTLE = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1",
    "LRU_CACHE_CAPACITY": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def line(folder: Path, *options: str) -> list[str]:
    """The command that ``tokenprune-vllm`` prints, and what a small machine needs."""
    asked = [sys.executable, "-m", "tokenprune_vllm.command", str(folder), *options]
    printed = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    more = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--block-size", "32"]
    more += [
        "--num-gpu-blocks-override",
        "256",
        "--max-num-seqs",
        "32",
        "--mm-processor-cache-gb",
        "0.02",
        "--limit-mm-per-prompt",
        '{"image": 3}',
        "--host",
        "127.0.0.1",
    ]
    return [sys.executable, *shlex.split(printed)[1:], *more, "--served-model-name", "tiny"]


class Server:
    """A running server.

    Args:
        line: The command that starts it.
        log: Where its output goes.
    """

    def __init__(self, line: Sequence[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        environment = {**os.environ, **KEEPS_LITTLE}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*line, "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, env=environment
            )

    def ready(self) -> bool:
        """Wait until it serves; False if it ended."""
        while self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return True
            except httpx.TransportError:
                time.sleep(0.5)
        return False

    def memory(self) -> float:
        """Mebibytes that it and its engine use."""
        own = psutil.Process(self.process.pid)
        return float(sum(one.memory_info().rss for one in (own, *own.children(recursive=True)))) / MEBIBYTE

    def metric(self, name: str, method: str) -> float:
        """A number of ``/metrics``."""
        start = f'{name}{{method="{method}"'
        return sum(float(line.split()[-1]) for line in self.metrics() if line.startswith(start))

    def metrics(self) -> list[str]:
        """The lines of ``/metrics``."""
        text: str = httpx.get(f"{self.url}/metrics", timeout=60).text
        return text.splitlines()

    def ask(self, asked: Sequence[tuple[Prompt, Any]]) -> list[httpx.Response]:
        """Send requests, all at once."""

        async def send() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=self.url, timeout=600, limits=limits) as client:
                bodies = [body(*one) for one in asked]
                return await asyncio.gather(*(client.post("/v1/chat/completions", json=one) for one in bodies))

        return asyncio.run(send())


def body(prompt: Prompt, request: Any) -> dict[str, Any]:
    """A request of the chat interface: pictures, and then words."""
    parts: list[dict[str, Any]] = []
    for image in prompt.images:
        data = io.BytesIO()
        image.save(data, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    made: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}],
        "temperature": 0,
        "max_tokens": ANSWER,
        "logprobs": True,
        "ignore_eos": True,
        "allowed_token_ids": PLAIN,
        "return_token_ids": True,
    }
    return made if request == {} else {**made, "mm_processor_kwargs": {"tokenprune": request}}


def answer(response: httpx.Response) -> Answer:
    """The answer of a response."""
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return Answer(tuple(choice["token_ids"]), tuple(step["logprob"] for step in choice["logprobs"]["content"]))


@pytest.fixture(scope="module")
def served(checkpoint: Find, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server and its checkpoint. It ends when it is asked to."""
    folder = checkpoint(FAMILY)
    server = Server(line(folder, "--method", "divprune", "--ratio", "0.1"), tmp_path_factory.mktemp("server") / "log")
    try:
        assert server.ready(), server.log.read_text()
        counted = [line for line in server.metrics() if line.startswith("tokenprune:")]
        assert not counted, "the pictures of the memory profile are no requests"
        yield server, folder
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=120) == 0
        assert not psutil.wait_procs(family, timeout=30)[1]
    finally:
        server.process.kill()


def cases() -> list[tuple[Prompt, Request]]:
    """Pictures of several sizes, each with several settings."""
    found = []
    for number, sizes in enumerate(SIZES):
        images = tuple(picture(*size, seed=10 * number + place) for place, size in enumerate(sizes))
        found += [(Prompt(f"w{30 + number} w40", images), request) for request in REQUESTS]
    return found


def test_two_hundred_requests_at_once(served: tuple[Server, Path]) -> None:
    """Answers are those of transformers."""
    server, folder = served
    reference, wanted = Reference(folder), []
    for prompt, request in cases():
        pictures = " ".join(shown(FAMILY) for _ in prompt.images)
        whole = Prompt(f"w10 {pictures} {prompt.text} w11", prompt.images)
        wanted.append(reference.answer(whole, {**DEFAULT, **request} if "method" not in request else request))
    order = [number % len(cases()) for number in range(200)]
    random.Random(0).shuffle(order)
    found = server.ask([cases()[number] for number in order])
    different = {order[place] for place, one in enumerate(found) if not close(wanted[order[place]], answer(one))}
    assert not different


def test_memory_does_not_grow_with_the_number_of_pictures(served: tuple[Server, Path]) -> None:
    """Each request shows a picture of its own, so that no cache answers for it."""
    server, memory = served[0], list[float]()
    for turn in range(4):
        seeds = range(1000 + 200 * turn, 1200 + 200 * turn)
        asked = [(Prompt("w30", (picture(168, 168, seed),)), REQUESTS[seed % len(REQUESTS)]) for seed in seeds]
        assert {response.status_code for response in server.ask(asked)} == {200}
        memory.append(server.memory())
    assert memory[3] - memory[1] < GROWTH, memory


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"method": "nosuch", "ratio": 0.5}, "unknown method 'nosuch'"),
        ({"method": "fastv", "ratio": 0.5}, "method 'fastv' cannot be served: it prunes inside the language model"),
        ({"method": "cdpruner", "ratio": 0.5}, "method 'cdpruner' cannot be served: it reads 'text'"),
        ({"ratio": 0.5, "tokens": 3}, "give ratio or tokens, not both"),
        ({"ratio": 7}, "ratio: Input should be less than or equal to 1"),
        ("divprune", "give an object"),
    ],
)
def test_what_cannot_be_served_is_answered_with_400(served: tuple[Server, Path], request_: Any, message: str) -> None:
    (response,) = served[0].ask([(cases()[0][0], request_)])
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_metrics_say_what_was_pruned(served: tuple[Server, Path]) -> None:
    """Pictures that the cache has are counted, too; a text alone is not."""
    server, _ = served
    names = [f"tokenprune:request_visual_tokens_{end}" for end in ("before_sum", "kept_sum", "before_count")]
    prompt = cases()[0][0]  # 64 visual tokens
    asked = [(prompt, {"method": "mmr", "tokens": 5}), (prompt, {"method": "mmr", "tokens": 5}), (Prompt("w40"), {})]
    assert [server.metric(name, "mmr") for name in names] == [0, 0, 0]
    for one in asked:
        answer(*server.ask([one]))
    assert [server.metric(name, "mmr") for name in names] == [128, 10, 2]


def test_the_request_of_the_page(
    served: tuple[Server, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of the page `Serve with vLLM`: 64 of 256 tokens are left."""
    monkeypatch.chdir(tmp_path)
    picture(448, 448, 1).save("photo.png")
    (code,) = [code for code in examples("python") if "import httpx" in code]
    for name, own in ((CHECKPOINT, "tiny"), ("http://localhost:8000", served[0].url)):
        assert name in code
        code = code.replace(name, own)
    exec(compile(code, "page", "exec"), {})
    assert 64 < int(capsys.readouterr().out) < 80


def test_a_method_that_cannot_be_served_stops_a_server_before_it_serves(checkpoint: Find, tmp_path: Path) -> None:
    """Whoever writes the overrides by hand gets no unpruned server."""
    words = line(checkpoint(FAMILY), "--method", "divprune", "--ratio", "0.1")
    place = words.index("--hf-overrides") + 1
    assert '"divprune"' in words[place]
    words[place] = words[place].replace('"divprune"', '"fastv"')
    server = Server(words, tmp_path / "log")
    try:
        assert not server.ready()
        assert server.process.returncode != 0
        assert "method 'fastv' cannot be served: it prunes inside the language model" in server.log.read_text()
    finally:
        server.process.kill()
