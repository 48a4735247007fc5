"""Rank or width by a budget of size, with the real planner: what is chosen fits, and one more would not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lowrise.compare.budget import Size
from lowrise.compare.options import CompareConfig
from lowrise.compare.plan import build_plan
from lowrise.compare.sizing import choose_size
from lowrise.config import load
from lowrise.errors import UsageError
from lowrise.runs.plan import RunPlan, plan_run

VOCABULARY = 300


def nano(method: str, **more: Any) -> dict[str, Any]:
    return {"method": method, "model.preset": "nano", "data.vocab_size": VOCABULARY} | more


def choose(settings: dict[str, Any], size: Size, by: str = "auto") -> tuple[Any, Any]:
    """(what was chosen, the plan with other settings)."""

    def plan_with(changed: dict[str, Any]) -> RunPlan:
        return plan_run(load(None, settings | changed), VOCABULARY)

    return choose_size("it", load(None, settings).to_dict(), size, by, plan_with), plan_with  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "unit", "by", "key"),
    [
        ("spectron", "params", "auto", "layer.rank"),
        ("spectron", "inference", "auto", "layer.rank"),
        ("spectron", "bytes", "auto", "layer.rank"),
        ("cola", "params", "auto", "layer.rank"),
        ("tsvd", "bytes", "auto", "layer.rank"),
        ("galore", "bytes", "auto", "optimizer.rank"),
        ("galore", "params", "auto", "model.hidden_size"),
        ("adamw", "bytes", "auto", "model.hidden_size"),
        ("muon", "params", "auto", "model.hidden_size"),
        ("spectron", "params", "width", "model.hidden_size"),
    ],
)
def test_the_largest_that_fits_is_chosen(method: str, unit: str, by: str, key: str) -> None:
    settings = nano(method)
    here = plan_run(load(None, settings), VOCABULARY)
    size = Size(unit, 0.9 * Size(unit, 1.0).of(here))  # type: ignore[arg-type]
    chosen, plan_with = choose(settings, size, by)
    assert key in chosen.settings
    assert chosen.used == size.of(plan_with(chosen.settings)) <= size.amount
    value = chosen.settings[key]
    if key.endswith("rank"):
        one_more = {key: value + 1 if isinstance(value, int) else value + 1 / 64}
    else:
        hidden = value + 4  # two heads, each two wider
        one_more = {key: hidden, "model.intermediate_size": round(176 / 64 * hidden)}
    assert size.of(plan_with(one_more)) > size.amount


def test_a_share_stays_a_share_and_an_integer_an_integer() -> None:
    size = Size("params", 60_000)
    share, _ = choose(nano("lowrank", **{"layer.rank": 0.25}), size)
    whole, _ = choose(nano("lowrank", **{"layer.rank": 3}), size)
    assert isinstance(share.settings["layer.rank"], float)
    assert share.settings["layer.rank"] == whole.settings["layer.rank"] / 64
    assert share.used == whole.used


def test_at_full_rank_it_stops() -> None:
    chosen, _ = choose(nano("lowrank"), Size("params", 1e9))
    assert chosen.settings == {"layer.rank": 1.0}


def test_a_width_below_the_rank_is_no_way_out() -> None:
    settings = nano("lowrank", **{"layer.rank": 32})
    here = plan_run(load(None, settings), VOCABULARY)
    with pytest.raises(UsageError, match=r"does not fit in at most .* at width 32, the smallest"):
        choose(settings, Size("params", here.params_total / 4), "width")
    chosen, _ = choose(settings, Size("params", 0.8 * here.params_total), "width")
    assert 32 <= chosen.settings["model.hidden_size"] < 64


@pytest.mark.parametrize(
    ("settings", "size", "by", "told"),
    [
        (nano("lowrank"), Size("params", 1000), "auto", r"at layer.rank 0.015625, the smallest, it has"),
        (nano("adamw"), Size("bytes", 10), "auto", r"at width 4, the smallest, it has .* Give at least that"),
        (nano("adamw"), Size("params", 1e6), "rank", "has no rank that changes its parameters"),
        (nano("galore"), Size("params", 1e6), "rank", "has no rank that changes its parameters"),
        (
            nano("lowrank", **{"layer.rank": {"*q_proj": 4, "*": 8}}),
            Size("params", 1e6),
            "auto",
            "layer.rank = .* is a table",
        ),
    ],
)
def test_what_cannot_be_is_a_sentence(settings: dict[str, Any], size: Size, by: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose(settings, size, by)


def test_sizes_and_lengths_make_one_plan(tmp_path: Path) -> None:
    for method in ("adamw", "spectron"):
        settings = nano(method, **{"train.steps": 7, "train.global_batch_size": 2, "train.seq_len": 16})
        (tmp_path / f"{method}.toml").write_text(load(None, settings).to_toml())

    def plan(*budget: str) -> Any:
        recipes = tuple(str(tmp_path / f"{name}.toml") for name in ("adamw", "spectron"))
        config = CompareConfig(recipes=recipes, budget=budget, out="out")
        return build_plan(config, load, lambda config: plan_run(config, VOCABULARY))

    alone = plan("bytes=500kB")
    assert [recipe.steps for recipe in alone.recipes] == [7, 7], "as long as the first recipe"
    assert alone.name == "tokens-224-bytes-500000"
    assert alone.allowance == "224 tokens, at most 488 KiB of optimizer state"
    assert [list(recipe.settings) for recipe in alone.recipes][1] == ["layer.rank"]
    both = plan("bytes=500kB", "flops=1e8")
    per_token = [recipe.flops_per_step / recipe.tokens_per_step for recipe in both.recipes]
    assert per_token[0] != per_token[1], "the FLOPs of the sizes that were chosen"
    for recipe in both.recipes:
        assert recipe.steps == -(-1e8 // recipe.flops_per_step)


def linears(width: int, mlp: int, rank: int | None) -> int:
    """Numbers of two layers of nano: four square maps and three of the MLP, dense or as two factors."""
    if rank is None:
        return 2 * (4 * width * width + 3 * width * mlp)
    return 2 * rank * (4 * 2 * width + 3 * (width + mlp))


@pytest.mark.parametrize(
    ("method", "unit", "amount", "by", "width", "rank", "used"),
    [
        ("adamw", "params", 240e3, "width", 64, None, 131_072 + linears(64, 176, None) + 320),
        ("lowrank", "params", 232e3, "width", 80, 20, 163_840 + linears(80, 220, 20) + 400),
        (
            "lora", "params", 232e3, "width", 56, 14,
            114_688 + linears(56, 154, None) + linears(56, 154, 14) + 280,
        ),
        ("spectron", "inference", 480e3, "auto", 64, 44, 2 * (131_072 + linears(64, 176, 44) + 320)),
        ("adamw", "bytes", 1.5e6, "width", 52, None, 8 * (106_496 + linears(52, 143, None) + 260)),
        # A momentum of the head, and Adam's two moments of norms: 4 x 1024 x 360 + 8 x 5 x 360.
        ("scale", "bytes", 1.5e6, "width", 360, None, 1_474_560 + 14_400),
    ],
)  # fmt: skip
def test_sizes_by_hand(
    method: str, unit: str, amount: float, by: str, width: int, rank: int | None, used: int
) -> None:
    settings = {"method": method, "model.preset": "nano", "data.vocab_size": 1024}

    def plan_with(changed: dict[str, Any]) -> RunPlan:
        return plan_run(load(None, settings | changed), 1024)

    tree = load(None, settings).to_dict()
    chosen = choose_size("it", tree, Size(unit, amount), by, plan_with)  # type: ignore[arg-type]
    assert chosen.used == used
    assert chosen.settings.get("model.hidden_size", 64) == width
    if rank is not None:
        assert chosen.settings.get("layer.rank", 0.25) * width == rank
