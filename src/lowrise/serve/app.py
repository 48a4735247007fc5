"""The HTTP side: routes, error objects, streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lowrise.inference.session import TextModel
from lowrise.serve.answers import ChatForm, CompletionForm, Form, error_content, error_object
from lowrise.serve.chat import ChatFormat
from lowrise.serve.engine import Engine, Pieces
from lowrise.serve.requests import (
    BadRequest,
    Generation,
    Limits,
    chat_completion,
    completion,
    require_model,
)

_CLIENT_GONE = 499  # nginx's code; nobody reads it

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def build_app(
    model: TextModel,
    name: str,
    chat: ChatFormat,
    limits: Limits,
    engine: Engine,
    *,
    hosts: frozenset[str] | None = None,
    lifespan: Lifespan | None = None,
) -> Starlette:
    """The application. `hosts`: names by which it may be addressed (None: any), against pages of other sites
    that have their own name point here."""
    served = _Served(model, name, chat, limits, engine)
    guard = _guarded(hosts)
    routes = [
        Route("/health", guard(served.health), methods=["GET"]),
        Route("/v1/models", guard(served.models), methods=["GET"]),
        Route("/v1/models/{name:path}", guard(served.one_model), methods=["GET"]),
        Route("/v1/completions", guard(served.completions), methods=["POST"]),
        Route("/v1/chat/completions", guard(served.chat_completions), methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _no_such_page}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


class _Served:
    """The endpoints."""

    def __init__(self, model: TextModel, name: str, chat: ChatFormat, limits: Limits, engine: Engine) -> None:
        self._model = model
        self._name = name
        self._chat = chat
        self._limits = limits
        self._engine = engine
        self._since = int(time.time())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self._name, "requests": self._engine.present})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def one_model(self, request: Request) -> Response:
        require_model(request.path_params["name"], self._name)
        return JSONResponse(self._description())

    def _description(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._since,
            "owned_by": "lowrise",
            "max_model_len": self._limits.context,
        }

    async def completions(self, request: Request) -> Response:
        body = await self._body(request)
        asked = completion(body, self._name, self._model.tokenizer, self._limits)
        return await self._answer(request, asked, CompletionForm(self._name, asked))

    async def chat_completions(self, request: Request) -> Response:
        asked = chat_completion(await self._body(request), self._name, self._chat, self._limits)
        return await self._answer(request, asked, ChatForm(self._name, asked))

    async def _body(self, request: Request) -> Any:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise BadRequest(
                f"The content type is {kind or 'missing'}: send JSON with the header "
                "Content-Type: application/json.",
                status=415,
            )
        received = bytearray()
        async for chunk in request.stream():
            received += chunk
            if len(received) > self._limits.body_bytes:
                raise BadRequest(
                    f"The body is longer than {self._limits.body_bytes} bytes, the most that is read here.",
                    status=413,
                )
        try:
            return json.loads(received.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"The body is not JSON ({error}).") from error

    async def _answer(self, request: Request, asked: Generation, form: Form) -> Response:
        pieces = self._engine.start(asked)
        if asked.stream:
            return _Events(pieces, form)
        try:
            collecting = asyncio.ensure_future(_collected(pieces, form))
            if not await _unless_gone(request, collecting):
                return Response(status_code=_CLIENT_GONE)
            return JSONResponse(collecting.result())
        finally:
            pieces.close()


async def _collected(pieces: Pieces, form: Form) -> dict[str, Any]:
    async for piece in pieces:
        form.take(piece)
    return form.whole()


async def _unless_gone(request: Request, work: asyncio.Future[Any]) -> bool:
    """Wait for `work`; False, and the work cancelled, if the client left before."""
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        for task in (gone, work):
            task.cancel()
        await asyncio.gather(gone, work, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Events(Response):
    """A stream of server-sent events: a chunk a piece, at the end [DONE]; an error object if one comes up."""

    media_type = "text/event-stream"

    def __init__(self, pieces: Pieces, form: Form) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._pieces = pieces
        self._form = form

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._pieces.close()
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._events():
            data = f"data: {event}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[str]:
        form = self._form
        try:
            for chunk in form.first_chunks():
                yield json.dumps(chunk)
            async for piece in self._pieces:
                form.take(piece)
                if piece.text or piece.finish:
                    yield json.dumps(form.chunk([form.delta(piece.row, piece.text, piece.finish)]))
            if form.usage_in_stream:
                yield json.dumps(form.chunk([], form.usage()))
            yield "[DONE]"
        except Exception as error:  # the status is sent already: the stream itself has to say it
            yield json.dumps(error_object(error)[1])


Endpoint = Callable[[Request], Awaitable[Response]]


def _guarded(hosts: frozenset[str] | None) -> Callable[[Endpoint], Endpoint]:
    """Endpoints whose errors become error objects and that answer to these host names alone."""

    def guard(endpoint: Endpoint) -> Endpoint:
        async def answer(request: Request) -> Response:
            try:
                if hosts is not None and (request.url.hostname or "") not in hosts:
                    raise BadRequest(
                        f"This server is not called {request.url.hostname!r}: use {sorted(hosts)[0]}, or "
                        "start it with --host.",
                        status=403,
                    )
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_GONE)
            except Exception as error:
                status, content = error_object(error)
                headers = {"retry-after": "1"} if status == 429 else None
                return JSONResponse(content, status, headers)

        return answer

    return guard


async def _no_such_page(request: Request, error: HTTPException) -> Response:
    there = "/health, /v1/models, /v1/completions, /v1/chat/completions"
    message = f"{request.method} {request.url.path}: {error.detail}. There are {there}."
    return JSONResponse(error_content(message), error.status_code, error.headers)
