"""What tasks ask of a model, against one plain forward pass a text."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import config_for, console, corpus_of, run_training

from lowrise.errors import UsageError
from lowrise.evaluation.measure import evaluate_run
from lowrise.evaluation.scoring import Scorer
from lowrise.inference.generate import generate
from lowrise.runs.load import load_run


@pytest.fixture(scope="module")
def scorer(text_folder, tmp_path_factory) -> Scorer:
    run = tmp_path_factory.mktemp("run")
    run_training(config_for(text_folder, "spectron", **{"model.max_seq_len": 32, "eval.every": 0}), run)
    return Scorer(load_run(run, "cpu", console()), batch_size=3)


def plainly(scorer: Scorer, ids: list[int], counted: int) -> tuple[float, bool]:
    with torch.no_grad():
        log_p = scorer.run.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[-counted:]
    wanted = torch.tensor(ids[-counted:])
    return float(log_p.gather(1, wanted[:, None]).sum()), bool((log_p.argmax(-1) == wanted).all())


PAIRS = [
    ("the rank", " of a matrix"),
    ("", "the"),
    ("by one ", "step"),
    ("a " * 60, "balance"),
    ("its", " is"),
]


def test_log_likelihoods_are_those_of_one_pass_each(scorer: Scorer) -> None:
    found = scorer.log_likelihoods(PAIRS)
    tokenizer = scorer.tokenizer
    for (context, continuation), (value, greedy) in zip(PAIRS, found, strict=True):
        stripped = context.rstrip()
        whole = tokenizer.encode(context + continuation)
        counted = len(whole) - len(tokenizer.encode(stripped))
        ids = [tokenizer.separator_id, *whole][-33:]
        expected, is_greedy = plainly(scorer, ids, counted)
        assert value == pytest.approx(expected, abs=1e-4)  # float32, in rows of other lengths
        assert greedy == is_greedy
    assert found == Scorer(scorer.run, batch_size=1).log_likelihoods(PAIRS) or found == pytest.approx(found)


def test_a_greedy_continuation_is_known_as_one(scorer: Scorer) -> None:
    tokenizer, model = scorer.tokenizer, scorer.run.model
    prompt = tokenizer.encode("the rank")
    new = list(generate(model, [tokenizer.separator_id, *prompt], max_new_tokens=1, temperature=0))
    text = tokenizer.decode(new)
    if tokenizer.encode("the rank" + text) == [*prompt, *new]:
        assert scorer.log_likelihoods([("the rank", text)])[0][1]
    assert scorer.generated([("the rank", {"max_gen_toks": 1, "until": []})]) == [text]


def test_a_rolling_text_is_measured_as_eval_measures_it(scorer: Scorer, text_folder, tmp_path) -> None:
    """One document, in windows as long as the model reads; `eval` also predicts the separator at its end."""
    text = "the norm of a matrix is bounded by one when every step keeps both factors in balance " * 3
    (total,) = scorer.rolling([text])
    (tmp_path / "one.txt").write_text(text)
    run = scorer.run
    ids = scorer.tokenizer.encode(text)
    assert len(ids) > 64
    measured = evaluate_run(
        run_folder(run, text_folder, tmp_path),
        "cpu",
        console(),
        source=[str(tmp_path / "one.txt")],
        seq_len=32,
    )
    windows = [run.tokenizer.separator_id, *ids, run.tokenizer.separator_id]
    last = plainly(scorer, windows[-(1 + (len(windows) - 1) % 32 or 33) :], 1)[0]
    nats = measured["val_loss"] * measured["val_tokens"]
    assert -total == pytest.approx(nats + last, rel=1e-4)
    bits = nats / math.log(2) / len(text.encode())
    assert measured["val_bits_per_byte"] == pytest.approx(bits)


def run_folder(run, text_folder, tmp_path):
    """The run again, as the loaded one does not know where it lies."""
    config = config_for(text_folder, "spectron", **{"model.max_seq_len": 32, "eval.every": 0})
    run_training(config, tmp_path / "again")
    assert corpus_of(config).fingerprint == run.corpus
    return tmp_path / "again"


def test_generation_stops_at_a_string_and_leaves_it_out(scorer: Scorer) -> None:
    (free,) = scorer.generated([("the rank", {"max_gen_toks": 12})])
    stop = free[4:7]
    (stopped,) = scorer.generated([("the rank", {"max_gen_toks": 12, "until": [stop]})])
    assert stopped == free[: free.index(stop)]


def test_a_continuation_that_does_not_fit_is_refused(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match=r"more than the model reads \(32, model\.max_seq_len\)"):
        scorer.log_likelihoods([("", "matrix of rank " * 40)])
