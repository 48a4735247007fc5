"""`torch.compile(optimizer.step)` is one graph, with the same results, where a step does not ask which update
it is: renewals, limiters and exact steps do, and solvers wait.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.test_optimizers import SHAPES
from torch import nn

from lowrise.optim import OPTIMIZERS, Optimizer

pytestmark = pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="torch 2.6 breaks the graph at `with` blocks"
)
CASES = [
    ("adamw", "matrix", {}),
    ("adamw", "factors", {}),
    ("adamw", "svd", {}),
    ("relora", "factors", {}),
    ("muon", "matrix", {}),
    ("muon", "factors", {"ns_dtype": "bfloat16"}),
    ("scale", "matrix", {}),
    ("scale", "head", {}),
    ("spectron", "factors", {}),
    ("spectron", "factors", {"weight_decay": 0.1, "decay": "wd_scaled"}),
]


def build(name: str, role: str, options: dict[str, Any]) -> tuple[Optimizer, list[nn.Parameter]]:
    g = torch.Generator().manual_seed(3)
    shapes = [*SHAPES[role], (5,)]
    params = [nn.Parameter(torch.randn(shape, generator=g)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)
    groups = [{"params": params[:-1], "role": role}, {"params": params[-1:], "role": "other"}]
    return OPTIMIZERS[name](groups, lr=0.01, **options), params


@pytest.mark.parametrize(("name", "role", "options"), CASES, ids=lambda value: str(value))
def test_a_step_is_one_graph(
    name: str, role: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced once for all updates; same weights, state and counters as without compiling."""
    monkeypatch.setenv("LOWRISE_PASSES", "torch")  # the form that is compiled
    expected, plain = build(name, role, options)
    optimizer, params = build(name, role, options)
    torch._dynamo.reset()
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    step = torch.compile(lambda: optimizer.step(grad_norm=1.0), backend=keep, fullgraph=True)
    for _ in range(4):
        expected.step(grad_norm=1.0)
        step()
    assert len(graphs) == 1
    for p, q in zip(params, plain, strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p].keys() == expected.state[q].keys()
        for key, tensor in optimizer.state[p].items():
            assert torch.equal(tensor, expected.state[q][key])
