"""`SVDLinear`: the map and its gradients, its start, its cache of narrow copies."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers import SVDLinear, factorize, param_groups
from lowrise.model.init import init_weights
from lowrise.optim import TSVD, AdamW


def test_gradients_are_the_chain_rule_of_the_dense_weight() -> None:
    layer = SVDLinear(10, 14, 4).double()
    x = torch.randn(3, 5, 10, dtype=torch.float64, requires_grad=True)
    gy = torch.randn(3, 5, 14, dtype=torch.float64)
    layer(x).backward(gy)
    G = gy.flatten(0, 1).T @ x.detach().flatten(0, 1)  # dL/dW
    U, s, V = (p.detach() for p in layer.role_parameters())
    for got, expected in (
        (layer.U.grad, G @ V * s),
        (layer.V.grad, G.T @ U * s),
        (layer.s.grad, torch.diagonal(U.T @ G @ V)),
        (x.grad, gy @ layer.dense().detach()),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)  # float64, sums in another order


@pytest.mark.parametrize("init", ["gaussian", "constant"])
@pytest.mark.parametrize(("m", "n", "r"), [(64, 48, 12), (48, 64, 12), (32, 32, 31)])
@pytest.mark.filterwarnings("ignore:an SVD layer")
def test_start_has_the_norm_of_the_dense_weight(init: str, m: int, n: int, r: int) -> None:
    layer = SVDLinear(n, m, r, init=init, init_std=0.05)
    assert math.isclose(layer.dense().norm().item(), 0.05 * math.sqrt(m * n), rel_tol=1e-5)  # float32
    assert layer.orthonormality_error() <= 1e-7
    assert torch.equal(layer.s, layer.s.sort(descending=True).values), "QR wants the dominant column first"
    assert (float(layer.s[0] - layer.s[-1]) > 1e-3) == (init == "gaussian")


def test_gaussian_start_has_the_spectrum_of_a_gaussian_matrix() -> None:
    layer = SVDLinear(48, 64, 12, init_std=1.0)
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    torch.randn(64, 12), torch.randn(48, 12)  # the draws of U and V
    expected = torch.linalg.svdvals(torch.randn(64, 48).double())[:12]
    expected *= math.sqrt(64 * 48) / expected.norm()
    torch.testing.assert_close(layer.s.double(), expected, rtol=1e-6, atol=0)


def test_start_does_not_depend_on_the_other_modules() -> None:
    models = [nn.Sequential(nn.Linear(16, 24), SVDLinear(24, 16, 4)) for _ in range(2)]
    models[1].insert(2, nn.Linear(3, 3))
    for model in models:
        init_weights(model, 5)
    assert torch.equal(models[0][1].U, models[1][1].U)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_from_dense_is_the_best_approximation(shape: tuple[int, int]) -> None:
    W = torch.randn(shape)
    layer = SVDLinear.from_dense(W, 5)
    s = torch.linalg.svdvals(W.double())
    torch.testing.assert_close(layer.s.double(), s[:5], rtol=1e-6, atol=0)
    error = torch.linalg.matrix_norm(W - layer.dense()).item()
    assert math.isclose(error, float(s[5:].norm()), rel_tol=1e-5)
    assert layer.orthonormality_error() <= 1e-6


def test_from_dense_of_a_weight_without_rank_is_orthonormal_too() -> None:
    assert SVDLinear.from_dense(torch.zeros(20, 12), 5).orthonormality_error() <= 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"init": "spectral"},
        {"init_std": 0.0},
        {"energy": 1.5},
        {"rank_events": (0.1, 1.0)},
        {"rank_multiple": 0},
        {"max_drop": -0.1},
    ],
)
def test_options_that_cannot_be(options: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        SVDLinear(12, 20, 5, **options)


def test_a_layer_larger_than_the_dense_one_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="no smaller than the dense 20 x 12"):
        SVDLinear(12, 20, 8)


# ---- the cache


def narrow(layer: SVDLinear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x)


def casts(layer: SVDLinear) -> tuple[int, ...]:
    assert layer._cast is not None
    return tuple(id(t) for t in layer._cast[1:])


def test_one_cast_for_all_micro_batches_of_an_update() -> None:
    layer, x = SVDLinear(16, 24, 4), torch.randn(8, 16)
    optimizer = TSVD(param_groups(nn.Sequential(layer), lr=0.01), lr=0.01)
    seen = []
    for _ in range(3):
        of_update = set()
        for part in x.split(2):
            narrow(layer, part).float().sum().backward()
            of_update.add(casts(layer))
        with torch.no_grad():
            narrow(layer, x)  # an evaluation
        of_update.add(casts(layer))
        assert len(of_update) == 1
        seen.append(layer._cast)
        optimizer.step()
        optimizer.zero_grad()
    assert len({id(cast) for cast in seen}) == 3, "a step makes new copies due"


def test_micro_batches_add_up_to_the_batch_in_float32() -> None:
    gradients = []
    for parts in (1, 4):
        torch.manual_seed(0)
        layer, x = SVDLinear(16, 24, 4), torch.randn(8, 16)
        for part in x.chunk(parts):
            layer(part).square().sum().backward()
        gradients.append([p.grad for p in layer.role_parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # float32, sums in another order


def test_evaluation_sees_every_kind_of_change() -> None:
    layer, x = SVDLinear(16, 24, 4), torch.randn(8, 16)
    other = SVDLinear(16, 24, 4)
    with torch.inference_mode():
        before = narrow(layer, x)
    with torch.no_grad():
        layer.U.mul_(-1)
        assert torch.equal(narrow(layer, x), -before)  # a write in place
        layer.load_state_dict(other.state_dict())
        assert torch.equal(narrow(layer, x), narrow(other, x))
    narrow(layer, x).float().sum().backward()  # copies made under inference_mode must not reach autograd
    moved = layer.double()
    assert moved(x.double()).dtype == torch.float64


def test_copies_do_without_the_cache() -> None:
    layer, x = SVDLinear(16, 24, 4), torch.randn(8, 16)
    narrow(layer, x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._cast is None
        assert torch.equal(narrow(twin, x), narrow(layer, x))


def test_frozen_layer_passes_gradients_on() -> None:
    layer = SVDLinear(16, 24, 4).requires_grad_(False)
    x = torch.randn(8, 16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.U.grad is None


def test_compiled_under_autocast_is_the_eager_map() -> None:
    layer, x = SVDLinear(16, 24, 4), torch.randn(8, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(narrow(compiled, x), narrow(layer, x), rtol=0, atol=0)
    before = layer(x)
    with torch.no_grad():
        layer.U.mul_(-1)
    torch.testing.assert_close(compiled(x), -before)


def test_adamw_moves_it_without_keeping_it_orthonormal() -> None:
    model = nn.Sequential(nn.Linear(16, 24))
    factorize(model, layer="svd", rank=4)
    optimizer = AdamW(param_groups(model, lr=0.01), lr=0.01)
    x = torch.randn(32, 16)
    losses = []
    for _ in range(50):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model[0].orthonormality_error() > 1e-3
