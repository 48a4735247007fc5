"""DLR: the formulas with a one-hot matrix, uneven blocks, folding, and what may move its factors."""

from __future__ import annotations

import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import lowrise
from lowrise.errors import UsageError
from lowrise.layers import CoLALinear, DLRLinear, param_groups
from lowrise.layers.inits import balanced_factors
from lowrise.model import LlamaConfig, build_model
from lowrise.optim import LORO, AdamW, Spectron

# m, n, r: even; m no multiple of r; latents that nothing copies (K = 2 copies 9 of 10); r above m; r = m.
SHAPES = [(20, 12, 5), (17, 10, 4), (17, 6, 10), (5, 8, 9), (6, 7, 6)]
shapes = pytest.mark.parametrize(("m", "n", "r"), SHAPES)
activations = pytest.mark.parametrize("activation", ["none", "silu"])


def one_hot(m: int, r: int, alpha: float) -> Tensor:
    """E by its definition, entry by entry."""
    K = math.ceil(m / r)
    E = torch.zeros(m, r, dtype=torch.float64)
    for o in range(m):
        E[o, min(o // K, r - 1)] = alpha / math.sqrt(K)
    return E


def by_hand(layer: DLRLinear, x: Tensor, E: Tensor) -> Tensor:
    z = x @ layer.B
    z = F.silu(z) if layer.activation == "silu" else z
    y = z @ layer.A.T + z @ E.T
    return y if layer.bias is None else y + layer.bias


@shapes
@activations
@pytest.mark.parametrize("trained", [False, True])
def test_output_and_gradients_are_those_of_the_one_hot_matrix(m, n, r, activation, trained) -> None:
    layer = DLRLinear(
        n, m, r, bias=True, activation=activation, alpha=0.7, train_alpha=trained, dtype=torch.float64
    )
    with torch.no_grad():
        layer.bias.normal_()
    x, g = torch.randn(3, 4, n, dtype=torch.float64), torch.randn(3, 4, m, dtype=torch.float64)
    E = one_hot(m, r, 0.7)
    if trained:
        E = one_hot(m, r, 1.0) * layer.trained_alpha
    leaves = [x.requires_grad_(), *layer.parameters()]
    got, wanted = layer(x), by_hand(layer, x, E)
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)
    pairs = zip(torch.autograd.grad(got, leaves, g), torch.autograd.grad(wanted, leaves, g), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_some_latents_reach_no_output_by_the_residual() -> None:
    """m = 17, r = 10: K = 2, so that the latents 9 and up are copied nowhere (8 once, as the last block is
    short).
    """
    layer = DLRLinear(6, 17, 10, dtype=torch.float64)
    E = (layer.folded_factor() - layer.A).detach()
    torch.testing.assert_close(E, one_hot(17, 10, 1.0), rtol=0, atol=1e-15)
    assert torch.count_nonzero(E, dim=0).tolist() == [2] * 8 + [1, 0]
    assert layer.residual_norm() == 1.0
    assert float(torch.linalg.matrix_norm(E, ord=2)) == pytest.approx(1.0)


@shapes
@activations
def test_folding_keeps_the_map_and_happens_once(m, n, r, activation) -> None:
    layer = DLRLinear(n, m, r, bias=True, activation=activation, dtype=torch.float64)
    x = torch.randn(5, n, dtype=torch.float64)
    before, factor = layer(x).detach(), layer.folded_factor().detach()
    assert layer.fold() is layer
    assert torch.equal(layer.A, factor)
    torch.testing.assert_close(layer(x), before, rtol=1e-13, atol=1e-13)
    assert layer.residual_norm() == 0.0
    assert not any(p.requires_grad for p in layer.parameters())
    assert "folded" in repr(layer)
    with pytest.raises(UsageError, match=r"rank \d+\) is folded already.*fold a layer once"):
        layer.fold()
    assert torch.equal(layer.A, factor)
    plain = CoLALinear(n, m, r, bias=True, activation=activation, dtype=torch.float64)
    own = layer.state_dict()
    assert int(own.pop("folded")) == 1
    plain.load_state_dict(own)
    assert torch.equal(plain(x), layer(x)), "what is left is a layer of two factors"


def test_the_state_dict_says_whether_a_layer_is_folded() -> None:
    layer, other = DLRLinear(12, 20, 5), DLRLinear(12, 20, 5)
    x, fresh = torch.randn(3, 12), DLRLinear(12, 20, 5).state_dict()
    wanted = layer(x).detach()
    file = io.BytesIO()
    torch.save(layer.fold().state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(x), wanted)
    with pytest.raises(UsageError, match="folded already"):
        other.fold()
    other.load_state_dict(fresh)
    other.fold()  # weights that are not folded may be
    plain = CoLALinear(12, 20, 5)
    with pytest.raises(RuntimeError, match="folded"):
        plain.load_state_dict(fresh)
    with pytest.raises(RuntimeError, match="folded"):
        layer.load_state_dict(plain.state_dict())


def test_a_folded_layer_is_not_trained() -> None:
    model = build_model(LlamaConfig.preset("nano", vocab_size=61), layer="dlr", rank=4)
    for module in model.modules():
        if isinstance(module, DLRLinear):
            module.fold()
    groups = param_groups(model)
    assert [group["role"] for group in groups] == ["other"]


def test_fresh_factors_are_the_release_s() -> None:
    layer = DLRLinear(300, 500, 100)
    std = (100 * (500 + 300)) ** -0.25
    for factor in (layer.A, layer.B):
        assert float(factor.detach().std()) == pytest.approx(std, rel=0.02)
    assert (layer.activation, layer.alpha, layer.trained_alpha) == ("silu", 1.0, None)


@activations
def test_from_dense_takes_the_residual_off_the_factor(activation) -> None:
    weight = torch.randn(20, 12, dtype=torch.float64)
    layer = DLRLinear.from_dense(weight, 5, activation=activation)
    A, B = balanced_factors(weight, 5)
    slope = 0.5 if activation == "silu" else 1.0
    torch.testing.assert_close(slope * layer.folded_factor() @ layer.B.T, A @ B.T)
    folded = DLRLinear.from_dense(weight, 5, activation=activation).fold()
    folded.load_dense_(weight)
    torch.testing.assert_close(slope * folded.A @ folded.B.T, A @ B.T)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"activation": "relu"}, "choose silu or none"), ({"alpha": math.nan}, "alpha = nan .*finite")],
)
def test_impossible_options(options, sentence) -> None:
    with pytest.raises(UsageError, match=sentence):
        DLRLinear(12, 20, 5, **options)


