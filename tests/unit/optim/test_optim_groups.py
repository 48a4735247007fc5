"""Groups: roles, names, and the sentences for groups that cannot be right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lowrise.errors import UsageError
from lowrise.optim import AdamW, GaLore, Muon, SinkGD, Spectron
from lowrise.optim.engine import units as optim_units


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def test_a_bare_list_is_the_role_matrix() -> None:
    assert Muon([parameter(4, 3)]).param_groups[0]["role"] == "matrix"
    assert Muon(nn.Linear(3, 4, bias=False).named_parameters()).param_groups[0]["param_names"] == ["weight"]


def test_adamw_takes_any_model_as_torch_does() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    assert AdamW(model.parameters()).param_groups[0]["role"] == "other"


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Spectron([parameter(4, 3)]), r'"role": "factors"'),
        (lambda: Spectron(nn.Linear(3, 4).parameters()), r'"role": "factors"'),
        (lambda: Muon(nn.Linear(3, 4).parameters()), r'shape \(4,\).*role="other"'),
        (lambda: Muon([{"params": [("b", parameter(4))], "role": "matrix"}]), r"^b has shape \(4,\)"),
        (
            lambda: AdamW([{"params": [parameter(4)], "role": "matrices"}]),
            "'matrices'; choose one of matrix, factors",
        ),
        (lambda: Spectron([{"params": [parameter(4, 3)] * 1, "role": "factors"}]), r"1 parameters.*\[A0, B0"),
        (
            lambda: Spectron(
                [{"params": [("q.A", parameter(4, 3)), ("q.B", parameter(5, 2))], "role": "factors"}]
            ),
            r"ranks \[3, 2\] \(q.A \(4, 3\), q.B \(5, 2\)\)",
        ),
        (lambda: AdamW([parameter(2)], lr=-1.0), "lr = -1.0"),
        (lambda: AdamW([parameter(2)], lr=float("nan")), "lr = nan"),
        (lambda: AdamW([parameter(2)], weight_decay=-0.1), "weight_decay = -0.1"),
        (lambda: AdamW([parameter(2)], lr=torch.tensor(0.1)), r"lr = tensor.*a float, no tensor"),
        (lambda: AdamW([parameter(2)], lr="0.1"), "lr = '0.1'"),
        (lambda: AdamW([parameter(2)], betas=(0.9, 1.0)), r"betas = \(0.9, 1.0\)"),
        (lambda: AdamW([parameter(2)], betas=0.9), r"betas = 0.9; give two numbers"),
        (lambda: GaLore([parameter(2, 2)], betas=(0.9,)), r"betas = \(0.9,\); give two numbers"),
        (lambda: Muon([parameter(2, 2)], momentum=1.5), "momentum = 1.5"),
        (lambda: Muon([parameter(2, 2)], adjust_lr="rms"), "adjust_lr = 'rms'"),
        (lambda: Muon([parameter(2, 2)], ns_dtype="half"), "ns_dtype = 'half'"),
        (lambda: Muon([parameter(2, 2)], ns_steps=0), "ns_steps = 0"),
        (
            lambda: AdamW([nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)]),
            "torch.int64",
        ),
        (lambda: AdamW.planned_state_elements("svd", [(2, 3)]), r"\[U0, s0, V0"),
    ],
)
def test_impossible_requests_get_a_sentence(build, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        build()
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"variant": "exact"}, "variant = 'exact'; choose one of published, certified"),
        ({"step_size": "long"}, "step_size = 'long'"),
        ({"norm_refresh": 0}, "norm_refresh = 0"),
        ({"variant": "certified", "orthogonalize": False}, "cannot certify.*orthogonalize = False"),
        ({"variant": "certified", "norms": "power"}, "cannot certify.*norms = 'power'"),
        ({"variant": "certified", "ns_dtype": "bfloat16"}, "cannot certify.*bfloat16"),
        ({"variant": "certified", "ortho": "ns5", "ns_coefficients": (2.0, -1.5, 0.5)}, "cannot certify"),
    ],
)
def test_spectron_options(options: dict, sentence: str) -> None:
    pair = [parameter(4, 2), parameter(3, 2)]
    with pytest.raises(UsageError, match=sentence):
        Spectron([{"params": pair, "role": "factors"}], **options)
    with pytest.raises(UsageError, match=sentence):
        Spectron([{"params": pair, "role": "factors", **options}])  # also as options of one group


def test_a_refused_group_is_not_added() -> None:
    optimizer = Muon([parameter(4, 3)])
    group = {"params": [parameter(5)]}
    with pytest.raises(UsageError):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert list(group) == ["params"], "the caller's dict is left alone"
    optimizer.add_param_group({"params": [parameter(5)], "role": "other"})
    assert optimizer.state_elements() == 12 + 10


def test_groups_have_their_own_numbers() -> None:
    """One object moves factors by Spectron, the rest by AdamW with the group's own lr."""
    A, B, embedding, norm = parameter(6, 2), parameter(5, 2), parameter(9, 4), parameter(4)
    optimizer = Spectron(
        [
            {"params": [A, B], "role": "factors"},
            {"params": [embedding], "role": "matrix", "lr": 1e-3, "weight_decay": 0.1},
            {"params": [norm], "role": "other", "lr": 2e-3, "betas": (0.8, 0.99), "eps": 1e-6},
        ],
        lr=0.1,
    )
    reference = [nn.Parameter(p.detach().clone()) for p in (embedding, norm)]
    adamw = torch.optim.AdamW(
        [
            {"params": [reference[0]], "lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)},
            {"params": [reference[1]], "lr": 2e-3, "weight_decay": 0.0, "betas": (0.8, 0.99), "eps": 1e-6},
        ]
    )
    for _ in range(3):
        for p in (A, B, embedding, norm):
            p.grad = torch.randn_like(p)
        for p, q in zip(reference, (embedding, norm), strict=True):
            p.grad = q.grad.clone()
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(embedding, reference[0], rtol=0, atol=1e-6)  # float32 rounding of O(1) weights
    torch.testing.assert_close(norm, reference[1], rtol=0, atol=1e-6)
    assert set(optimizer.state[A]) == {"step", "momentum", "u"}
    assert set(optimizer.state[norm]) == {"step", "exp_avg", "exp_avg_sq"}


def test_names_are_needed_only_for_saving_by_name() -> None:
    optimizer = AdamW([parameter(3)])
    with pytest.raises(UsageError, match="without names"):
        optimizer.named_state()


def test_another_role_or_number_of_parameters_is_refused_on_load() -> None:
    saved = AdamW([{"params": [parameter(4, 2), parameter(3, 2)], "role": "factors"}]).state_dict()
    with pytest.raises(UsageError, match="'factors' and is 'matrix'"):
        AdamW([parameter(4, 2), parameter(3, 2)]).load_state_dict(saved)
    with pytest.raises(UsageError, match=r"groups of \[2\]"):
        AdamW([parameter(4, 2)]).load_state_dict(saved)


def test_sparse_gradients_get_a_sentence() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match="sparse=False"):
        AdamW(embedding.parameters()).step()


