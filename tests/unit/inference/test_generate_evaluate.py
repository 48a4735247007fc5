"""Generation and exact evaluation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lowrise.errors import LowriseError, UsageError
from lowrise.inference.evaluate import evaluate
from lowrise.inference.generate import generate
from lowrise.inference.sampling import pick_rows
from lowrise.model import Llama, LlamaConfig, build_model

VOCAB = 31


@pytest.fixture
def model() -> Llama:
    config = LlamaConfig.preset("nano", vocab_size=VOCAB, num_kv_heads=1, max_seq_len=40, init_std=0.2)
    return build_model(config, layer="lowrank", rank=8)


def test_greedy_is_the_argmax_of_the_full_forward(model: Llama) -> None:
    tokens = [3, 1, 4]
    generated = list(generate(model, tokens, max_new_tokens=12, temperature=0))
    for token in generated:
        with torch.no_grad():
            assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)
    assert len(generated) == 12


def test_sampling_is_reproducible_and_follows_the_seed(model: Llama) -> None:
    def text(seed: int) -> list[int]:
        return list(generate(model, torch.tensor([3, 1]), max_new_tokens=20, seed=seed, top_k=20, top_p=0.9))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_stop_token_ends_the_stream_and_is_not_part_of_it(model: Llama) -> None:
    full = list(generate(model, [3], max_new_tokens=10, temperature=0))
    stop = full[4]
    stopped = list(generate(model, [3], max_new_tokens=10, temperature=0, stop_token=stop))
    assert stopped == full[: full.index(stop)]


def test_streaming_leaves_gradients_on_for_the_caller(model: Llama) -> None:
    for _ in generate(model, [3], max_new_tokens=2):
        assert torch.is_grad_enabled()


def frequencies(draws: int = 4000, **settings: float | None) -> torch.Tensor:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    generator = torch.Generator().manual_seed(0)
    arguments = {"temperature": 1.0, "top_k": None, "top_p": None, **settings}
    counts = torch.zeros(4)
    for _ in range(draws):
        counts[pick_rows(logits, generators=[generator], **arguments)] += 1  # type: ignore[arg-type]
    return counts / draws


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
    ],
)
def test_draws_have_the_right_distribution(settings: dict[str, float], expected: list[float]) -> None:
    # 4,000 draws: a share has a standard error of at most 0.8%; 4 of these
    torch.testing.assert_close(
        frequencies(**settings), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0.032
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": []}, "prompt is empty"),
        ({"tokens": [31]}, "token 31, but the model knows 0 to 30"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 40}, "longer than model.max_seq_len 40"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_requests_are_sentences_at_the_call(model: Llama, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(model, **{"tokens": [1], "max_new_tokens": 3, **arguments})


def split(windows: int = 5, length: int = 9) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, VOCAB, (windows, length)).astype(np.int64)
    ids[-1, 5:] = -1  # a short last window
    return ids


def test_evaluation_is_the_mean_over_tokens_not_over_batches(model: Llama) -> None:
    ids = split()
    total, count = 0.0, 0
    for row in ids:
        real = torch.tensor(row[row >= 0])[None]
        with torch.no_grad():
            logits = model(real[:, :-1]).double()
        total += float(F.cross_entropy(logits[0], real[0, 1:], reduction="sum"))
        count += real.shape[1] - 1
    for size in (1, 2, 4, 5):
        result = evaluate(model, [ids[i : i + size] for i in range(0, 5, size)], text_bytes=100)
        assert result.tokens == count
        # float32 logits and sums of 40 terms
        assert result.loss == pytest.approx(total / count, rel=1e-6)
        assert result.perplexity == pytest.approx(math.exp(result.loss))
        assert result.bits_per_byte == pytest.approx(total / math.log(2) / 100, rel=1e-6)


def test_evaluation_repeats_to_the_bit_and_restores_the_mode(model: Llama) -> None:
    model.train()
    first = evaluate(model, [split()], text_bytes=1)
    assert first == evaluate(model, [torch.as_tensor(split())], text_bytes=1, chunk=2048)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_uniform_model_has_the_perplexity_of_its_vocabulary(model: Llama) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert evaluate(model, [split()], text_bytes=1).perplexity == pytest.approx(VOCAB, rel=1e-6)  # float32


def test_nothing_to_predict_is_a_sentence(model: Llama) -> None:
    with pytest.raises(LowriseError, match="no token to predict"):
        evaluate(model, [], text_bytes=1)
    with pytest.raises(LowriseError, match="no token to predict"):
        evaluate(model, [np.full((2, 4), -1)], text_bytes=1)
    with pytest.raises(UsageError, match="at least 1, not 0"):
        evaluate(model, [split()], text_bytes=0)
