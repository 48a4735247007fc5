"""Every shipped recipe loads, has the published parameter count, and names the source of its numbers."""

import re
import tomllib
from pathlib import Path

import pytest
from small_runs import run_training

from lowrise.config import RunConfig, from_dict, load
from lowrise.errors import UsageError
from lowrise.methods import METHODS, Method
from lowrise.model import LlamaConfig
from lowrise.runs import recipes
from lowrise.train import plan_run

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
DENSE = {
    "60m": 58_073_600,
    "130m": 134_105_856,
    "350m": 367_969_280,
    "1b": 1_339_082_752,
    "7b": 6_738_415_616,
}
LOW_RANK = {
    "60m": 42_770_944,
    "130m": 93_997_824,
    "350m": 185_222_144,
    "1b": 609_310_720,
    "7b": 2_820_935_680,
}
SIZES = ("tiny", "60m", "130m", "350m", "1b", "3b", "7b")
TINY = [path for path in RECIPES if "tiny" in path.stem.split("-")]


def method_and_size(path):
    """METHOD-SIZE, or METHOD-SIZE-VARIANT."""
    found = re.fullmatch(rf"(.+?)-({'|'.join(SIZES)})(-.+)?", path.stem)
    assert found, f"{path.name}: name it METHOD-SIZE.toml or METHOD-SIZE-VARIANT.toml"
    return found[1], found[2]


# LoRA: the dense model and the factors of the low-rank one. SLTrain: methods/lora_relora.md, section 4, has
# 43.5M, 96.5M, 194.3M and 645.5M; at 7B delta is 0.05.
LORA = {
    "60m": 68_067_840,
    "130m": 178_932_480,
    "350m": 487_605_248,
    "1b": 1_817_221_120,
    "7b": 9_296_941_056,
}
SLTRAIN = {
    "60m": 43_529_832,
    "130m": 96_545_796,
    "350m": 194_293_544,
    "1b": 645_547_960,
    "7b": 3_144_735_808,
}
COUNTS = {"dense": DENSE, "lora": LORA, "sltrain": SLTRAIN}


def test_every_method_has_every_size():
    names = {path.stem for path in RECIPES}
    assert {f"{method}-{size}" for method in METHODS for size in SIZES} <= names


@pytest.mark.parametrize("method", METHODS)
def test_shipped_recipes_of_published_sizes_are_those_of_the_table(method):
    for size in recipes.SIZES:
        path = RECIPES[0].with_name(f"{method}-{size}.toml")
        assert path.read_text() == recipes.recipe(method, size), (
            f"{path.name}: make it with --size {size} --write"
        )


def test_a_method_without_a_table_of_its_own_has_recipes_too(monkeypatch):
    row = Method(
        name="new", layer="dense", optimizer="muon", summary="a new one", source="-",
        defaults={"optimizer.lr": 0.125, "optimizer.nesterov": False},
    )  # fmt: skip
    monkeypatch.setitem(METHODS, "new", row)
    text = recipes.recipe("new", "350m")
    config = from_dict(tomllib.loads(text))
    assert (config.optimizer.lr, config.optimizer.nesterov, config.train.steps) == (0.125, False, 60000)
    assert text.startswith("# A new one.\n# Llama 350m on C4")


def test_unknown_methods_and_sizes_get_a_message():
    with pytest.raises(UsageError, match=r"no size '2b'.*Known: 130m"):
        recipes.recipe("muon", "2b")
    with pytest.raises(UsageError, match=r"no method 'mun'; the nearest is 'muon'"):
        recipes.recipe("mun", "60m")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_counts(path):
    config = load(path)
    method, size = method_and_size(path)
    assert config.method == method
    plan = plan_run(config, config.data.vocab_size)
    expected = COUNTS.get(config.layer.name, LOW_RANK).get(size)
    if expected is not None:
        if config.layer.name == "svd":  # the singular values come on top of two factors
            expected += 7 * LlamaConfig.preset(size).num_layers * config.layer.rank
        assert plan.params_total == expected


@pytest.mark.parametrize("path", [path for path in RECIPES if path not in TINY], ids=lambda p: p.stem)
def test_published_sizes_name_the_source_of_each_number(path):
    section = ""
    for line in path.read_text().splitlines():
        section = line if line.startswith("[") else section
        if re.match(
            r"(lr|rank|init|alpha|delta|merge_every|reset_every|cycle|restart_warmup|momentum|betas|weight_decay"
            r"|variant|steps|warmup|grad_clip|micro_batch_size)\s*=",
            line,
        ):
            assert "#" in line or line == 'variant = "published"', f"{path.name} {section} {line}: no source"


@pytest.mark.parametrize("path", TINY, ids=lambda p: p.stem)
def test_tiny_recipe_trains(path, text_folder, tmp_path):
    settings = {
        "data.source": [str(text_folder / "text.jsonl")],
        "data.vocab_size": 300,
        "data.valid_fraction": 0.1,
        "data.cache": str(text_folder / "cache"),
        "train.steps": 3,
        "train.global_batch_size": 4,
        "log.tensorboard": False,
    }
    assert run_training(load(path, settings), tmp_path)["status"] == "completed"


def test_no_arguments_are_the_tiny_spectron_recipe():
    recipe = next(path for path in RECIPES if path.stem == "spectron-tiny")
    assert load(recipe) == RunConfig(**vars(load(None)))