def moved_by(build, count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` matrices after one step."""
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(6, 4, dtype=dtype)) for _ in range(count)]
    optimizer = build(params)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    return torch.stack(params).detach()


@pytest.mark.parametrize(
    ("build", "limit"),
    [
        (Muon, "engine.units.BATCH_ELEMENTS_CPU"),
        (SinkGD, "engine.units.BATCH_ELEMENTS_CPU"),
        (AdamW, "engine.other.BATCH_ELEMENTS"),
    ],
)
def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, build, limit: str) -> None:
    sizes: list[int] = []
    chunked = optim_units.chunked

    def counted(*arguments: Any) -> Iterator[list[Any]]:
        for chunk in chunked(*arguments):
            if not isinstance(chunk[0], list):  # of matrices, not of stacks of one shape that move together
                sizes.append(len(chunk))
            yield chunk

    monkeypatch.setattr(f"lowrise.optim.{limit.rpartition('.')[0]}.chunked", counted)
    ends = []
    for elements in (1 << 26, 2 * 24):
        monkeypatch.setattr(f"lowrise.optim.{limit}", elements)
        ends.append(moved_by(build, 5, torch.float64))
    assert sizes == [5, 2, 2, 1]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-14)  # batched and single products may sum otherwise


@pytest.mark.parametrize("build", [Muon, AdamW, SinkGD])
def test_few_bfloat16_gradients_are_widened_at_once(monkeypatch: pytest.MonkeyPatch, build) -> None:
    seen: list[tuple[int, set[torch.dtype]]] = []
    update = build._update

    def watched(self: Any, group: dict[str, Any], units: list[optim_units.Unit]) -> None:
        seen.append((len(units), {unit.grads[0].dtype for unit in units}))
        update(self, group, units)

    monkeypatch.setattr(build, "_update", watched)
    ends = []
    for limit in (1 << 24, 3 * 24):
        monkeypatch.setattr("lowrise.optim.engine.step.OPEN_ELEMENTS", limit)
        ends.append(moved_by(build, 7, torch.bfloat16))
    assert seen == [(n, {torch.float32}) for n in (7, 3, 3, 1)]
    torch.testing.assert_close(*ends, rtol=2**-7, atol=0)  # batched products may round another way


def test_seed_and_place_decide_the_start_of_the_power_iteration() -> None:
    def starts(seed: int) -> list[torch.Tensor]:
        params = [nn.Parameter(torch.zeros(6, 2)) for _ in range(4)]
        optimizer = Spectron([{"params": params, "role": "factors"}], seed=seed)
        return [optimizer.state[p]["u"] for p in params]

    first, second, other = starts(0), starts(0), starts(1)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert all(abs(u.norm() - 1) < 1e-6 for u in first)
