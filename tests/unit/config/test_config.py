"""The configuration tree: round trip, precedence, and a sentence for everything that is wrong."""

import dataclasses

import pytest

from lowrise import __version__
from lowrise.config import RunConfig, from_dict, load, options_of
from lowrise.errors import UsageError
from lowrise.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_resolved_configuration_repeats_itself(method, tmp_path):
    config = load(
        None,
        {"method": method, "train.steps": 7, "layer.targets": ["q_proj"]}
        if method == "lowrank"
        else {"method": method},
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    again = load(path)
    assert again == config
    assert again.hash == config.hash


def test_precedence_is_method_then_recipe_then_override(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('method = "spectron"\n[optimizer]\nmomentum = 0.9\n[other]\nlr = 0.5\n')
    config = load(recipe, {"optimizer.lr": 1})
    assert config.optimizer.lr == 1.0
    assert isinstance(config.optimizer.lr, float)
    assert config.optimizer.momentum == 0.9
    assert config.other.lr == 0.5
    assert load(recipe).optimizer.lr == METHODS["spectron"].defaults["optimizer.lr"]


def test_any_layer_goes_with_any_optimizer():
    config = load(None, {"method": "lowrank", "optimizer.name": "muon", "optimizer.nesterov": False})
    assert (config.layer.name, config.optimizer.name) == ("lowrank", "muon")
    assert options_of(config.optimizer)["nesterov"] is False
    # The method's default rate is AdamW's; another optimizer starts from its own.
    assert (
        load(None, {"method": "adamw", "optimizer.name": "spectron", "layer.name": "lowrank"}).optimizer.lr
        == 0.01
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": {"momentun": 0.9}}, ["optimizer.momentun", "optimizer.momentum"]),
        ({"trian": {"steps": 3}}, ["trian", "train"]),
        ({"method": "spectrom"}, ["spectrom", "'spectron'"]),
        ({"optimizer": {"name": "mun"}}, ["mun", "'muon'"]),
        ({"layer": {"name": "lowrnk"}}, ["lowrnk", "'lowrank'"]),
        ({"model": {"preset": "60mm"}}, ["60mm", "'60m'"]),
        ({"train": {"steps": "many"}}, ["train.steps", "'many'", "integer"]),
        ({"train": {"steps": 0}}, ["train.steps", "0"]),
        ({"train": {"steps": True}}, ["train.steps", "True"]),
        ({"train": {"compile": 1}}, ["train.compile", "true or false"]),
        ({"train": {"precision": "fp8"}}, ["train.precision", "'bfloat16'"]),
        ({"train": {"global_batch_size": 10, "micro_batch_size": 4}}, ["train.micro_batch_size", "4", "10"]),
        ({"schedule": {"cycle": 10}}, ["schedule.restart_warmup", "10"]),
        ({"other": {"betas": [0.9]}}, ["other.betas"]),
        ({"optimizer": {"lr": -1.0}}, ["optimizer.lr", "-1.0"]),
        ({"train": 3}, ["train", "3"]),
        ({"optimizer": 3}, ["optimizer", "3"]),
    ],
)
def test_what_is_wrong_gets_a_sentence(values, words):
    with pytest.raises(UsageError) as caught:
        from_dict(values, source="recipe.toml")
    for word in words:
        assert word in str(caught.value)


def test_broken_toml_names_file_and_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("method = \n")
    with pytest.raises(UsageError, match=r"bad\.toml.*line 1"):
        load(path)
    with pytest.raises(UsageError, match="no recipe at"):
        load(tmp_path / "absent.toml")


def test_hash_ignores_what_does_not_change_the_result():
    base = load(None)
    assert load(None, {"checkpoint.every": 3, "eval.every": 7, "data.workers": 3}).hash == base.hash
    for key, value in (("seed", 1), ("optimizer.lr", 0.3), ("train.steps", 2), ("data.source", "x")):
        assert load(None, {key: value}).hash != base.hash


def test_every_field_has_a_line_of_help():
    """The flags' help comes from the line under each field."""
    import inspect

    for field in dataclasses.fields(RunConfig):
        section = field.default_factory if field.default_factory is not dataclasses.MISSING else None
        if section is None or not dataclasses.is_dataclass(section):
            continue
        source = inspect.getsource(section)
        for inner in dataclasses.fields(section):
            after = source.split(f"    {inner.name}:", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""'), f"{field.name}.{inner.name} has no line of help"


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_a_decay_of_products_needs_products(method):
    with pytest.raises(UsageError, match=r"decay = 'product' cannot be with layer.name = 'dense'.*lowrank"):
        from_dict({"method": method, "optimizer": {"decay": "product"}})
    assert from_dict({"method": "lowrank", "optimizer": {"decay": "product"}}).optimizer.decay == "product"


def written_by(version: str, path, **changes: str) -> None:
    text = load(None, {"method": "spectron"}).to_toml()
    for old, new in {__version__: version, **changes}.items():
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"momentum =": "angular = 3\nmomentum ="}, "unknown key 'optimizer.angular'"),
        ({'"spectron"': '"spectron3"'}, "there is no method 'spectron3'"),
        ({'"cosine"': '"spiral"'}, "schedule.name"),
    ],
)
def test_what_another_version_wrote_names_both_versions(changes, told, tmp_path):
    path = tmp_path / "config.toml"
    written_by("7.5.0", path, **changes)
    with pytest.raises(UsageError) as error:
        load(path)
    assert told in str(error.value)
    assert f"lowrise 7.5.0 wrote {path}, and this is lowrise {__version__}: use 7.5.0" in str(error.value)
    written_by(__version__, path, **changes)
    with pytest.raises(UsageError) as error:
        load(path)
    assert told in str(error.value)
    assert "wrote" not in str(error.value)


def test_what_another_version_wrote_is_read_where_it_is_understood(tmp_path):
    written_by("7.5.0", tmp_path / "config.toml")
    assert load(tmp_path / "config.toml") == load(None, {"method": "spectron"})
