"""Spikes of the loss are found, and told with what was other then."""

from __future__ import annotations

import numpy as np

from lowrise.report.spikes import spikes_of
from lowrise.runs.history import Run


def run_of(losses, changes=None, environment=None, path="x"):
    rows = [
        {"step": 10 * (i + 1), "loss": float(loss), "grad_norm": 1.0, "lr": 0.01, "skipped": 0}
        for i, loss in enumerate(losses)
    ]
    for place, values in (changes or {}).items():
        rows[place] |= values
    return Run(path, metrics=rows, environment=environment or {})


def falling(count=200, noise=0.02):
    draw = np.random.default_rng(0)
    return 3 + 4 / np.arange(1, count + 1) ** 0.5 + noise * draw.standard_normal(count)


def test_a_noisy_falling_loss_has_none():
    assert spikes_of(run_of(falling())) == []
    assert spikes_of(run_of([3.0] * 50)) == []
    assert spikes_of(run_of([])) == []


def test_a_rise_over_neighbouring_steps_is_one_spike_at_its_top():
    losses = falling()
    losses[100:104] += [0.5, 2.0, 1.0, 0.4]
    losses[150] += 1.0
    found = spikes_of(run_of(losses))
    assert [spike.step for spike in found] == [1020, 1510]
    assert found[0].loss == losses[101]
    assert abs(found[0].usual - np.median(losses[80:100])) < 1e-12
    assert found[0].changed == ""


def test_what_the_log_has_of_the_moment_is_told():
    losses = falling()
    losses[[60, 90, 120, 150]] += 2
    rank = {"matrices": {"a": {"rank": 8.0}, "b": {"rank": 4.0}}}
    changes = {
        60: {"grad_norm": 40.0, "skipped": 2},
        85: rank,
        90: {"matrices": {"a": {"rank": 6.0}, "b": {"rank": 4.0}}},
        **{i: {"skipped": 2} for i in range(61, 200) if i not in (85, 90, 120)},
        120: {"lr": 0.05, "skipped": 2},
    }
    history = [{"step": 0}, {"step": 1505, "changed": {"train.precision": ["a", "b"]}}]
    changes[85] |= {"skipped": 2}
    changes[90] |= {"skipped": 2}
    found = spikes_of(run_of(losses, changes, {"history": history}))
    assert [spike.step for spike in found] == [610, 910, 1210, 1510]
    assert found[0].changed == "gradient norm 40, 40.0 times the usual; 2 update(s) skipped"
    assert found[1].changed == "1 ranks changed"
    assert found[2].changed == "learning rate 0.01 -> 0.05"
    assert found[3].changed == "continued with other train.precision"
