"""A small model behind a real server on a free port, for the real client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
import uvicorn

from lowrise.data.tokenizer import train_bpe
from lowrise.inference.decoder import FrozenDecoder
from lowrise.inference.session import TextModel
from lowrise.model import LlamaConfig, build_model
from lowrise.serve.app import build_app
from lowrise.serve.chat import ChatFormat
from lowrise.serve.engine import Engine
from lowrise.serve.requests import Limits

CONTEXT = 96


@pytest.fixture(scope="session")
def text_model() -> TextModel:
    tokenizer = train_bpe(["the rank of a matrix is small and its norm is bounded 你好 🦊"] * 5, 300)
    config = LlamaConfig.preset("nano", vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT, init_std=0.2)
    model = build_model(config, layer="lowrank", rank=8, dtype=torch.float64)
    return TextModel(FrozenDecoder(model), tokenizer)


@dataclass
class Served:
    url: str
    engine: Engine


@pytest.fixture
def serve(text_model: TextModel) -> Iterator[Callable[..., Served]]:
    """Start a server in a thread; its limits may be changed."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        *, concurrency: int = 1, queue: int = 4, chat: ChatFormat | None = None, **limits: int
    ) -> Served:
        bounds = {"body_bytes": 10_000, "tokens": 64, "rows": 6, "context": CONTEXT, **limits}
        engine = Engine(text_model, concurrency, queue)
        app = build_app(
            text_model,
            "small",
            chat or ChatFormat(text_model.tokenizer),
            Limits(**bounds),
            engine,
            hosts=frozenset({"127.0.0.1"}),
        )
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        started.append((server, thread))
        return Served(f"http://127.0.0.1:{listener.getsockname()[1]}", engine)

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(30)
