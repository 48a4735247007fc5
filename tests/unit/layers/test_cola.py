"""CoLA and CoLA-M: the layer's mathematics, its traps (methods/cola.md, sections 2 and 5), and what is kept
for the backward pass (section 6)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowrise.config import from_dict, load
from lowrise.errors import UsageError
from lowrise.layers import CoLALinear, factorize, param_groups
from lowrise.methods import METHODS
from lowrise.model import Llama, LlamaConfig, build_model
from lowrise.optim import Spectron
from lowrise.runs.build import llama_config
from lowrise.train import plan_run

RECIPES = Path(__file__).parents[3] / "recipes"
B, L = 2, 12


def small(**overrides: object) -> LlamaConfig:
    sizes = {"vocab_size": 61, "hidden_size": 48, "intermediate_size": 80, "num_layers": 2, "num_heads": 4}
    return LlamaConfig(**{**sizes, **overrides})  # type: ignore[arg-type]


# --- the layer --------------------------------------------------------------------------------------------


def test_forward_and_gradients_are_the_formulas() -> None:
    layer = CoLALinear(7, 9, 3, dtype=torch.float64)
    x = torch.randn(11, 7, dtype=torch.float64, requires_grad=True)
    gy = torch.randn(11, 9, dtype=torch.float64)
    y = layer(x)
    y.backward(gy)
    with torch.no_grad():
        z = x @ layer.B
        s = torch.sigmoid(z)
        gz = (gy @ layer.A) * s * (1 + z * (1 - s))
        expected = {"y": z * s @ layer.A.T, "A": gy.T @ (z * s), "B": x.T @ gz, "x": gz @ layer.B.T}
    # float64 rounding of sums of 11 products
    for got, name in ((y, "y"), (layer.A.grad, "A"), (layer.B.grad, "B"), (x.grad, "x")):
        torch.testing.assert_close(got, expected[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(9, 7, 7), (7, 9, 3)])
def test_without_activation_it_is_the_low_rank_map(shape: tuple[int, int, int]) -> None:
    m, n, r = shape
    layer = CoLALinear(n, m, r, True, activation="none", dtype=torch.float64)
    x = torch.randn(5, n, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.A @ layer.B.T, layer.bias), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer.dense(), layer.A @ layer.B.T)
    if r == min(m, n):  # full rank covers any dense map
        W = torch.randn(m, n, dtype=torch.float64)
        full = CoLALinear.from_dense(W, r, activation="none")
        torch.testing.assert_close(full.dense(), W, rtol=0, atol=1e-10)


def test_it_has_no_dense_form_and_is_not_linear() -> None:
    layer = CoLALinear(6, 8, 3)
    with pytest.raises(UsageError, match=r"CoLA layer \(8 x 6, rank 3\) has no dense form.*not a linear map"):
        layer.dense()
    x = torch.randn(4, 6)
    assert not torch.allclose(layer(-x), -layer(x))
    assert torch.equal(layer(torch.zeros(2, 6)), torch.zeros(2, 8))  # silu(0) = 0: no offset appears
    with pytest.raises(UsageError, match=r"Unknown activation 'relu'.*silu or none"):
        CoLALinear(6, 8, 3, activation="relu")  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "m", "r"), [(512, 1376, 256), (768, 768, 256)])
def test_fresh_factors_have_the_authors_std(n: int, m: int, r: int) -> None:
    """r^(-1/4) (n + m)^(-1/4) for both; of the product (n + m)^(-1/2), Xavier's over sqrt(2)."""
    layer = CoLALinear(n, m, r, True)
    std = r**-0.25 * (n + m) ** -0.25
    # 131,072 entries and more: the std of an estimated std is 0.2%; the bar of the dossier is 3%
    assert float(layer.A.detach().std()) == pytest.approx(std, rel=0.01)
    assert float(layer.B.detach().std()) == pytest.approx(std, rel=0.01)
    assert float((layer.A @ layer.B.T).detach().std()) == pytest.approx((n + m) ** -0.5, rel=0.02)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_the_model_leaves_the_layers_init_alone() -> None:
    """The model's N(0, 0.02) is for dense maps and embeddings only."""
    model = build_model(LlamaConfig.preset("mini", vocab_size=50), layer="cola", rank=128)
    q = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(q, CoLALinear)
    # 32,768 entries: 0.4% a sigma
    assert float(q.A.detach().std()) == pytest.approx((128 * 512) ** -0.25, rel=0.02)


