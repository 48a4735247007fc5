"""A model whose weights hold NaN or an infinity, in every form and every command: refused by the tensor's
name where weights are handed on or used, told where they are only looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_runs import config_for, run_training, write_text

import lowrise.export.export
import lowrise.export.forms
from lowrise.checkpoint import CheckpointStore
from lowrise.cli import main

NAME = "model.layers.1.mlp.up_proj.A"
FORMS = {
    "hf": ["--to", "hf"],
    "factored": ["--to", "hf", "--form", "factored"],
    "safetensors": ["--to", "safetensors"],
    "gguf": ["--to", "gguf"],
}
TENSOR = {
    "hf": "model.layers.1.mlp.up_proj.weight",
    "factored": NAME,
    "safetensors": NAME,
    "gguf": "model.layers.1.mlp.up_proj.weight",
    "run": NAME,
}


def spoil(run: Path, name: str, value: float) -> None:
    """One entry of a saved weight becomes `value`, in a checkpoint that is whole."""
    store = CheckpointStore(run / "checkpoints")
    saved = store.load(store.steps()[-1])
    parts = {part: dict(tensors) for part, tensors in saved.parts.items()}
    parts["model"][name] = parts["model"][name].clone()
    parts["model"][name].view(-1)[3] = value
    store.save(saved.step, parts, saved.numbers)


def trained(folder: Path, value: float) -> Path:
    write_text(folder / "text.jsonl")
    config = config_for(folder, "lowrank", **{"train.steps": 2, "checkpoint.every": 2, "eval.every": 2})
    run_training(config, folder / "run")
    spoil(folder / "run", NAME, value)
    return folder / "run"


@pytest.fixture(scope="module", params=[float("nan"), float("-inf")], ids=str)
def places(request, tmp_path_factory) -> dict[str, Path]:
    """A run and its exports, as an earlier version would have written them: nothing was looked at."""
    folder = tmp_path_factory.mktemp("spoiled")
    found = {"run": trained(folder, request.param)}
    with pytest.MonkeyPatch.context() as patch:
        for module in (lowrise.export.export, lowrise.export.forms):
            patch.setattr(module, "require_finite", lambda *_: None)
        for form, words in FORMS.items():
            if form == "gguf":
                pytest.importorskip("gguf")
            found[form] = folder / form
            assert main(["export", str(found["run"]), *words, "--out", str(found[form])]) == 0
    return found


def refused(words: list[str], tensor: str, capsys) -> str:
    assert main(words) == 2, words
    error = capsys.readouterr().err
    assert f"{tensor} has entries that are NaN or infinite" in error
    assert "diverged" in error
    return error


@pytest.mark.parametrize("form", FORMS)
def test_no_export_is_made(form, places, tmp_path, capsys):
    error = refused(["export", str(places["run"]), *FORMS[form], "--out", str(tmp_path / "x")], NAME, capsys)
    assert "init.step, a lower optimizer.lr" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["run", *FORMS])
def test_nothing_is_generated(form, places, capsys):
    words = ["generate", str(places[form]), "--tokens", "2", "--device", "cpu"]
    refused(words, TENSOR[form], capsys)


def test_nothing_is_served(places, capsys):
    pytest.importorskip("uvicorn")
    refused(["serve", str(places["run"]), "--port", "0", "--device", "cpu"], NAME, capsys)


def test_no_run_and_no_factors_are_made(places, tmp_path, capsys):
    for form in ("hf", "factored"):
        refused(["import", str(places[form]), "--run", str(tmp_path / "x")], TENSOR[form], capsys)
    words = ["factorize", str(places["hf"]), "--rank", "4", "--out", str(tmp_path / "x")]
    refused(words, TENSOR["hf"], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--init.run", "run"], ["--init.run", "run", "--init.what", "all"]])
def test_no_training_begins_from_it(words, places, tmp_path, capsys):
    given = [str(places[word]) if word in places else word for word in words]
    recipe = places["run"] / "config.toml"
    longer = ["--train.steps", "4"] if "all" in words else []
    refused(["train", str(recipe), "--run", str(tmp_path / "x"), *given, *longer], NAME, capsys)
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x" / "checkpoints").glob("step-*"))


def test_no_training_begins_from_a_folder_of_it(places, tmp_path, capsys):
    words = ["train", "--method", "adamw", "--init.model", str(places["hf"]), "--run", str(tmp_path / "x")]
    words += ["--data.source", str(places["run"].parent / "text.jsonl"), "--train.steps", "1"]
    refused([*words, "--train.seq_len", "8", "--train.device", "cpu"], TENSOR["hf"], capsys)


@pytest.mark.parametrize("form", ["run", *FORMS])
def test_it_may_be_looked_at(form, places, capsys):
    source = [] if form == "run" else ["--data.source", str(places["run"].parent / "text.jsonl")]
    assert main(["eval", str(places[form]), "--json", "--device", "cpu", *source]) == 0
    said = capsys.readouterr()
    assert f"{TENSOR[form]} has entries that are NaN or infinite" in said.err
    assert json.loads(said.out)["val_loss_not_finite"] == "NaN"


def test_an_audit_names_it(places, capsys):
    assert main(["inspect", str(places["run"])]) == 0
    assert "not finite" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("form", FORMS)
def test_no_value_becomes_infinite_in_a_smaller_format(form, tmp_path, capsys):
    if form == "gguf":
        pytest.importorskip("gguf")
    run = trained(tmp_path, 1e9)
    words = ["export", str(run), *FORMS[form], "--dtype", "float16", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "mlp.up_proj" in error
    assert "float16 ends at 65504" in error
    assert not (tmp_path / "x").exists()
    other = "float32" if form == "gguf" else "bfloat16"
    assert main([other if word == "float16" else word for word in words]) == 0


def test_a_product_that_is_too_large_is_no_number_either(tmp_path, capsys):
    """Factors of 1e30 are finite, their product is not."""
    run = trained(tmp_path, 1e30)
    spoil(run, NAME.removesuffix("A") + "B", 1e30)
    assert main(["export", str(run), "--out", str(tmp_path / "x")]) == 2
    assert "up_proj.weight has entries that are NaN or infinite" in capsys.readouterr().err
    assert main(["export", str(run), "--form", "factored", "--out", str(tmp_path / "x")]) == 0
