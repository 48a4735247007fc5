"""Every shipped recipe loads, has the published parameter count, and names the source of its numbers."""

import re
from pathlib import Path

import pytest
from tiny import run_training

from lowrise.config import RunConfig, load
from lowrise.methods import METHODS
from lowrise.model import LlamaConfig
from lowrise.train import plan_run

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
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


def test_every_method_has_every_size():
    names = {path.stem for path in RECIPES}
    sizes = {"tiny", "60m", "130m", "350m", "1b", "3b", "7b"}
    assert {f"{method}-{size}" for method in METHODS for size in sizes} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_counts(path):
    config = load(path)
    method, size = path.stem.rsplit("-", 1)
    assert config.method == method
    plan = plan_run(config, config.data.vocab_size)
    expected = (DENSE if config.layer.name == "dense" else LOW_RANK).get(size)
    if expected is not None:
        if config.layer.name == "svd":  # the singular values come on top of two factors
            expected += 7 * LlamaConfig.preset(size).num_layers * config.layer.rank
        assert plan.params_total == expected


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if not path.stem.endswith("tiny")], ids=lambda p: p.stem
)
def test_published_sizes_name_the_source_of_each_number(path):
    section = ""
    for line in path.read_text().splitlines():
        section = line if line.startswith("[") else section
        if re.match(
            r"(lr|rank|init|momentum|betas|weight_decay|variant|steps|warmup|clip|micro_sequences)\s*=", line
        ):
            assert "#" in line or line == 'variant = "published"', f"{path.name} {section} {line}: no source"


@pytest.mark.parametrize(
    "path", [path for path in RECIPES if path.stem.endswith("tiny")], ids=lambda p: p.stem
)
def test_tiny_recipe_trains(path, text_folder, tmp_path):
    settings = {
        "data.source": [str(text_folder / "text.jsonl")],
        "data.vocab_size": 300,
        "data.valid_fraction": 0.1,
        "data.cache": str(text_folder / "cache"),
        "train.steps": 3,
        "train.sequences": 4,
        "log.tensorboard": False,
    }
    assert run_training(load(path, settings), tmp_path)["status"] == "completed"


def test_no_arguments_are_the_tiny_spectron_recipe():
    recipe = next(path for path in RECIPES if path.stem == "spectron-tiny")
    assert load(recipe) == RunConfig(**vars(load(None)))