def test_from_dense_is_right_to_first_order() -> None:
    W = torch.randn(9, 7, dtype=torch.float64)
    layer = CoLALinear.from_dense(W, 7)
    tangent = torch.autograd.functional.jacobian(layer, torch.zeros(7, dtype=torch.float64))
    torch.testing.assert_close(tangent, W, rtol=0, atol=1e-10)  # Gram matrices square the condition number
    x = 1e-4 * torch.randn(7, dtype=torch.float64)
    # silu(z) = z/2 + z^2/4 + ...: the error is of second order
    assert float((layer(x) - W @ x).detach().abs().max()) < 1e-2 * float((W @ x).abs().max())


# --- the model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("only_lr_act", [False, True])
def test_the_mlps_own_activation(only_lr_act: bool) -> None:
    model = build_model(small(mlp_activation="none" if only_lr_act else "silu"), layer="cola", rank=4)
    mlp = model.model.layers[0].mlp
    x = torch.randn(3, 48)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    assert torch.equal(mlp(x), mlp.down_proj((gate if only_lr_act else F.silu(gate)) * up))


def test_only_lr_act_switches_with_size() -> None:
    """Released configurations: off at 60M and 130M; from 350M on left out, and the default is on."""
    for method in ("cola", "cola-m"):
        for size in ("60m", "130m", "350m", "1b", "3b", "7b"):
            model = load(RECIPES / f"{method}-{size}.toml").model
            expected = "silu" if size in ("60m", "130m") else "none"
            assert llama_config(model, 32_000, 256).mlp_activation == expected
    assert LlamaConfig.preset("350m").mlp_activation == "silu", "no other method changes"


@pytest.mark.parametrize("method", ["cola", "cola-m"])
def test_defaults_are_the_released_scripts(method: str) -> None:
    config = from_dict({"method": method})
    assert config.optimizer.betas == config.other.betas == (0.9, 0.999)  # type: ignore[attr-defined]
    assert config.optimizer.weight_decay == config.other.weight_decay == 0.01  # type: ignore[attr-defined]
    assert (config.optimizer.lr, config.other.lr, config.train.grad_clip) == (1e-3, 6e-3, 0.5)
    assert METHODS[method].layer == "cola"
    assert (
        plan_run(config, 4096).params_total == plan_run(from_dict({"method": "lowrank"}), 4096).params_total
    )


# --- CoLA-M -----------------------------------------------------------------------------------------------


