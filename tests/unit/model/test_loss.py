"""The chunked loss is cross-entropy, value and gradient, in every dtype and wrapper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.model import Llama, LlamaConfig, head_loss, next_token_loss
from lowrise.model import loss as loss_module
from lowrise.model.loss import chunk_tokens


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    labels = targets.flatten().masked_fill(targets.flatten() < 0, -100)
    logits = F.linear(hidden, weight).flatten(0, -2)
    return F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), labels, reduction=reduction
    )


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(3, 11, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(29, 8, dtype=dtype, requires_grad=True)
    targets = torch.randint(29, (3, 11))
    targets[0, 3], targets[2, 8:] = -100, -1
    return hidden, weight, targets


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk", [1, 7, 33, 1000, None])
def test_value_and_gradient_equal_cross_entropy(reduction: str, chunk: int | None) -> None:
    hidden, weight, targets = case()
    loss = head_loss(hidden, weight, targets, reduction=reduction, chunk=chunk) * 3.0
    expected = plain(hidden, weight, targets, reduction) * 3.0
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)  # float64, another order of sums
    for ours, theirs in zip(
        torch.autograd.grad(loss, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_low_precision_is_as_good_as_plain(dtype: torch.dtype, tolerance: float) -> None:
    """Against float64: errors of the dtype's own rounding (2^-24, 2^-8) times a few operations."""
    hidden, weight, targets = case()
    exact = torch.autograd.grad(plain(hidden, weight, targets, "mean"), (hidden, weight))
    low = [t.detach().to(dtype).requires_grad_() for t in (hidden, weight)]
    gradients = torch.autograd.grad(head_loss(low[0], low[1], targets, chunk=5), low)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert ours.dtype == dtype
        assert float((ours.double() - theirs).norm() / theirs.norm()) < tolerance


def test_float16_does_not_underflow_at_a_large_batch() -> None:
    """1 / 100,000 a token is below float16's normal range, so softmax minus one-hot must be formed before it
    is scaled.
    """
    tokens = 100_000
    hidden = torch.ones(tokens, 1, dtype=torch.float16)
    weight = torch.zeros(4, 1, dtype=torch.float16, requires_grad=True)
    head_loss(hidden, weight, torch.zeros(tokens, dtype=torch.int64)).backward()
    expected = torch.tensor([[-0.75], [0.25], [0.25], [0.25]], dtype=torch.float16)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected, rtol=2e-3, atol=0)  # two roundings of float16, 2^-11


def test_float16_keeps_a_small_incoming_gradient() -> None:
    """1e-7 in float16 is 19% off (steps of 6e-8), though its product with a large gradient is ordinary."""
    hidden = torch.zeros(100, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[1000.0], [0.0]], dtype=torch.float16)
    (head_loss(hidden, weight, torch.ones(100, dtype=torch.int64)) * 1e-5).backward()
    assert hidden.grad is not None
    # 1000 / 2 / 100 * 1e-5 for each token; 5e-5 is subnormal in float16: steps of 6e-8
    torch.testing.assert_close(hidden.grad.float(), torch.full((100, 1), 5e-5), rtol=2e-3, atol=0)


def test_autocast_products_and_float32_gradients() -> None:
    hidden, weight, targets = case(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_loss(hidden, weight, targets, chunk=5)
    loss.backward()
    expected = head_loss(hidden, weight, targets)
    assert loss.dtype == torch.float32
    assert loss != expected  # the products were in bfloat16
    assert float((loss - expected).abs()) < 0.02  # logits of order 3 rounded to 2^-9, averaged
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_no_gradient_is_formed_when_none_is_wanted() -> None:
    hidden, weight, targets = case()
    with torch.no_grad():
        assert not head_loss(hidden, weight, targets).requires_grad
    frozen = head_loss(hidden, weight.detach(), targets)
    (gradient,) = torch.autograd.grad(frozen, hidden)
    (expected,) = torch.autograd.grad(plain(hidden, weight, targets, "mean"), hidden)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


def test_all_logits_never_exist_at_once() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    hidden = torch.randn(64, 4, requires_grad=True)
    weight = torch.randn(100, 4, requires_grad=True)
    with Watch():
        head_loss(hidden, weight, torch.randint(100, (64,)), chunk=8).backward()
    assert largest == 8 * 100


@pytest.mark.parametrize(
    ("tokens", "chunk", "expected"),
    [(0, None, 1), (100, None, 100), (4096, None, 512), (65_536, None, 4096), (4096, 7, 7), (4, 7, 4)],
)
def test_chunks_are_a_sixteenth_but_not_small(tokens: int, chunk: int | None, expected: int) -> None:
    assert chunk_tokens(tokens, chunk) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_taken_at_a_time_do_not_matter(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = (t.detach() for t in case(torch.float32))
    found = []
    for elements in (1 << 19, 60):
        monkeypatch.setattr(loss_module, "ROWS_ELEMENTS_CPU", elements)
        both = [t.to(dtype).requires_grad_() for t in (hidden, weight)]
        loss = head_loss(*both, targets)
        found.append((loss, *torch.autograd.grad(loss, both)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)  # another order of 33 losses
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


def llama(tied: bool = False) -> Llama:
    sizes = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2}
    return Llama(LlamaConfig(**sizes, tie_embeddings=tied))


@pytest.mark.parametrize("tied", [False, True])
def test_next_token_loss_of_a_llama(tied: bool) -> None:
    model = llama(tied).double()
    tokens = torch.randint(23, (2, 9))
    tokens[1, -2:] = -1
    loss = next_token_loss(model, tokens, chunk=5)
    expected = plain(model.hidden(tokens[:, :-1].clamp_min(0)), model.lm_head.weight, tokens[:, 1:], "mean")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_wrapped_compiled_and_foreign_models() -> None:
    tokens = torch.randint(23, (2, 9))
    model = llama()
    expected = next_token_loss(model, tokens)

    class Wrapper(nn.Module):  # as DistributedDataParallel: the model is `.module`, calls go through forward
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, *args: object, **kwargs: object) -> Tensor:
            return self.module(*args, **kwargs)

    class Foreign(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return model(ids)

    assert torch.equal(next_token_loss(Wrapper(), tokens), expected)
    # float32 sums in another order
    torch.testing.assert_close(next_token_loss(Foreign(), tokens), expected, rtol=1e-6, atol=0)
    assert torch.equal(next_token_loss(torch.compile(model, backend="eager"), tokens), expected)


def test_bad_arguments_are_sentences() -> None:
    hidden, weight, targets = case()
    with pytest.raises(UsageError, match='"mean" or "sum", not \'none\''):
        head_loss(hidden, weight, targets, reduction="none")
    with pytest.raises(UsageError, match="at least 1 token, not 0"):
        head_loss(hidden, weight, targets, chunk=0)
