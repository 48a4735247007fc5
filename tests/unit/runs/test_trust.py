"""A run folder that somebody has sent names files of this machine: they are not read unless it is trusted."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
import tomli_w
from small_runs import config_for, console, overrides, run_training, write_text

from lowrise.cli import main
from lowrise.config import load
from lowrise.config.places import named_places, source_place
from lowrise.errors import UsageError
from lowrise.evaluation.measure import evaluate_run
from lowrise.runs.trust import seal


@pytest.fixture(scope="module")
def own_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_text(folder / "text.jsonl")
    run_training(config_for(folder, "adamw", **{"train.steps": 2}), folder / "run")
    return folder / "run"


@pytest.fixture
def sent(own_run, tmp_path, monkeypatch) -> Path:
    """The same run, of another user: a key that made no seal."""
    shutil.copytree(own_run, tmp_path / "sent")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOWRISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "sent"


def refused(words: list[str], capsys) -> str:
    assert main(words) == 2
    return " ".join(capsys.readouterr().err.split())


def test_ones_own_run_needs_no_word(own_run, capsys):
    assert main(["eval", str(own_run)]) == 0
    moved = own_run.with_name("moved")
    shutil.copytree(own_run, moved)
    assert main(["eval", str(moved)]) == 0
    assert main(["data", "info", str(moved)]) == 0


def test_another_ones_is_asked_about_and_nothing_is_read(sent, tmp_path, capsys, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("lowrise.evaluation.command.load_model", lambda *a: opened.append("run"))
    for words in (
        ["eval", str(sent)],
        ["data", "info", str(sent)],
        ["train", str(sent)],
        ["train", str(sent), "--run", str(tmp_path / "new")],
        ["compare", str(sent), "--budget", "tokens=1k", "--out", str(tmp_path / "compared")],
    ):
        told = refused(words, capsys)
        assert "was not made by this user" in told
        assert "text.jsonl" in told
        assert "--trust true" in told
    assert not opened
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "state").exists(), "looking makes no key"


def test_trusted_or_with_text_of_ones_own_it_is_evaluated(sent, own_run, tmp_path, capsys):
    assert main(["eval", str(sent), "--trust", "true", "--json", "true"]) == 0
    trusted = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert trusted["val_loss"] == json.loads((own_run / "summary.json").read_text())["val_loss"]
    other = write_text(tmp_path / "other.jsonl", documents=30)
    assert main(["eval", str(sent), "--data.source", str(other), "--json", "true"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["val_tokens"] > 0
    assert (tmp_path / "cache").is_dir(), "the cache is the user's, not the one that the folder names"


def test_generate_and_init_read_nothing_outside_of_the_folder(sent, own_run, text_folder, tmp_path):
    """The text and the cache that the folder names are gone."""
    values = load(sent / "config.toml").to_dict()
    values["data"] |= {"source": ["/absent/text"], "cache": "/absent/cache"}

    (sent / "config.toml").write_text(tomli_w.dumps(values))
    assert main(["generate", str(sent), "--tokens", "3"]) == 0
    tokenizer = {"data.tokenizer": str(sent / "tokenizer.json")}
    config = config_for(text_folder, "lora", **tokenizer, **{"init.run": str(sent), "train.steps": 2})
    assert run_training(config, tmp_path / "new")["status"] == "completed"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", ["/etc/passwd"]),
        ("valid", ["/etc/passwd"]),
        ("tokenizer", "/etc/passwd"),
        ("cache", "/elsewhere"),
    ],
)
def test_a_seal_fits_no_other_places(key, value, own_run, tmp_path, capsys):

    shutil.copytree(own_run, tmp_path / "edited")
    values = load(own_run / "config.toml").to_dict()
    values["data"][key] = value
    (tmp_path / "edited" / "config.toml").write_text(tomli_w.dumps(values))
    assert "was not made by this user" in refused(["eval", str(tmp_path / "edited")], capsys)


def edited(sent: Path, key: str, value: str) -> None:
    values = load(sent / "config.toml").to_dict()
    section, name = key.split(".")
    values[section][name] = value
    (sent / "config.toml").write_text(tomli_w.dumps(values))


def test_a_server_reads_the_folder_of_its_tokenizer_with_leave_alone(sent, tmp_path, capsys, monkeypatch):
    read: list[str] = []
    monkeypatch.setattr("lowrise.serve.server.load_text_model", lambda *a, **k: read.append("run"))
    edited(sent, "data.tokenizer", str(tmp_path / "theirs" / "tokenizer.json"))
    told = refused(["serve", str(sent), "--port", "0"], capsys)
    assert f"it would read {tmp_path}/theirs/tokenizer.json: " in told
    assert not read


@pytest.mark.parametrize("key", ["init.run", "init.model"])
def test_training_by_anothers_recipe_asks_for_first_weights_too(key, sent, tmp_path, capsys):
    """With text of one's own what is left of the recipe's places is asked about, and nothing else."""
    text = str(write_text(tmp_path / "own.jsonl", documents=30))
    words = ["train", str(sent), "--run", str(tmp_path / "new"), "--data.source", text]
    edited(sent, key, str(tmp_path / "theirs"))
    told = refused(words, capsys)
    assert f"{tmp_path}/theirs: " in told
    assert "own.jsonl" not in told


def test_a_recipe_after_the_flags_is_refused(own_run, capsys):
    """Flags depend on the recipe, which is looked at first."""
    assert "comes first, before the flags" in refused(["train", "--trust", str(own_run)], capsys)


def test_code_of_another_one_is_not_loaded(own_run, text_folder, tmp_path, capsys):
    """By any door to a run: the message comes before config.toml is made into a configuration."""
    shutil.copytree(own_run, tmp_path / "sent")
    file = tmp_path / "sent" / "config.toml"
    file.write_text(file.read_text().replace("plugin = []", f'plugin = ["{tmp_path}/bad.py"]'))
    (tmp_path / "bad.py").write_text("raise SystemExit(99)\n")
    sent = str(tmp_path / "sent")
    other = write_text(tmp_path / "other.jsonl", documents=30)
    for words in (
        ["generate", sent],
        ["eval", sent, "--data.source", str(other)],
        ["eval", sent, "--trust", "true"],
        ["eval", str(own_run), sent, "--trust"],
        ["data", "info", sent, "--trust", "true"],
        ["export", sent],
        ["export", sent, "--to", "safetensors"],
        ["serve", sent, "--port", "0", "--trust"],
        ["train", sent, "--trust"],
        ["train", "--init.run", sent, "--run", str(tmp_path / "new"), "--data.source", str(other)],
        ["train", sent, "--run", str(tmp_path / "new"), "--trust"],
        ["compare", sent, "--budget", "tokens=1k", "--out", str(tmp_path / "compared"), "--trust"],
    ):
        assert f"would run the code in {tmp_path}/bad.py" in refused(words, capsys)
    assert "bad.py" in refused(["eval", sent], capsys)
    config = config_for(text_folder, "lora", **{"init.run": sent, "train.steps": 2})
    with pytest.raises(UsageError, match="would run the code"):
        run_training(config, tmp_path / "new")
    with pytest.raises(UsageError, match="would run the code"):
        run_training(config_for(text_folder, "adamw", **{"train.steps": 2}), Path(sent))


@pytest.mark.parametrize("content", [None, "", "[]", '{"seal": 3}', '{"seal": ""}', "\x00", "[" * 5000])
def test_a_seal_that_is_none(content, own_run, tmp_path, capsys):
    shutil.copytree(own_run, tmp_path / "odd")
    file = tmp_path / "odd" / "environment.json"
    file.unlink() if content is None else file.write_text(content)
    assert "was not made by this user" in refused(["eval", str(tmp_path / "odd")], capsys)


def test_the_builtin_text_is_harmless():
    assert named_places(load(None, {"data.source": "builtin"}).to_dict()) == []
    assert named_places({"data": {"source": "builtin", "cache": "/x"}}) == ["/x"]
    assert named_places({"data": 3, "eval": {"extra": {"a": 4}}, "plugin": ["/p.py"]}) == [
        str(Path.cwd() / "4"),
        "/p.py",
    ]


def test_the_key_is_the_users_alone_and_the_seal_tells_no_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = load(None, overrides(tmp_path, "adamw"))
    made = seal(config)
    key = tmp_path / "lowrise" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert seal(config) == made
    assert len(made) == 64
    key.unlink()
    assert seal(config) != made


def test_without_a_home_folder_there_is_no_seal_and_no_failure(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert seal(load(None, {"data.source": "x"})) == ""


def test_eval_on_other_text_needs_no_source_of_the_first(tmp_path):
    text = write_text(tmp_path / "text.jsonl")
    run_training(config_for(tmp_path, "adamw", **{"train.steps": 2}), tmp_path / "run")
    text.unlink()
    other = write_text(tmp_path / "other.jsonl", documents=40)
    one = evaluate_run(tmp_path / "run", "cpu", console(), source=[str(other)])
    assert one["val_tokens"] > 0
    again = evaluate_run(tmp_path / "run", "cpu", console(), source=[str(other)])
    assert again == one


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_place("builtin") == "builtin"
    assert source_place("a/**/*.txt") == f"{tmp_path}/a/**/*.txt"
    assert source_place("~/x") == str(Path.home() / "x")
    assert source_place("hf:allenai/c4:en:train") == "hf:allenai/c4:en:train"
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert source_place("hf:saved:valid") == f"hf:{tmp_path}/saved:valid"