def loss_and_gradients(model: Llama, tokens: Tensor) -> list[Tensor]:
    loss = model(tokens, tokens)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("layer", ["cola", "lowrank"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overrides", [{}, {"num_kv_heads": 2, "mlp_activation": "none"}])
def test_same_bits_as_without_recomputation(layer: str, dtype: torch.dtype, overrides: dict) -> None:
    tokens = torch.randint(61, (B, L))
    runs = [
        loss_and_gradients(
            build_model(small(num_layers=3, recompute=mode, **overrides), layer=layer, rank=5, dtype=dtype),
            tokens,
        )
        for mode in ("none", "latents", "block")
    ]
    for plain, latents, block in zip(*runs, strict=True):
        assert torch.equal(plain, latents)
        assert torch.equal(plain, block)


def test_same_bits_under_autocast() -> None:
    tokens = torch.randint(61, (B, L))
    runs = []
    for mode in ("none", "latents"):
        model = build_model(small(recompute=mode), layer="cola", rank=5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(tokens, tokens)
        runs.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def saved_elements(config: LlamaConfig, layer: str, rank: int, tokens: Tensor) -> int:
    """Elements of the storages that autograd keeps from the forward pass, weights left out."""
    model = build_model(config, layer=layer, rank=rank)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = model.hidden(tokens)  # alive until counted, so that no address is used twice
    assert hidden.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("layer", ["cola", "lowrank"])
@pytest.mark.parametrize(("kv_heads", "activation"), [(4, "silu"), (2, "none")])
def test_a_block_keeps_2d_plus_7r(layer: str, kv_heads: int, activation: str) -> None:
    """Per token; the difference of two depths leaves out embedding, last norm and rotary angles."""
    tokens = torch.randint(61, (B, L))

    def per_block(mode: str) -> int:
        shallow, deep = (
            saved_elements(
                small(num_layers=n, recompute=mode, num_kv_heads=kv_heads, mlp_activation=activation),
                layer,
                5,
                tokens,
            )
            for n in (2, 3)
        )
        assert (deep - shallow) % (B * L) == 0
        return (deep - shallow) // (B * L)

    d, r = 48, 5
    assert per_block("latents") == 2 * d + 7 * r
    assert per_block("block") == d
    assert per_block("none") > 2 * (2 * d + 7 * r)


def test_no_tensor_of_another_width_is_kept() -> None:
    widths: set[int] = set()

    def pack(t: Tensor) -> Tensor:
        if t.ndim == 3 and len(t) == B:  # not weights, nor the table of rotations, which is of all blocks
            widths.add(t.shape[-1])
        return t

    model = build_model(small(recompute="latents"), layer="cola", rank=5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.hidden(torch.randint(61, (B, L)))
    # 1 is the norm's factor a token, of the last norm, which is not recomputed
    assert widths == {48, 5, 1}


def test_generation_and_evaluation_do_not_recompute() -> None:
    model = build_model(small(recompute="latents"), layer="cola", rank=5).double()
    tokens = torch.randint(61, (2, 9))
    cache = model.new_cache(9)
    parts = [model(piece, cache=cache) for piece in tokens.split([4, 5], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("arguments", [{}, {"layer": "selfguided", "rank": 4}])
def test_maps_without_latents_are_refused(arguments: dict) -> None:
    sentence = r"keeps the latents.*model.layers.0.self_attn.q_proj.*has none.*lowrank or cola"
    with pytest.raises(UsageError, match=sentence):
        build_model(small(recompute="latents"), **arguments)
    half = factorize(Llama(small(recompute="latents")), layer="cola", rank=4, targets="self_attn")
    with pytest.raises(UsageError, match=r"model.layers.0.mlp.gate_proj \(Linear\) has none"):
        half(torch.zeros(1, 3, dtype=torch.int64))


def test_blocks_compile_with_latents() -> None:
    tokens = torch.randint(61, (B, L))
    model = build_model(small(recompute="latents"), layer="cola", rank=5)
    expected = loss_and_gradients(model, tokens)
    for block in model.model.layers:
        block.compile(fullgraph=True, backend="aot_eager")
    for got, eager in zip(loss_and_gradients(model, tokens), expected, strict=True):
        torch.testing.assert_close(got, eager, rtol=1e-5, atol=1e-6)  # float32, other sums


# --- with Spectron ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["published", "certified"])
def test_spectron_trains_cola(variant: str) -> None:
    model = build_model(small(), layer="cola", rank=8, seed=1)
    optimizer = Spectron(param_groups(model, lr=0.05, other_lr=3e-3), lr=0.05, variant=variant)
    tokens = torch.randint(61, (4, L), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(40):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    # 44 tokens by heart: from log 61 = 4.1 to less than half in 40 updates
    assert losses[0] == pytest.approx(math.log(61), abs=0.5)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_certified_step_moves_the_output_by_at_most_its_bound(scale: float) -> None:
    """|f'(x) - f(x)| <= 1.0999 lr |x|: |silu(z)| <= |z|, and 1.0999 is the largest slope of silu."""
    lr = 0.1
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    slope = torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))
    assert 1.0998 < float(slope.abs().max()) < 1.0999
    layer = CoLALinear(24, 32, 8, dtype=torch.float64)
    optimizer = Spectron(
        [{"params": [layer.A, layer.B], "role": "factors"}], lr=lr, variant="certified", step_size="tight"
    )
    x = scale * torch.randn(500, 24, dtype=torch.float64)
    largest = 0.0
    for _ in range(20):
        before = layer(x).detach()
        # The worst direction one can ask for: away from where the output is.
        layer(x).square().sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
        change = torch.linalg.vector_norm(layer(x).detach() - before, dim=1)
        largest = max(largest, float((change / torch.linalg.vector_norm(x, dim=1)).max()) / lr)
    assert largest <= 1.0999
    assert largest > 0.1  # the bound is met by something
