"""What every layer of LAYERS promises, whatever it is inside. A new layer needs no line here."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowrise.errors import UsageError
from lowrise.layers import LAYERS, LowRankLayer, factorize, param_groups
from lowrise.layers.registry import layer_class

IN, OUT, RANK = 12, 20, 5
pytestmark = pytest.mark.parametrize("name", list(LAYERS))


def make(name: str, **options: object) -> LowRankLayer:
    return layer_class(name)(IN, OUT, RANK, **options)  # type: ignore[call-arg]


def has_dense_form(layer: LowRankLayer) -> bool:
    try:
        layer.dense()
    except UsageError:
        return False
    return True


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 7, IN)


def test_attributes_and_repr(name: str) -> None:
    layer = make(name, bias=True)
    assert (layer.in_features, layer.out_features, layer.rank) == (IN, OUT, RANK)
    assert layer.bias is not None
    assert layer.bias.shape == (OUT,)
    assert f"in_features={IN}, out_features={OUT}, rank={RANK}, bias=True" in repr(layer)
    assert make(name).bias is None


def test_role_parameters_are_the_layers_own(name: str) -> None:
    layer = make(name)
    own = {id(p) for p in layer.parameters()}
    assert layer.role in ("factors", "svd")
    assert layer.role_parameters()
    assert all(id(p) in own for p in layer.role_parameters())
    if layer.role == "factors":
        A, B = layer.role_parameters()
        assert A.shape == (OUT, RANK)
        assert B.shape == (IN, RANK)


@pytest.mark.parametrize("rank", [0, -1, 13, 2.5, True])
def test_impossible_ranks_are_refused(name: str, rank: object) -> None:
    if rank == 13 and layer_class(name).rank_above == "keep":
        pytest.skip("an activation between the factors makes sense of any rank")
    with pytest.raises(UsageError, match="rank"):
        layer_class(name)(IN, OUT, rank)  # type: ignore[arg-type]


def test_forward_is_the_dense_map(name: str, x: Tensor) -> None:
    layer = make(name, bias=True).double()
    if not has_dense_form(layer):
        pytest.skip("the layer is not a linear map")
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.normal_()
    expected = nn.functional.linear(x.double(), layer.dense(), layer.bias)
    # float64: two ways to add up 12 products of order one
    torch.testing.assert_close(layer(x.double()), expected, rtol=1e-12, atol=1e-13)


def test_spectral_factors_multiply_to_the_weight(name: str) -> None:
    layer = make(name).double()
    factors = layer.spectral_factors()
    if factors is None or not has_dense_form(layer):
        pytest.skip("the layer's weight is no plain product, or there is none")
    L, R = factors
    torch.testing.assert_close(L @ R.T, layer.dense(), rtol=1e-12, atol=1e-14)  # float64 rounding


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (9, 9)])
def test_full_rank_round_trip(name: str, shape: tuple[int, int], x: Tensor) -> None:
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    layer = layer_class(name).from_dense(weight, min(shape), bias=bias)
    if not has_dense_form(layer):
        pytest.skip("the layer is not a linear map")
    # float32 rounding of entries of order one, through factors of order sqrt(7)
    torch.testing.assert_close(layer.dense(), weight, rtol=0, atol=5e-6)
    torch.testing.assert_close(layer.bias, nn.Parameter(bias))


def test_a_dense_weight_can_be_taken_over_in_place(name: str) -> None:
    layer = layer_class(name)(IN, OUT, IN, bias=True)  # type: ignore[call-arg]
    if not has_dense_form(layer):
        pytest.skip("the layer is not a linear map")
    held = {key: id(p) for key, p in layer.named_parameters()}
    weight, bias = torch.randn(OUT, IN), torch.randn(OUT)
    layer.load_dense_(weight, bias)
    # float32 rounding, as in the round trip above
    torch.testing.assert_close(layer.dense(), weight, rtol=0, atol=5e-6)
    torch.testing.assert_close(layer.bias, nn.Parameter(bias))
    assert {key: id(p) for key, p in layer.named_parameters()} == held, "an optimizer still holds them"


def test_every_trainable_parameter_gets_a_gradient_and_float64_is_exact(name: str) -> None:
    layer = make(name, bias=True).double()
    y = torch.randn(4, IN, dtype=torch.float64, requires_grad=True)
    trainable = [p for p in layer.parameters() if p.requires_grad]

    def apply(value: Tensor, *_: Tensor) -> Tensor:
        return layer(value)

    assert torch.autograd.gradcheck(apply, (y, *trainable))
    assert all(p.grad is None for p in trainable)


def test_autocast_computes_in_bfloat16(name: str, x: Tensor) -> None:
    layer = make(name)
    with torch.no_grad():
        exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.role_parameters())
    # three roundings to 8 bits (2^-9 each) of a sum of 12; relative to the largest entry
    assert float((y.detach().float() - exact).abs().max() / exact.abs().max()) < 0.02


def test_bfloat16_weights(name: str, x: Tensor) -> None:
    assert make(name, dtype=torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_meta_device_then_reset_equals_a_fresh_layer(name: str) -> None:
    layer = make(name, bias=True, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    layer.reset_parameters(torch.Generator().manual_seed(7))
    fresh = make(name, bias=True)
    fresh.reset_parameters(torch.Generator().manual_seed(7))
    for a, b in zip(layer.state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_reset_follows_torch_seed(name: str) -> None:
    torch.manual_seed(11)
    first = make(name)
    torch.manual_seed(11)
    second = make(name)
    third = make(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_deepcopy_and_state_dict(name: str, x: Tensor) -> None:
    layer = make(name, bias=True)
    twin = copy.deepcopy(layer)
    other = make(name, bias=True)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(other(x), layer(x))
    with torch.no_grad():
        twin.role_parameters()[0].add_(1)
    assert not torch.equal(twin(x), layer(x))


def test_checkpointing_changes_nothing(name: str, x: Tensor) -> None:
    layer = make(name)

    def gradients(recompute: bool) -> list[Tensor]:
        y = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return list(torch.autograd.grad(y.square().sum(), layer.role_parameters()))

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_compile(name: str, x: Tensor) -> None:
    layer = make(name)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-6)  # float32, another order of sums


def test_ledger_counts_parameters_and_saved_activations(name: str, x: Tensor) -> None:
    layer = make(name, bias=True)
    entry = layer.ledger()
    assert entry.parameters == sum(p.numel() for p in layer.parameters())
    # A buffer of the layer (a support) is kept anyway, like a parameter; it is no activation.
    own = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *layer.buffers()]}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own | {x.untyped_storage().data_ptr()}:
            saved[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    assert sum(saved.values()) == entry.saved_elements * x[..., 0].numel()
    assert y.shape == (3, 7, OUT)
    assert make(name, bias=True, device="meta").ledger() == entry


def test_ledger_flops_are_what_torch_counts(name: str, x: Tensor) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = make(name)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    entry = layer.ledger()
    assert counter.get_total_flops() == entry.forward_flops * x[..., 0].numel() + entry.pass_flops


def hugging_face_models() -> Iterator[nn.Module]:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    yield transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **sizes
        )
    )
    yield transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **sizes))


def test_hugging_face_models_in_place(name: str) -> None:
    for model in hugging_face_models():
        head = model.get_output_embeddings()
        assert factorize(model, layer=name, rank=0.25) is model
        layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
        assert len(layers) == (14 if hasattr(model, "model") else 8)
        assert model.get_output_embeddings() is head
        groups = param_groups(model, lr=1e-2, other_lr=1e-3)
        assert [group["role"] for group in groups] == [layers[0].role, "other"]
        assert len(groups[0]["params"]) == sum(len(layer.role_parameters()) for layer in layers)
        tokens = torch.arange(10)[None]
        model(input_ids=tokens, labels=tokens).loss.backward()
        assert all(p.grad is not None for _, p in groups[0]["params"])
