"""`lowrise plan`: what it prints, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_runs import overrides

from lowrise.cli import main
from lowrise.config import load
from lowrise.errors import UsageError
from lowrise.methods import METHODS
from lowrise.runs.plan import plan_run
from lowrise.runs.plan_options import bytes_of


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def rows(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict]:
    assert main(["plan", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["plans"]


def test_one_method_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """60m at rank 128: the counts of the dossier of LORO, a little arithmetic beside them."""
    (row,) = rows(
        capsys, "--model", "60m", "--method", "lowrank", "--rank", 128, "--tokens", 1.1e9, "--device_memory",
        "80GB", "--flops_per_second", 1e14, "--devices", 2,
    )  # fmt: skip
    assert row["params_total"] == 42_770_944
    assert row["params_non_embedding"] == 9_994_240 + 17 * 512
    held = row["bytes_per_device"]
    assert held["weights"] == held["gradients"] == 4 * 42_770_944
    assert held["state"] == 2 * 4 * 42_770_944
    assert row["communicated_bytes_per_update"] == 4 * 42_770_944  # a ring of two sends all once
    assert row["tokens"] == pytest.approx(1.1e9, rel=1e-4)
    assert row["seconds"] == pytest.approx(row["train_flops"] / 2e14)
    assert row["inference_bytes"] == 2 * 42_770_944
    assert row["inference_cache_bytes_per_token"] == 2 * 2 * 8 * 512
    assert row["fits"] is True
    assert row["change"] is None


def test_what_the_flops_of_an_update_are_spent_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Nano by hand: 2 layers of 4 x 64^2 + 3 x 64 x 176 weights, attention of 4 x 128 x 64 a token."""
    words = ["--model", "nano", "--method"]
    tokens = 16 * 128
    (dense,) = rows(capsys, *words, "adamw")
    forward = 2 * 2 * (4 * 64**2 + 3 * 64 * 176) + 2 * 4 * 128 * 64 + 2 * 64 * 4096
    spent = dense["flops_of_update"]
    assert 0 < spent.pop("optimizer") < 0.01 * tokens * forward
    assert spent == {
        "forward": tokens * forward,
        "backward": 2 * tokens * forward,
        "recomputed": 0,
        "guide": 0,
    }
    (block,) = rows(capsys, *words, "adamw", "--recompute", "block")
    assert block["flops_of_update"]["recomputed"] == tokens * (forward - 2 * 64 * 4096)
    for method in METHODS:
        (row,) = rows(capsys, *words, method)
        assert sum(row["flops_of_update"].values()) * row["steps"] == row["train_flops"], method
        assert all(part >= 0 for part in row["flops_of_update"].values()), method
    assert main(["plan", *words, "selfguided"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"guide +\d+\.\d%", printed)
    assert "recomputed" not in printed


def test_all_methods_stay_whole_at_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "tiny", "--devices", "4", "--device_memory", "1GB", "--flops_per_second", "1e12"]
    assert main(["plan", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if line.split(" ")[0] in {"method", *METHODS}]
    assert len(tables) == 2 * (1 + len(METHODS))
    assert all(len(line) <= 80 for line in tables)
    assert "…" not in "".join(tables)
    assert {row["method"] for row in rows(capsys, *words)} == set(METHODS)


def test_what_does_not_fit_is_told_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "60m", "--method", "adamw", "--device_memory", "2GiB"]
    assert main(["plan", *words]) == 0
    assert "with --train.micro_batch_size" in capsys.readouterr().out
    (row,) = rows(capsys, *words)
    assert row["fits"] is False
    size = row["change"]["settings"]["train.micro_batch_size"]
    (again,) = rows(capsys, *words, "--micro_batch_size", size)
    assert again["fits"] is True
    assert again["bytes_per_device"]["peak"] == row["change"]["peak"]
    assert main(["plan", *words[:-1], "1MB"]) == 0
    assert "no micro batch or recomputation makes it fit" in capsys.readouterr().out


def test_shared_rows_divide_what_a_device_holds(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "60m", "--method", "spectron", "--devices", 4]
    (copies,), (shared,) = (rows(capsys, *words, "--parallel", kind) for kind in ("ddp", "fsdp"))
    for kind in ("weights", "gradients"):
        share = shared["bytes_per_device"][kind] / copies["bytes_per_device"][kind]
        assert share == pytest.approx(1 / 4, rel=0.02)
    assert shared["bytes_per_device"]["state"] < copies["bytes_per_device"]["state"]
    assert shared["communicated_bytes_per_update"] > copies["communicated_bytes_per_update"]


