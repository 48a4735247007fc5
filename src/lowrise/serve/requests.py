"""Bodies of requests in the OpenAI format, checked: what is asked for, or one `BadRequest` that says what is
wrong.

What this server cannot do is refused unless it is set to what has no effect; names that nobody knows are
refused with the nearest one that there is.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowrise.data import Tokenizer
from lowrise.data.chat import PLAIN_ROLES
from lowrise.errors import UsageError, did_you_mean
from lowrise.inference.sampling import Sampling
from lowrise.serve.chat import ChatFormat, Message

MAX_STOPS = 16
_CACHE = ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")
# Read by nobody here, and without effect on the text.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", *_CACHE)
# Name -> values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "web_search_options": (),
}
SHARED = (
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "n",
    "stop",
    "seed",
    "stream",
    "stream_options",
)


class BadRequest(UsageError):
    """A request that cannot be answered, for the error object of the OpenAI format."""

    def __init__(
        self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code


def require_model(asked: Any, model: str) -> None:
    """Refuse another model than the one that is served."""
    if asked != model:
        raise BadRequest(
            f"There is no model {asked!r} here: this server has {model!r}.",
            "model",
            status=404,
            code="model_not_found",
        )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int
    tokens: int
    rows: int
    context: int
    """Longest text of the model in tokens."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A checked request: rows of prompt tokens and how they are continued."""

    prompts: list[list[int]]
    """One a row; each prompt `n` times in a row."""
    prompt_tokens: int
    """Of the different prompts, the document separator that begins each included."""
    max_new_tokens: int
    sampling: Sampling
    seeds: list[int]
    stop: tuple[str, ...]
    stream: bool
    usage_in_stream: bool


def completion(body: Any, model: str, tokenizer: Tokenizer, limits: Limits) -> Generation:
    """The request of /v1/completions."""
    fields = _Fields(body, (*SHARED, "prompt"), model)
    return _generation(fields, _prompts(fields, tokenizer), limits, default_tokens=16, stop=())


def chat_completion(body: Any, model: str, chat: ChatFormat, limits: Limits) -> Generation:
    """The request of /v1/chat/completions."""
    fields = _Fields(body, (*SHARED, "messages", "max_completion_tokens"), model)
    prompt = chat.prompt(_messages(fields))
    room = max(1, min(limits.tokens, limits.context - len(prompt) - 1))
    newer = fields.whole("max_completion_tokens", None, 1)
    return _generation(fields, [prompt], limits, default_tokens=newer or room, stop=chat.stop)