def test_autocast_adds_the_residual_in_its_dtype() -> None:
    layer, x = DLRLinear(12, 17, 4, train_alpha=True), torch.randn(3, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.trained_alpha.grad.dtype == torch.float32
    # three roundings of 2^-9, relative to the largest entry
    exact = layer(x)
    assert float((y.float() - exact).abs().max() / exact.abs().max()) < 0.02


# --- optimizers -------------------------------------------------------------------------------------------


def nano(**options) -> torch.nn.Module:
    return build_model(
        LlamaConfig.preset("nano", vocab_size=61), layer="dlr", rank=4, layer_options=options, seed=1
    )


def test_a_trained_alpha_moves_with_the_norms_and_learns() -> None:
    model = nano(train_alpha=True)
    groups = param_groups(model)
    names = {name for group in groups if group["role"] == "other" for name, _ in group["params"]}
    alphas = {name for name, _ in model.named_parameters() if name.endswith(".trained_alpha")}
    assert alphas
    assert alphas <= names
    tokens = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(0))
    optimizer = AdamW.from_model(model, lr=1e-2)
    for _ in range(3):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.item() != 1.0 for n, p in model.named_parameters() if n.endswith(".trained_alpha"))


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_what_would_choose_other_factors_is_refused(activation) -> None:
    model = nano(activation=activation)
    (group, _) = param_groups(model)
    assert group["fixed_gauge"]
    assert group["residual_norm"] == 1.0
    with pytest.raises(UsageError, match=r"rebalance_every = 5.*A B\^T.*another map: leave it out"):
        Spectron.from_model(model, rebalance_every=5)
    with pytest.raises(UsageError, match=r"kth_update = 'exact' every 500.*set kth_update"):
        LORO.from_model(model)
    LORO.from_model(model, kth_update="lazy")
    with pytest.raises(UsageError, match=r"certify .*train_alpha"):
        Spectron.from_model(nano(train_alpha=True), variant="certified")


def test_cola_is_refused_alike_and_plain_products_are_not() -> None:
    config = LlamaConfig.preset("nano", vocab_size=61)
    with pytest.raises(UsageError, match="another map"):
        LORO.from_model(build_model(config, layer="cola", rank=4))
    for layer, options in (("cola", {"activation": "none"}), ("lowrank", {}), ("lora", {})):
        model = build_model(config, layer=layer, rank=4, layer_options=options)
        assert not any(
            key in group for group in param_groups(model) for key in ("fixed_gauge", "residual_norm")
        )
        LORO.from_model(model)


@pytest.mark.parametrize("alpha", [1.0, 8.0])
def test_a_certified_step_bounds_the_change_of_the_whole_map(alpha) -> None:
    """||A + E|| <= ||A|| + alpha takes part in the bound; A alone would break it."""
    lr = 0.1
    layer = DLRLinear(24, 32, 8, activation="none", alpha=alpha, dtype=torch.float64)
    with torch.no_grad():
        layer.A.mul_(1e-3)
        layer.B.mul_(1e-3)
    holder = torch.nn.Sequential(layer)
    optimizer = Spectron.from_model(holder, lr=lr, variant="certified", step_size="tight", momentum=0.0)
    moved = []
    for _ in range(10):
        before = layer.dense().detach()
        u, v = torch.randn(32, dtype=torch.float64), torch.randn(24, dtype=torch.float64)
        (layer(v[None]) @ u).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved.append(float(torch.linalg.matrix_norm(layer.dense().detach() - before, ord=2)))
    assert max(moved) <= lr * (1 + 1e-9)


def test_it_is_a_layer_of_the_package() -> None:
    model = lowrise.Llama(LlamaConfig.preset("nano", vocab_size=61))
    lowrise.factorize(model, layer="dlr", rank=0.25, from_weights=True, activation="none")
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens)
        for module in model.modules():
            if isinstance(module, DLRLinear):
                module.fold()
        torch.testing.assert_close(model(tokens), before, rtol=1e-5, atol=1e-5)
