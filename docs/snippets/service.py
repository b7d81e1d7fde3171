"""A service with FastAPI: a picture and a question come in, the answer goes out whole or piece by piece."""

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from threading import BoundedSemaphore, Event, Thread
from typing import Annotated, Any

import torch
from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.responses import StreamingResponse
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer
from transformers.generation import StoppingCriteria

import tokenprune as tp

CHECKPOINT = "llava-hf/llava-1.5-7b-hf"
AT_ONCE = 1  # prompts on the device at the same time; more need more memory, and stay exact
NEW_TOKENS = 64


class Stopped(StoppingCriteria):
    """Ends a generation that nobody waits for any more."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether each sample is done."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class Service:
    """One model, and the methods that requests may name."""

    def __init__(self, model: Any, processor: Any, methods: dict[str, tp.Method | None]) -> None:
        self.model, self.processor, self.methods = model, processor, methods
        self.run = tp.apply(model, None)  # nothing is pruned outside the blocks of requests
        self.free = BoundedSemaphore(AT_ONCE)

    def read(self, picture: bytes, question: str) -> Any:
        """The inputs of a request."""
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        chat = [{"role": "user", "content": [{"type": "image", "url": image}, {"type": "text", "text": question}]}]
        options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        return self.processor.apply_chat_template(chat, **options).to(self.model.device)

    def answer(self, inputs: Any, method: str, budget: dict[str, Any]) -> dict[str, Any]:
        """The whole answer. The block is opened on the thread that calls the model."""
        with self.free, self.run.using(self.methods[method], **budget) as part:
            ids = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        text = self.processor.decode(new, skip_special_tokens=True)
        return {"answer": text, "visual_tokens": part.report.after[0]}

    def stream(self, inputs: Any, method: str, budget: dict[str, Any]) -> tuple[int, Iterator[str]]:
        """Visual tokens that were kept, and the pieces of the answer. Waits for the first piece."""
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        gone = Event()
        parts: list[tp.Run] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                with self.free, self.run.using(self.methods[method], **budget) as part:
                    parts.append(part)
                    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "stopping_criteria": [Stopped(gone)]}
                    self.model.generate(**inputs, **options, streamer=streamer)
            except Exception as error:
                errors.append(error)
                streamer.end()  # or the reader would wait for ever

        def pieces() -> Iterator[str]:
            try:
                yield from streamer
                if errors:
                    raise errors[0]
            finally:
                gone.set()  # the reader went away, or has everything

        Thread(target=work, daemon=True).start()
        found = pieces()
        first = next(found, "")
        if errors:
            raise errors[0]  # a budget that cannot be met, before the response begins
        return parts[0].report.after[0], chained(first, found)


def chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    """One iterator of all pieces."""
    yield first
    yield from rest


def make_app(model: Any, processor: Any, methods: dict[str, tp.Method | None]) -> FastAPI:
    """The application; the method acts on the model from its start to its end."""
    services: list[Service] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        services.append(Service(model, processor, methods))
        yield
        services.pop().run.close()

    app = FastAPI(lifespan=lifespan)

    def prepared(picture: UploadFile, question: str, method: str) -> Any:
        if method not in methods:
            raise HTTPException(422, f"method is one of {', '.join(methods)}")
        try:
            return services[0].read(picture.file.read(), question)
        except OSError as error:
            raise HTTPException(422, "the file is no picture that Pillow reads") from error

    # plain functions: FastAPI runs each on a thread of its own, and the event loop stays free
    @app.post("/answer")
    def answer(
        picture: Annotated[UploadFile, File()],
        question: Annotated[str, Form()],
        method: Annotated[str, Form()] = "fastv",
        keep_ratio: Annotated[float | None, Form()] = None,
    ) -> dict[str, Any]:
        inputs = prepared(picture, question, method)
        budget = {} if keep_ratio is None else {"keep_ratio": keep_ratio}
        try:
            return services[0].answer(inputs, method, budget)
        except tp.TokenPruneError as error:
            raise HTTPException(422, str(error)) from error

    @app.post("/stream")
    def stream(
        picture: Annotated[UploadFile, File()],
        question: Annotated[str, Form()],
        method: Annotated[str, Form()] = "fastv",
        keep_ratio: Annotated[float | None, Form()] = None,
    ) -> StreamingResponse:
        inputs = prepared(picture, question, method)
        budget = {} if keep_ratio is None else {"keep_ratio": keep_ratio}
        try:
            visual, pieces = services[0].stream(inputs, method, budget)
        except tp.TokenPruneError as error:
            raise HTTPException(422, str(error)) from error
        return StreamingResponse(pieces, media_type="text/plain", headers={"x-visual-tokens": str(visual)})

    return app


def load() -> FastAPI:
    """What an ASGI server starts: the model, its processor, and the methods, all read once."""
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)  # for a GPU: device_map="cuda", needs accelerate
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    methods = {name: tp.load_method(name, keep_ratio=0.25) for name in ("fastv", "visionzip")}
    return make_app(model, processor, {**methods, "unpruned": None})
