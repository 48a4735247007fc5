"""The Python of every method's page runs, on a small model, and its optimizer's groups hold what it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lowrise
from lowrise import layers, optim
from lowrise.layers import LoRALinear, LowRankLayer
from lowrise.model import Llama, LlamaConfig, build_model

PAGES = [
    page
    for page in sorted((Path(__file__).parents[3] / "docs" / "methods").glob("*.md"))
    if "```python" in page.read_text(encoding="utf-8")
]


def fresh() -> Llama:
    return build_model(LlamaConfig.preset("nano", vocab_size=300))


def small(code: str) -> str:
    """The page's code with a model and ranks that a test has time for."""
    code = re.sub(r'preset\("\w+"', 'preset("nano", vocab_size=300', code)
    return re.sub(r"rank=\d{2,}", "rank=8", code)


def namespace() -> dict[str, Any]:
    model = fresh()
    names = {k: getattr(layers, k) for k in layers.__all__} | {k: getattr(optim, k) for k in optim.__all__}
    return names | {
        "lowrise": lowrise,
        "build_model": build_model,
        "LlamaConfig": LlamaConfig,
        "LoRALinear": LoRALinear,
        "model": model,
        "optimizer": optim.AdamW.from_model(model),
        "number": 1,
        "total": 2,
        "guided_layers": [],
    }


def stated(statement: ast.stmt) -> dict[str, Any] | None:
    """Keyword arguments of a `from_model` call."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_model":
            return {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
    return None


def check_groups(optimizer: torch.optim.Optimizer, said: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        for key, value in said.items():
            name = key.removeprefix("other_")
            of_the_rule_alone = key == "hyperball" or f"other_{key}" in said
            overridden = group["role"] == "other" and of_the_rule_alone
            if (key.startswith("other_") and group["role"] != "other") or overridden:
                continue
            assert group[name] == value, f"{group['role']}: {key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_of_a_method_page_runs(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = namespace()
    for statement in ast.parse(small("\n".join(blocks))).body:
        source = ast.unparse(statement)
        if "factorize(model" in source:
            names["model"] = fresh()
            for p in names["model"].parameters():
                p.grad = None
        if "(groups" in source and "groups" not in names:
            names["groups"] = lowrise.param_groups(names["model"])
        exec(compile(ast.Module([statement], []), page.name, "exec"), names)
        said = stated(statement)
        if said is not None:
            assert isinstance(statement, ast.Assign)
            check_groups(names[ast.unparse(statement.targets[0])], said)
    for p in names["model"].parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    names["optimizer"].step()


MODELS = {
    "dense": fresh,
    "factors": lambda: lowrise.factorize(fresh(), rank=8),
    "mixed": lambda: lowrise.factorize(fresh(), rank=8, targets="mlp"),
    "svd": lambda: lowrise.factorize(fresh(), rank=8, layer="svd"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_from_model_is_both_calls_in_one(name: str, kind: str) -> None:
    kind_of: Any = optim.OPTIMIZERS[name]
    torch.manual_seed(0)
    one = MODELS[kind]()
    two = MODELS[kind]()
    two.load_state_dict(one.state_dict())
    options = {"weight_decay": 0.1, "other_lr": 2e-3, "other_weight_decay": 0.0}
    a = kind_of.from_model(one, lr=1e-3, **options)
    groups = lowrise.param_groups(two, roles=kind_of.roles, other_lr=2e-3, other_weight_decay=0.0)
    b = kind_of(groups, lr=1e-3, weight_decay=0.1)
    check_groups(a, {"lr": 1e-3, **options})
    tokens = torch.arange(32).reshape(2, 16)
    for model, optimizer in ((one, a), (two, b)):
        for _ in range(2):
            model(tokens, tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_the_constructor_s_decay_arrives_in_every_group() -> None:
    groups = lowrise.param_groups(fresh(), lr=1e-3)
    optimizer = optim.AdamW(groups, lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-5)
    for group in optimizer.param_groups:
        assert (group["weight_decay"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-5)


def test_an_unknown_option_gets_the_nearest() -> None:
    with pytest.raises(lowrise.errors.UsageError, match="weight_decay"):
        optim.Muon.from_model(fresh(), lr=1e-3, weigth_decay=0.1)


@pytest.mark.parametrize("share", [0.29, torch.tensor(0.29).numpy()[()]])
def test_a_share_means_the_same_for_layers_and_optimizers(share: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(120, 100))
    layer = lowrise.factorize(torch.nn.Sequential(torch.nn.Linear(120, 100)), rank=share)[0]
    assert isinstance(layer, LowRankLayer)
    galore = optim.GaLore([model[0].weight], rank=share)
    assert layer.rank == 29
    assert 29 in galore.state[model[0].weight]["exp_avg"].shape
    for wrong in (128.0, True, 0, float("nan"), "4"):
        with pytest.raises(lowrise.errors.UsageError, match="rank"):
            optim.GaLore([model[0].weight], rank=wrong)
        with pytest.raises(lowrise.errors.UsageError, match="rank"):
            lowrise.factorize(torch.nn.Sequential(torch.nn.Linear(120, 100)), rank=wrong)


def test_apollo_s_rank_is_at_most_that_of_the_matrix() -> None:
    weight = torch.nn.Parameter(torch.randn(16, 64))
    assert optim.APOLLO([weight], rank=256).state_bytes() <= optim.AdamW([weight]).state_bytes() + 4
