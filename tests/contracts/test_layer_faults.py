"""What users hand to `factorize` and to our Llama that is sound and unusual, or unsound, over every layer."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lowrise
from lowrise.errors import UsageError
from lowrise.layers import LowRankLayer
from lowrise.layers.registry import LAYERS, layer_class
from lowrise.model import Llama, LlamaConfig, build_model

WEIGHTS = {
    "transposed": lambda: torch.randn(12, 8, generator=seeded()).t(),
    "strided": lambda: torch.randn(16, 24, generator=seeded())[::2, ::2],
    "expanded": lambda: torch.randn(8, 1, generator=seeded()).expand(8, 12),
    "bfloat16": lambda: torch.randn(8, 12, generator=seeded()).bfloat16(),
    "float16": lambda: torch.randn(8, 12, generator=seeded()).half(),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_any_dense_weight_is_taken_over(layer: str, kind: str) -> None:
    weight = WEIGHTS[kind]()
    made, plain = (
        layer_class(layer).from_dense(weight, 4),
        layer_class(layer).from_dense(weight.clone(memory_format=torch.contiguous_format), 4),
    )
    assert made(torch.ones(2, 12, dtype=weight.dtype)).isfinite().all()
    for (name, p), q in zip(made.named_parameters(), plain.parameters(), strict=True):
        assert p.dtype == weight.dtype
        assert p.is_contiguous(), name
        if layer not in ("sltrain", "lora"):  # whose support or factors are drawn
            torch.testing.assert_close(p, q)


class Net(nn.Module):
    """A model whose head has a name of its own."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.tok = nn.Embedding(90, 8)
        self.layer = nn.Linear(8, 8)
        setattr(self, head, nn.Linear(8, 90, bias=False))


@pytest.mark.parametrize("head", ["output", "unembed", "lm_head", "to_logits"])
def test_a_map_with_a_row_for_each_token_is_a_head(head: str) -> None:
    model = lowrise.factorize(Net(head), rank=0.5)
    assert isinstance(model.layer, LowRankLayer)
    assert type(getattr(model, head)) is nn.Linear
    roles = lowrise.layers.roles.parameter_roles(Net(head))
    assert roles[f"{head}.weight"] == "head"


def test_the_last_map_of_a_padded_vocabulary_is_a_head() -> None:
    model = Net("to_logits")  # 90 tokens
    model.to_logits = nn.Linear(8, 96, bias=False)  # type: ignore[assignment]
    assert type(lowrise.factorize(model, rank=0.5).to_logits) is nn.Linear
    # Not where another map is as large, and not in the middle.
    model = nn.Sequential(nn.Embedding(90, 8), nn.Linear(8, 96), nn.Linear(96, 8), nn.Linear(8, 8))
    assert isinstance(lowrise.factorize(model, rank=0.5)[1], LowRankLayer)


@pytest.mark.parametrize("head", ["score", "classifier", "qa_outputs"])
def test_a_classification_head_is_a_head(head: str) -> None:
    model = Net("output")
    setattr(model, head, nn.Linear(8, 3))
    assert type(getattr(lowrise.factorize(model, rank=0.5), head)) is nn.Linear


def test_a_width_that_is_the_size_of_the_vocabulary_makes_no_heads() -> None:
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert isinstance(lowrise.factorize(model, rank=4)[1], LowRankLayer)


def test_weights_that_are_not_there_are_refused_by_name() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(UsageError, match="0: from_weights=True needs the weights"):
        lowrise.factorize(model, rank=1.0, from_weights=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data[0, 0] = value
    with pytest.raises(UsageError, match="1: the weight has entries that are not finite"):
        lowrise.factorize(model, rank=0.5, from_weights=True)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_a_bias_that_is_not_finite_is_refused_by_name(layer: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].bias.data[3] = float("nan")
    with pytest.raises(UsageError, match="1: the bias has entries that are not finite"):
        lowrise.factorize(model, layer=layer, rank=2, from_weights=True)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("layer", sorted(set(LAYERS) - {"cola", "dlr"}))
def test_an_owner_may_read_the_weight(layer: str) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 2)
    lowrise.factorize(encoder, layer=layer, rank=4)
    x = torch.randn(2, 5, 16, generator=seeded())
    slow = encoder.train()(x)
    with torch.no_grad():
        fast = encoder.eval()(x)  # torch's fused path reads .weight
    torch.testing.assert_close(slow, fast, rtol=1e-4, atol=1e-5)


def test_a_layer_without_a_dense_form_has_no_weight() -> None:
    for name in ("cola", "dlr"):
        assert not hasattr(layer_class(name)(8, 8, 4), "weight")


def test_adapters_train_over_a_frozen_base() -> None:
    model = nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)
    lowrise.factorize(model, rank=4, layer="lora")
    assert {n for n, p in model.named_parameters() if p.requires_grad} >= {"0.A", "0.B"}
    assert len(lowrise.param_groups(model, lr=1.0)) >= 1
    frozen = lowrise.factorize(nn.Sequential(nn.Linear(8, 8)).requires_grad_(False), rank=4)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_frozen_bias_stays_frozen(layer: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].bias.requires_grad_(False)
    lowrise.factorize(model, rank=4, layer=layer)
    assert not model[0].bias.requires_grad
    assert model[1].bias.requires_grad


