"""Ranks that change in training: what happens to weights, loss, optimizer state, plan, checkpoint, graph,
report.
"""

from __future__ import annotations

import copy
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from small_runs import config_for, final_tensors, metrics, run_training, trainer_for
from torch import Tensor, nn

from lowrise.checkpoint import CheckpointStore
from lowrise.console import Console
from lowrise.errors import LowriseError, UsageError
from lowrise.layers import SVDLinear, param_groups
from lowrise.layers.ranks import canonical, grown, grown_rank, shrunken_rank
from lowrise.linalg import energy_count, energy_rank
from lowrise.model import next_token_loss
from lowrise.optim import TSVD
from lowrise.runs.load import load_run
from lowrise.runs.plan import plan_of
from lowrise.runs.weights import load_saved_model, model_tensors
from lowrise.train.ranks import change_ranks, follow

SHRINK = {  # of 16 columns, every event may drop half
    "layer.energy": 0.5,
    "layer.rank_multiple": 2,
    "layer.min_rank": 4,
    "layer.max_drop": 0.5,
    "layer.rank_events": [0.25, 0.5],  # after updates 2 and 4 of 8
}


def layer_with(s: list[float], m: int = 24, n: int = 20, **options: object) -> SVDLinear:
    layer = SVDLinear(n, m, len(s), dtype=torch.float64, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.s.copy_(torch.tensor(s, dtype=torch.float64))
    return layer


def trained(layer: SVDLinear, steps: int = 3) -> TSVD:
    optimizer = TSVD(param_groups(nn.Sequential(layer), lr=0.01), lr=0.01)
    for t in range(steps):
        step(layer, optimizer, t)
    return optimizer


def step(layer: SVDLinear, optimizer: TSVD, t: int) -> None:
    g = torch.Generator().manual_seed(t)
    x = torch.randn(64, layer.in_features, generator=g, dtype=layer.U.dtype)
    y = torch.randn(64, layer.out_features, generator=g, dtype=layer.U.dtype)
    optimizer.zero_grad()
    (layer(x) - y).square().mean().backward()
    optimizer.step()


# ---- the energy


@pytest.mark.parametrize(
    ("s", "threshold", "count"),
    [
        ([3, 2, 1], 1.0, 3),
        ([3, 2, 1], 13 / 14, 2),  # reached exactly, up to rounding
        ([1, -3, 2], 9 / 14, 1),  # signs and order do not matter
        ([0, 0], 0.9, 0),
        ([1, 0, 0], 1.0, 1),
    ],
)
def test_energy_count(s: list[float], threshold: float, count: int) -> None:
    assert energy_count(torch.tensor(s, dtype=torch.float64), threshold) == count


def test_energy_rank_is_rounded_up_and_kept_in_bounds() -> None:
    assert energy_rank(9, rank=64, multiple=8, least=8) == 16
    assert energy_rank(0, rank=64, multiple=8, least=24) == 24
    assert energy_rank(9, rank=10, multiple=8, least=24) == 10


def test_one_event_drops_at_most_max_drop() -> None:
    s = torch.tensor([10.0] + [0.001] * 79)
    assert shrunken_rank(s, 0.9, multiple=8, least=8, max_drop=0.25) == 56  # 60 rounded down
    assert shrunken_rank(s, 0.9, multiple=8, least=8, max_drop=0.9) == 8
    assert shrunken_rank(s, 0.9, multiple=8, least=8, max_drop=1.0) == 8


def test_growth_needs_a_flat_spectrum_and_room() -> None:
    flat, steep = torch.ones(64), torch.linspace(1, 0.01, 64)
    assert grown_rank(flat, 0.97, multiple=8, most=128) == 72
    assert grown_rank(flat, 0.97, multiple=8, most=66) == 66
    assert grown_rank(flat, 0.97, multiple=8, most=0) == 64
    assert grown_rank(steep, 0.97, multiple=8, most=128) == 64


# ---- one layer


def test_canonical_form_leaves_the_weight_and_all_later_weights() -> None:
    layer = layer_with([0.5, -2.0, 1.0, -1.0])
    optimizer = trained(layer)
    twin, twin_optimizer = copy.deepcopy((layer, optimizer))
    before = layer.dense().detach()
    change = canonical(*(p.detach() for p in layer.role_parameters()))
    parameters = layer.role_parameters()
    layer.apply_change(change)
    follow(optimizer, parameters, layer.role_parameters(), change)
    assert all(a is b for a, b in zip(parameters, layer.role_parameters(), strict=True)), (
        "same rank: in place"
    )
    torch.testing.assert_close(layer.dense().detach(), before, rtol=0, atol=1e-14)  # float64
    assert (layer.s.diff() <= 0).all()
    assert (layer.s >= 0).all()
    for X in "UV":  # QR treats columns in their order: one order from here on
        order = change.order
        with torch.no_grad():
            getattr(twin, X).copy_(getattr(twin, X)[:, order])
    with torch.no_grad():
        twin.s.copy_(twin.s[order])
    for p in twin.role_parameters():
        for name, state in twin_optimizer.state[p].items():
            if name != "step":
                state.copy_(state[..., order])
    for t in range(3, 8):
        step(layer, optimizer, t)
        step(twin, twin_optimizer, t)
    torch.testing.assert_close(layer.dense(), twin.dense(), rtol=0, atol=1e-13)


def test_ties_keep_their_order() -> None:
    layer = layer_with([1.0, 2.0, 1.0, -1.0])
    change = canonical(layer.U, layer.s, layer.V)
    assert change.order.tolist() == [1, 0, 2, 3]
    assert change.signs.tolist() == [1, 1, 1, -1]


def test_shrink_is_the_truncated_svd_and_keeps_the_state_of_its_columns() -> None:
    layer = layer_with([0.5, -2.0, 1.0, -1.5])
    optimizer = trained(layer)
    W = layer.dense().detach()
    U, s, Vh = torch.linalg.svd(W)
    best = (U[:, :2] * s[:2]) @ Vh[:2]
    old = layer.role_parameters()
    state = {
        name: {k: t.clone() for k, t in optimizer.state[p].items()}
        for name, p in zip("UsV", old, strict=True)
    }
    signs = old[1].detach().sign()
    change = canonical(*(p.detach() for p in old), 2)
    layer.apply_change(change)
    follow(optimizer, old, layer.role_parameters(), change)
    torch.testing.assert_close(layer.dense().detach(), best, rtol=0, atol=1e-13)
    assert layer.rank == 2
    assert layer.orthonormality_error() <= 1e-13
    order = change.order.tolist()
    assert order == [1, 3]
    for name, p in zip("UsV", layer.role_parameters(), strict=True):
        assert p.shape[-1] == 2
        new, before = optimizer.state[p], state[name]
        assert new.keys() == before.keys()
        assert new["step"] == before["step"] == 3
        turned = signs[order] if name in "Us" else torch.ones(2)
        assert torch.equal(new["exp_avg"], before["exp_avg"][..., order] * turned)
        assert torch.equal(new["exp_avg_sq"], before["exp_avg_sq"][..., order])
    assert optimizer.state[layer.s]["updates"].tolist() == [3, 3]
    assert len(optimizer.state) == 3, "nothing is left of the old parameters"
    step(layer, optimizer, 9)  # and it goes on
    assert optimizer.state[layer.s]["updates"].tolist() == [4, 4]


def test_growth_leaves_the_weight_and_starts_through_s() -> None:
    layer = layer_with([2.0, 1.5, 1.0, 0.5])
    optimizer = trained(layer)
    before, old = layer.dense().detach(), layer.role_parameters()
    draws = torch.randn(24, 3).double(), torch.randn(20, 3).double()
    change = grown(*(p.detach() for p in old), *draws)
    layer.apply_change(change)
    follow(optimizer, old, layer.role_parameters(), change)
    assert layer.rank == 7
    torch.testing.assert_close(layer.dense().detach(), before, rtol=0, atol=1e-14)  # float64
    assert layer.orthonormality_error() <= 1e-13
    assert optimizer.state[layer.s]["updates"].tolist() == [3, 3, 3, 3, 0, 0, 0]
    step(layer, optimizer, 5)
    # The first step of Adam moves by its rate: each new column by its own bias correction.
    torch.testing.assert_close(layer.s.detach()[4:].abs(), torch.full((3,), 0.03).double(), rtol=1e-3, atol=0)


def test_an_event_grows_and_does_nothing_between_events() -> None:
    layer = layer_with([1.0] * 8, energy=0.97, max_rank=12, rank_multiple=2, rank_events=(0.5,))
    before = layer.dense().detach()
    assert layer.change_rank(4, 10, torch.Generator().manual_seed(0)) is None
    change = layer.change_rank(5, 10, torch.Generator().manual_seed(0))
    assert change is not None
    assert layer.rank == change.rank == 10
    torch.testing.assert_close(layer.dense().detach(), before, rtol=0, atol=1e-14)  # float64
    assert layer.orthonormality_error() <= 1e-13


def test_loss_changes_by_no_more_than_the_energy_that_is_cut(text_folder: Path, tmp_path: Path) -> None:
    """The smallest half of all singular values is scaled by delta and then cut: the change of the loss goes
    to zero with delta, at least in proportion.
    """
    config = config_for(text_folder, "tsvd", **{"layer.energy": 0.5, "layer.min_rank": 8})
    trainer = trainer_for(config, tmp_path)
    for _ in range(8):
        trainer.update()
    model = trainer.model.double()
    for layer in model.modules():
        if isinstance(layer, SVDLinear):
            layer.apply_change(canonical(*(p.detach() for p in layer.role_parameters())))
    tokens = torch.from_numpy(trainer.corpus.train.batch(50, sequences=8, seq_len=16, seed=0))

    def loss(of: nn.Module) -> float:
        with torch.no_grad():
            return next_token_loss(of, tokens).item()

    changes = []
    for delta in (1.0, 1e-1, 1e-2, 1e-3):
        cut = copy.deepcopy(model)
        layers = [m for m in cut.modules() if isinstance(m, SVDLinear)]
        with torch.no_grad():
            for layer in layers:
                layer.s[layer.rank // 2 :] *= delta
        before = loss(cut)
        for layer in layers:
            W, half = layer.dense().detach(), layer.rank // 2
            dropped = layer.s.detach()[half:].square().sum()
            layer.apply_change(canonical(*(p.detach() for p in layer.role_parameters()), half))
            discarded = (W - layer.dense().detach()).square().sum()
            torch.testing.assert_close(discarded, dropped, rtol=1e-6, atol=0)  # trained in float32
        changes.append(abs(loss(cut) - before))
    assert changes[0] > 0
    for i, delta in ((1, 1e-1), (2, 1e-2), (3, 1e-3)):
        assert changes[i] <= 5 * delta * max(changes[0], 1e-3)  # 5: the loss is no straight line


# ---- the run


def ranks_in(lines: list[dict]) -> list[set[float]]:
    return [{v["rank"] for v in line["matrices"].values()} for line in lines if "matrices" in line]


def test_a_run_shrinks_and_tells_so(text_folder: Path, tmp_path: Path) -> None:
    config = config_for(text_folder, "tsvd", **SHRINK, **{"log.telemetry_every": 1})
    trainer = trainer_for(config, tmp_path / "plan")
    start = trainer.plan
    summary = run_training(config, tmp_path / "run")
    ranks = ranks_in(metrics(tmp_path / "run"))
    assert ranks[0] == {16.0}
    assert max(ranks[1]) < 16, "measured after the event of update 2"
    assert max(ranks[-1]) < max(ranks[1])
    # State is the largest of the run, which is that of the start; the counts are at the last ranks.
    assert summary["state_bytes_planned"] == summary["state_bytes_measured"] == start.state_bytes
    assert summary["params_total"] < start.params_total
    assert 0 < summary["train_flops"] < 8 * start.flops_per_step
    assert summary["train_flops"] > 8 * (
        summary["flops_per_token"] * 64 + summary["optimizer_flops_per_step"]
    )
    assert "Rank chosen by the energy" in (tmp_path / "run" / "report.html").read_text()
    errors = [
        v["orthonormality_error"]
        for line in metrics(tmp_path / "run")
        if "matrices" in line
        for v in line["matrices"].values()
    ]
    assert max(errors) <= 1e-6


@pytest.mark.parametrize("grow", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_resume_across_events_is_exact(stop: int, grow: bool, text_folder: Path, tmp_path: Path) -> None:
    # One event only: columns that grew at update 2 have no energy yet at update 4, and would be cut again.
    growth = {"layer.energy": 0.999, "layer.max_rank": 24, "layer.rank_events": [0.25]} if grow else {}
    config = config_for(text_folder, "tsvd", **(SHRINK | growth), **{"checkpoint.every": 1})
    run_training(config, tmp_path / "whole")
    trainer = trainer_for(config, tmp_path / "parts")

    class Killed(Exception):
        pass

    advance = trainer._advance

    def advance_then_die(board: object) -> None:
        advance(board)
        if trainer.progress.step == stop:
            raise Killed

    trainer._advance = advance_then_die
    with pytest.raises(Killed):
        trainer.run()
    resumed = run_training(config, tmp_path / "parts")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)
    ranks = {len(t) for name, t in load_tensors(tmp_path / "parts").items() if name.endswith(".s")}
    assert max(ranks) > 16 if grow else max(ranks) < 16
    assert resumed["state_bytes_planned"] == resumed["state_bytes_measured"]


def load_tensors(run: Path) -> dict[str, Tensor]:
    return CheckpointStore(run / "checkpoints").load(8).parts["model"]


def test_a_trained_run_is_loaded_at_its_ranks(text_folder: Path, tmp_path: Path) -> None:
    run_training(config_for(text_folder, "tsvd", **SHRINK), tmp_path)
    run = load_run(tmp_path, "cpu", Console(quiet=True))
    saved = load_tensors(tmp_path)
    assert all(torch.equal(t, saved[name]) for name, t in model_tensors(run.model).items())
    assert any(m.rank < 16 for m in run.model.modules() if isinstance(m, SVDLinear))


def test_layers_of_fixed_rank_still_refuse_other_ranks(text_folder: Path, tmp_path: Path) -> None:
    saved = model_tensors(trainer_for(config_for(text_folder, "tsvd"), tmp_path).model)
    store = CheckpointStore(tmp_path / "saved")
    store.save(0, {"model": saved}, {})
    fixed = trainer_for(config_for(text_folder, "tsvd", **{"layer.energy": 0.0, "layer.rank": 8}), tmp_path)
    with pytest.raises(LowriseError, match="another model"):
        load_saved_model(fixed.model, store.load(0))


def test_adaptive_ranks_need_an_optimizer_that_keeps_orthonormality(
    text_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"set layer\.energy = 0, or use TSVD"):
        trainer_for(config_for(text_folder, "tsvd", **{"optimizer.name": "adamw"}), tmp_path)
    config = config_for(text_folder, "tsvd", **{"optimizer.name": "adamw", "layer.energy": 0.0})
    assert run_training(config, tmp_path)["status"] == "completed"


def test_the_method_with_another_layer_takes_none_of_its_options(text_folder: Path, tmp_path: Path) -> None:
    config = config_for(text_folder, "tsvd", **{"layer.name": "lowrank", "optimizer.name": "adamw"})
    assert not hasattr(config.layer, "energy")
    assert run_training(config, tmp_path)["status"] == "completed"


def test_events_depend_on_weights_number_and_seed_alone(text_folder: Path, tmp_path: Path) -> None:
    config = config_for(text_folder, "tsvd", **{"layer.energy": 0.999, "layer.max_rank": 24})
    results = []
    for _ in range(2):
        trainer = trainer_for(config, tmp_path)
        torch.manual_seed(len(results))  # the global generator is not used
        change_ranks(trainer.model, trainer.optimizer, 1, 10, 5)
        results.append({k: t.clone() for k, t in model_tensors(trainer.model).items()})
    assert all(torch.equal(t, results[1][k]) for k, t in results[0].items())
    plan = plan_of(config, trainer.model, trainer.optimizer)
    assert plan.state_bytes == trainer.optimizer.state_bytes()


def test_compiled_blocks_are_traced_again(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traced run goes through the same ranks and ends near the eager one; code generation is left out."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    results = []
    for flag in (False, True):
        config = config_for(text_folder, "tsvd", **SHRINK, **{"train.compile": flag})
        results.append(run_training(config, tmp_path / str(flag)))
    eager, compiled = (load_tensors(tmp_path / str(flag)) for flag in (False, True))
    assert {k: t.shape for k, t in eager.items()} == {k: t.shape for k, t in compiled.items()}
    assert results[0]["val_loss"] == pytest.approx(results[1]["val_loss"], rel=1e-3)  # float32, fused kernels
