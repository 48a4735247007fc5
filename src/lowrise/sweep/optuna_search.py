"""Draws by optuna's tree-structured Parzen estimator, as a function of the trials so far.

The study is built anew, in memory, for each draw, from the trials that the sweep has recorded: nothing of
optuna's has to be stored, and a killed sweep asks on as if it had not been. Trials that run count as ones
that will not be good (`constant_liar`), so that workers at the same time try different things. A trial that
diverged counts as the worst that was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from lowrise.errors import UsageError
from lowrise.sweep.space import Dimension, Settings

_STARTUP = 10  # random draws before the model begins; at most a third of all


def require_optuna() -> ModuleType:
    """The package, quiet. Raises `UsageError` where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(
            "--search optuna needs the package optuna: pip install 'lowrise[sweep]' (or optuna), or use "
            "--search random."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def draw(
    space: Sequence[Dimension],
    history: Sequence[tuple[Settings, str, float | None]],
    *,
    total: int,
    seed: int,
) -> Settings:
    """The next trial. `history`: settings, state (completed, diverged, refused or running) and value of each
    trial so far; `total`: how many there will be.
    """
    import warnings

    optuna = require_optuna()
    with warnings.catch_warnings():
        # optuna 4 calls `multivariate` experimental, once a draw.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed + len(history),  # the same history, the same draw
            n_startup_trials=min(_STARTUP, max(2, total // 3)),
            multivariate=True,
            constant_liar=True,
        )
    study = optuna.create_study(sampler=sampler, direction="minimize")
    distributions = {dimension.key: _distribution(optuna, dimension) for dimension in space}
    values = [value for _, state, value in history if state == "completed" and value is not None]
    states = optuna.trial.TrialState
    for settings, state, value in history:
        if state == "diverged" and values:
            value = max(values)
        known = {"running": states.RUNNING}.get(state, states.COMPLETE if value is not None else states.FAIL)
        study.add_trial(
            optuna.trial.create_trial(
                state=known,
                value=value if known == states.COMPLETE else None,
                params={d.key: _parameter(d, settings[d.key]) for d in space},
                distributions=distributions,
            )
        )
    found = study.ask(distributions).params
    return {d.key: d.rounded(found[d.key]) if d.is_range else d.values[found[d.key]] for d in space}


def _distribution(optuna: ModuleType, dimension: Dimension) -> Any:
    distributions = optuna.distributions
    if not dimension.is_range:  # by place: optuna takes no lists
        return distributions.CategoricalDistribution(range(len(dimension.values)))
    if dimension.whole:
        return distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _parameter(dimension: Dimension, value: Any) -> Any:
    return value if dimension.is_range else dimension.values.index(value)
