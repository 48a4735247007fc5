"""What every method promises in the trainer. A new row of the table of methods is tested by being there."""

import json
import math
import os
import signal

import pytest
import torch
from small_runs import config_for, corpus_of, final_tensors, metrics, run_training, trainer_for, write_text

from lowrise.config import load
from lowrise.errors import LowriseError, UsageError
from lowrise.methods import METHODS
from lowrise.runs.build import build_optimizer
from lowrise.runs.weights import model_tensors
from lowrise.train import RunDirectory
from lowrise.train.loop import Interrupted
from lowrise.train.step import TrainStep

SUMMARY_KEYS = [
    "method",
    "layer",
    "optimizer",
    "seed",
    "config_hash",
    "tokens",
    "steps",
    "params_total",
    "params_non_embedding",
    "train_flops",
    "flops_per_token",
    "val_loss",
    "val_perplexity",
    "val_bits_per_byte",
    "tokens_per_second",
    "wall_seconds",
    "optimizer_step_ms",
    "state_bytes_planned",
    "state_bytes_measured",
    "peak_memory_bytes",
    "status",
]
METRIC_KEYS = ["step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "step_ms"]
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
def test_a_run_leaves_what_the_design_names(method, text_folder, tmp_path):
    config = config_for(text_folder, method, **{"log.tensorboard": True})
    summary = run_training(config, tmp_path)
    on_disk = json.loads((tmp_path / "summary.json").read_text())
    assert on_disk == summary
    assert set(SUMMARY_KEYS) <= summary.keys()
    assert all(summary[key] is not None for key in SUMMARY_KEYS)
    assert summary["status"] == "completed"
    assert summary["tokens"] == 8 * 4 * 16
    assert math.isclose(summary["val_perplexity"], math.exp(summary["val_loss"]))
    for name in (
        "config.toml",
        "environment.json",
        "tensorboard",
        "report.html",
        "tokenizer.json",
        "sample.txt",
    ):
        assert (tmp_path / name).exists(), name
    assert load(tmp_path / "config.toml") == config
    lines = metrics(tmp_path)
    updates = [line for line in lines if "loss" in line]
    assert [line["step"] for line in updates] == list(range(1, 9))
    assert all(set(METRIC_KEYS) <= line.keys() for line in updates)
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 8]


@every_method
def test_state_is_what_was_planned(method, text_folder, tmp_path):
    trainer = trainer_for(config_for(text_folder, method), tmp_path)
    assert trainer.plan.state_bytes == trainer.optimizer.state_bytes()
    trainer.update()
    assert trainer.plan.state_bytes == trainer.optimizer.state_bytes()


