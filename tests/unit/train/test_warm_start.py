"""`[init] run = FOLDER`: dense weights become W0, and what does not fit is a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import config_for, final_tensors, run_training, trainer_for

from lowrise.errors import UsageError
from lowrise.runs.weights import model_tensors
from lowrise.train.loop import Trainer


@pytest.fixture(scope="module")
def dense_run(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    run_training(config_for(text_folder, "adamw"), folder)
    return folder


def started(text_folder: Path, tmp_path: Path, method: str, **settings: object) -> Trainer:
    trainer = trainer_for(config_for(text_folder, method, **settings), tmp_path)
    trainer.directory.begin(trainer.config)
    trainer._resume()
    return trainer


@pytest.mark.parametrize("method", ["relora", "lora", "adamw"])
def test_the_function_is_the_dense_runs(method, text_folder, dense_run, tmp_path) -> None:
    source = trainer_for(config_for(text_folder, "adamw"), dense_run)
    source._resume()
    trainer = started(text_folder, tmp_path, method, **{"init.run": str(dense_run), "seed": 5})
    assert trainer.progress.step == 0
    assert trainer.progress.init_tokens == source.progress.tokens == 8 * 4 * 16
    assert trainer.progress.init_flops == 8 * source.plan.flops_per_step
    tokens = torch.arange(12)[None]
    # W0 is the dense weight to the bit; the empty product only changes the order of sums.
    torch.testing.assert_close(trainer.model(tokens), source.model(tokens), rtol=0, atol=1e-5)
    if method != "adamw":
        layer = trainer.model.model.layers[1].mlp.up_proj
        assert torch.equal(layer.W0, source.model.model.layers[1].mlp.up_proj.weight)
        assert layer.B.any()


@pytest.mark.parametrize("method", ["lowrank", "sltrain"])
def test_other_layers_take_the_weights_as_well_as_their_form_allows(
    method, text_folder, dense_run, tmp_path
) -> None:
    source = trainer_for(config_for(text_folder, "adamw"), dense_run)
    source._resume()
    weight = source.model.model.layers[0].self_attn.q_proj.weight
    best = torch.linalg.svdvals(weight)
    for rank, bar in ((16, best[16:].norm()), (64, 1e-4 * best.norm())):  # all of the rank: float32 rounding
        folder = tmp_path / str(rank)
        settings = {"init.run": str(dense_run), "layer.rank": rank}
        layer = started(text_folder, folder, method, **settings).model.model.layers[0].self_attn.q_proj
        assert (layer.dense() - weight).norm() <= bar * (1 + 1e-5)


def test_a_run_of_the_same_layer_is_continued_from_its_factors(text_folder, tmp_path) -> None:
    run_training(config_for(text_folder, "relora"), tmp_path / "first")
    settings = {"init.run": str(tmp_path / "first"), "init.step": 4, "seed": 5}
    trainer = started(text_folder, tmp_path / "second", "relora", **settings)
    first = trainer_for(config_for(text_folder, "relora"), tmp_path / "first")
    saved = first.directory.checkpoints.load(4).parts["model"]
    assert all(torch.equal(value, saved[key]) for key, value in model_tensors(trainer.model).items())
    assert trainer.progress.init_tokens == 4 * 4 * 16


def test_a_run_that_starts_warm_resumes_exactly_and_tells_its_cost(text_folder, dense_run, tmp_path) -> None:
    config = config_for(text_folder, "relora", **{"init.run": str(dense_run), "seed": 5})
    summary = run_training(config, tmp_path / "whole")
    assert summary["init_tokens"] == 8 * 4 * 16
    assert summary["init_flops"] > 0
    run_training(config, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000008")  # back to update 4
    again = run_training(config, tmp_path / "parts")
    assert again["init_tokens"] == summary["init_tokens"]
    assert final_tensors(tmp_path / "whole", 8) == final_tensors(tmp_path / "parts", 8)
    fresh = run_training(config_for(text_folder, "relora", seed=5), tmp_path / "fresh")
    assert fresh["init_tokens"] == fresh["init_flops"] == 0
    assert summary["val_loss"] < fresh["val_loss"]


def test_the_same_batches_again_are_said(text_folder, dense_run, tmp_path) -> None:
    for seed, expected in ((0, True), (5, False)):
        settings = {"init.run": str(dense_run), "seed": seed}
        trainer = started(text_folder, tmp_path / str(seed), "lora", **settings)
        said = trainer.display.console.file.getvalue()
        assert "run of the method adamw" in said
        assert ("come again in the same order" in said) is expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"init.run": "absent"}, "absent is not a run directory"),
        ({"init.step": 5}, r"init.step = 5 is no checkpoint of .*; it has 4, 8"),
        ({"model.hidden_size": 32}, r"does not fit: .* is \(64, 64\) there and \(32, 32\) here"),
        ({"model.num_layers": 3}, r"it has no model.layers.2.*which this model has"),
        ({"model.num_layers": 1}, r"it has model.layers.1.*for which this model has no place"),
        ({"data.vocab_size": 280}, "trained with another tokenizer"),
    ],
)
def test_what_does_not_fit_is_a_sentence_and_changes_nothing(
    settings, sentence, text_folder, dense_run, tmp_path
) -> None:
    config = config_for(text_folder, "relora", **{"init.run": str(dense_run), **settings})
    trainer = trainer_for(config, tmp_path)
    trainer.directory.begin(config)
    before = {k: v.clone() for k, v in model_tensors(trainer.model).items()}
    with pytest.raises(UsageError, match=sentence):
        trainer._resume()
    assert all(torch.equal(v, before[k]) for k, v in model_tensors(trainer.model).items())


def test_a_factored_run_cannot_be_taken_over_by_another_form(text_folder, tmp_path) -> None:
    run_training(config_for(text_folder, "lowrank"), tmp_path / "first")
    for method, missing in (("adamw", r"q_proj\.weight"), ("lora", r"q_proj\.W0")):
        with pytest.raises(UsageError, match=rf"it has no model.layers.0.self_attn.{missing}"):
            started(text_folder, tmp_path / method, method, **{"init.run": str(tmp_path / "first")})


def test_a_damaged_checkpoint_of_the_other_run_is_left_where_it_is(text_folder, dense_run, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dense_run, copy)
    manifest = copy / "checkpoints" / "step-00000008" / "checkpoint.json"
    manifest.write_text(json.dumps({"format": 3}))
    with pytest.raises(Exception, match="cannot be read"):
        started(text_folder, tmp_path / "new", "lora", **{"init.run": str(copy)})
    assert manifest.exists()


def test_a_step_without_a_run_is_refused(text_folder) -> None:
    with pytest.raises(UsageError, match=r"init\.step = 4"):
        config_for(text_folder, "lora", **{"init.step": 4})