def test_recomputation_keeps_less_and_costs_more(capsys: pytest.CaptureFixture[str]) -> None:
    plain, block = (
        rows(capsys, "--model", "60m", "--method", "adamw", "--recompute", mode)[0]
        for mode in ("none", "block")
    )
    assert block["bytes_per_device"]["activations"] < plain["bytes_per_device"]["activations"] / 2
    assert block["train_flops"] > plain["train_flops"]


def test_a_recipe_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(load(None, {"method": "muon", "model.preset": "nano"}).to_toml(), encoding="utf-8")
    (row,) = rows(capsys, path)
    assert row["method"] == "muon"
    assert row["seconds"] is row["fits"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give a recipe or --model"),
        (["--model", "61m"], "61m"),
        (["--model", "60m", "--method", "spectrun"], "spectron"),
        (["--model", "60m", "--device_memory", "much"], "80GB"),
        (["--model", "60m", "--devices", "0"], "above 0"),
        (["--model", "60m", "--devices", "7", "--method", "adamw"], "shared evenly"),
        (["--model", "60m", "--method", "adamw", "--recompute", "latents"], "has none"),
        (["none.toml"], "none.toml"),
        (["none.toml", "--method", "muon"], "leave --method out"),
    ],
)
def test_wrong_requests(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("80GB", 80 * 10**9), ("80GiB", 80 << 30), ("1.5e3", 1500), ("512 MiB", 512 << 20), ("2t", 2 * 10**12)],
)
def test_bytes(text: str, expected: int) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1iB", "0", "1.2.3GB", "80XB"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(UsageError, match="80GiB"):
        bytes_of(text)


def test_a_recipe_that_starts_from_a_model_is_planned_with_its_shape_and_ranks(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with the entries of the tokenizer that it names, from a recipe as from the folder of its run."""
    first = tmp_path / "first"
    settings = overrides(text_folder, "lowrank") | {"layer.rank": {"*q_proj": 5, "*": 7}}
    (tmp_path / "first.toml").write_text(load(None, settings).to_toml())
    assert main(["train", str(tmp_path / "first.toml"), "--run", str(first)]) == 0
    folder = first / "export" / "hf-factored"
    assert main(["export", str(first), "--form", "factored", "--out", str(folder)]) == 0
    source = f'data = {{ source = "{settings["data.source"][0]}" }}\n'
    source += "train = { steps = 1, seq_len = 32, global_batch_size = 2 }\n"
    recipes = {
        "ranks": f'init = {{ model = "{folder}" }}\nlayer = {{ rank = "init" }}\n{source}',
        "shape": f'init = {{ model = "{folder}" }}\nlayer = {{ rank = 3 }}\n{source}',
        "tokenizer": f'model = {{ preset = "nano" }}\n{source}'.replace(
            "data = {", f'data = {{ tokenizer = "{first / "tokenizer.json"}", '
        ),
    }
    for name, recipe in recipes.items():
        path, run = tmp_path / f"{name}.toml", tmp_path / name
        path.write_text(f'method = "spectron"\n{recipe}')
        assert main(["train", str(path), "--run", str(run)]) == 0
        capsys.readouterr()
        planned = [rows(capsys, place)[0] for place in (path, run)]
        summary = json.loads((run / "summary.json").read_text())
        assert [plan["params_total"] for plan in planned] == [summary["params_total"]] * 2
        assert [plan["bytes_per_device"]["state"] for plan in planned] == [summary["state_bytes_planned"]] * 2
    assert main(["plan", str(tmp_path / "ranks.toml"), "--fit", "1GB"]) == 2
    assert "has the shape of init.model" in capsys.readouterr().err


def test_ranks_of_a_folder_without_factors_cannot_be_planned(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "first.toml").write_text(load(None, overrides(text_folder, "adamw")).to_toml())
    assert main(["train", str(tmp_path / "first.toml"), "--run", str(tmp_path / "first")]) == 0
    assert main(["export", str(tmp_path / "first"), "--out", str(tmp_path / "dense")]) == 0
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'method = "spectron"\ninit = {{ model = "{tmp_path / "dense"}" }}\nlayer = {{ rank = "init" }}\n'
    )
    capsys.readouterr()
    assert main(["plan", str(recipe)]) == 2
    assert re.search(r'layer\.rank = "init", and \S+ has no factors: give a\s+rank', capsys.readouterr().err)
    with pytest.raises(UsageError, match=r"the folder that init\.model names, which has not been read"):
        plan_run(load(recipe, {}), 300)