@every_method
def test_telemetry_measures_every_matrix(method, text_folder, tmp_path):
    run_training(config_for(text_folder, method), tmp_path)
    measured = [line["matrices"] for line in metrics(tmp_path) if "matrices" in line]
    assert len(measured) == 3  # updates 1, 4 and 8
    names = {f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qkvo"}
    names |= {f"model.layers.{i}.mlp.{p}_proj" for i in range(2) for p in ("gate", "up", "down")}
    for matrices in measured:
        assert matrices.keys() == names
        for values in matrices.values():
            if method == "selfguided" and matrices is measured[0]:
                # At the first update the guide has all the weight: the factors do not move yet.
                assert values.pop("update_spectral_norm") == 0
            assert all(math.isfinite(v) and v > 0 for v in values.values())
            # Both ranks lie between 1 and the number of singular values; one part in 10^4 for float32.
            assert (
                1 - 1e-4 <= values["stable_rank"] <= values["effective_rank"] * (1 + 1e-4) <= 64 * (1 + 1e-3)
            )


@every_method
def test_same_recipe_same_bits(method, text_folder, tmp_path):
    config = config_for(text_folder, method)
    for name in "ab":
        run_training(config, tmp_path / name)
    assert final_tensors(tmp_path / "a", 8) == final_tensors(tmp_path / "b", 8)


@every_method
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_resume_is_exact(method, stop, text_folder, tmp_path):
    """Killed after update `stop`: what came after the last checkpoint is done again, and ends in the same
    bits."""
    config = config_for(text_folder, method)
    run_training(config, tmp_path / "whole")
    trainer = trainer_for(config, tmp_path / "parts")

    class Killed(Exception):
        pass

    advance = trainer._advance

    def advance_then_die(board):
        advance(board)
        if trainer.progress.step == stop:
            raise Killed

    trainer._advance = advance_then_die
    with pytest.raises(Killed):
        trainer.run()
    summary = run_training(config, tmp_path / "parts")
    assert summary["status"] == "completed"
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)
    timing = {"tokens_per_second", "step_ms"}
    whole, parts = (
        [{k: v for k, v in line.items() if k not in timing} for line in metrics(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert whole == parts
    lost = tmp_path / "parts" / "metrics.superseded.jsonl"
    assert lost.exists() == (stop != 4)  # nothing that was written is thrown away


@every_method
def test_accumulation_equals_the_big_batch(method, text_folder, tmp_path):
    """In float64, so that only the order of sums differs: 1e-8 of the movement (Newton-Schulz and Adam's
    first steps enlarge the rounding of small gradients by some orders of magnitude)."""
    moved = []
    for micro in (0, 1):
        config = config_for(text_folder, method, **{"train.micro_batch_size": micro})
        trainer = trainer_for(config, tmp_path / str(micro))
        trainer.model.double()
        trainer.train_step.optimizer = build_optimizer(config, trainer.model)
        start = {k: v.clone() for k, v in model_tensors(trainer.model).items()}
        losses = [trainer.update().loss for _ in range(3)]
        moved.append((losses, {k: v - start[k] for k, v in model_tensors(trainer.model).items()}))
    (losses_a, a), (losses_b, b) = moved
    assert losses_a == pytest.approx(losses_b, rel=1e-6)  # reported in float32
    for name in a:
        if not a[name].is_floating_point():  # seeds and supports do not move
            assert not a[name].any()
            assert not b[name].any()
            continue
        assert torch.linalg.vector_norm(a[name] - b[name]) <= 1e-8 * torch.linalg.vector_norm(a[name]), name


@every_method
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(method, text_folder, tmp_path):
    trainer = trainer_for(config_for(text_folder, method), tmp_path)
    trainer.update()
    weights = {k: v.clone() for k, v in model_tensors(trainer.model).items()}
    state = {k: v.clone() for k, v in trainer.optimizer.named_state().items()}
    parameter = trainer.optimizer.param_groups[0]["params"][0]
    handle = parameter.register_hook(lambda grad: torch.full_like(grad, float("nan")))
    update = trainer.update()
    handle.remove()
    assert not update.applied
    assert (trainer.progress.skipped, trainer.progress.skipped_in_a_row) == (1, 1)
    assert all(torch.equal(v, weights[k]) for k, v in model_tensors(trainer.model).items())
    assert all(torch.equal(v, state[k]) for k, v in trainer.optimizer.named_state().items())
    assert trainer.update().applied
    assert trainer.progress.skipped_in_a_row == 0


def test_too_many_skips_in_a_row_stop_with_everything_saved(text_folder, tmp_path):
    config = config_for(text_folder, "adamw", **{"train.nonfinite_limit": 3, "checkpoint.every": 0})
    trainer = trainer_for(config, tmp_path)
    trainer.optimizer.param_groups[0]["params"][0].register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(LowriseError, match=r"3 updates in a row.*not finite"):
        trainer.run()
    assert trainer.directory.checkpoints.steps() == [3]


def test_a_stop_signal_saves_and_the_same_command_continues(text_folder, tmp_path):
    config = config_for(text_folder, "spectron", **{"checkpoint.every": 0})
    run_training(config, tmp_path / "whole")
    trainer = trainer_for(config, tmp_path / "parts")
    update = trainer.update

    def update_then_signal():
        if trainer.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update()

    trainer.update = update_then_signal
    with pytest.raises(Interrupted) as caught:
        trainer.run()
    assert caught.value.exit_code == 143
    assert trainer.directory.checkpoints.steps() == [3]
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["status"] == "interrupted"
    run_training(config, tmp_path / "parts")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)


def test_another_recipe_in_the_same_folder_is_refused(text_folder, tmp_path):
    run_training(config_for(text_folder, "adamw"), tmp_path)
    with pytest.raises(UsageError, match=r"optimizer\.lr: 0.0004 there, 0.5 here"):
        run_training(config_for(text_folder, "adamw", **{"optimizer.lr": 0.5}), tmp_path)


def test_two_processes_cannot_share_a_folder(text_folder, tmp_path):
    with RunDirectory(tmp_path).locked(), pytest.raises(UsageError, match="Another process"):
        run_training(config_for(text_folder, "adamw"), tmp_path)


def test_damaged_newest_checkpoint_costs_only_its_updates(text_folder, tmp_path):
    config = config_for(text_folder, "spectron")
    run_training(config, tmp_path / "whole")
    run_training(config, tmp_path / "hurt")
    file = tmp_path / "hurt" / "checkpoints" / "step-00000008" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    run_training(config, tmp_path / "hurt")
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "hurt", 8)


def test_activation_checkpointing_changes_nothing(text_folder, tmp_path):
    for flag in ("none", "block"):
        run_training(config_for(text_folder, "lowrank", **{"model.recompute": flag}), tmp_path / flag)
    assert final_tensors(tmp_path / "none", 8) == final_tensors(tmp_path / "block", 8)


def test_validation_is_the_mean_over_every_token(text_folder, tmp_path):
    """Against one plain pass, token by token, without windows."""
    config = config_for(text_folder, "adamw", **{"train.seq_len": 16})
    trainer = trainer_for(config, tmp_path)
    corpus = corpus_of(config)
    results = []
    for sequences in (1, 7, 32):
        trainer.config.eval.batch_size = sequences
        results.append(trainer._evaluate(None, whole=True))
    # The same windows in other batches: equal to float32 rounding of the sums.
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].loss == pytest.approx(results[2].loss, rel=1e-6)
    assert {r.tokens for r in results} == {len(corpus.valid)}
    bits = results[0].loss * results[0].tokens / math.log(2)
    assert results[0].bits_per_byte == pytest.approx(bits / corpus.valid.text_bytes, rel=1e-9)


