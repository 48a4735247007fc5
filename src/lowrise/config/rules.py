"""What cannot be right, whatever the data and the machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from lowrise.config.derived import layer_names, layer_section
from lowrise.config.tree import RunConfig
from lowrise.config.values import share_or_count
from lowrise.data.config import MOST_THREADS
from lowrise.errors import UsageError
from lowrise.files import is_plain_name
from lowrise.model.config import PRESETS
from lowrise.names import lookup


def validate(config: RunConfig) -> None:
    """Refuse what cannot be right, whatever the data and the machine; messages name the key and the
    value."""
    _require_representable(config)
    lookup(PRESETS, config.model.preset, "model preset", "model.preset")
    for check in (
        _check_train,
        _check_schedule,
        _check_average,
        _check_transfer,
        _check_factors,
        _check_init,
        _check_evaluation,
        _check_rates,
        _check_counts,
    ):
        check(config)


def _require(holds: bool, key: str, value: Any, rule: str) -> None:
    if not holds:
        raise UsageError(f"{key} = {value!r} cannot be: {rule}.")


Requirement = Callable[[str, bool, str], None]
"""(field of a section, what has to hold, the rule in words)."""


def _requirement(config: RunConfig, section: str) -> Requirement:
    """What refuses a value of the section, by its key."""

    def require(field: str, holds: bool, rule: str) -> None:
        _require(holds, f"{section}.{field}", getattr(getattr(config, section), field), rule)

    return require


def _check_train(config: RunConfig) -> None:
    train, require = config.train, _requirement(config, "train")
    require("steps", train.steps >= 1, "a run needs at least one update")
    require("global_batch_size", train.global_batch_size >= 1, "an update needs at least one sequence")
    require("seq_len", train.seq_len >= 1, "a sequence has at least one predicted token")
    require("micro_batch_size", train.micro_batch_size >= 0, "it is 0 (all) or more")
    require(
        "micro_batch_size",
        train.micro_batch_size == 0 or train.global_batch_size % train.micro_batch_size == 0,
        f"it must divide train.global_batch_size = {train.global_batch_size}",
    )
    require("grad_clip", train.grad_clip >= 0, "it is a norm, 0 for none")
    require(
        "grad_clip",
        not (train.per_layer and train.grad_clip),
        "train.per_layer updates the first matrices before the norm of all gradients is known; set "
        "train.grad_clip = 0 (grad_norm is measured all the same), or train.per_layer = false",
    )
    require("nonfinite_limit", train.nonfinite_limit >= 1, "at least one")


def _check_schedule(config: RunConfig) -> None:
    schedule, require = config.schedule, _requirement(config, "schedule")
    for field in ("warmup", "other_warmup", "decay"):
        length = getattr(schedule, field)
        require(field, length is None or length >= 0, "a share below 1 or a number of updates")
    require("min_lr_ratio", 0 <= schedule.min_lr_ratio <= 1, "a multiplier between 0 and 1")
    require("cycle", schedule.cycle >= 0, "0 (never) or a number of updates")
    require("restart_warmup", schedule.restart_warmup >= 0, "0 or more updates")
    require(
        "restart_warmup",
        not schedule.cycle or 0 < schedule.restart_warmup < schedule.cycle,
        f"with schedule.cycle = {schedule.cycle} it lies between 1 and {schedule.cycle - 1}",
    )
    # Where a layer merges, moments that are reset and restarts of the schedule come with the merges.
    merge = getattr(config.layer, "merge_every", 0)
    others = {
        "optimizer.reset_every": getattr(config.optimizer, "reset_every", 0),
        "schedule.cycle": schedule.cycle,
    }
    for key, every in others.items():
        if merge and every and every != merge:
            raise UsageError(
                f"{key} = {every} and layer.merge_every = {merge} do not go together: give both the same "
                "number of updates, or switch one off with 0."
            )


def _check_average(config: RunConfig) -> None:
    ema, steps, require = config.ema, config.train.steps, _requirement(config, "ema")
    require(
        "start",
        ema.start is None or 0 < ema.start <= steps,
        f"a fraction of all updates above 0, or an update of 1 to train.steps = {steps}",
    )
    require("horizon", ema.horizon is None or ema.horizon >= 1, "at least one update")
    require("blend", ema.blend is None or 0 < ema.blend <= 1, "a fraction above 0, at most 1")
    for field in ("horizon", "blend"):
        begins = getattr(ema, field) is None or ema.start is not None
        require(field, begins, "no average begins, ema.start is not set")


def _check_transfer(config: RunConfig) -> None:
    transfer, require = config.transfer, _requirement(config, "transfer")
    base = transfer.base
    if isinstance(base, str):
        lookup(PRESETS, base, "model preset", "transfer.base")
    require("base", not isinstance(base, int) or base >= 1, "a width is 1 or more")
    require(
        "rank",
        base is not None or transfer.rank is None,
        "it is the rank at transfer.base, and there is none",
    )


def _check_factors(config: RunConfig) -> None:
    """A decay of products needs weights that are products."""
    if getattr(config.optimizer, "decay", None) == "product" and config.layer.role != "factors":
        known = ", ".join(name for name in layer_names() if layer_section(name).role == "factors")
        raise UsageError(
            f"optimizer.decay = 'product' cannot be with layer.name = {config.layer.name!r}: it is the decay "
            f"of A B^T, and no weight of this layer is one; choose a layer of factors ({known}), or another "
            "decay."
        )


def _check_init(config: RunConfig) -> None:
    init, require = config.init, _requirement(config, "init")
    named = init.run is not None
    require(
        "step",
        init.step is None or named,
        "it is a checkpoint of the run that init.run names, and there is none",
    )
    require(
        "model",
        init.model is None or not named,
        "weights come from one place, and init.run names another; leave one out",
    )
    require(
        "what",
        init.what == "weights" or named,
        "it says what is taken from the run that init.run names, and there is none",
    )
    rank = getattr(config.layer, "rank", None)
    _require(
        rank != "init" or init.model is not None,
        "layer.rank",
        rank,
        "ranks come from the folder that init.model names, and there is none",
    )


def _check_evaluation(config: RunConfig) -> None:
    evaluation, require = config.eval, _requirement(config, "eval")
    for name in evaluation.extra:
        _require(is_plain_name(name), f"eval.extra.{name}", name, "a name is a word without slashes")
    require("batch_size", evaluation.batch_size >= 1, "at least one sequence a pass")
    patience, min_delta = evaluation.patience, evaluation.min_delta
    require(
        "patience",
        patience is None or (patience >= 1 and evaluation.every >= 1),
        "it is a number of evaluations during training, at least 1, and eval.every says when these come; "
        "leave it out to train to the end",
    )
    require(
        "min_delta",
        min_delta is None or (min_delta >= 0 and patience is not None),
        "it is by how much a loss has to be lower for eval.patience, 0 or more",
    )


def _check_rates(config: RunConfig) -> None:
    for key, rate in (("optimizer.lr", config.optimizer.lr), ("other.lr", config.other.lr)):
        holds = rate is None or (rate >= 0 and math.isfinite(rate))
        _require(holds, key, rate, "a learning rate is not negative")
    other, require = config.other, _requirement(config, "other")
    require("weight_decay", other.weight_decay >= 0, "it is 0 or more")
    require("eps", other.eps >= 0, "it is 0 or more")
    require("betas", all(0 <= beta < 1 for beta in other.betas), "two numbers, each at least 0 and below 1")


def _check_counts(config: RunConfig) -> None:
    """Numbers of what is done now and then, and of what is kept."""
    _requirement(config, "checkpoint")("keep", config.checkpoint.keep >= 1, "one is needed to continue from")
    _requirement(config, "log")("every", config.log.every >= 1, "at least one update")
    for key, value in (
        ("eval.every", config.eval.every),
        ("eval.tokens", config.eval.tokens),
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep_every", config.checkpoint.keep_every),
        ("log.telemetry_every", config.log.telemetry_every),
        ("sample.tokens", config.sample.tokens),
        ("train.threads", config.train.threads),
    ):
        _require(value >= 0, key, value, "0 (off) or a positive number")
    threads = config.train.threads
    _require(threads <= MOST_THREADS, "train.threads", threads, f"at most {MOST_THREADS}")


def advice(config: RunConfig) -> list[str]:
    """Sentences about what can be and is hardly meant."""
    steps, schedule = config.train.steps, config.schedule
    sentences = [
        f"schedule.{name} = {warmup:g} updates is longer than the run (train.steps = {steps}): the "
        f"learning rate ends at {steps / warmup:.0%} of its peak. Give fewer updates, or a share below 1."
        for name, warmup in (("warmup", schedule.warmup), ("other_warmup", schedule.other_warmup))
        if warmup is not None and warmup > steps
    ]
    if schedule.name == "wsd" and schedule.decay > max(1, steps):
        sentences.append(
            f"schedule.decay = {schedule.decay:g} updates is longer than the run (train.steps = {steps}): "
            "the learning rate begins below its peak. Give fewer updates, or a share below 1."
        )
    if config.optimizer.lr == 0:
        sentences.append("optimizer.lr = 0: no matrix is trained, only what other.lr moves.")
    start, horizon = config.ema.start, config.ema.horizon
    if start is not None and horizon is not None:
        left = steps - share_or_count(start, steps)
        if left < 3 * horizon:
            sentences.append(
                f"ema.horizon = {horizon} updates is long for the {left} from ema.start = {start:g} to the "
                f"end: {math.exp(-left / horizon):.0%} of the average will be the weights at its start. "
                f"Begin earlier, or give at most {max(1, left // 5)}."
            )
    here, base = config.model, config.transfer.base
    preset = PRESETS[here.preset]
    width, heads = (getattr(here, k, None) or preset[k] for k in ("hidden_size", "num_heads"))
    if isinstance(base, str):
        there = PRESETS[base]["hidden_size"] // PRESETS[base]["num_heads"]
        if width // heads != there:
            sentences.append(
                f"transfer.base = {base!r} has heads of width {there}, this model of {width // heads}: rates "
                "transfer where heads become more and not wider."
                + (f" Set model.num_heads = {width // there}." if width % there == 0 else "")
            )
    last = 1.0 if schedule.name == "constant" else schedule.min_lr_ratio
    if config.optimizer.hyperball and last > HYPERBALL_LAST_RATE:
        sentences.append(
            "optimizer.hyperball = true makes the learning rate the angle by which an update turns a weight, "
            f"and the schedule ends at {last:g} of its peak: let it end near 0 (schedule.min_lr_ratio = "
            "0.01)."
        )
    return sentences


# Of the peak. Above it the last updates still move norm-fixed weights as far as those of a run's middle.
HYPERBALL_LAST_RATE = 0.02


# Largest absolute values of integers: of seeds and of counts of bytes and tokens, and of all else.
LARGEST_COUNT, LARGEST_NUMBER = 2**63 - 1, 2**31 - 1


def _require_representable(config: RunConfig) -> None:
    """Refuse numbers that no machine word holds, and floats that are no numbers, in any section."""
    for key, value in _numbers(dataclasses.asdict(config)):
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{key} = {value!r} cannot be: it must be a finite number.")
        wide = key.endswith(("seed", "tokens", "bytes"))
        largest = LARGEST_COUNT if wide else LARGEST_NUMBER
        if isinstance(value, int) and abs(value) > largest:
            told = (
                str(value) if abs(value) < 10**40 else f"{value:.3e}" if abs(value) < 10**300 else "so much"
            )
            raise UsageError(f"{key} = {told} cannot be: it is {-largest} to {largest}.")


def _numbers(tree: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a tree of sections, with its dotted key."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _numbers(value, key)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield key, tree