def test_experts_that_stay_dense_are_told() -> None:
    model = nn.Module()
    model.experts = nn.Parameter(torch.zeros(4, 8, 8))
    model.gate = nn.Linear(8, 8)
    with pytest.warns(UserWarning, match=r"left 256 parameters dense.*experts \(4, 8, 8\)"):
        lowrise.factorize(model, rank=4)


def config(**more: object) -> LlamaConfig:
    return LlamaConfig.preset("nano", vocab_size=300, **more)  # type: ignore[arg-type]


def test_files_of_tied_models_hold_one_of_the_two_names(tmp_path: Path) -> None:
    tied = build_model(config(tie_embeddings=True), seed=3)
    for left_out in ("lm_head.weight", "model.embed_tokens.weight"):
        state = {k: v for k, v in tied.state_dict().items() if k != left_out}
        save_file(state, tmp_path / "model.safetensors")
        other = Llama(config(tie_embeddings=True))
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert other.lm_head.weight is other.model.embed_tokens.weight
        assert torch.equal(other.lm_head.weight, tied.lm_head.weight)
    untied = Llama(config(tie_embeddings=False))
    with pytest.raises(RuntimeError, match="Missing key"):
        untied.load_state_dict(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layer", [*sorted(LAYERS), "dense"])
def test_the_default_dtype_changes_no_weight(layer: str, default: torch.dtype) -> None:
    def drawn() -> dict[str, Tensor]:
        rank = None if layer == "dense" else 8
        return build_model(config(), layer=layer, rank=rank, seed=5).state_dict()

    expected = drawn()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        got = drawn()
    finally:
        torch.set_default_dtype(before)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == got[name].dtype, name
        assert torch.equal(tensor, got[name]), name


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_an_empty_batch_gives_empty_logits(shape: tuple[int, int]) -> None:
    assert build_model(config())(torch.zeros(shape, dtype=torch.long)).shape == (*shape, 300)


@pytest.mark.parametrize("from_weights", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_hooks_of_a_map_stay_with_the_layer_in_its_place(layer, from_weights):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
    seen: list[str] = []
    handles = [
        model[0].register_forward_hook(lambda *_: seen.append("forward")),
        model[0].register_forward_pre_hook(lambda *_: seen.append("before")),
        model[0].register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    lowrise.factorize(model, layer=layer, rank=2, from_weights=from_weights)
    model(torch.ones(3, 8, requires_grad=True)).sum().backward()
    assert seen == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    model(torch.ones(3, 8))
    assert len(seen) == 3


def test_adapters_of_peft_are_left_as_they_are():
    peft = pytest.importorskip("peft")
    model = nn.Sequential()
    model.add_module("proj", nn.Linear(16, 16))
    model.add_module("other", nn.Linear(16, 16))
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["proj"]))
    lowrise.factorize(model, rank=2, skip="*proj*")
    kinds = {name: type(m).__name__ for name, m in model.named_modules() if not list(m.children())}
    assert {kind for name, kind in kinds.items() if "lora_A" in name or "lora_B" in name} == {"Linear"}
    assert [name for name, kind in kinds.items() if kind == "LowRankLinear"] == ["base_model.model.other"]


@pytest.mark.parametrize(
    ("hang", "what"),
    [
        (lambda m: m.weight.register_hook(lambda grad: None), "hooks of the gradient of its weight"),
        (
            lambda m: m.weight.register_post_accumulate_grad_hook(lambda p: None),
            "hooks after the gradient of its weight",
        ),
        (lambda m: m.register_state_dict_pre_hook(lambda *_: None), "hooks of its state_dict"),
        (lambda m: m.register_load_state_dict_pre_hook(lambda *_: None), "hooks of its state_dict"),
        (lambda m: setattr(m, "forward", m.forward), "a forward of its own"),
    ],
    ids=["gradient", "after gradient", "state", "loading", "forward"],
)
def test_what_cannot_stay_with_the_layer_is_told(hang, what):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))
    hang(model[0])
    with pytest.warns(UserWarning, match=rf"^0 had {what}.*Factorize first"):
        lowrise.factorize(model, rank=2)


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_weight_that_is_computed_stays(wrap):
    """Its parameters have other names, and the hook or parametrization writes `weight` at each pass."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8))
    wrap(model[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lowrise.factorize(model, rank=2)
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[1], LowRankLayer)
    with pytest.raises(UsageError, match=r"weight of 0 is computed|'0' matches no"):
        lowrise.factorize(nn.Sequential(wrap(nn.Linear(8, 6)), nn.Linear(6, 8)), rank=2, targets="0")


def test_peft_adapts_the_maps_that_stay_dense():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("proj", nn.Linear(16, 16))
    model.add_module("head", nn.Linear(16, 16))
    lowrise.factorize(model, rank=2, skip="head")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["head"]))
    adapted(torch.ones(3, 16)).sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    assert not any("proj" in name for name in trained), "the factors are frozen like any base weight"
