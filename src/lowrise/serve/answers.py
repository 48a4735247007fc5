"""What is sent back: the objects of the OpenAI format, whole or in chunks, and the error object."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from lowrise.errors import LowriseError, UsageError
from lowrise.inference.session import Piece
from lowrise.serve.engine import Busy
from lowrise.serve.requests import BadRequest, Generation

_log = logging.getLogger(__name__)


class Form:
    """Pieces in the objects of one endpoint: `whole` at the end, or `chunk`s as they come."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, asked: Generation) -> None:
        self._asked = asked
        self.usage_in_stream = asked.stream and asked.usage_in_stream
        self._texts = ["" for _ in asked.prompts]
        self._tokens = [0 for _ in asked.prompts]
        self._finish: list[str | None] = [None for _ in asked.prompts]
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def take(self, piece: Piece) -> None:
        self._texts[piece.row] += piece.text
        self._tokens[piece.row] = piece.tokens
        self._finish[piece.row] = piece.finish

    def choice(self, row: int, text: str, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def delta(self, row: int, text: str, finish: str | None) -> dict[str, Any]:
        raise NotImplementedError

    def first_chunks(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        return []

    def whole(self) -> dict[str, Any]:
        choices = [
            self.choice(i, t, f) for i, (t, f) in enumerate(zip(self._texts, self._finish, strict=True))
        ]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self.usage()}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        made = {**self._head, "object": self.chunk_kind, "choices": choices}
        return made | ({"usage": usage} if self.usage_in_stream else {})

    def usage(self) -> dict[str, int]:
        new = sum(self._tokens)
        prompt = self._asked.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


class CompletionForm(Form):
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def choice(self, row: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": row, "text": text, "logprobs": None, "finish_reason": finish}

    delta = choice


class ChatForm(Form):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, row: int, text: str, finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": row, "message": message, "logprobs": None, "finish_reason": finish}

    def delta(self, row: int, text: str, finish: str | None) -> dict[str, Any]:
        content = {"content": text} if text else {}
        return {"index": row, "delta": content, "logprobs": None, "finish_reason": finish}

    def first_chunks(self) -> list[dict[str, Any]]:
        rows = range(len(self._asked.prompts))
        role = {"role": "assistant", "content": ""}
        return [
            self.chunk([{"index": row, "delta": role, "logprobs": None, "finish_reason": None}])
            for row in rows
        ]


def error_object(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for an error: what the client did wrong in the error's words, our own faults in a
    sentence, with the rest in the server's log."""
    kind, param, code, message = "invalid_request_error", None, None, str(error)
    if isinstance(error, BadRequest):
        status, param, code = error.status, error.param, error.code
    elif isinstance(error, Busy):
        status, kind, code = 429, "rate_limit_error", "server_busy"
    elif isinstance(error, UsageError):
        status = 400
    else:
        status, kind = 500, "server_error"
        if not isinstance(error, LowriseError):
            _log.error("a request failed", exc_info=error)
            message = f"The server failed ({type(error).__name__}); its log says more."
    return status, error_content(message, kind, param, code)


def error_content(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
