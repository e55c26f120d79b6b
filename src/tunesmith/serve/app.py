"""The routes of the server."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from tunesmith.errors import TunesmithError
from tunesmith.serve.body import read_json
from tunesmith.serve.house import House
from tunesmith.serve.mailbox import Gone, Mailbox, unless_gone, until_gone
from tunesmith.serve.metrics import TYPE, Metrics
from tunesmith.serve.preparing import Prepared, prepare_chat, prepare_completion
from tunesmith.serve.refusals import body_of, bug
from tunesmith.serve.replies import Choice
from tunesmith.serve.scoring import encode_texts, score
from tunesmith.serve.settings import Limits
from tunesmith.serve.wire import ChatAsked, CompletionAsked, EmbeddingAsked, ScoreAsked, read
from tunesmith.serve.worker import LOG


class Routes:
    """What is done at each path."""

    def __init__(self, house: House, metrics: Metrics, limits: Limits) -> None:
        self.house, self.metrics, self.limits = house, metrics, limits
        self.began = int(time.time())

    def all(self) -> list[Route]:
        post, get = ["POST"], ["GET"]
        return [
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name:path}", self.model, methods=get),
            Route("/v1/chat/completions", self.chat, methods=post),
            Route("/v1/completions", self.completions, methods=post),
            Route("/v1/embeddings", self.embeddings, methods=post),
            Route("/v1/score", self.score, methods=post),
            Route("/metrics", self.show_metrics, methods=get),
            Route("/health", self.health, methods=get),
        ]

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.about(name) for name in self.house.sources]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.house.find(name)
        return JSONResponse(self.about(name))

    def about(self, name: str) -> dict[str, Any]:
        found = {"id": name, "object": "model", "created": self.began, "owned_by": "tunesmith"}
        writer = self.house.writers.get(name)
        return {**found, "gives": self.house.gives[name], "context": writer and writer.speaker.context}

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(), media_type=TYPE)

    async def chat(self, request: Request) -> Response:
        asked = read(ChatAsked, await read_json(request, self.limits))
        writer = self.house.writer(asked.model)
        prepared = await asyncio.to_thread(prepare_chat, asked, writer, self.limits)
        return await self.answer(request, prepared, stream=asked.stream)

    async def completions(self, request: Request) -> Response:
        asked = read(CompletionAsked, await read_json(request, self.limits))
        writer = self.house.writer(asked.model)
        prepared = await asyncio.to_thread(prepare_completion, asked, writer, self.limits)
        return await self.answer(request, prepared, stream=asked.stream)

    async def answer(self, request: Request, prepared: Prepared, *, stream: bool) -> Response:
        mailbox = Mailbox(self.house.worker, self.limits, self.metrics)
        mailbox.submit(prepared.make(mailbox.deliver))
        if stream:
            return Events(mailbox, prepared, self.limits)
        choices = await unless_gone(asyncio.create_task(gather(mailbox, prepared)), request.receive)
        return JSONResponse(prepared.reply.whole(choices))

    async def embeddings(self, request: Request) -> Response:
        asked = read(EmbeddingAsked, await read_json(request, self.limits))
        encoder = self.house.encoder(asked.model)
        texts = await asyncio.to_thread(encode_texts, encoder, asked)
        rows = await self.call(request, lambda: encoder.embed(texts).cpu().numpy())
        data = [
            {"object": "embedding", "index": at, "embedding": written(row, asked.encoding_format)}
            for at, row in enumerate(rows)
        ]
        count = sum(map(len, texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})

    async def score(self, request: Request) -> Response:
        asked = read(ScoreAsked, await read_json(request, self.limits))
        scorer = self.house.scorer(asked.model)
        rows = await self.call(request, lambda: score(scorer, asked))
        data = [{"object": "score", "index": at, **row} for at, row in enumerate(rows)]
        return JSONResponse({"object": "list", "data": data, "model": asked.model})

    async def call(self, request: Request, work: Callable[[], Any]) -> Any:
        """Work with a model, between two tokens of the others."""
        future = asyncio.wrap_future(self.house.worker.call(work))

        async def wait() -> Any:
            return await future

        return await unless_gone(asyncio.create_task(wait()), request.receive)


async def gather(mailbox: Mailbox, prepared: Prepared) -> list[Choice]:
    choices = [Choice() for _ in range(prepared.choices)]
    async for piece in mailbox.pieces():
        choices[piece.index].add(piece)
    return choices


def written(row: np.ndarray, form: str) -> list[float] | str:
    return row.tolist() if form == "float" else base64.b64encode(row.astype("<f4").tobytes()).decode()


class Events(Response):
    """A stream of server-sent events. A client that leaves, or leaves its socket full, cancels what it asked for.

    It begins with the first piece, so that what fails before has a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, mailbox: Mailbox, prepared: Prepared, limits: Limits) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.mailbox, self.prepared, self.limits = mailbox, prepared, limits
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self.write(send))
        watch = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and self.begun:
                self.mailbox.metrics.cancelled += 1
        finally:
            self.mailbox.cancel()
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        if work.cancelled():
            if not self.begun:
                raise Gone
        elif (error := work.exception()) is not None:
            if not self.begun:
                raise error
            LOG.warning("a stream was given up: %s", error)

    async def write(self, send: Send) -> None:
        async for text in self.events():
            async with asyncio.timeout(self.limits.send_seconds):
                if not self.begun:
                    self.begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def events(self) -> AsyncIterator[str]:
        """What is sent, to the end or to the error that ends it. Raises what goes wrong before the first piece."""
        made: dict[int, int] = {}
        try:
            async for piece in self.mailbox.pieces():
                made[piece.index] = piece.made
                for chunk in self.prepared.reply.chunks(piece):
                    yield event({**chunk, "usage": None} if self.prepared.usage else chunk)
            if self.prepared.usage:
                envelope = self.prepared.reply.envelope
                kind = "chat.completion.chunk" if envelope.kind.startswith("chat") else None
                yield event({**envelope.wrap([], kind), "usage": envelope.usage(sum(made.values()))})
            yield "data: [DONE]\n\n"
        except Exception as error:
            if not made:
                raise
            if not isinstance(error, TunesmithError):
                LOG.exception("a stream failed")
            yield event(body_of(error if isinstance(error, TunesmithError) else bug(error)))


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def make_app(routes: Sequence[Route]) -> Router:
    """A bare router: the guard around it turns what is raised into replies."""
    return Router(routes, redirect_slashes=False)
