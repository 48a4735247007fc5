"""factorize and param_groups: which weights are replaced, which group each parameter falls in, and what is
refused.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.layers import LowRankLinear, factorize, param_groups, parameter_roles
from lowrise.layers.patterns import matches
from lowrise.model import Llama, LlamaConfig

MAPS = [*(f"self_attn.{p}_proj" for p in "qkvo"), *(f"mlp.{p}_proj" for p in ("gate", "up", "down"))]


def llama(**overrides: object) -> Llama:
    return Llama(LlamaConfig.preset("nano", vocab_size=50, **overrides))


def low_rank(model: nn.Module) -> dict[str, LowRankLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear)}


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("self_attn", "model.layers.0.self_attn.q_proj", True),
        ("layers.1", "model.layers.10.mlp.up_proj", False),
        ("layers.1", "model.layers.1.mlp.up_proj", True),
        ("proj", "model.layers.0.self_attn.q_proj", False),
        ("*proj", "model.layers.0.self_attn.q_proj", True),
        ("*.[qk]_proj", "model.layers.0.self_attn.v_proj", False),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_default_targets_are_all_block_matrices_and_not_the_head() -> None:
    model = factorize(llama(), rank=0.25)
    assert len(low_rank(model)) == 2 * 7
    assert type(model.lm_head) is nn.Linear
    assert {layer.rank for layer in low_rank(model).values()} == {16}
    model(torch.arange(8)[None]).sum().backward()


@pytest.mark.parametrize(("rank", "expected"), [(1e-6, 1), (0.26, 16), (1.0, 64), (3, 3), (64, 64)])
def test_rank_as_ratio_or_number(rank: float, expected: int) -> None:
    layers = low_rank(factorize(llama(), rank=rank))
    assert {layer.rank for layer in layers.values()} == {expected}


def test_first_matching_pattern_of_a_rank_dict_decides_and_the_rest_stays_dense() -> None:
    model = factorize(llama(), rank={"layers.0.mlp": 3, "mlp": 0.5, "q_proj": 7})
    ranks = {name: layer.rank for name, layer in low_rank(model).items()}
    assert ranks["model.layers.0.mlp.up_proj"] == 3
    assert ranks["model.layers.1.mlp.up_proj"] == 32
    assert ranks["model.layers.1.self_attn.q_proj"] == 7
    assert type(model.get_submodule("model.layers.1.self_attn.k_proj")) is nn.Linear


def test_targets_and_skip() -> None:
    model = factorize(llama(), rank=4, targets=["self_attn", "*up_proj"], skip="layers.0")
    assert sorted(low_rank(model)) == sorted(
        [f"model.layers.1.self_attn.{p}_proj" for p in "qkvo"] + ["model.layers.1.mlp.up_proj"]
    )
    assert "lm_head" in low_rank(factorize(llama(), rank=4, targets="lm_head"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, r"model.layers.0.self_attn.q_proj: rank 0 is impossible for a 64 x 64"),
        ({"rank": 65}, r"rank 65 is impossible"),
        ({"rank": 1.5}, r"rank = 1.5 is a float.*the ratio must be above 0 and at most 1.0"),
        ({"rank": True}, r"rank = True; the rank must be an integer"),
        ({"rank": 4, "targets": "q_porj"}, r"targets: the pattern 'q_porj' matches no.*'q_proj'"),
        ({"rank": 4, "skip": "attention"}, r"skip: the pattern 'attention'"),
        ({"rank": {"mlp": 4, "embed": 4}}, r"rank: the pattern 'embed'"),
        ({"rank": 4, "layer": "low_rank"}, r"no low-rank layer 'low_rank'; did you mean 'lowrank'"),
        ({"rank": 4, "initt": "xavier"}, r"no option 'initt'; did you mean 'init'"),
        ({"rank": 4, "skip": "*"}, r"Nothing is left"),
    ],
)
def test_what_cannot_be_right_is_a_sentence_and_leaves_the_model_alone(
    arguments: dict[str, object], message: str
) -> None:
    model = llama()
    with pytest.raises(UsageError, match=message):
        factorize(model, **arguments)  # type: ignore[arg-type]
    assert not low_rank(model)


def test_factorizing_twice_is_refused() -> None:
    model = factorize(nn.Sequential(nn.Linear(4, 4)), rank=2)
    with pytest.raises(UsageError, match="factorized already"):
        factorize(model, rank=2)


def test_from_weights_keeps_the_function_at_full_rank() -> None:
    model = llama()
    tokens = torch.randint(50, (2, 12))
    before = model(tokens)
    factorize(model, rank=1.0, from_weights=True)
    # float32 rounding through two blocks; logits are of order 0.2
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=1e-5)


def test_options_device_dtype_mode_and_frozen_weights_carry_over() -> None:
    model = nn.Sequential(nn.Linear(6, 6, dtype=torch.float64), nn.Linear(6, 6)).eval()
    model[1].weight.requires_grad_(False)
    factorize(model, rank=2, init="orthogonal")
    assert model[0].init == "orthogonal"
    assert model[0].A.dtype == torch.float64
    assert not model[0].training
    assert not any(p.requires_grad for p in model[1].parameters())
    assert factorize(llama().to("meta"), rank=2).model.layers[0].mlp.up_proj.A.is_meta


def test_a_module_used_twice_stays_one_module() -> None:
    shared = nn.Linear(6, 6)
    model = factorize(nn.ModuleDict({"first": shared, "second": shared}), rank=2)
    assert model["first"] is model["second"]
    assert isinstance(model["first"], LowRankLinear)


def test_tied_weights_are_left_and_refused_when_named() -> None:
    model = factorize(llama(tie_embeddings=True), rank=4)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(UsageError, match="lm_head is shared"):
        factorize(llama(tie_embeddings=True), rank=4, targets="lm_head")


def ids(group: dict) -> list[int]:
    return [id(p) for _, p in group["params"]]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("factorized", [False, True])
@pytest.mark.parametrize("roles", [None, {"matrix"}, {"factors", "matrix"}, {"other"}, set()])
def test_every_trainable_parameter_is_in_exactly_one_group(
    tied: bool, factorized: bool, roles: set[str] | None
) -> None:
    model = llama(tie_embeddings=tied)
    if factorized:
        factorize(model, rank=4, targets="mlp")
    model.model.norm.weight.requires_grad_(False)
    groups = param_groups(model, lr=0.1, roles=roles)
    claimed = [i for group in groups for i in ids(group)]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(group["params"] for group in groups)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(name == names[id(p)] for group in groups for name, p in group["params"])


def test_default_roles_and_settings() -> None:
    dense = param_groups(llama(), lr=0.1, weight_decay=0.2)
    assert [group["role"] for group in dense] == ["matrix", "other"]
    assert len(dense[0]["params"]) == 14
    assert (dense[0]["lr"], dense[0]["weight_decay"]) == (0.1, 0.2)
    assert {n for n, _ in dense[1]["params"]} >= {"lm_head.weight", "model.embed_tokens.weight"}
    assert dense[1]["lr"] == 0.1
    assert not {"weight_decay", "betas", "eps"} & dense[1].keys()  # the constructor's arrive

    model = factorize(llama(), rank=4, targets="mlp")
    groups = param_groups(model, lr=0.1, other_lr=0.3)
    assert [group["role"] for group in groups] == ["factors", "other"]
    assert groups[1]["lr"] == 0.3
    names = [name for name, _ in groups[0]["params"]]
    assert names[:4] == [f"model.layers.0.mlp.{p}_proj.{f}" for p in ("gate", "up") for f in "AB"]
    assert "model.layers.0.self_attn.q_proj.weight" in {n for n, _ in groups[1]["params"]}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {f"{i}.{name}" for i in (0, 1) for name in MAPS}),
        (["self_attn.q_proj", "v_proj"], {f"{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"}),
        (["model.layers.1.mlp.up_proj"], {"1.mlp.up_proj"}),
        ("layers.1", {f"1.{name}" for name in MAPS}),
        ([r"model\.layers\.0\..*\.(q|k)_proj"], {"0.self_attn.q_proj", "0.self_attn.k_proj"}),
        (r".*\.mlp\.(gate|up)_proj", {f"{i}.mlp.{p}_proj" for i in (0, 1) for p in ("gate", "up")}),
        (["attn"], {f"{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qkvo"}),
        ("*.down_proj", {"0.mlp.down_proj", "1.mlp.down_proj"}),
    ],
)
def test_targets_of_groups_in_the_forms_of_the_trainer(targets: str | list[str], expected: set[str]) -> None:
    """The rest of the weights is moved by the built-in AdamW, and nothing is lost."""
    model = llama()
    groups = param_groups(model, lr=0.1, other_lr=0.2, targets=targets)
    assert {n for n, _ in groups[0]["params"]} == {f"model.layers.{name}.weight" for name in expected}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    without = param_groups(model, lr=0.1, skip=targets, roles={"matrix"})
    assert not {n for n, _ in groups[0]["params"]} & {
        n for group in without if group["role"] == "matrix" for n, _ in group["params"]
    }
    layers = param_groups(factorize(model, rank=4), lr=0.1, targets=targets)
    assert len(layers[0]["params"]) == 2 * len(expected)


@pytest.mark.parametrize("targets", ["q_porj", ["q_proj", "nothing"], r".*\.(q_proj", "lm_head", "query"])
def test_targets_that_name_nothing_are_refused(targets: str | list[str]) -> None:
    with pytest.raises(UsageError, match=r"targets: the pattern .* matches no linear layer"):
        param_groups(llama(), lr=0.1, targets=targets)


def test_roles_of_a_tied_model_and_of_odd_parameters() -> None:
    roles = parameter_roles(llama(tie_embeddings=True))
    assert roles["model.embed_tokens.weight"] == "embedding"
    assert "lm_head.weight" not in roles
    assert parameter_roles(llama())["lm_head.weight"] == "head"
    odd = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 1), nn.LayerNorm(3), nn.MultiheadAttention(4, 2))
    kinds = parameter_roles(odd)
    assert [name for name, role in kinds.items() if role == "matrix"] == ["0.weight"]


def test_groups_print_as_a_table_before_and_after_an_optimizer_took_them() -> None:
    groups = param_groups(
        factorize(llama(), rank=4), lr=0.01, other_lr=0.001, weight_decay=0.0, other_weight_decay=0.0
    )
    table = str(groups)
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["role", "tensors", "elements", "lr"]
    assert lines[1].split()[:4] == ["factors", "28", f"{2 * 4 * (4 * 128 + 3 * 240):,}", "0.01"]
    assert "model.layers.0.self_attn.q_proj.A, ..., " in lines[1]
    torch.optim.AdamW(groups)
    assert str(groups) == table


def test_half_frozen_shared_and_unknown_are_sentences() -> None:
    model = factorize(llama(), rank=4)
    layer = model.model.layers[1].mlp.up_proj
    layer.A.requires_grad_(False)
    with pytest.raises(UsageError, match=r"model.layers.1.mlp.up_proj is half frozen"):
        param_groups(model, lr=1)
    layer.A.requires_grad_(True)
    model.model.layers[1].mlp.gate_proj.A = layer.A
    with pytest.raises(UsageError, match="shares a factor with"):
        param_groups(model, lr=1)
    with pytest.raises(UsageError, match="Unknown parameter role 'factor'"):
        param_groups(llama(), lr=1, roles={"factor"})
    with pytest.raises(UsageError, match="no trainable parameter"):
        param_groups(llama().requires_grad_(False), lr=1)
