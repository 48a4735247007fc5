"""LORO in the trainer with a K that falls into the run (contract tests end after eight updates, K is 100)."""

import pytest
import torch
from small_runs import config_for, final_tensors, metrics, run_training, trainer_for

from lowrise.runs.build import build_optimizer
from lowrise.runs.weights import model_tensors

SHORT = {"optimizer.exact_every": 3, "schedule.restart_warmup": 2, "schedule.warmup": 0.0}
VARIANTS = pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer.exact_direction": "consistent", "optimizer.retraction": "orthographic"},
        {"optimizer.stagger": True, "optimizer.reset": "factors"},
        {"optimizer.kth_update": "rebalance", "optimizer.reset": "none", "optimizer.transport": True},
    ],
    ids=["authors", "consistent", "staggered", "rebalance"],
)


@VARIANTS
def test_resume_is_exact(more, text_folder, tmp_path):
    """Stopped after update 5, between the exact steps 3 and 6, continued from the checkpoint of update 4."""
    config = config_for(text_folder, "loro", **SHORT, **more)
    run_training(config, tmp_path / "whole")
    trainer = trainer_for(config, tmp_path / "parts")
    advance = trainer._advance

    def advance_then_die(board):
        advance(board)
        if trainer.progress.step == 5:
            raise InterruptedError

    trainer._advance = advance_then_die
    with pytest.raises(InterruptedError):
        trainer.run()
    run_training(config, tmp_path / "parts")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)


@VARIANTS
def test_accumulation_equals_the_big_batch(more, text_folder, tmp_path):
    """float64; 1e-7 of the movement: Adam's first steps after a reset enlarge the rounding of small
    gradients."""
    moved = []
    for micro in (0, 1):
        config = config_for(text_folder, "loro", **SHORT, **more, **{"train.micro_batch_size": micro})
        trainer = trainer_for(config, tmp_path / str(micro))
        trainer.model.double()
        trainer.train_step.optimizer = build_optimizer(config, trainer.model)
        start = {k: v.clone() for k, v in model_tensors(trainer.model).items()}
        for _ in range(5):
            trainer.update()
        moved.append({k: v - start[k] for k, v in model_tensors(trainer.model).items()})
    for name in moved[0]:
        a, b = (m[name] for m in moved)
        assert torch.linalg.vector_norm(a - b) <= 1e-7 * torch.linalg.vector_norm(a), name


def test_the_rate_dips_after_every_reset(text_folder, tmp_path):
    run_training(config_for(text_folder, "loro", **SHORT), tmp_path)
    rates = {line["step"]: line["lr"] for line in metrics(tmp_path) if "loss" in line}
    assert [step for step, rate in rates.items() if rate == 0] == [4, 7]
    assert rates[5] == pytest.approx(rates[6] / 2)


@pytest.mark.parametrize("bad", [2, 3, 4], ids=["before a reset", "the reset itself", "in the dip"])
def test_a_skipped_update_moves_resets_and_dips_alike(bad, text_folder, tmp_path):
    """Moments are dropped after the third and sixth update that is taken, and the next one has rate zero."""
    trainer = trainer_for(config_for(text_folder, "loro", **SHORT), tmp_path)
    factor = trainer.train_step.low_rank_layers[0].A
    rates, dropped = {}, []
    for number in range(1, 9):
        handle = (
            factor.register_hook(lambda grad: torch.full_like(grad, torch.nan)) if number == bad else None
        )
        update = trainer.update()
        if handle is not None:
            handle.remove()
            assert not update.applied
            continue
        rates[number] = update.lr
        if not trainer.optimizer.state[factor]["exp_avg"].any():
            dropped.append(number)
    assert dropped == ([3, 7] if bad == 4 else [4, 7])
    assert [number for number, rate in rates.items() if rate == 0] == [5, 8]


def test_resume_after_a_skipped_update_is_exact(text_folder, tmp_path):
    """The dips of a continued run follow the updates that the first part skipped."""
    config = config_for(text_folder, "loro", **SHORT)

    def trained(folder, stop):
        trainer = trainer_for(config, folder)
        trainer._resume()
        while trainer.progress.step < stop:
            number = trainer.progress.step + 1
            factor = trainer.train_step.low_rank_layers[0].A
            handle = factor.register_hook(lambda grad: torch.full_like(grad, torch.nan))
            if number != 2:
                handle.remove()
            trainer.update()
            handle.remove()
        trainer.keeping.save()
        trainer.keeping.saver.finish()

    trained(tmp_path / "whole", 8)
    trained(tmp_path / "parts", 4)
    trained(tmp_path / "parts", 8)
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)
