"""Training on samples: the loss that counts, exact resume, ranks, early stopping, first weights."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import on_ranks
from sample_runs import TEMPLATE, finetune, sample_config, sample_settings
from small_runs import config_for, console, corpus_of, final_tensors, metrics, run_training, trainer_for

from lowrise.cli import main
from lowrise.config import RunConfig, load, validate
from lowrise.errors import UsageError
from lowrise.evaluation.measure import evaluate_run
from lowrise.methods import METHODS
from lowrise.model import next_token_loss
from lowrise.runs.load import load_run
from lowrise.serve.chat import chat_format
from lowrise.train.loop import Interrupted, Trainer


@pytest.mark.parametrize("micro", [0, 1])
def test_the_loss_is_the_mean_over_all_that_counts_in_the_batch(text_folder, tmp_path, micro) -> None:
    trainer = trainer_for(sample_config(text_folder, **{"train.micro_batch_size": micro}), tmp_path)
    batch = torch.from_numpy(trainer.corpus.train.batch(0, sequences=4, seq_len=48, seed=0))
    counts = (batch[:, 1] >= 0).sum(1)
    assert len(set(counts.tolist())) > 1, "rows count differently, or this test says nothing"
    expected = next_token_loss(trainer.model, batch)
    # float32 sums in another order
    assert trainer.update().loss == pytest.approx(float(expected), rel=1e-6)
    assert trainer.progress.tokens == 4 * 48


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finetunes_and_resumes_to_the_bit(method, text_folder, tmp_path) -> None:
    settings = {"train.micro_batch_size": 2, "eval.every": 0, "checkpoint.every": 3}
    config = sample_config(text_folder, method, **settings)
    summary = run_training(config, tmp_path / "whole")
    assert summary["val_tokens"] == corpus_of(config).valid.targets
    stopped = trainer_for(config, tmp_path / "parts")
    advance = stopped._advance

    def advance_then_stop(board) -> None:
        advance(board)
        if stopped.progress.step == 5:
            stopped.stop.request(signal.SIGTERM)

    stopped._advance = advance_then_stop
    with pytest.raises(Interrupted):
        stopped.run()
    run_training(config, tmp_path / "parts")
    assert final_tensors(tmp_path / "parts", 8) == final_tensors(tmp_path / "whole", 8)


def test_ranks_count_together(text_folder, tmp_path) -> None:
    """Each rank's rows have other numbers of targets: the mean is over all of them."""
    sample_settings(text_folder)  # before two processes would write the file at once
    corpus_of(sample_config(text_folder))
    alone = on_ranks(1, tmp_path / "1", finetune, text_folder, tmp_path / "one", 4)
    both = on_ranks(2, tmp_path / "2", finetune, text_folder, tmp_path / "two", 4)
    assert both[0] == both[1]
    assert both[0] == pytest.approx(alone[0], rel=1e-5)  # float32, added in another order
    losses = [[line["loss"] for line in metrics(tmp_path / run) if "loss" in line] for run in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_evaluation_counts_each_completion_once(text_folder, tmp_path) -> None:
    config = sample_config(text_folder)
    summary = run_training(config, tmp_path / "run")
    corpus, run = corpus_of(config), load_run(tmp_path / "run", "cpu", console())
    nats = 0.0
    for batch in corpus.valid.windows(48, 1):
        for number in range(batch[0, 2].max() + 1):
            alone = torch.from_numpy(batch[:, :, batch[0, 2] == number])
            nats += float(next_token_loss(run.model, alone, reduction="sum"))
    assert summary["val_loss"] == pytest.approx(nats / corpus.valid.targets, rel=1e-5)
    bits = nats / torch.log(torch.tensor(2.0)).item() / corpus.valid.text_bytes
    assert summary["val_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    again = evaluate_run(tmp_path / "run", "cpu", console())
    assert (again["val_loss"], again["val_tokens"]) == (summary["val_loss"], summary["val_tokens"])


def test_the_log_and_the_summary_say_what_became_of_the_samples(text_folder, tmp_path) -> None:
    config = sample_config(text_folder, **{"train.seq_len": 14})
    trainer = trainer_for(config, tmp_path)
    summary = trainer.run()
    said = trainer.display.console.file.getvalue()
    counts = summary["train_samples"]
    assert counts["cut"] > 0
    assert f"train: {counts['samples']} samples in {counts['rows']} sequences of 14 tokens" in said
    assert f"{counts['cut']} are longer and lose their end" in said
    dropped = run_training(
        sample_config(text_folder, **{"train.seq_len": 14, "data.overlong": "drop"}), tmp_path / "b"
    )
    assert dropped["train_samples"]["left_out"] == counts["cut"] + counts["left_out"]


def test_another_rule_for_overlong_samples_is_another_run(text_folder, tmp_path) -> None:
    run_training(sample_config(text_folder), tmp_path)
    with pytest.raises(UsageError, match=r"data\.overlong"):
        run_training(sample_config(text_folder, **{"data.overlong": "drop"}), tmp_path)


@pytest.mark.parametrize("method", ["lora", "fira"])
def test_finetuning_begins_with_the_weights_of_a_run(method, text_folder, tmp_path) -> None:
    run_training(config_for(text_folder, "adamw", **{"model.max_seq_len": 64}), tmp_path / "base")
    config = sample_config(
        text_folder,
        method,
        **{
            "init.run": str(tmp_path / "base"),
            "data.tokenizer": str(tmp_path / "base" / "tokenizer.json"),
            "model.max_seq_len": 64,
            "eval.extra": {"text": str(text_folder / "text.jsonl")},
        },
    )
    trainer = trainer_for(config, tmp_path / "run")
    trainer._resume()
    base = load_run(tmp_path / "base", "cpu", console()).model
    batch = torch.from_numpy(trainer.corpus.train.batch(0, sequences=2, seq_len=48, seed=0))
    torch.testing.assert_close(next_token_loss(trainer.model, batch), next_token_loss(base, batch))
    summary = run_training(config, tmp_path / "run")
    assert summary["val_loss/text"] > 0, "what it forgets of other text can be watched"


# --- early stopping ---------------------------------------------------------------------------------------


def stopping_config(folder: Path, **more: object) -> RunConfig:
    settings = {"train.steps": 40, "eval.every": 2, "eval.patience": 2, "checkpoint.every": 3}
    return sample_config(folder, **settings, **more)


def with_losses(trainer: Trainer, losses: list[float]) -> Trainer:
    """The trainer, whose evaluations at steps 2, 4, ... find these losses."""
    evaluate = trainer._evaluate

    def found(board, whole):
        result = evaluate(board, whole)
        step = trainer.progress.step
        if result is None or whole:
            return result
        return dataclasses.replace(result, loss=losses[step // 2 - 1])

    trainer._evaluate = found
    return trainer


LOSSES = [5.0, 4.0, 4.5, 3.0, 3.5, 3.25, 1.0]


def test_a_run_stops_early_and_ends_with_its_best_weights(text_folder, tmp_path) -> None:
    trainer = with_losses(trainer_for(stopping_config(text_folder), tmp_path), LOSSES)
    summary = trainer.run()
    assert (summary["steps"], summary["status"], summary["stopped_early"]) == (12, "completed", True)
    assert (summary["best_step"], summary["best_val_loss"], summary["weights_of_step"]) == (8, 3.0, 8)
    said = trainer.display.console.file.getvalue()
    assert (
        "step 12: 2 evaluations in a row (eval.patience) had no validation loss lower than 3.0000 (step 8)"
        in said
    )
    at_the_end = [line for line in said.splitlines() if line.startswith("step     12  validation loss")]
    assert [line.endswith("(the end: whole split, weights of step 8)") for line in at_the_end] == [
        False,
        True,
    ]
    straight = sample_config(text_folder, **{"train.steps": 40, "eval.every": 0, "checkpoint.every": 8})
    other = trainer_for(straight, tmp_path / "straight")
    while other.progress.step < 8:
        other.update()
    ended = load_run(tmp_path, "cpu", console())
    assert ended.step == 12
    for name, weight in other.model.state_dict().items():
        assert torch.equal(ended.model.state_dict()[name], weight), name
    assert metrics(tmp_path)[-1]["weights_of_step"] == 8


@pytest.mark.parametrize("kill_at", [3, 8, 9, 11])
def test_early_stopping_resumes(kill_at, text_folder, tmp_path) -> None:
    whole = with_losses(trainer_for(stopping_config(text_folder), tmp_path / "whole"), LOSSES).run()
    trainer = with_losses(trainer_for(stopping_config(text_folder), tmp_path / "parts"), LOSSES)
    advance = trainer._advance

    def advance_then_stop(board) -> None:
        advance(board)
        if trainer.progress.step == kill_at:
            trainer.stop.request(signal.SIGTERM)

    trainer._advance = advance_then_stop
    with pytest.raises(Interrupted):
        trainer.run()
    again = with_losses(trainer_for(stopping_config(text_folder), tmp_path / "parts"), LOSSES).run()
    keys = ("steps", "best_step", "best_val_loss", "weights_of_step", "stopped_early", "val_loss", "tokens")
    assert [again[key] for key in keys] == [whole[key] for key in keys]
    assert final_tensors(tmp_path / "parts", 12) == final_tensors(tmp_path / "whole", 12)


def test_an_evaluation_that_a_signal_kept_from_happening_is_made_up_for(text_folder, tmp_path) -> None:
    whole = with_losses(trainer_for(stopping_config(text_folder), tmp_path / "whole"), LOSSES).run()
    trainer = with_losses(trainer_for(stopping_config(text_folder), tmp_path / "parts"), LOSSES)
    watched = trainer._evaluate

    def interrupted(board, whole):
        if trainer.progress.step == 8:
            trainer.stop.request(signal.SIGTERM)
        return watched(board, whole)

    trainer._evaluate = interrupted
    with pytest.raises(Interrupted):
        trainer.run()
    again = with_losses(trainer_for(stopping_config(text_folder), tmp_path / "parts"), LOSSES).run()
    assert (again["best_step"], again["steps"]) == (whole["best_step"], whole["steps"])


def test_a_run_that_has_stopped_early_stays_so(text_folder, tmp_path) -> None:
    config = stopping_config(text_folder)
    first = with_losses(trainer_for(config, tmp_path), LOSSES).run()
    trainer = trainer_for(config, tmp_path)
    again = trainer.run()
    assert (again["steps"], again["val_loss"]) == (first["steps"], first["val_loss"])
    assert "This run has stopped early at step 12, with the weights of step 8" in (
        trainer.display.console.file.getvalue()
    )


def test_the_end_without_stopping_takes_the_best_weights_too(text_folder, tmp_path) -> None:
    config = sample_config(text_folder, **{"eval.every": 2, "eval.patience": 3, "checkpoint.keep": 1})
    summary = with_losses(trainer_for(config, tmp_path), [5.0, 4.0, 4.5, 4.4]).run()
    assert (summary["stopped_early"], summary["weights_of_step"], summary["steps"]) == (False, 4, 8)


def test_min_delta_and_losses_that_are_no_numbers(text_folder, tmp_path) -> None:
    config = stopping_config(text_folder, **{"eval.min_delta": 0.5})
    summary = with_losses(trainer_for(config, tmp_path), [5.0, 4.6, 4.4, float("nan"), 4.0]).run()
    assert (summary["best_step"], summary["steps"]) == (6, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval.patience": 0}, "eval.patience = 0 cannot be"),
        ({"eval.patience": 2, "eval.every": 0}, "eval.every says when"),
        ({"eval.min_delta": 0.1}, "eval.min_delta = 0.1 cannot be"),
    ],
)
def test_settings_that_cannot_be(values, message) -> None:
    with pytest.raises(UsageError, match=message):
        validate(load(None, values))


def test_summary_of_text_has_no_samples(text_folder, tmp_path) -> None:
    summary = run_training(config_for(text_folder, "adamw"), tmp_path)
    assert (
        not {"train_samples", "stopped_early", "best_step"}
        & json.loads((tmp_path / "summary.json").read_text()).keys()
    )
    assert summary["status"] == "completed"


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "plain"])
def test_the_server_asks_as_the_run_was_trained(template, text_folder, tmp_path) -> None:
    """What `lowrise serve` writes before an answer is what stood before it in training, token by token."""
    asked = {"role": "user", "content": "Two and two?"}
    for name, answer in (("train", "Four."), ("valid", "4.")):
        line = json.dumps({"messages": [asked, {"role": "assistant", "content": answer}]})
        (tmp_path / f"{name}.jsonl").write_text(f"{line}\n")
    more = {"data.valid": [str(tmp_path / "valid.jsonl")], "train.steps": 1, "eval.every": 0}
    if template is not None:
        (tmp_path / "template.jinja").write_text(template)
        more["data.chat_template"] = str(tmp_path / "template.jinja")
    settings = {"data.source": [str(tmp_path / "train.jsonl")], "train.seq_len": 96, **more}
    config = sample_config(text_folder, **settings)
    run_training(config, tmp_path / "run")
    assert (tmp_path / "run" / "chat_template.jinja").exists() == (template is not None)
    corpus = corpus_of(config)
    (batch,) = corpus.train.windows(96, 1)
    inputs, targets, numbers = batch[0][:, batch[0][2] == 0]
    first = int(np.flatnonzero(targets >= 0)[0])
    chat = chat_format(corpus.tokenizer, [tmp_path / "run"])
    assert chat.stop == (("<|im_end|>",) if template is not None else ("\nUser:",))
    prompt = chat.prompt([asked])
    assert inputs[: first + 1].tolist() == [corpus.tokenizer.separator_id, *prompt]
    end = "<|im_end|>\n" if template is not None else ""
    answer = corpus.tokenizer.decode(targets[targets >= 0])
    assert answer.strip(" ") == f"Four.{end}<|endoftext|>"
    assert set(numbers.tolist()) == {0}
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "hf")]) == 0
    assert chat_format(corpus.tokenizer, [tmp_path / "hf"]).prompt([asked]) == prompt
    if template is not None:
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
        text = theirs.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
        assert theirs(text)["input_ids"] == prompt
