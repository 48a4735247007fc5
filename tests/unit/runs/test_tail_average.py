"""The average of the last weights: its values, what reads it, and that training does not see it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import config_for, console, corpus_of, metrics, run_training, saved_weights, trainer_for

from lowrise.checkpoint import CheckpointStore
from lowrise.config import advice, load
from lowrise.config.sections import EmaSection
from lowrise.distributed import World
from lowrise.errors import UsageError
from lowrise.evaluation.measure import evaluate_run
from lowrise.layers import LowRankLinear
from lowrise.methods import METHODS
from lowrise.optim import LORO, Spectron
from lowrise.runs.load import load_run
from lowrise.runs.planner import Planned
from lowrise.runs.tail_average import PART, Tail, TailAverage
from lowrise.train.step import TrainStep

EMA = {"ema.start": 4, "ema.horizon": 3, "ema.blend": 0.6}
CONSTANT = {"schedule.name": "constant", "schedule.warmup": 2}


def step_of(config):
    return TrainStep(config, corpus_of(config), World(), notice=lambda text: None, say=lambda text: None)


def copies(step):
    return {name: p.detach().clone() for name, p in step.model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_values_are_those_of_the_formula_and_training_does_not_see_them(text_folder, method):
    plain = step_of(config_for(text_folder, method))
    step = step_of(config_for(text_folder, method, **EMA))
    expected: dict[str, torch.Tensor] = {}
    for number in range(1, 9):
        assert step().loss == plain().loss
        weights = copies(step)
        merged = method == "relora" and number % 3 == 0
        for name, W in weights.items() if number >= 4 else ():
            known = expected.get(name)
            anew = known is None or known.shape != W.shape or (merged and name.endswith((".A", ".B")))
            expected[name] = W if anew else known + (W - known) / 3
    assert all(torch.equal(a, b) for a, b in zip(copies(plain).values(), weights.values(), strict=True))
    trained = {name for name, p in step.model.named_parameters() if p.requires_grad}
    assert step.average.tensors.keys() == trained
    for name, E in step.average.tensors.items():
        if method != "tsvd" or not name.endswith((".U", ".s", ".V")):  # rank events begin these anew
            torch.testing.assert_close(E, expected[name], rtol=1e-5, atol=1e-7)  # one rounding apart


def test_evaluated_saved_and_loaded_beside_the_raw_weights(text_folder, tmp_path):
    plain = run_training(config_for(text_folder, "spectron"), tmp_path / "plain")
    summary = run_training(config_for(text_folder, "spectron", **EMA), tmp_path / "run")
    assert summary["val_loss"] == plain["val_loss"]
    raw, before = saved_weights(tmp_path / "run", 8), saved_weights(tmp_path / "plain", 8)
    assert all(torch.equal(raw[name], before[name]) for name in raw)

    E = CheckpointStore(tmp_path / "run" / "checkpoints").load(8).parts[PART]
    for name, p in load_run(tmp_path / "run", "cpu", console(), weights="ema").model.named_parameters():
        torch.testing.assert_close(p.detach(), 0.4 * raw[name] + 0.6 * E[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(p, raw[name])
    losses = {w: evaluate_run(tmp_path / "run", "cpu", console(), weights=w) for w in ("raw", "ema")}
    assert losses["raw"]["val_loss"] == summary["val_loss"]
    assert losses["ema"]["val_loss"] == summary["ema_val_loss"] != summary["val_loss"]
    lines = [line for line in metrics(tmp_path / "run") if "val_loss" in line]
    assert [line["step"] for line in lines if "ema_val_loss" in line] == [4, 8]


def test_no_average_is_a_message(text_folder, tmp_path):
    run_training(config_for(text_folder, "lowrank"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"its recipe has no \[ema\]\. Take --weights raw"):
        load_run(tmp_path / "run", "cpu", console(), weights="ema")


@pytest.mark.parametrize("method", ["spectron", "loro", "relora", "tsvd", "selfguided"])
def test_a_stopped_run_has_the_bits_of_the_whole_one(text_folder, tmp_path, method):
    often = {"optimizer.exact_every": 5} if method == "loro" else {}
    config = config_for(text_folder, method, **EMA, **often, **{"checkpoint.every": 1, "checkpoint.keep": 9})
    run_training(config, tmp_path / "whole")
    trainer = trainer_for(config, tmp_path / "stopped")
    advance = trainer._advance

    def then_stop(board):
        advance(board)
        if trainer.progress.step == 6:
            trainer.keeping.saver.finish()
            raise InterruptedError

    trainer._advance = then_stop
    with pytest.raises(InterruptedError):
        trainer.run()
    run_training(config, tmp_path / "stopped")
    for part in ("model", PART):
        one, two = (
            CheckpointStore(tmp_path / n / "checkpoints").load(8).parts[part] for n in ("whole", "stopped")
        )
        assert list(one) == list(two)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_evaluations_leave_the_weights_as_they_are(text_folder, tmp_path):
    for every in (0, 1):
        run_training(config_for(text_folder, "tsvd", **EMA, **{"eval.every": every}), tmp_path / str(every))
    one, two = (CheckpointStore(tmp_path / n / "checkpoints").load(8).parts for n in "01")
    for part in ("model", PART):
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])


def test_orthonormal_factors_are_orthonormal_in_what_is_evaluated(text_folder):
    step = step_of(config_for(text_folder, "tsvd", **EMA, **{"layer.energy": 0.0}))
    for _ in range(8):
        step()
    before = copies(step)
    with step.average.in_the_model(step.model):
        errors = [
            m.orthonormality_error() for m in step.model.modules() if hasattr(m, "orthonormality_error")
        ]
        assert errors
        assert max(errors) < 1e-6
        moved = copies(step)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), copies(step).values(), strict=True))
    name = "model.layers.0.mlp.up_proj.U"
    mixed = 0.4 * before[name] + 0.6 * step.average.tensors[name]
    torch.testing.assert_close(moved[name], mixed, rtol=0, atol=2e-2)  # the nearest orthonormal one


@pytest.mark.parametrize("method", ["muonh", "spectronh"])
def test_fixed_norms_are_fixed_in_what_is_evaluated(text_folder, tmp_path, method):
    step = step_of(config_for(text_folder, method, **EMA, **CONSTANT))
    for _ in range(8):
        step()
    before, average = product_norms(step.model), step.average.tensors
    mean = {name: 0.4 * p + 0.6 * average[name] for name, p in copies(step).items()}
    with step.average.in_the_model(step.model):
        torch.testing.assert_close(product_norms(step.model), before, rtol=1e-5, atol=0)
        moved = copies(step)
    with torch.no_grad():
        for name, p in step.model.named_parameters():
            p.copy_(mean[name])
    assert (product_norms(step.model) < (1 - 1e-4) * before).all()  # what there is to bring back
    for name, p in moved.items():  # along the mean: nothing but its norm has changed
        torch.testing.assert_close(p / p.norm(), mean[name] / mean[name].norm(), rtol=1e-4, atol=1e-6)

    summary = run_training(config_for(text_folder, method, **EMA, **CONSTANT), tmp_path / "run")
    loaded = load_run(tmp_path / "run", "cpu", console(), weights="ema").model
    torch.testing.assert_close(product_norms(loaded), before, rtol=1e-5, atol=0)
    again = evaluate_run(tmp_path / "run", "cpu", console(), weights="ema")
    assert again["val_loss"] == summary["ema_val_loss"]


@torch.no_grad()
def product_norms(model):
    """||W||_F of every matrix inside the blocks, and ||A B^T||_F of every pair."""
    products = [m.A @ m.B.mT for m in model.modules() if isinstance(m, LowRankLinear)]
    dense = [m.weight for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    return torch.stack([W.norm() for W in products + dense])


@pytest.mark.parametrize("rule", ["spectron", "loro", "staggered"])
def test_a_new_basis_begins_the_average_anew(rule):
    torch.manual_seed(0)
    layers = [LowRankLinear(12, 10, 3) for _ in range(2)]
    pairs = [
        (f"{i}.{k}", p)
        for i, layer in enumerate(layers)
        for k, p in zip("AB", layer.parameters(), strict=True)
    ]
    group = {"params": pairs, "role": "factors"}
    if rule == "spectron":
        optimizer = Spectron([group], lr=0.1, rebalance_every=3)
    else:
        optimizer = LORO([group], lr=0.1, exact_every=4, stagger=rule == "staggered", restart_warmup=0)
    average = TailAverage(Tail(1, 10, 1.0), optimizer)
    anew = []
    for number in range(1, 7):
        for _, p in pairs:
            p.grad = torch.randn_like(p)
        optimizer.step()
        average.after_update(number, optimizer.rewritten())
        anew.append([name for name, p in pairs if torch.equal(average.tensors[name], p)])
    every = ["0.A", "0.B", "1.A", "1.B"]
    assert (
        anew
        == {
            "spectron": [every, [], every, [], [], every],
            "loro": [every, [], [], every, [], []],
            "staggered": [every, every[2:], [], every[:2], [], every[2:]],
        }[rule]
    )


def test_start_horizon_and_blend_by_default():
    assert Tail.of(EmaSection(), 1000) is None
    assert Tail.of(EmaSection(start=0.75), 1000) == Tail(750, 50, 0.6)
    assert Tail.of(EmaSection(start=1.0, horizon=7, blend=1.0), 1000) == Tail(1, 7, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ema.start": 0.0}, "ema.start = 0.0 cannot be"),
        ({"ema.start": 1001}, "an update of 1 to train.steps = 1000"),
        ({"ema.start": 0.5, "ema.horizon": 0}, "ema.horizon = 0 cannot be"),
        ({"ema.start": 0.5, "ema.blend": 1.5}, "ema.blend = 1.5 cannot be"),
        ({"ema.horizon": 5}, "no average begins"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        load(None, values)


def test_a_long_horizon_is_told():
    assert not advice(load(None, {"ema.start": 0.5, "ema.horizon": 100}))
    (sentence,) = advice(load(None, {"ema.start": 0.9, "ema.horizon": 100}))
    assert "37% of the average will be the weights at its start" in sentence
    assert "at most 20" in sentence


def test_what_may_change_between_two_starts(text_folder, tmp_path):
    def go(steps, **ema):
        settings = CONSTANT | {"train.steps": steps} | {f"ema.{key}": value for key, value in ema.items()}
        return run_training(config_for(text_folder, "lowrank", **settings), tmp_path / "run")

    go(4)
    assert "ema_val_loss" in go(6, start=5, horizon=2)
    go(7, start=5, horizon=2, blend=1.0)
    with pytest.raises(UsageError, match=r"another average .*ema\.horizon 2 there.*ema\.horizon 3 here"):
        go(8, start=5, horizon=3)
    with pytest.raises(UsageError, match=r"give what it had, or an ema\.start above 7"):
        go(8, start=4, horizon=2)
    assert "ema_val_loss" not in go(8)


def test_the_plan_counts_one_more_copy():
    def planned(**more):
        return Planned(load(None, {"method": "lora", "model.preset": "nano", **more}), 300)

    without, with_it = planned(), planned(**{"ema.start": 0.9})
    trained = 4 * sum(p.numel() for p in with_it.model.parameters() if p.requires_grad)
    assert without.on_device().average == 0
    assert with_it.on_device().average == trained
    assert with_it.on_device().peak == without.on_device().peak + trained
    assert Planned(with_it.config, 300, devices=2).on_device().average == trained
    by_rows = {"parallel.data": "fsdp", "parallel.replicate_below": 1}
    shared = load(None, {"method": "lora", "model.preset": "nano", "ema.start": 0.9, **by_rows})
    assert Planned(shared, 300, devices=2).on_device().average == trained / 2


def test_the_hash_of_a_run_without_it_is_what_it_was():
    config = load(None, {"method": "spectron"})
    assert config.to_dict()["ema"] == {}
    assert config.hash != load(None, {"method": "spectron", "ema.start": 0.9}).hash


def test_exported_under_a_name_of_its_own(text_folder, tmp_path: Path):
    from safetensors.torch import load_file

    from lowrise.export.export import export_run
    from lowrise.export.options import ExportOptions

    run_training(config_for(text_folder, "spectron", **EMA), tmp_path / "run")
    folders = {
        w: export_run(ExportOptions(run=tmp_path / "run", to="safetensors", weights=w), console()).folder
        for w in ("raw", "ema")
    }
    assert [folders[w].name for w in ("raw", "ema")] == ["safetensors", "safetensors-ema"]
    there = {w: load_file(folder / "model.safetensors") for w, folder in folders.items()}
    expected = dict(load_run(tmp_path / "run", "cpu", console(), weights="ema").model.named_parameters())
    assert all(torch.equal(there["ema"][name], p) for name, p in expected.items())
    raw = saved_weights(tmp_path / "run", 8)
    assert all(torch.equal(there["raw"][name], raw[name]) for name in raw)
