"""What a comparison holds equal: the length of a run, and the size of what is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from lowrise.config.rules import LARGEST_NUMBER
from lowrise.errors import UsageError
from lowrise.report.formatting import bytes_, duration, si
from lowrise.runs.plan_options import bytes_of

INFERENCE_ELEMENT = 2  # bytes of a weight in bfloat16, as `lowrise plan` counts

LengthUnit = Literal["tokens", "flops", "seconds"]
SizeUnit = Literal["params", "bytes", "inference"]
UNITS = (*get_args(LengthUnit), *get_args(SizeUnit))

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_EXAMPLE = "Write --budget tokens=2M, flops=1e15 or seconds=600, and params=1M, bytes=8MB or inference=4MB."


class RunPlan(Protocol):
    """What a comparison needs of the planner: tokens of one optimizer step and floating-point operations; for
    budgets of size parameters and bytes of optimizer state.
    """

    @property
    def tokens_per_step(self) -> int: ...

    @property
    def flops_per_token(self) -> float: ...

    @property
    def optimizer_flops_per_step(self) -> float: ...

    @property
    def params_total(self) -> int: ...

    @property
    def state_bytes(self) -> int: ...


@dataclass(frozen=True)
class Budget:
    """An equal length for every run: tokens, training FLOPs (model and optimizer) or seconds of training."""

    unit: LengthUnit
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`tokens=2M`, `flops=1e15`, `seconds=600`. Raises `UsageError` with the remedy for anything else."""
        unit, amount = _parse(text)
        for known in get_args(LengthUnit):
            if unit == known:
                return cls(known, amount)
        raise UsageError(f"The budget {text!r} is a size, and a length is asked for here. {_EXAMPLE}")

    def steps(self, run_plan: RunPlan) -> int:
        """The first number of steps that reaches a budget of tokens or FLOPs. Raises `UsageError` for more
        than a run can have."""
        assert self.unit != "seconds", "the time of a step is measured, not planned"
        per_step = run_plan.tokens_per_step if self.unit == "tokens" else step_flops(run_plan)
        steps = max(1, math.ceil(self.amount / per_step - 1e-9))  # 1e-9: 2e6 / 0.1e6 is not 21 steps
        if steps > LARGEST_NUMBER:
            raise UsageError(
                f"A budget of {self} is {float(steps):.3g} updates, and a run at most {LARGEST_NUMBER:,}: "
                "give less, or a larger train.global_batch_size."
            )
        return steps

    def steps_in_time(self, seconds_per_step: float) -> int:
        """The last number of steps that keeps to a budget of seconds, at least one."""
        return max(1, int(self.amount / seconds_per_step))

    @property
    def name(self) -> str:
        """For people and file names: `tokens-2M`, `flops-1e15`, `seconds-600`."""
        return _name(self.unit, self.amount)

    def __str__(self) -> str:
        if self.unit == "tokens":
            return f"{si(self.amount)} tokens"
        if self.unit == "seconds":
            return f"{duration(self.amount)} of training"
        return f"{self.amount:g} FLOPs".replace("e+", "e")


@dataclass(frozen=True)
class Size:
    """An equal size for every recipe: at most so many parameters, bytes of optimizer state, or bytes of
    weights in bfloat16 at inference.
    """

    unit: SizeUnit
    amount: float

    @property
    def of(self) -> Callable[[RunPlan], int]:
        """The quantity of a planned run."""
        return {
            "params": lambda plan: plan.params_total,
            "bytes": lambda plan: plan.state_bytes,
            "inference": lambda plan: INFERENCE_ELEMENT * plan.params_total,
        }[self.unit]

    def show(self, amount: float | None) -> str:
        return si(amount) if self.unit == "params" else bytes_(amount)

    @property
    def what(self) -> str:
        return {
            "params": "parameters",
            "bytes": "optimizer state",
            "inference": "weights at inference (bfloat16)",
        }[self.unit]

    @property
    def name(self) -> str:
        return _name(self.unit, self.amount)

    def __str__(self) -> str:
        of = "" if self.unit == "params" else "of "
        return f"at most {self.show(self.amount)} {of}{self.what}"


def parse_budgets(texts: Sequence[str]) -> tuple[Budget | None, Size | None]:
    """One length, one size, or both. Raises `UsageError` for none, for a second one of a kind, and for what
    is no budget.
    """
    length: Budget | None = None
    size: Size | None = None
    if not texts:
        raise UsageError(f"--budget is empty. {_EXAMPLE}")
    for text in texts:
        unit, amount = _parse(text)
        if (size if unit in get_args(SizeUnit) else length) is not None:
            kind = "size" if unit in get_args(SizeUnit) else "length"
            raise UsageError(f"--budget {' '.join(texts)} gives two budgets of {kind}: give one of them.")
        for known in get_args(SizeUnit):
            size = Size(known, amount) if unit == known else size
        if unit in get_args(LengthUnit):
            length = Budget.parse(text)
    return length, size


def step_flops(run_plan: RunPlan) -> float:
    """Training FLOPs of one optimizer step: forward and backward of its tokens, and the update."""
    return run_plan.tokens_per_step * run_plan.flops_per_token + run_plan.optimizer_flops_per_step


def parse_amount(text: str) -> float | None:
    """`"2M"` -> 2e6, `"1e15"` -> 1e15; None for what is no finite number."""
    text = text.strip().replace("_", "")
    scale = _SUFFIXES.get(text[-1:].lower() if text[-1:].isalpha() else "")
    try:
        number = float(text[:-1] if text[-1:].isalpha() else text)
    except ValueError:
        return None
    return number * scale if scale is not None and math.isfinite(number) else None


def _parse(text: str) -> tuple[str, float]:
    unit, _, amount_text = text.partition("=")
    unit = unit.strip()
    if unit not in UNITS:
        raise UsageError(f"The budget {text!r} has no known unit before '='. {_EXAMPLE}")
    amount = {"seconds": _seconds, "bytes": _bytes, "inference": _bytes}.get(unit, parse_amount)(amount_text)
    if amount is None or not (amount > 0 and math.isfinite(amount)):
        raise UsageError(f"The budget {text!r} needs a positive number after '='. {_EXAMPLE}")
    return unit, amount


def _bytes(text: str) -> float | None:
    """`"8MB"` is 8e6, `"8MiB"` 8 times 2^20."""
    try:
        return float(bytes_of(text.replace("_", "")))
    except UsageError:
        return None


def _seconds(text: str) -> float | None:
    """`"600"`, `"600s"`, `"10min"`, `"1.5h"`; no k or M, which nobody means of seconds."""
    found = re.fullmatch(r"\s*([0-9_.]+(?:e[0-9]+)?)\s*(|s|sec|min|h)\s*", text.lower())
    try:
        return float(found[1].replace("_", "")) * _SECONDS[found[2]] if found else None
    except ValueError:
        return None


def _name(unit: str, amount: float) -> str:
    if unit == "flops":
        return f"flops-{amount:g}".replace("+", "")
    if unit == "seconds" or amount < 1e6:
        return f"{unit}-{amount:.12g}" if unit == "seconds" else f"{unit}-{amount:g}"
    return f"{unit}-{amount / 1e6:.12g}M"
