"""`lowrise serve`: load a run, open a port, answer until a stop signal, then let what runs finish."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from lowrise.console import Console
from lowrise.errors import LowriseError, UsageError
from lowrise.inference.session import TextModel, load_text_model
from lowrise.pretrained.load import load_model, template_folders
from lowrise.serve.chat import chat_format
from lowrise.serve.options import ServeConfig
from lowrise.serve.requests import Limits
from lowrise.signals import StopRequest


def serve(command: ServeConfig, console: Console) -> int:
    """Serve until SIGINT or SIGTERM; returns 128 + the signal. `LowriseError` without the extra `serve`."""
    try:
        import uvicorn

        from lowrise.serve.app import build_app
        from lowrise.serve.engine import Engine
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise LowriseError(
            f"lowrise serve needs the package {error.name}: pip install 'lowrise[serve]'."
        ) from error
    _check(command)
    with _listening(command.host, command.port) as listener, StopRequest() as stop:
        folders = template_folders(command.run.expanduser(), command.trust)
        load = partial(load_model, weights=command.weights)
        model = load_text_model(command.run, command.device, console, forms=command.forms, load=load)
        if model.choice:
            console.print(model.choice, highlight=False)
        name = command.name or command.run.resolve().name
        engine = Engine(model, command.concurrency, command.queue)

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            asked = asyncio.ensure_future(_stop_when_asked(stop, server))
            console.print(
                f"Serving {name} at {_url(listener)} (Ctrl-C stops).", highlight=False, markup=False
            )
            yield
            asked.cancel()
            engine.close()

        app = build_app(
            model,
            name,
            chat_format(model.tokenizer, folders),
            _limits(command, model),
            engine,
            hosts=_hosts(command.host),
            lifespan=lifespan,
        )
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=command.grace)
        )
        if not stop:
            server.run(sockets=[listener])
    return 128 + stop.signal if stop.signal else 0


async def _stop_when_asked(stop: StopRequest, server: Any) -> None:
    """For the signals that came before uvicorn caught them, or that it does not know."""
    while not stop:
        await asyncio.sleep(0.2)
    server.should_exit = True


def _check(command: ServeConfig) -> None:
    for flag in ("max_tokens", "max_rows", "max_body", "concurrency"):
        if getattr(command, flag) < 1:
            raise UsageError(f"--{flag} {getattr(command, flag)}: should be at least 1.")
    for flag in ("queue", "grace"):
        if getattr(command, flag) < 0:
            raise UsageError(f"--{flag} {getattr(command, flag)}: cannot be negative.")
    if not 0 <= command.port < 65536:
        raise UsageError(f"--port {command.port}: ports are 1 to 65535, and 0 takes one that is free.")


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} of {host} is taken: end what listens there, or choose another --port."
            ) from error
        raise UsageError(
            f"Cannot listen on port {port} of --host {host} ({error}): give an address of this machine and a "
            "port that you may use."
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _limits(command: ServeConfig, model: TextModel) -> Limits:
    return Limits(
        body_bytes=command.max_body,
        tokens=command.max_tokens,
        rows=command.max_rows,
        context=model.decoder.config.max_seq_len,
    )


def _hosts(host: str) -> frozenset[str] | None:
    """The names of a server on the loopback address; None: any name, for addresses that others reach."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return frozenset({"127.0.0.1", "localhost", "::1", host}) if local else None
