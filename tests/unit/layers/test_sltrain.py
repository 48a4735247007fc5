"""SparseLowRankLinear: its support, its limits, and the custom backward pass against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers import LowRankLinear, SparseLowRankLinear, param_groups
from lowrise.layers.sltrain import index_dtype
from lowrise.model import LlamaConfig, build_model

M, N, R = 10, 14, 3


def layer_with(delta: float = 0.2, **options: object) -> SparseLowRankLinear:
    layer = SparseLowRankLinear(N, M, R, delta=delta, dtype=torch.float64, **options)  # type: ignore[arg-type]
    nn.init.normal_(layer.A)
    return layer


def gradients(layer: nn.Module, y: Tensor, x: Tensor, names: list[str]) -> list[Tensor]:
    return list(torch.autograd.grad(y.sin().sum(), [x, *(getattr(layer, name) for name in names)]))


@pytest.mark.parametrize("delta", [0.0, 0.03, 0.2, 1.0])
def test_support_is_sorted_distinct_in_range_and_of_the_promised_size(delta: float) -> None:
    layer = layer_with(delta)
    assert layer.index.numel() == layer.values.numel() == int(delta * M * N)
    assert layer.index.dtype == torch.int32
    assert torch.equal(layer.index, layer.index.unique())
    if layer.index.numel():
        assert layer.index.min() >= 0
        assert layer.index.max() < M * N


def test_indices_are_int32_where_they_suffice() -> None:
    assert index_dtype(11008 * 4096) == torch.int32
    assert index_dtype(2**31) == torch.int32  # the largest position is 2^31 - 1
    assert index_dtype(2**31 + 1) == torch.int64
    assert SparseLowRankLinear(2**16, 2**16, 1, delta=1e-9, device="meta").index.dtype == torch.int64


def test_the_start_is_the_sparse_part_with_the_derived_variance() -> None:
    layer = SparseLowRankLinear(300, 200, 4, delta=0.3)
    W = layer.dense()
    assert not layer.A.any()
    assert int((W != 0).sum()) == layer.values.numel()
    # Uniform in +-1/sqrt(n) has variance 1/(3 n); 18,000 draws: standard error 0.7% of it.
    assert W.var().item() == pytest.approx(0.3 / (3 * 300), rel=0.03)


@pytest.mark.parametrize("shape", [(5, N), (2, 3, N)])
def test_backward_is_autograds_of_the_plain_formula(shape: tuple[int, ...]) -> None:
    layer = layer_with()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    names = ["A", "B", "values"]
    fast = gradients(layer, layer(x), x, names)
    positions = layer.index.long()
    W = layer.scale * (layer.A @ layer.B.T)
    W = W + torch.zeros(M * N, dtype=W.dtype).index_put((positions,), layer.values).view(M, N)
    plain = gradients(layer, nn.functional.linear(x, W), x, names)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_without_entries_it_is_the_low_rank_layer() -> None:
    layer, x = layer_with(0.0), torch.randn(5, N, dtype=torch.float64, requires_grad=True)
    plain = LowRankLinear(N, M, R, dtype=torch.float64)
    plain.A.data.copy_(layer.A * layer.scale)
    plain.B.data.copy_(layer.B)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)
    ours, theirs = (gradients(m, m(x), x, ["A", "B"]) for m in (layer, plain))
    torch.testing.assert_close(ours[1], theirs[1] * layer.scale, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-12, atol=1e-12)


def test_with_all_entries_and_no_product_it_is_the_dense_layer() -> None:
    layer, x = layer_with(1.0), torch.randn(5, N, dtype=torch.float64, requires_grad=True)
    layer.A.data.zero_()
    dense = nn.Linear(N, M, bias=False, dtype=torch.float64)
    dense.weight.data.copy_(layer.values.view(M, N))
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-12, atol=1e-12)
    ours = gradients(layer, layer(x), x, ["values"])
    theirs = gradients(dense, dense(x), x, ["weight"])
    torch.testing.assert_close(ours[1].view(M, N), theirs[1], rtol=1e-12, atol=1e-12)


def test_no_dense_weight_is_kept_for_the_backward_pass() -> None:
    layer = SparseLowRankLinear(N, M, R)
    kept: list[int] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(torch.randn(2, N))
    assert kept
    assert max(kept) < M * N


def test_values_are_moved_with_the_rest_and_factors_by_their_role() -> None:
    model = build_model(LlamaConfig.preset("nano", vocab_size=50), layer="sltrain", rank=8)
    roles = {n: group["role"] for group in param_groups(model, lr=1.0) for n, _ in group["params"]}
    assert {roles[n] for n in roles if n.endswith("values")} == {"other"}
    assert {roles[n] for n in roles if n.endswith((".A", ".B"))} == {"factors"}


def test_from_dense_is_at_least_as_near_as_the_truncated_svd() -> None:
    weight = torch.randn(M, N, dtype=torch.float64)
    layer = SparseLowRankLinear.from_dense(weight, R, delta=0.3)
    _, s, _ = torch.linalg.svd(weight)
    rest = (weight - layer.dense()).flatten()
    assert rest.norm() < s[R:].norm()
    torch.testing.assert_close(rest[layer.index.long()], torch.zeros_like(layer.values), rtol=0, atol=1e-14)


@pytest.mark.parametrize("options", [{"delta": -0.1}, {"delta": 1.1}, {"alpha": 0.0}])
def test_impossible_options_get_a_sentence(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        SparseLowRankLinear(N, M, R, **options)  # type: ignore[arg-type]