class _Fields:
    """The body as an object with known names, read field by field."""

    def __init__(self, body: Any, known: Sequence[str], model: str) -> None:
        if not isinstance(body, dict):
            raise BadRequest("The body should be a JSON object.")
        # null is what clients send for "not given"
        self.values = {key: value for key, value in body.items() if value is not None}
        for key, value in self.values.items():
            if key in NEUTRAL:
                if not any(
                    value == v and isinstance(value, bool) == isinstance(v, bool) for v in NEUTRAL[key]
                ):
                    raise BadRequest(f"{key} is not supported here: leave it out.", key)
            elif key not in known and key not in IGNORED:
                raise BadRequest(f"There is no parameter {key!r}; {did_you_mean(key, known)}", key)
        asked = self.values.get("model", model)
        require_model(asked, model)

    def whole(self, name: str, default: Any, least: int) -> Any:
        value = self.values.get(name, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BadRequest(f"{name} should be a whole number of at least {least}, not {value!r}.", name)
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequest(f"{name} should be a number, not {value!r}.", name)
        return float(value)

    def switch(self, name: str, values: dict[str, Any] | None = None) -> bool:
        value = (self.values if values is None else values).get(name, False)
        if not isinstance(value, bool):
            raise BadRequest(f"{name} should be true or false, not {value!r}.", name)
        return value


def _generation(
    fields: _Fields, prompts: list[list[int]], limits: Limits, *, default_tokens: int, stop: tuple[str, ...]
) -> Generation:
    tokens = fields.whole("max_tokens", default_tokens, 1)
    if tokens > limits.tokens:
        raise BadRequest(
            f"max_tokens {tokens} is more than this server allows, {limits.tokens}.", "max_tokens"
        )
    n = fields.whole("n", 1, 1)
    if n * len(prompts) > limits.rows:
        raise BadRequest(
            f"{len(prompts)} prompts with n = {n} are {n * len(prompts)} texts; this server continues at "
            f"most {limits.rows} a request.",
            "n",
        )
    longest = max(len(prompt) + 1 for prompt in prompts)
    if longest + tokens > limits.context:
        raise BadRequest(
            f"The longest prompt has {longest} tokens; with {tokens} new ones that is more than the model's "
            f"{limits.context}. Shorten it, or ask for fewer.",
            code="context_length_exceeded",
        )
    seed = fields.values.get("seed")
    if seed is None:
        seed = secrets.randbits(48)
    elif isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise BadRequest(f"seed should be a whole number of 64 bits, not {seed!r}.", "seed")
    options = fields.values.get("stream_options", {})
    if not isinstance(options, dict):
        raise BadRequest("stream_options should be an object.", "stream_options")
    return Generation(
        prompts=[prompt for prompt in prompts for _ in range(n)],
        prompt_tokens=sum(len(prompt) + 1 for prompt in prompts),
        max_new_tokens=tokens,
        sampling=_sampling(fields),
        # Choice i of every prompt has the seed that it has alone; the first is the seed itself.
        seeds=[(seed + i) % 2**63 for _ in prompts for i in range(n)],
        stop=(*stop, *_stops(fields)),
        stream=fields.switch("stream"),
        usage_in_stream=fields.switch("include_usage", options),
    )


def _sampling(fields: _Fields) -> Sampling:
    settings = {
        "temperature": fields.number("temperature", 1.0),
        "top_p": fields.number("top_p", 1.0),
        "top_k": fields.whole("top_k", None, 1),
        "repetition_penalty": fields.number("repetition_penalty", 1.0),
    }
    for name, value in settings.items():  # one by one, so that the answer can say which it was
        try:
            Sampling(**{name: value})
        except UsageError as error:
            raise BadRequest(str(error), name) from error
    return Sampling(**settings)


def _stops(fields: _Fields) -> list[str]:
    stop = fields.values.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest("stop should be a string, or a list of strings, none of them empty.", "stop")
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"stop has {len(stops)} strings; at most {MAX_STOPS} are looked for.", "stop")
    return stops


def _prompts(fields: _Fields, tokenizer: Tokenizer) -> list[list[int]]:
    prompt = fields.values.get("prompt", "")
    if isinstance(prompt, str) or _are_tokens(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise BadRequest("prompt should be a string, a list of strings, or tokens.", "prompt")
    rows = []
    for one in prompt:
        if isinstance(one, str):
            rows.append(tokenizer.encode(_text(one, "prompt")))
        elif _are_tokens(one):
            wrong = next((t for t in one if not 0 <= t < tokenizer.vocab_size), None)
            if wrong is not None:
                raise BadRequest(
                    f"prompt has the token {wrong}, and there are 0 to {tokenizer.vocab_size - 1}.", "prompt"
                )
            rows.append(one)
        else:
            raise BadRequest("prompt should be a string, a list of strings, or tokens.", "prompt")
    return rows


def _are_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(t, int) and not isinstance(t, bool) for t in value)
    )


def _messages(fields: _Fields) -> list[Message]:
    messages = fields.values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages should be a list of at least one message.", "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise BadRequest(f"{where} should be an object with role and content.", where)
    role, content = message.get("role"), message.get("content")
    if role not in PLAIN_ROLES:
        raise BadRequest(
            f"{where}.role should be one of {', '.join(PLAIN_ROLES)}, not {role!r}.", f"{where}.role"
        )
    if isinstance(content, list):  # the long form: parts, of which this server reads text
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        texts = [text for text in parts if isinstance(text, str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content should be a string, or parts of type text.", f"{where}.content")
    return {"role": role, "content": _text(content, f"{where}.content")}


def _text(text: str, where: str) -> str:
    """JSON can spell halves of surrogate pairs, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{where} holds half of a surrogate pair, which is no character.", where) from None
    return text
