"""ReLoRA's resets, alone and in the trainer; traps of methods/lora_relora.md, sections 2.2, 2.3 and 5."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import config_for, trainer_for
from torch import Tensor, nn

from lowrise.errors import UsageError
from lowrise.layers import LoRALinear
from lowrise.optim import ReLoRAAdamW
from lowrise.optim.relora import small_entries
from lowrise.runs.weights import model_tensors
from lowrise.train.schedule import multiplier


def optimizer_of(params: list[nn.Parameter], **options: object) -> ReLoRAAdamW:
    return ReLoRAAdamW([{"params": params, "role": "factors"}], lr=0.1, **options)  # type: ignore[arg-type]


def moved(params: list[nn.Parameter], optimizer: ReLoRAAdamW, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)
    optimizer.step()
    return [p.detach() - old for p, old in zip(params, before, strict=True)]


def pair() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(7, 4))]


@pytest.mark.parametrize(("betas", "size"), [((0.9, 0.999), 3.16), ((0.9, 0.95), 0.447)])
def test_after_zeroing_the_counter_goes_on_and_the_first_update_has_the_known_size(betas, size) -> None:
    params = pair()
    optimizer = optimizer_of(params, reset_every=50, betas=betas)
    for t in range(2000):
        moved(params, optimizer, t)
    optimizer.after_update(50, 100)
    assert all(not optimizer.state[p][k].any() for p in params for k in ("exp_avg", "exp_avg_sq"))
    assert {optimizer.state[p]["step"].item() for p in params} == {2000}
    for step in moved(params, optimizer, 5000):
        # (1-b1)/sqrt(1-b2), to three digits; b2^2000 = 0.135 remains of the bias correction for 0.999
        torch.testing.assert_close(step.abs() / 0.1, torch.full_like(step, size), rtol=0.08, atol=0)


def test_only_factors_are_reset_and_only_when_due() -> None:
    factors, other = pair(), [nn.Parameter(torch.randn(5))]
    groups = [{"params": factors, "role": "factors"}, {"params": other, "role": "other"}]
    optimizer = ReLoRAAdamW(groups, lr=0.1, reset_every=3)
    moved([*factors, *other], optimizer, 0)
    for number in (1, 2, 4, 6):
        before = {k: v.clone() for p in factors for k, v in optimizer.state[p].items()}
        optimizer.after_update(number, 6)
        assert all(torch.equal(v, before[k]) for k, v in optimizer.state[factors[1]].items())
    optimizer.after_update(3, 6)
    assert not optimizer.state[factors[0]]["exp_avg"].any()
    assert optimizer.state[other[0]]["exp_avg"].any()
    assert optimizer.resets(10) == (3, 6, 9)
    assert optimizer.resets(9) == (3, 6)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_the_threshold_is_torchs_quantile(share: float) -> None:
    x = torch.randn(23, 17)
    assert torch.equal(small_entries(x, share), x.abs() <= torch.quantile(x.abs(), share))


def test_separate_masks_leave_a_first_moment_without_a_second_and_a_joint_one_does_not() -> None:
    bare = {}
    for how in ("magnitude", "joint", "zero"):
        torch.manual_seed(0)
        params = pair()
        optimizer = optimizer_of(params, reset_every=1, reset=how, prune=0.9)
        for t in range(5):
            moved(params, optimizer, t)
        optimizer.after_update(1, 9)
        states = [optimizer.state[p] for p in params]
        bare[how] = sum(int(((s["exp_avg"] != 0) & (s["exp_avg_sq"] == 0)).sum()) for s in states)
        kept = sum(int((s["exp_avg"] != 0).sum()) for s in states)
        assert kept == {"magnitude": 7, "joint": 7, "zero": 0}[how]  # 10% of 36 and of 28, rounded up
    assert bare["magnitude"] > 0
    assert bare["joint"] == bare["zero"] == 0


@pytest.mark.parametrize(("reset", "explodes"), [("zero", False), ("joint", False), ("magnitude", True)])
def test_the_hazard_of_separate_masks_on_gradients_of_order_one(reset: str, explodes: bool) -> None:
    """A regression without a restart warm-up: where m outlives v, the step is lr m / eps."""
    torch.manual_seed(0)
    layer = LoRALinear(12, 8, 3, merge_every=20, dtype=torch.float64)
    target = torch.randn(8, 12, dtype=torch.float64)
    factors = list(layer.role_parameters())
    optimizer = ReLoRAAdamW(
        [{"params": factors, "role": "factors"}], lr=0.01, reset_every=20, reset=reset, prune=0.9
    )
    losses = []
    for number in range(1, 41):
        x = torch.randn(16, 12, dtype=torch.float64)
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        layer.after_update(number, 60)
        optimizer.after_update(number, 60)
        losses.append(loss.item())
    assert (max(losses[20:]) > 1e6) is explodes
    assert max(losses[:20]) < 30


@pytest.mark.parametrize("options", [{"reset": "all"}, {"reset_every": -1}, {"prune": 1.5}])
def test_impossible_options_get_a_sentence(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        optimizer_of(pair(), **options)


# --- in the trainer -----------------------------------------------------------------------------------------


def test_merge_reset_and_rate_zero_fall_on_the_same_update(text_folder, tmp_path) -> None:
    """cycle 3 of 8 updates: 3 and 6, and not the last one."""
    trainer = trainer_for(config_for(text_folder, "relora"), tmp_path)
    layer = trainer.train_step.low_rank_layers[0]
    state = trainer.optimizer.state[layer.A]
    seen = []
    for number in range(1, 9):
        before, A = layer.dense().detach().clone(), layer.A.detach().clone()
        rate = trainer.update().lr
        merged = number > 1 and A.any() and not layer.A.any()
        assert merged == (not state["exp_avg"].any())
        if merged:
            seen.append(number)
            assert rate == 0
            # lr 0 and a merge: the weight stays as it was, to rounding of entries of order 0.1 in float32
            torch.testing.assert_close(layer.dense(), before, rtol=0, atol=1e-7)
        else:
            assert rate > 0
    assert seen == [3, 6]
    assert state["step"].item() == 8


def test_a_skipped_update_does_not_set_merges_and_resets_apart(text_folder, tmp_path) -> None:
    trainer = trainer_for(config_for(text_folder, "relora"), tmp_path)
    layer = trainer.train_step.low_rank_layers[0]
    parameter = trainer.optimizer.param_groups[0]["params"][0]
    trainer.update()
    handle = parameter.register_hook(lambda grad: torch.full_like(grad, math.nan))
    trainer.update()
    handle.remove()
    assert trainer.progress.skipped == 1
    trainer.update()
    assert not layer.A.any()
    assert not trainer.optimizer.state[layer.A]["exp_avg"].any()


def test_a_dip_begins_at_the_reset_only_once(text_folder, tmp_path) -> None:
    trainer = trainer_for(config_for(text_folder, "relora"), tmp_path)
    assert trainer.train_step.restarts == (3, 6)
    values = [multiplier(u, 8, trainer.config.schedule, trainer.train_step.restarts) for u in range(1, 9)]
    assert [u for u, value in enumerate(values, 1) if value == 0] == [3, 6]
    assert values[-1] == pytest.approx(trainer.config.schedule.min_lr_ratio)


def test_one_cycle_is_lora(text_folder, tmp_path) -> None:
    off = {"layer.merge_every": 0, "optimizer.reset_every": 0, "schedule.cycle": 0}
    betas = {"optimizer.betas": [0.9, 0.95]}
    weights = []
    for method, options in (("lora", {}), ("relora", off)):
        trainer = trainer_for(config_for(text_folder, method, **betas, **options), tmp_path / method)
        for _ in range(8):
            trainer.update()
        weights.append(model_tensors(trainer.model))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.parametrize("key", ["optimizer.reset_every", "schedule.cycle"])
def test_merges_at_another_pace_than_resets_or_restarts_are_refused(text_folder, key: str) -> None:
    with pytest.raises(UsageError, match=rf"{key} = 4 and layer.merge_every = 3"):
        config_for(text_folder, "relora", **{key: 4})
    assert config_for(text_folder, "relora", **{key: 0})  # each ingredient can be switched off alone
