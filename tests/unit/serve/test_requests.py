"""Bad requests: one error object each, that names the value and what would be right."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from lowrise.data.chat import ChatTemplate
from lowrise.errors import LowriseError, UsageError
from lowrise.serve.chat import ChatFormat, chat_format


@pytest.fixture
def url(serve) -> str:
    return serve().url


def send(url: str, body: object, *, headers: dict[str, str] | None = None) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | (headers or {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


COMPLETIONS = [
    ([], 400, None, "should be a JSON object"),
    ({"prompt": 5}, 400, "prompt", "a string, a list of strings, or tokens"),
    ({"prompt": []}, 400, "prompt", "a string, a list of strings, or tokens"),
    ({"prompt": ["a", 1]}, 400, "prompt", "a string, a list of strings, or tokens"),
    ({"prompt": [10_000]}, 400, "prompt", "token 10000"),
    ({"prompt": "\ud83d"}, 400, "prompt", "half of a surrogate pair"),
    ({"prompt": "a", "model": "gpt"}, 404, "model", "no model 'gpt' here: this server has 'small'"),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "at least 1, not 0"),
    ({"prompt": "a", "max_tokens": True}, 400, "max_tokens", "not True"),
    ({"prompt": "a", "max_tokens": 65}, 400, "max_tokens", "more than this server allows, 64"),
    ({"prompt": "a " * 60, "max_tokens": 60}, 400, None, "more than the model's 96"),
    ({"prompt": "a", "temperature": "hot"}, 400, "temperature", "a number, not 'hot'"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature", "temperature must be 0"),
    ({"prompt": "a", "top_p": 2}, 400, "top_p", "top_p must be above 0 and at most 1"),
    ({"prompt": "a", "top_k": 0}, 400, "top_k", "at least 1"),
    (
        {"prompt": "a", "repetition_penalty": 0},
        400,
        "repetition_penalty",
        "repetition_penalty must be positive",
    ),
    ({"prompt": "a", "seed": 2**70}, 400, "seed", "64 bits"),
    ({"prompt": "a", "n": 7}, 400, "n", "at most 6"),
    ({"prompt": "a", "stop": [""]}, 400, "stop", "none of them empty"),
    ({"prompt": "a", "stop": ["x"] * 17}, 400, "stop", "at most 16"),
    ({"prompt": "a", "stream": "yes"}, 400, "stream", "true or false"),
    ({"prompt": "a", "stream_options": 3}, 400, "stream_options", "an object"),
    ({"prompt": "a", "logprobs": 5}, 400, "logprobs", "not supported here"),
    ({"prompt": "a", "echo": True}, 400, "echo", "not supported here"),
    ({"prompt": "a", "temprature": 1}, 400, "temprature", "did you mean 'temperature'"),
]
CHATS = [
    ({}, "messages", "a list of at least one message"),
    ({"messages": []}, "messages", "a list of at least one message"),
    ({"messages": ["hello"]}, "messages[0]", "an object with role and content"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "not 'tool'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "a string, or parts of type text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content",
        "a string, or parts of type text",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]},
        "tools",
        "not supported",
    ),
]


@pytest.mark.parametrize(("body", "status", "param", "message"), COMPLETIONS)
def test_a_bad_completion_request(url, body, status, param, message) -> None:
    code, answer = send(f"{url}/v1/completions", body)
    assert code == status
    assert set(answer) == {"error"}
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(("body", "param", "message"), CHATS)
def test_a_bad_chat_request(url, body, param, message) -> None:
    code, answer = send(f"{url}/v1/chat/completions", body)
    assert (code, answer["error"]["param"]) == (400, param)
    assert message in answer["error"]["message"]


def test_what_asks_for_nothing_is_taken(url) -> None:
    neutral = {
        "logprobs": None,
        "best_of": 1,
        "frequency_penalty": 0.0,
        "echo": False,
        "user": "me",
        "suffix": None,
    }
    code, answer = send(f"{url}/v1/completions", {"prompt": "a", "max_tokens": 2, "stop": None, **neutral})
    assert code == 200, answer


def test_bodies_that_are_no_json_too_long_or_of_another_type(url) -> None:
    for body in (b"{", b"\xff\xfe", b"[" * 9000):
        code, answer = send(f"{url}/v1/completions", body)
        assert code == 400
        assert "is not JSON" in answer["error"]["message"]
    code, answer = send(f"{url}/v1/completions", {"prompt": "a" * 10_001})
    assert code == 413
    assert "longer than 10000 bytes" in answer["error"]["message"]
    code, answer = send(f"{url}/v1/completions", b"prompt=a", headers={"Content-Type": "text/plain"})
    assert code == 415
    assert "Content-Type: application/json" in answer["error"]["message"]


def test_other_pages_methods_and_hosts(url) -> None:
    code, answer = send(f"{url}/v1/embeddings", {})
    assert code == 404
    assert "There are /health, /v1/models" in answer["error"]["message"]
    code, answer = send(f"{url}/v1/models", {})
    assert code == 405
    code, answer = send(f"{url}/v1/completions", {"prompt": "a"}, headers={"Host": "evil.example"})
    assert code == 403
    assert "not called 'evil.example'" in answer["error"]["message"]


def test_health(url) -> None:
    with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
        assert json.loads(answer.read()) == {"status": "ok", "model": "small", "requests": 0}


def test_a_fault_of_ours_is_a_sentence_and_no_traceback(serve, monkeypatch) -> None:
    from lowrise.inference.decoder import FrozenDecoder

    served = serve()
    monkeypatch.setattr(FrozenDecoder, "prefill", lambda *_: 1 / 0)
    code, answer = send(f"{served.url}/v1/completions", {"prompt": "a"})
    assert code == 500
    assert answer["error"]["type"] == "server_error"
    assert "ZeroDivisionError" in answer["error"]["message"]
    assert served.engine.present == 0


def test_templates_are_found_beside_the_tokenizer(tmp_path, text_model) -> None:
    tokenizer = text_model.tokenizer
    assert chat_format(tokenizer, [tmp_path]).template is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "A", "eos_token": {"content": "<e>"}, "bos_token": "<b>"}))
    found = chat_format(tokenizer, [tmp_path / "none", tmp_path]).template
    assert (found.source, found.specials) == ("A", {"eos_token": "<e>", "bos_token": "<b>"})
    config.write_text(json.dumps({"chat_template": [{"name": "default", "template": "B"}]}))
    assert chat_format(tokenizer, [tmp_path]).template.source == "B"
    (tmp_path / "chat_template.jinja").write_text("C")
    assert chat_format(tokenizer, [tmp_path]).template.source == "C"
    config.write_text("{")
    with pytest.raises(LowriseError, match=r"tokenizer_config\.json cannot be read"):
        chat_format(tokenizer, [tmp_path])


@pytest.mark.parametrize(
    ("template", "kind", "message"),
    [
        ("{{ raise_exception('no system') }}", UsageError, "refuses these messages: no system"),
        ("{% if %}", LowriseError, "template cannot be used"),
        ("{{ messages.append(1) }}", LowriseError, "template cannot be used"),
    ],
)
def test_templates_that_refuse_or_are_broken(text_model, template, kind, message) -> None:
    with pytest.raises(kind, match=message):
        ChatFormat(text_model.tokenizer, ChatTemplate(template)).prompt([{"role": "user", "content": "a"}])
