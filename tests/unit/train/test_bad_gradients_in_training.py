"""What the loop does with gradients that are huge or not finite, and that ordinary ones cost it nothing."""

from __future__ import annotations

import pytest
import torch
from small_runs import config_for, metrics, trainer_for
from torch import Tensor

from lowrise.runs.weights import model_tensors
from lowrise.train.loop import Trainer


def spoil_update(trainer: Trainer, number: int, param: Tensor, factor: float) -> None:
    """The gradient of one parameter is multiplied in one update."""

    def hook(grad: Tensor) -> Tensor:
        return grad * factor if trainer.progress.step == number - 1 else grad

    param.register_hook(hook)


@pytest.mark.parametrize("method", ["adamw", "lowrank", "tsvd", "spectron", "relora"])
def test_one_huge_gradient_without_clipping_leaves_its_unit_alone(method, text_folder, tmp_path):
    config = config_for(text_folder, method, **{"train.grad_clip": 0.0})
    trainer = trainer_for(config, tmp_path)
    group = trainer.optimizer.param_groups[0]
    spoil_update(trainer, 2, group["params"][0], 1e20)
    trainer.update()
    before = {k: v.clone() for k, v in model_tensors(trainer.model).items()}
    update = trainer.update()
    assert 1e16 < update.grad_norm < float("inf")
    assert not update.applied
    assert update.left_alone == 1
    now = model_tensors(trainer.model)
    names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    kept = {name for name in names if torch.equal(now[name], before[name])}
    assert kept == set(group["param_names"][: {"factors": 2, "svd": 3}.get(group["role"], 1)])
    assert trainer.optimizer.skipped_updates() == trainer.progress.skipped_units == 1
    assert all(t.isfinite().all() for t in trainer.optimizer.named_state().values())
    assert trainer.update().applied


def test_it_is_said_logged_summed_up_and_kept_through_a_resume(text_folder, tmp_path):
    said = []
    config = config_for(text_folder, "adamw", **{"train.grad_clip": 0.0})
    trainer = trainer_for(config, tmp_path)
    trainer.display.say = lambda text, **_: said.append(text)
    spoil_update(trainer, 3, trainer.optimizer.param_groups[0]["params"][0], 1e20)
    summary = trainer.run()
    (line,) = [text for text in said if "too large" in text]
    assert line.startswith("step 3: loss")
    assert "1 matrices or vectors are left as they are" in line
    logged = [r["skipped_units"] for r in metrics(tmp_path) if "grad_norm" in r]
    assert logged == [0, 0, 1, 1, 1, 1, 1, 1]
    assert summary["skipped_units"] == 1
    again = trainer_for(config, tmp_path)
    again._resume()
    assert again.progress.skipped_units == 1


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_all_huge_is_a_skipped_update(clip, text_folder, tmp_path):
    """Clipped they are small, and used."""
    trainer = trainer_for(config_for(text_folder, "adamw", **{"train.grad_clip": clip}), tmp_path)
    trainer.update()
    for p in trainer.model.parameters():
        p.register_hook(lambda g: torch.ones_like(g) * 1e16)
    update = trainer.update()
    assert update.applied is (clip > 0)
    assert update.left_alone == 0
    assert all(t.isfinite().all() for t in trainer.optimizer.named_state().values())


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_an_ordinary_update_checks_no_gradient_by_itself(clip, text_folder, tmp_path, monkeypatch):
    trainer = trainer_for(config_for(text_folder, "lowrank", **{"train.grad_clip": clip}), tmp_path)
    monkeypatch.setattr(trainer.optimizer._guard, "sift", lambda *a: pytest.fail("looked at each gradient"))
    assert trainer.update().applied


def test_dips_stay_where_the_other_units_have_their_resets(text_folder, tmp_path):
    """A unit that was left alone comes one update later by itself; an update that moves nothing moves all."""
    config = config_for(
        text_folder,
        "loro",
        **{"train.grad_clip": 0.0, "optimizer.exact_every": 3, "schedule.restart_warmup": 1},
    )
    trainer = trainer_for(config, tmp_path)
    placed = trainer.train_step.restarts
    assert placed
    factor = trainer.optimizer.param_groups[0]["params"][0]
    spoil_update(trainer, 1, factor, 1e20)
    spoil_update(trainer, 2, factor, float("nan"))
    assert trainer.update().left_alone == 1
    assert trainer.train_step.restarts == placed
    assert not trainer.update().applied
    assert trainer.train_step.restarts != placed
