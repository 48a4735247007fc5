"""LoRALinear: what a merge keeps and adds, and the traps of methods/lora_relora.md, sections 2 and 5."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.layers import LoRALinear, param_groups
from lowrise.linalg import precision
from lowrise.model import LlamaConfig, build_model
from lowrise.optim import AdamW

M, N, R = 10, 14, 3


def trained(rank: int = R, dtype: torch.dtype = torch.float64, **options: object) -> LoRALinear:
    """A layer whose product is not zero, as after some updates."""
    layer = LoRALinear(N, M, rank, dtype=dtype, **options)  # type: ignore[arg-type]
    nn.init.normal_(layer.A)
    return layer


def test_starts_as_the_dense_model_of_the_same_seed() -> None:
    config = LlamaConfig.preset("nano", vocab_size=50)
    dense = build_model(config, seed=3)
    lora = build_model(config, layer="lora", rank=8, seed=3)
    tokens = torch.arange(12)[None]
    assert torch.equal(lora.model.layers[1].mlp.up_proj.W0, dense.model.layers[1].mlp.up_proj.weight)
    # The product is exactly zero; what remains is the order of sums in float32.
    torch.testing.assert_close(lora(tokens), dense(tokens), rtol=0, atol=1e-6)


def test_one_factor_is_random_from_the_start_so_that_the_other_gets_a_gradient() -> None:
    """The released code zeroes both when it wraps a layer: both gradients are then exactly 0."""
    layer = LoRALinear(N, M, R)
    layer(torch.randn(5, N)).square().sum().backward()
    assert layer.A.grad is not None
    assert layer.A.grad.abs().min() > 0
    assert not layer.A.any()
    bound = N**-0.5
    assert layer.B.abs().max() <= bound
    assert layer.B.abs().max() > 0.8 * bound  # 42 uniform draws: all below has probability 1e-4


def test_w0_is_frozen_and_in_no_group() -> None:
    model = build_model(LlamaConfig.preset("nano", vocab_size=50), layer="lora", rank=8)
    grouped = {name for group in param_groups(model, lr=1.0) for name, _ in group["params"]}
    assert not any(name.endswith("W0") for name in grouped)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == grouped
    model(torch.arange(8)[None]).sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n.endswith("W0"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_a_merge_leaves_the_function_and_empties_the_product(dtype: torch.dtype, tolerance: float) -> None:
    layer, x = trained(dtype=dtype), torch.randn(6, N, dtype=dtype)
    before, old_B = layer(x), layer.B.clone()
    layer.merge_(7)
    # Rounding of entries of order 100 (s = 10.7).
    torch.testing.assert_close(layer(x), before, rtol=tolerance, atol=100 * tolerance)
    assert not layer.A.any()
    assert not torch.equal(layer.B, old_B)
    layer(x).square().sum().backward()
    assert layer.A.grad is not None
    assert layer.A.grad.any(), "the layer lives on after a merge"


@pytest.mark.parametrize(("rank", "merges"), [(2, 2), (4, 3), (3, 1)])
def test_rank_after_merges_is_the_sum_of_ranks(rank: int, merges: int) -> None:
    layer = trained(rank)
    start = layer.W0.clone()
    for number in range(1, merges + 1):
        nn.init.normal_(layer.A)
        layer.merge_(number)
    assert torch.linalg.matrix_rank(layer.W0 - start) == min(merges * rank, M, N)


def test_merges_fall_on_multiples_and_not_on_the_last_update() -> None:
    layer = trained(merge_every=4)
    due = []
    for number in range(1, 13):
        before = layer.B.clone()
        layer.after_update(number, 12)
        if not torch.equal(before, layer.B):
            due.append(number)
    assert due == [4, 8]


def test_draws_of_a_merge_depend_on_layer_and_number_alone() -> None:
    torch.manual_seed(1)
    layer, other = trained(), trained()
    twin = LoRALinear(N, M, R, dtype=torch.float64)
    twin.load_state_dict(layer.state_dict())  # as a resumed run does
    torch.manual_seed(99)
    layer.merge_(5)
    torch.rand(3)
    twin.merge_(5)
    other.merge_(5)
    assert torch.equal(layer.B, twin.B)
    assert torch.equal(layer.W0, twin.W0)
    assert not torch.equal(layer.B, other.B)
    fifth = layer.B.clone()
    layer.merge_(6)
    assert not torch.equal(layer.B, fifth)


def test_a_merge_is_rounded_once_and_computed_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 weights: the merged W0 is the rounded float32 sum, with TF32 and autocast off."""
    layer = trained(dtype=torch.bfloat16)
    exact = layer.W0.double() + layer.scale * layer.A.double() @ layer.B.double().T
    entered = []
    real = precision.full_precision_matmul

    def watched(device: torch.device) -> object:
        entered.append(device)
        return real(device)

    monkeypatch.setattr("lowrise.layers.lora.full_precision_matmul", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.merge_(1)
    assert entered
    # One rounding to 8 bits, and the last bits of a float32 sum that may decide it the other way.
    assert ((layer.W0.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


def test_scale_zero_is_a_frozen_layer() -> None:
    layer, x = LoRALinear(N, M, R, alpha=0.0), torch.randn(4, N)
    optimizer = AdamW([{"params": [layer.A, layer.B], "role": "factors"}], lr=0.1)
    before = layer(x)
    for _ in range(3):
        layer(x).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer(x), before)


def test_from_dense_is_exact_at_any_rank() -> None:
    weight = torch.randn(M, N)
    layer = LoRALinear.from_dense(weight, 1, alpha=8.0)
    assert torch.equal(layer.dense(), weight)
    assert layer.alpha == 8.0
    assert layer.B.any()


def test_backward_costs_no_gradient_of_w0() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer, x = LoRALinear(N, M, R), torch.randn(6, N, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 6 * (4 * M * N + 6 * R * (M + N)) == 6 * layer.ledger().training_flops


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"merge_every": -1}, {"init_std": 0.0}])
def test_impossible_options_get_a_sentence(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        LoRALinear(N, M, R, **options)  # type: ignore[arg-type]
