"""Every form that a model is exported in is loaded again, with the same logits and the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_runs import config_for, console, run_training

from lowrise.cli import main
from lowrise.errors import UsageError
from lowrise.pretrained.load import check_model, load_model

# A method for each kind of layer, and the forms that it has.
FORMS = {
    "adamw": ("hf", "gguf", "safetensors"),
    "spectron": ("hf", "hf-factored", "gguf", "safetensors"),
    "cola": ("hf-factored", "safetensors"),
    "sltrain": ("hf", "hf-factored", "gguf", "safetensors"),
    "tsvd": ("hf", "hf-factored", "gguf", "safetensors"),
    "lora": ("hf", "gguf", "safetensors"),
    "selfguided": ("hf-factored", "safetensors"),
}
TEXT = "def rank(matrix):\n    return 12\n"


@pytest.mark.parametrize("method", FORMS)
def test_the_model_is_the_runs(method: str, text_folder: Path, tmp_path: Path) -> None:
    settings = {"model.tie_embeddings": method == "adamw", "model.num_kv_heads": 1, "eval.every": 0}
    run_training(config_for(text_folder, method, **settings), tmp_path / "run")
    run = load_model(tmp_path / "run", "cpu", console())
    tokens = torch.randint(run.tokenizer.vocab_size, (2, 12))
    ids = run.tokenizer.encode(TEXT)
    for form in FORMS[method]:
        to, _, kind = form.partition("-")
        out = tmp_path / form
        words = ["export", str(tmp_path / "run"), "--to", to, "--out", str(out)]
        assert main([*words, *(["--form", kind] if kind else [])]) == 0
        found = load_model(out, "cpu", console())
        with torch.no_grad():
            # Merged in another order of float32 products.
            torch.testing.assert_close(found.model(tokens), run.model(tokens), rtol=0, atol=2e-5)
        assert found.tokenizer.encode(TEXT) == ids
        assert found.tokenizer.decode(ids) == TEXT
        assert found.tokenizer.separator_id == run.tokenizer.separator_id
        assert (found.step, found.config.train.seq_len) == (8, 16), form
        assert not found.model.training


def test_a_quantized_file_is_close(text_folder: Path, tmp_path: Path) -> None:
    run_training(config_for(text_folder, "adamw", **{"eval.every": 0}), tmp_path / "run")
    words = ["export", str(tmp_path / "run"), "--to", "gguf", "--dtype", "q8_0", "--out", str(tmp_path / "q")]
    assert main(words) == 0
    run, found = (load_model(tmp_path / name, "cpu", console()) for name in ("run", "q/model.gguf"))
    for name, weight in run.model.state_dict().items():
        # One float16 scale for 32 entries, each an integer of 8 bits.
        bound = weight.abs().max() * (0.5 / 127 + 2e-3)
        assert (found.model.state_dict()[name] - weight).abs().max() <= bound, name


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run directory .* nor a model in another form"):
        check_model(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"holds 2 GGUF files: name one, for example .*a\.gguf"):
        load_model(tmp_path, "cpu", console())
    with pytest.raises(UsageError, match=r"a\.gguf is not a whole GGUF file"):
        load_model(tmp_path / "a.gguf", "cpu", console())


def test_safetensors_of_somebody_else(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="no metadata of lowrise export --to safetensors"):
        load_model(tmp_path, "cpu", console())


def test_a_plugin_named_in_a_file_is_not_loaded(text_folder: Path, tmp_path: Path) -> None:
    """The recipe in the metadata may come from anywhere: the code that it names is not run. What another
    version wrote there names that version."""
    run_training(config_for(text_folder, "adamw", **{"eval.every": 0}), tmp_path / "run")
    words = ["export", str(tmp_path / "run"), "--to", "safetensors", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    from safetensors import safe_open

    file = tmp_path / "out" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    recipe = metadata["recipe"].replace("plugin = []", f'plugin = ["{evil}"]')
    assert str(evil) in recipe
    save_file(tensors, file, metadata | {"recipe": recipe})
    assert load_model(tmp_path / "out", "cpu", console()).step == 8
    assert not (tmp_path / "ran").exists()
    shape = json.dumps(json.loads(metadata["model"]) | {"angles": 3})
    for changed in (
        {"model": shape},
        {"recipe": metadata["recipe"].replace("[train]", "[train]\nangles = 3")},
    ):
        save_file(tensors, file, metadata | changed | {"lowrise": "7.5.0"})
        with pytest.raises(UsageError, match=r"angles'.* lowrise 7\.5\.0 wrote .*safetensors, and this is"):
            load_model(tmp_path / "out", "cpu", console())


def test_generate_and_serve_take_every_form(text_folder: Path, tmp_path: Path, capsys) -> None:
    from lowrise.pretrained.load import template_folders

    run_training(config_for(text_folder, "spectron", **{"eval.every": 0}), tmp_path / "run")
    texts = []
    for form in ("", *FORMS["spectron"]):
        place = tmp_path / (form or "run")
        if form:
            to, _, kind = form.partition("-")
            words = ["export", str(tmp_path / "run"), "--to", to, "--out", str(place)]
            assert main([*words, *(["--form", kind] if kind else [])]) == 0
            assert template_folders(place, trust=False) == [place], "a chat template may lie there"
        capsys.readouterr()
        words = ["generate", str(place), "--prompt", "the rank", "--tokens", "8", "--temperature", "0"]
        assert main(words) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