def test_bfloat16_autocast_keeps_float32_weights_and_learns(text_folder, tmp_path):
    config = config_for(text_folder, "spectron", **{"train.precision": "bfloat16", "train.steps": 30})
    summary = run_training(config, tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    trainer = trainer_for(config, tmp_path)
    assert {t.dtype for t in model_tensors(trainer.model).values()} == {torch.float32}
    exact = run_training(config_for(text_folder, "spectron", **{"train.steps": 30}), tmp_path / "float32")
    # bfloat16 products have 8 bits; the losses differ, and by little.
    assert summary["val_loss"] != exact["val_loss"]
    assert summary["val_loss"] == pytest.approx(exact["val_loss"], abs=0.05)


@pytest.mark.slow
def test_compiled_blocks_train_like_eager_ones(text_folder, tmp_path):
    results = [
        run_training(config_for(text_folder, "spectron", **{"train.compile": flag}), tmp_path / str(flag))
        for flag in (False, True)
    ]
    # Fused kernels round differently in float32.
    assert results[0]["val_loss"] == pytest.approx(results[1]["val_loss"], rel=1e-4)


def test_a_stop_signal_does_not_wait_for_the_evaluation(text_folder, tmp_path):
    config = config_for(text_folder, "adamw")
    trainer = trainer_for(config, tmp_path)
    windows = trainer.corpus.valid.windows

    def signal_first(*arguments):
        for batch in windows(*arguments):
            if trainer.progress.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    object.__setattr__(trainer.corpus.valid, "windows", signal_first)
    with pytest.raises(Interrupted):
        trainer.run()
    assert trainer.directory.checkpoints.steps() == [4, 8]
    assert [line["step"] for line in metrics(tmp_path) if "val_loss" in line] == [4]


def test_a_run_does_not_continue_on_another_text(tmp_path):
    text = write_text(tmp_path / "text.jsonl")
    config = config_for(tmp_path, "adamw")
    trainer_for(config, tmp_path / "run").run()
    text.write_text(text.read_text() + '{"text": "one more document"}\n')
    with pytest.raises(UsageError, match="text of this run has changed"):
        run_training(config, tmp_path / "run")


def test_a_failure_is_written_down(text_folder, tmp_path, monkeypatch):
    config = config_for(text_folder, "adamw")

    def out_of_memory(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainStep, "__call__", out_of_memory)
    with pytest.raises(LowriseError, match=r"Out of memory at update 1.*micro_batch_size \(now 4\)"):
        run_training(config, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "CUDA out of memory")
