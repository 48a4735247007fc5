"""Our GGUF files in llama.cpp itself: the ids of its tokenizer and its greedy continuations are ours.

The engine comes with the package xllamacpp, built for Linux, macOS and Windows; llama-cpp-python, which has
the same engine, is compiled where it is installed. Without the package these tests are skipped.
"""

from __future__ import annotations

import itertools
import json
import math
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_runs import TEMPLATE
from small_runs import console

from lowrise.data import Tokenizer
from lowrise.data.chat import ChatTemplate
from lowrise.data.tokenizer import train_bpe
from lowrise.export.gguf_file import write_gguf
from lowrise.model import Llama, LlamaConfig, build_model
from lowrise.pretrained.load import load_model
from lowrise.serve.chat import ChatFormat

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not here: pip install xllamacpp")

TEXTS = [
    "the rank of a matrix is small and its norm is bounded by one .",
    "  two  spaces\n\n\n and 1234567 digits\tdef f(x):\r\n    return x[1:-1] * 2.5e-3\n",
    "don't we'LL e\u0301 äöü 漢字 🙂 <|endoftext|> </s> [UNK]",
    " ",
    "x" * 40,
]
TOKENS = 24
# Differences of log-probabilities from ours. llama.cpp rounds the activations of a
# product to the format of the matrix; measured: 2e-6, 2e-3 and 3e-2.
BOUNDS = {"float32": 1e-5, "float16": 0.01, "q8_0": 0.1}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(TEXTS * 3, 300)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def written(request: Any, tmp_path_factory: pytest.TempPathFactory, bpe: Tokenizer) -> tuple[Llama, Path]:
    """A random model, two queries a key, and the folder with its files in every format."""
    shape = {"num_kv_heads": 2, "init_std": 0.2, "tie_embeddings": request.param}
    config = LlamaConfig.preset("nano", vocab_size=320, **shape)
    model = build_model(config, layer="lowrank", rank=8, seed=1).eval()
    folder = tmp_path_factory.mktemp("gguf")
    for dtype in BOUNDS:
        write_gguf(folder / f"{dtype}.gguf", model, bpe, dtype, "lowrank")
    return model, folder


class Reader:
    """llama.cpp's server on one file, all but the products themselves in float32."""

    def __init__(self, file: Path, *, jinja: bool = False) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx = 128
        settings.n_parallel = 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.warmup = settings.ui = False
        settings.use_jinja = jinja
        self._server = xllamacpp.Server(settings)

    def ask(self, page: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{page}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def ids(self, text: str, *, marks: bool) -> list[int]:
        return self.ask("tokenize", content=text, add_special=True, parse_special=marks)["tokens"]

    def greedy(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        """The likeliest tokens, and the log-probabilities of the first of them. (Of tokens that are parts of
        a character the server tells the ids alone, so the list ends before the first of these.)
        """
        body = {"n_predict": TOKENS, "temperature": 0, "n_probs": 1, "ignore_eos": True}
        answer = self.ask("completion", prompt=prompt, return_tokens=True, **body)
        tokens, told = answer["tokens"], answer["completion_probabilities"]
        known = itertools.takewhile(lambda pair: pair[0] == pair[1]["id"], zip(tokens, told, strict=False))
        return tokens, [step["logprob"] for _, step in known]


def test_ids_are_ours(written: tuple[Llama, Path], bpe: Tokenizer) -> None:
    reader = Reader(written[1] / "float32.gguf")
    for text in TEXTS:
        assert reader.ids(text, marks=False) == bpe.encode(text), text
    # what docs/export.md says of prompts, in which the server looks for marks
    assert reader.ids("<|endoftext|>the", marks=True) == [bpe.separator_id, *bpe.encode("the")]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_greedy_continuations_are_ours(dtype: str, written: tuple[Llama, Path], bpe: Tokenizer) -> None:
    model, folder = written
    reader = Reader(folder / f"{dtype}.gguf")
    # Of float32 the model itself: a fault that our own reader of the format shares would not show.
    ours = model if dtype == "float32" else load_model(folder / f"{dtype}.gguf", "cpu", console()).model
    compared = 0
    for text in ("", "the rank of", "def f(x):\n    return"):
        prompt = [bpe.separator_id, *bpe.encode(text)]
        tokens, values = reader.greedy(prompt)
        assert len(tokens) == TOKENS
        with torch.no_grad():
            logits = ours(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        compared += len(values)
        torch.testing.assert_close(chosen[: len(values)], torch.tensor(values), rtol=0, atol=BOUNDS[dtype])
        logits[:, bpe.separator_id] = -math.inf  # as ignore_eos does there
        # Each token is our likeliest one, or one that these differences can put before it (seen with q8_0).
        picked = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert (logits.amax(-1) - picked).max() <= 2 * BOUNDS[dtype]
    assert compared >= TOKENS


def test_the_chat_template_goes_with_the_file(tmp_path: Path) -> None:
    """It writes what our server writes, and an answer ends at its mark."""
    marks = ["<|endoftext|>", "<|im_start|>", "<stop>"]  # llama.cpp knows "<|im_end|>" by its name
    plain = json.loads(train_bpe(TEXTS * 3, 300).text)
    for mark in marks[1:]:
        plain["added_tokens"].append(
            plain["added_tokens"][0]
            | {"id": len(plain["model"]["vocab"]) + marks.index(mark) - 1, "content": mark}
        )
    tokenizer = Tokenizer(json.dumps(plain), separator_token=marks[0], name="marks")
    config = LlamaConfig.preset("nano", vocab_size=320, init_std=0.2)
    model = build_model(config, layer="lowrank", rank=8, seed=1).eval()
    template = ChatTemplate(TEMPLATE.replace("<|im_end|>", "<stop>"))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the rank?"}]
    prompt = ChatFormat(tokenizer, template).prompt(messages)
    # A head by which the mark is the likeliest token after this prompt, as after training.
    end = tokenizer.id_of("<stop>")
    with torch.no_grad():
        last = model.hidden(torch.tensor([prompt]))[0, -1]
        model.lm_head.weight[end] = 100 * last / last.norm()
    file = tmp_path / "model.gguf"
    write_gguf(file, model, tokenizer, "float32", "lowrank", template)
    reader = Reader(file, jinja=True)
    shown = reader.ask("apply-template", messages=messages)["prompt"]
    assert shown == template.rendered(messages, answer_follows=True)
    assert reader.ids(shown, marks=True) == prompt
    answer = reader.ask("v1/chat/completions", messages=messages, max_tokens=8, temperature=0)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["message"]["content"] == ""
