"""Tensors that are not 2-D as matrices: convolutions flattened, experts one by one."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers import param_groups
from lowrise.optim import OPTIMIZERS, AdamW, Muon, Optimizer, Spectron, step_in_backward
from lowrise.optim.engine import state_formats as formats

MOVES_MATRICES = sorted(name for name, cls in OPTIMIZERS.items() if "matrix" in cls.roles)
CONV, EXPERTS = (8, 3, 2, 2), (4, 6, 5)
FORMATS = ["float32", "bfloat16", "8bit"]


@pytest.fixture(autouse=True)
def compress_small_moments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LEAST_ELEMENTS", 1)


def build(name: str, named: list[tuple[str, Tensor]], view: str | None, state_format: str) -> Optimizer:
    group = {"params": named, "role": "matrix", "view": view, "state_format": state_format}
    return OPTIMIZERS[name]([group], lr=0.05, weight_decay=0.1)


def run(optimizer: Optimizer, shape: tuple[int, ...], steps: range) -> None:
    """The same numbers whatever the shapes of the parameters that hold them."""
    for t in steps:
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(t))
        params = optimizer.param_groups[0]["params"]
        parts = grad.unbind() if len(params) > 1 else [grad]
        for p, g in zip(params, parts, strict=True):
            p.grad = g.reshape(p.shape).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("name", MOVES_MATRICES)
@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_is_its_matrix_bitwise(name: str, state_format: str, dtype: torch.dtype) -> None:
    start = torch.randn(CONV, generator=torch.Generator().manual_seed(0)).to(dtype)
    conv, matrix = nn.Parameter(start.clone()), nn.Parameter(start.clone().view(8, 12))
    own = build(name, [("w", conv)], "flatten", state_format)
    reference = build(name, [("w", matrix)], None, state_format)
    for optimizer in (own, reference):
        run(optimizer, CONV, range(4))
    assert conv.shape == CONV
    assert torch.equal(conv.view(8, 12), matrix)
    assert not torch.equal(conv, start)
    left, right = own.named_state(), reference.named_state()
    assert {k: t.shape for k, t in left.items()} == {k: t.shape for k, t in right.items()}
    assert all(torch.equal(left[k], right[k]) for k in left)
    assert own.step_flops() == reference.step_flops()


@pytest.mark.parametrize("name", MOVES_MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [EXPERTS, (2, 2, 6, 5)])
def test_experts_are_separate_matrices_bitwise(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The stack is handed over as the same batch of matrices, so there is not even rounding."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    stack = nn.Parameter(start.clone())
    singles = [nn.Parameter(m.clone()) for m in start.reshape(EXPERTS)]
    own = build(name, [("w", stack)], "stack", "float32")
    # Random projections go by name, and the experts of w are called so.
    reference = build(name, [(f"w[{e}]", p) for e, p in enumerate(singles)], None, "float32")
    run(own, shape, range(4))
    run(reference, EXPERTS, range(4))
    assert torch.equal(stack.view(EXPERTS), torch.stack(list(singles)))
    assert own.state[stack]["step"] == 4, "one step a parameter, not one an expert"
    for key, tensor in own.state[stack].items():
        if key != "step":
            assert torch.equal(tensor, torch.stack([reference.state[p][key] for p in singles]))
    assert own.step_flops() == reference.step_flops()
    assert own.state_elements() == reference.state_elements()


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize("name", MOVES_MATRICES)
@pytest.mark.parametrize(("view", "shape"), [("flatten", CONV), ("stack", EXPERTS)])
def test_planned_is_measured_and_resume_is_bitwise(
    name: str, view: str, shape: tuple[int, ...], state_format: str
) -> None:
    p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    optimizer = build(name, [("w", p)], view, state_format)
    options: dict[str, Any] = {"view": view, "state_format": state_format}
    planned = OPTIMIZERS[name].planned_state_bytes("matrix", [shape], options)
    assert optimizer.state_bytes() == planned
    assert optimizer.state_elements() == OPTIMIZERS[name].planned_state_elements("matrix", [shape], options)
    run(optimizer, shape, range(3))
    assert optimizer.state_bytes() == planned
    for way in ("state_dict", "named_state"):
        file = io.BytesIO()
        torch.save({"w": p, "optimizer": getattr(optimizer, way)()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again = nn.Parameter(saved["w"].detach().clone())
        resumed = build(name, [("w", again)], view, state_format)
        load = {"state_dict": resumed.load_state_dict, "named_state": resumed.load_named_state}
        load[way](saved["optimizer"])
        twin, twin_optimizer = copy.deepcopy((p, optimizer))
        for one in (resumed, twin_optimizer):
            run(one, shape, range(3, 6))
        assert torch.equal(twin, again)
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                twin_optimizer.named_state().values(), resumed.named_state().values(), strict=True
            )
        )


@pytest.mark.parametrize("name", MOVES_MATRICES)
def test_strides_that_allow_no_view(name: str) -> None:
    """channels_last: the rule works on a copy, which is written back."""
    start = torch.randn(CONV, generator=torch.Generator().manual_seed(0))
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(start.clone().contiguous(memory_format=memory_format))
        strides = p.stride()
        run(build(name, [("w", p)], "flatten", "float32"), CONV, range(3))
        assert p.stride() == strides
        results.append(p.detach().contiguous())
    assert torch.equal(*results)


def test_a_view_is_enough_to_be_a_matrix() -> None:
    optimizer = Muon([{"params": [nn.Parameter(torch.randn(CONV))], "view": "flatten"}])
    assert optimizer.param_groups[0]["role"] == "matrix"
    # AdamW for matrices that the class does not move itself
    group = {"params": [nn.Parameter(torch.randn(EXPERTS))], "role": "matrix", "view": "stack"}
    spectron = Spectron([group])
    run(spectron, EXPERTS, range(1))
    assert spectron.state_elements() == 2 * 4 * 6 * 5


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        ({"params": [("w", torch.zeros(CONV))], "role": "matrix"}, r'^w has shape.*view="flatten".*"stack"'),
        ({"params": [("w", torch.zeros(CONV))]}, r'^w has shape.*role="other".*view="flatten".*"stack"'),
        ({"params": [torch.zeros(CONV)], "view": "rows"}, r"view = 'rows'; view=\"flatten\" takes"),
        ({"params": [("w", torch.zeros(4, 3))], "view": "stack"}, r"^w.*'stack' takes 3 dimensions or more"),
        ({"params": [("b", torch.zeros(4))], "view": "flatten"}, r"^b.*'flatten' takes 2 dimensions or more"),
        (
            {"params": [torch.zeros(4)], "role": "other", "view": "flatten"},
            'only the role "matrix" has a view',
        ),
        (
            {"params": [("w", torch.zeros(0, 3, 4))], "view": "stack"},
            r"^w has shape \(0, 3, 4\).*no elements",
        ),
        (
            {"params": [("w", torch.zeros(4, 0, 1))], "view": "flatten"},
            r"^w has shape \(4, 0, 1\).*no elements",
        ),
        ({"params": [("w", torch.zeros(0, 4))], "role": "matrix"}, r"^w has shape \(0, 4\).*no elements"),
    ],
)
def test_what_is_no_matrix_gets_a_sentence(group: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        Muon([group])
    assert str(caught.value).endswith(".")


def test_a_state_of_another_view_is_refused() -> None:
    p = nn.Parameter(torch.randn(4, 3, 3))
    saved = build("adamw", [("w", p)], "stack", "float32").state_dict()
    with pytest.raises(UsageError, match="saved with the view 'stack' and is 'flatten' here"):
        build("adamw", [("w", p)], "flatten", "float32").load_state_dict(saved)


# ---- param_groups


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS))
        self.bias = nn.Parameter(torch.zeros(4, 6))


def model() -> nn.Module:
    parts = {
        "patch": nn.Conv2d(3, 8, 2),
        "dense": nn.Linear(8, 5),
        "experts": Experts(),
        "out": nn.Conv1d(2, 2, 3),
    }
    return nn.ModuleDict(parts)


def test_param_groups_makes_matrices_of_what_views_names() -> None:
    groups = param_groups(
        model(), lr=0.01, roles=Muon.roles, views={"patch": "flatten", "experts.*": "stack"}
    )
    members = [(g["role"], g.get("view"), [name for name, _ in g["params"]]) for g in groups]
    assert members == [
        ("matrix", None, ["dense.weight"]),
        ("matrix", "flatten", ["patch.weight"]),
        ("matrix", "stack", ["experts.up"]),
        ("other", None, ["patch.bias", "dense.bias", "experts.bias", "out.weight", "out.bias"]),
    ]
    table = str(groups).splitlines()
    assert table[0].split() == ["role", "view", "tensors", "elements", "lr", "weight", "decay", "names"]
    assert [line.split()[:2] for line in table[1:]] == [
        ["matrix", "-"],
        ["matrix", "flatten"],
        ["matrix", "stack"],
        ["other", "-"],
    ]
    optimizer = Muon(groups, lr=0.01)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn_like(p)
    optimizer.step()


def test_without_views_nothing_changes() -> None:
    groups = param_groups(model(), lr=0.01, roles=Muon.roles)
    assert [g["role"] for g in groups] == ["matrix", "other"]
    assert all("view" not in g and "state_format" not in g for g in groups)
    assert str(groups).splitlines()[0].split()[:2] == ["role", "tensors"]


@pytest.mark.parametrize(
    ("views", "roles", "sentence"),
    [
        (
            {"patsch": "flatten"},
            Muon.roles,
            "'patsch' matches no trainable parameter of three.*did you mean 'patch'",
        ),
        ({"dense": "flatten"}, Muon.roles, "'dense' matches no trainable parameter of three dimensions"),
        ({"patch": "flatten"}, Spectron.roles, "the roles here are factors.*roles=Muon.roles"),
    ],
)
def test_views_without_effect_are_refused(views: dict[str, str], roles: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        param_groups(model(), lr=0.01, roles=roles, views=views)


def test_param_groups_gives_formats() -> None:
    groups = param_groups(
        model(), lr=0.01, roles=AdamW.roles, state_format="8bit", other_state_format="float32"
    )
    assert [(g["role"], g["state_format"]) for g in groups] == [("matrix", "8bit"), ("other", "float32")]
    assert "state format" in str(groups).splitlines()[0]
    groups = param_groups(model(), lr=0.01, roles=AdamW.roles, state_format="bfloat16")
    assert {g["state_format"] for g in groups} == {"bfloat16"}


@pytest.mark.parametrize("state_format", FORMATS)
@pytest.mark.parametrize(("view", "shape"), [("flatten", CONV), ("stack", EXPERTS)])
def test_per_layer_updates_are_the_same(view: str, shape: tuple[int, ...], state_format: str) -> None:
    ends = []
    for in_backward in (False, True):
        p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        optimizer = build("apollo", [("w", p)], view, state_format)
        for _ in range(3):
            if in_backward:
                with step_in_backward(optimizer):
                    p.square().sum().backward()
            else:
                p.square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        ends.append(p.detach())
    assert torch.equal(*ends)
