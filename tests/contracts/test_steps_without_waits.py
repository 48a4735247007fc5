"""A step never reads a number from the device, launches the same operations for 56 matrices as for 560, and
takes no memory of the model's size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.test_optimizers import EXTRA, SHAPES
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lowrise.optim import OPTIMIZERS, Optimizer
from lowrise.optim.engine import guard, units
from lowrise.optim.engine import state_formats as formats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmarks lie in the repository alone")

# Options under which a rule asks a solver at every step: references, not for training.
SOLVES_EVERY_STEP = [
    {"method": "exact", "center": False, "rescale": False},  # SWAN by SVD
    {"project": "both", "retraction": "polar", "transport": True},  # TSVD by eigenvalues
    {"accumulate": "sum", "nesterov": False, "ortho": "svd"},  # NorMuon by SVD
]
CASES = [
    pytest.param(name, role, options, id=f"{name}-{role}-{'-'.join(options) or 'default'}")
    for name, cls in OPTIMIZERS.items()
    for options in [{}, *EXTRA.get(name, []), {"state_format": "bfloat16"}]
    for role in sorted(cls.roles | {"other"})
    if options not in SOLVES_EVERY_STEP and (role in cls.ball_roles or "hyperball" not in options)
]

# Row of benchmarks/operations.py -> most operations of a step over a model's matrices of three shapes, its
# embeddings and norms: with the norm of the gradients known, as in `lowrise train`.
MOST_OPERATIONS = {
    "AdamW": 4,
    "AdamW, bfloat16 weights": 10,
    "AdamW, factors": 4,
    "LORO, lazy": 4,
    "SCALE": 19,
    "SinkGD": 77,
    "GaLore, plain": 25,
    "Fira, plain": 69,
    "APOLLO": 87,
    "APOLLO, stored": 52,
    "GWT": 56,
    "Muon, bfloat16 (GPU)": 50,
    "Muon, float32": 59,
    "NorMuon, bfloat16 (GPU)": 77,
    "Dion2, bfloat16 (GPU)": 90,
    "Stable-SPAM": 180,
    "LoRA-Muon": 142,
    "Spectron, bfloat16 (GPU)": 98,
    "Spectron, float32": 97,
    "Spectron, certified": 95,
    "SWAN": 107,
    "TSVD": 132,
}
MOST_OF_THE_CHECK = 60  # more, where every unit is checked on the device


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import operations

    return operations


def build(name: str, role: str, options: dict[str, Any], device: str) -> Optimizer:
    """With gradients, before an update that renews nothing."""
    params = [nn.Parameter(torch.rand(shape, device=device)) for shape in SHAPES[role]]
    for p in params:
        p.grad = torch.rand(p.shape, device=device)
    group: dict[str, Any] = {"params": params, "role": role}
    group |= {key: options[key] for key in ("state_format", "hyperball") if key in options}
    options = {key: value for key, value in options.items() if key not in group}
    options = {"lr": 0.01, "weight_decay": 0.0 if "hyperball" in group else 0.1, **options}
    optimizer = OPTIMIZERS[name]([group], **options)
    for state in optimizer.state.values():
        state["step"].fill_(5.0 if "update_proj_gap" in options else 4.0)
    return optimizer


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_a_step_reads_nothing_from_the_device(
    name: str, role: str, options: dict[str, Any], known: bool, operations: Any, monkeypatch: Any
) -> None:
    """On "meta", where there is nothing to read, and no operation after which a GPU is waited for."""
    monkeypatch.setattr(formats, "LEAST_ELEMENTS", 1)
    optimizer = build(name, role, options, "meta")
    with operations.Launches() as launches:
        optimizer.step(grad_norm=1.0 if known else None)
    assert launches.total > 0
    assert not launches.waits


@pytest.mark.parametrize(("name", "role", "options"), CASES)
def test_nothing_is_read_on_a_cpu_either_but_the_norm_of_gradients(
    name: str, role: str, options: dict[str, Any], operations: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(formats, "LEAST_ELEMENTS", 1)
    optimizer = build(name, role, options, "cpu")
    with operations.Launches("cpu") as launches:
        optimizer.step(grad_norm=1.0)
    # On a CPU alone: TSVD asks whether all columns have seen the same updates (two numbers a layer), and its
    # retraction whether a second pass is needed, once a factor; LoRA-Muon's root whether Cholesky's is
    # sound, once a shape.
    asked = {("svd", "tsvd"): 4, ("factors", "loramuon"): 6 if "bound" in options else 2}
    assert launches.waits.total() <= asked.get((role, name), 0)
    with operations.Launches("cpu") as launches:
        optimizer._unusable()
    assert launches.waits.total() <= 1


def test_what_waits_is_seen(operations: Any) -> None:
    x = torch.ones(3)
    with operations.Launches("cpu") as launches:
        float(x.sum())
        x.nonzero()
        torch.linalg.eigh(torch.eye(2))
    assert launches.waits.keys() == {"_local_scalar_dense", "nonzero", "_linalg_eigh"}


@pytest.mark.parametrize("row", MOST_OPERATIONS)
def test_operations_do_not_grow_with_the_matrices(row: str, operations: Any) -> None:
    few, many = (operations.operations(row, blocks, clipped=True) for blocks in (8, 80))
    assert few.counts == many.counts
    assert few.total <= MOST_OPERATIONS[row]
    checked, many = (operations.operations(row, blocks, clipped=False) for blocks in (8, 80))
    assert checked.counts == many.counts
    assert checked.total <= few.total + MOST_OF_THE_CHECK


def test_every_row_has_a_limit(operations: Any) -> None:
    assert operations.ROWS.keys() == MOST_OPERATIONS.keys()


# ---- memory

# Most memory that a step takes beside weights, gradients and state, in chunks: what `units.batch_elements`
# lets be stacked at once (or one matrix, where that is larger). The methods' pages say the same.
CHUNKS = {
    "adamw": (0.05, {}),
    "relora": (0.05, {}),
    "scale": (3.2, {}),
    "sinkgd": (3.2, {}),
    "galore": (4.3, {"rank": 16}),
    "fira": (4.3, {"rank": 16}),
    "apollo": (4.3, {"rank": 16}),
    "gwt": (4.5, {}),
    "muon": (8.5, {}),
    "swan": (8.5, {}),
    "spectron": (5.0, {}),
    "tsvd": (5.0, {}),
    "loro": (0.05, {}),
    "loro, exact": (5.0, {"exact_every": 2}),
}
CHUNK = 1 << 16  # elements, in place of a CPU's 2^20


def peak_bytes(step: Any) -> int:
    """Most bytes that were allocated at the same time within a call, beyond those before it, by the
    allocator's own records.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    records: Any = profiler.profiler
    events = [e for e in records.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def test_the_hook_sees_every_allocation() -> None:
    x = torch.ones(1000)
    assert 8000 <= peak_bytes(lambda: (x + 1) * 2) < 8200


@pytest.mark.parametrize("row", CHUNKS)
def test_a_step_takes_a_few_chunks_and_no_memory_of_the_models_size(
    row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "BATCH_ELEMENTS_CPU", CHUNK)
    chunks, options = CHUNKS[row]
    name, d, f, r = row.split(",")[0], 128, 344, 16
    cls = OPTIMIZERS[name]
    shapes = [(d, d)] * 36 + [(f, d)] * 18 + [(d, f)] * 9
    if "matrix" in cls.roles:
        role, sides = "matrix", shapes
    elif "factors" in cls.roles:
        role, sides = "factors", [(side, r) for shape in shapes for side in shape] * 5
    else:
        role, sides = "svd", [side for m, n in shapes * 5 for side in ((m, r), (r,), (n, r))]
    params = [nn.Parameter(torch.randn(side)) for side in sides]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = cls([{"params": params, "role": role}], lr=1e-3, **options)
    optimizer.step()
    elements = sum(p.numel() for p in params)
    assert elements > 25 * CHUNK
    assert peak_bytes(optimizer.step) <= chunks * 4 * CHUNK


def test_the_check_on_the_device_takes_copies_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, moments and gradients of `KEPT_ELEMENTS`, twice, and a mask of each."""
    monkeypatch.setattr(guard, "reads_at_once", lambda device: False)
    monkeypatch.setattr(guard, "KEPT_ELEMENTS", CHUNK)
    params = [nn.Parameter(torch.randn(100, 100)) for _ in range(200)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = OPTIMIZERS["adamw"](params, lr=1e-3)
    optimizer.step()
    assert peak_bytes(optimizer.step) <= 6 * 4 * CHUNK


def test_a_subclass_that_writes_direction_is_moved_by_it() -> None:
    """Also where its base does all shapes at once."""

    class Signs(OPTIMIZERS["muon"]):  # type: ignore[misc, name-defined]
        def direction(self, G: Any, state: Any, options: Any, step: int) -> Any:
            return G.sign()

    p = nn.Parameter(torch.zeros(3, 4))
    p.grad = torch.randn(3, 4)
    Signs([p], lr=1.0, adjust_lr="original").step()
    assert torch.equal(p, -p.grad.sign())
