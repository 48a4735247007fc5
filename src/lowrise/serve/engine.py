"""Generations in threads, a few at a time, the next ones in order; each ends soon after nobody wants it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from lowrise.errors import LowriseError
from lowrise.inference.session import Piece, TextModel, continue_texts
from lowrise.serve.requests import Generation


class Busy(LowriseError):
    """Too many requests wait already."""


class Engine:
    """Runs at most `concurrency` generations at a time and lets `queue` more wait."""

    def __init__(self, model: TextModel, concurrency: int, queue: int) -> None:
        self._model = model
        self._places = concurrency + queue
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="generation")
        self.present = 0
        """Requests that run or wait."""

    def start(self, request: Generation) -> Pieces:
        """Take a place, or raise `Busy`."""
        if self.present >= self._places:
            raise Busy(
                f"{self.present} requests are being answered or wait, as many as this server takes: try "
                "again later, or start it with a larger --queue."
            )
        self.present += 1
        return Pieces(self, request)

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Pieces:
    """The pieces of a generation as they come: `async for`. Must be closed, also where none was taken: that
    gives the place back and ends the work."""

    def __init__(self, engine: Engine, request: Generation) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        self._unwanted = threading.Event()
        self._closed = False
        self._work = engine._threads.submit(self._generate, request)

    def _generate(self, request: Generation) -> None:
        """In a thread: put pieces into the queue, then None or what went wrong."""
        end: BaseException | None = None
        try:
            pieces = continue_texts(
                self._engine._model,
                request.prompts,
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                stop=request.stop,
                seeds=request.seeds,
            )
            for piece in pieces:
                if self._unwanted.is_set():
                    return
                self._put(piece)
        except Exception as error:  # the one who waits for the pieces shall see it
            end = error
        self._put(end)

    def _put(self, what: Piece | BaseException | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, what)

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> Piece:
        what = await self._queue.get()
        if what is None:
            raise StopAsyncIteration
        if isinstance(what, BaseException):
            raise what
        return what

    def close(self) -> None:
        """Give the place back."""
        if not self._closed:
            self._closed = True
            self._unwanted.set()
            self._work.cancel()
            self._engine.present -= 1
