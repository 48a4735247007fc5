"""The server as the real client of the OpenAI format sees it."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest

openai = pytest.importorskip("openai")

from lowrise.data.chat import ChatTemplate  # noqa: E402
from lowrise.inference.sampling import Sampling  # noqa: E402
from lowrise.inference.session import continue_texts  # noqa: E402
from lowrise.serve.chat import ChatFormat  # noqa: E402


@pytest.fixture
def client(serve):
    return connect(serve())


def connect(served, retries: int = 0):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=retries, timeout=60)


def expected(text_model, prompt, tokens: int, seed: int = 0, stop=(), **settings) -> tuple[str, int, str]:
    ids = text_model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    sampling = Sampling(seed=seed, **{"temperature": 1.0, "top_p": 1.0, **settings})
    pieces = list(continue_texts(text_model, [ids], max_new_tokens=tokens, sampling=sampling, stop=stop))
    return "".join(p.text for p in pieces), pieces[-1].tokens, pieces[-1].finish


def test_models(client) -> None:
    assert [m.id for m in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "lowrise"
    with pytest.raises(openai.NotFoundError, match="no model 'other' here: this server has 'small'"):
        client.models.retrieve("other")


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_every_parameter_of_the_format_is_known_by_its_name(client, chat) -> None:
    """What cannot be done is called that, and not a mistyped name: clients send it by themselves."""
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_create_params

    params = (chat_create_params if chat else completion_create_params).CompletionCreateParamsBase
    request = {"messages": [{"role": "user", "content": "a"}]} if chat else {"prompt": "a"}
    create = client.chat.completions.create if chat else client.completions.create
    for name in params.__annotations__.keys() - request.keys() - {"model", "stream"}:
        for value in (None, {"type": "unusual"}):
            try:
                create(model="small", **request | {"max_tokens": 1}, extra_body={name: value})
            except openai.BadRequestError as error:
                message = str(error)
                assert value is not None, message
                assert "There is no parameter" not in message, message


def test_completion_is_the_text_of_the_library(client, text_model) -> None:
    answer = client.completions.create(model="small", prompt="the rank", max_tokens=12, temperature=0)
    text, tokens, finish = expected(text_model, "the rank", 12, temperature=0.0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, finish)
    assert answer.object == "text_completion"
    prompt_tokens = 1 + len(text_model.tokenizer.encode("the rank"))
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }


def test_sampling_settings_and_seeds_reach_the_model(client, text_model) -> None:
    options = {"temperature": 0.7, "top_p": 0.9}
    extra = {"top_k": 40, "repetition_penalty": 1.2}
    answer = client.completions.create(
        model="small", prompt=["the", "rank of a"], n=2, max_tokens=10, seed=5, extra_body=extra, **options
    )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        prompt, seed = ("the", "rank of a")[choice.index // 2], 5 + choice.index % 2
        text, _, finish = expected(text_model, prompt, 10, seed, **options, **extra)
        assert (choice.text, choice.finish_reason) == (text, finish)


def test_prompts_of_tokens_and_an_empty_prompt(client, text_model) -> None:
    for prompt in ([5, 6, 7], ""):
        answer = client.completions.create(model="small", prompt=prompt, max_tokens=5, temperature=0)
        assert answer.choices[0].text == expected(text_model, prompt, 5, temperature=0.0)[0]
    two = client.completions.create(model="small", prompt=[[5, 6, 7], [8]], max_tokens=5, temperature=0)
    assert len(two.choices) == 2


def test_stop_strings_end_the_text_and_are_not_in_it(client, text_model) -> None:
    whole, _, _ = expected(text_model, "the", 30, temperature=0.0)
    stop = whole[6:9]
    answer = client.completions.create(
        model="small", prompt="the", max_tokens=30, temperature=0, stop=[stop, "§"]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = client.completions.create(
        model="small", prompt="the", max_tokens=30, temperature=0, stop=stop, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks) == whole[: whole.index(stop)]


def test_a_stream_is_the_same_text_in_chunks(client, text_model) -> None:
    text, tokens, finish = expected(text_model, "the", 20, seed=3)
    chunks = list(
        client.completions.create(
            model="small",
            prompt="the",
            max_tokens=20,
            seed=3,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].text for c in chunks[:-1]) == text
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [finish]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == tokens


MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "a norm?"}]},
]
PLAIN = "System: Be short.\nUser: What is a norm?\nAssistant:"


def test_chat_in_the_plain_format(client, text_model) -> None:
    answer = client.chat.completions.create(
        model="small", messages=MESSAGES, max_completion_tokens=9, temperature=0
    )
    text, tokens, finish = expected(text_model, PLAIN, 9, temperature=0.0, stop=["\nUser:"])
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, finish)
    assert answer.usage.completion_tokens == tokens
    chunks = list(
        client.chat.completions.create(
            model="small", messages=MESSAGES, max_tokens=9, temperature=0, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
    assert chunks[-1].choices[0].finish_reason == finish


def test_chat_without_max_tokens_fills_the_context(client) -> None:
    answer = client.chat.completions.create(model="small", messages=MESSAGES, seed=1)
    assert answer.usage.total_tokens <= 96


def test_chat_by_the_template_of_the_tokenizer(serve, text_model) -> None:
    template = (
        "{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    chat = ChatFormat(text_model.tokenizer, ChatTemplate(template, {"eos_token": "<|endoftext|>"}))
    client = connect(serve(chat=chat))
    answer = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "a norm"}], max_tokens=6, temperature=0
    )
    ids = [*text_model.tokenizer.encode("[user]a norm"), text_model.tokenizer.separator_id]
    assert answer.choices[0].message.content == expected(text_model, ids, 6, temperature=0.0)[0]
    with pytest.raises(openai.BadRequestError, match=r"content quotes '<\|endoftext\|>'"):
        client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "x<|endoftext|>y"}], max_tokens=6
        )


def test_more_requests_than_places_are_told_to_come_again(serve) -> None:
    served = serve(concurrency=1, queue=0)
    client = connect(served)
    stream = client.completions.create(model="small", prompt="the", max_tokens=64, seed=1, stream=True)
    next(iter(stream))
    served.engine.present += 1  # one that waits for ever
    with pytest.raises(openai.RateLimitError, match="as many as this server takes") as caught:
        client.completions.create(model="small", prompt="the", max_tokens=1)
    assert caught.value.response.headers["retry-after"] == "1"
    served.engine.present -= 1
    list(stream)


def test_concurrent_requests_get_their_own_texts(serve, text_model) -> None:
    client = connect(serve(concurrency=3, queue=8))
    answers: dict[int, str] = {}

    def ask(seed: int) -> None:
        answer = client.completions.create(model="small", prompt="the", max_tokens=20, seed=seed)
        answers[seed] = answer.choices[0].text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {seed: expected(text_model, "the", 20, seed)[0] for seed in range(8)}


def test_a_client_that_leaves_frees_its_place(serve) -> None:
    served = serve(concurrency=1, queue=0)
    client = connect(served)
    stream = client.completions.create(model="small", prompt="the", max_tokens=64, seed=1, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while served.engine.present and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.engine.present == 0
    assert client.completions.create(model="small", prompt="the", max_tokens=2).usage.completion_tokens <= 2


def test_the_client_of_the_page_gets_a_text(serve):
    page = Path(__file__).parents[3] / "docs" / "commands" / "serve.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", serve().url).replace('model="mine"', 'model="small"')
    *lines, last = code.strip().splitlines()
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    assert isinstance(eval(last, names), str)
