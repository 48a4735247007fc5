"""Every method's run leaves lowrise and computes the same elsewhere: one fresh process reads all folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import config_for, console, run_training

from lowrise.console import Console
from lowrise.errors import UsageError
from lowrise.export.export import export_run
from lowrise.export.options import ExportOptions
from lowrise.inference.generate import generate
from lowrise.layers import LAYERS
from lowrise.methods import METHODS
from lowrise.runs.load import TrainedRun, load_run

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.xdist_group("export")
READER = Path(__file__).parents[1] / "exported_folders.py"
TEXT = (
    "the rank of\n\n\n  a   matrix 12345 is  small .\tdef f(x):\n    return x+1 # it's 3.14\r\n"
    "äöü ﬁ 漢字 \U0001f600 e\u0301 I'm, don't ! <|endoftext|> end "
)
TEXTS = [TEXT, " leading space", "", "\n", "<|pad|>"]
TOKENS = [[0, 5, 9, 40, 41, 7], [3, 3, 299, 1, 0, 12]]
NEW_TOKENS = 10
LAYER_OF = {name: row.layer for name, row in METHODS.items()}
FACTORED = [name for name, layer in LAYER_OF.items() if layer not in ("dense", "lora")]
DENSE = [name for name, layer in LAYER_OF.items() if layer not in ("cola", "dlr")]
GGUF = ["adamw", "tsvd"]
# Grouped heads everywhere; ranks that differ from layer to layer; a tied head; no activation in the MLP.
SHAPES: dict[str, dict[str, Any]] = {
    "tsvd": {"layer.min_rank": 1, "layer.rank_multiple": 1, "layer.max_drop": 0.5, "layer.energy": 0.8},
    "spectron": {"model.tie_embeddings": True, "layer.skip": ["v_proj"]},
    "cola": {"model.mlp_activation": "none"},
    "muon": {"model.tie_embeddings": True},
}


@pytest.fixture(scope="module")
def folders(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Method, form -> folder, for every method and every form that it has."""
    root = tmp_path_factory.mktemp("exports")
    done: dict[tuple[str, str], Path] = {}
    for method in METHODS:
        settings = {"train.steps": 4, "eval.every": 0, "model.num_kv_heads": 1, "log.telemetry_every": 0}
        config = config_for(text_folder, method, **settings, **SHAPES.get(method, {}))
        run_training(config, root / method)
        wanted = [("dense", {})] if method in DENSE else []
        wanted += [("factored", {"form": "factored"})] if method in FACTORED else []
        wanted += [("gguf", {"to": "gguf"})] if method in GGUF and _has_gguf() else []
        for name, options in wanted:
            out = root / f"{method}-{name}"
            export_run(ExportOptions(run=root / method, out=out, **options), console())
            done[method, name] = out
    return done


def _has_gguf() -> bool:
    try:
        import gguf  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(scope="module")
def answers(folders: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without lowrise makes of the folders."""
    here = tmp_path_factory.mktemp("stranger")
    request = {
        "folders": [str(path) for path in folders.values()],
        "tokens": TOKENS,
        "texts": TEXTS,
        "new_tokens": NEW_TOKENS,
    }
    (here / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-I", str(READER), str(here / "request.json"), str(here / "answer.pt")]
    environment = {**os.environ, "HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=here)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(here / "answer.pt", weights_only=True)


def run_of(folder: Path) -> TrainedRun:
    return load_run(folder.with_name(folder.name.rpartition("-")[0]), "cpu", Console())


CASES = [(m, "dense") for m in DENSE] + [(m, "factored") for m in FACTORED] + [(m, "gguf") for m in GGUF]


@pytest.mark.parametrize(("method", "form"), CASES, ids=lambda value: value)
def test_a_stranger_computes_the_same(method: str, form: str, folders: Any, answers: Any) -> None:
    if (method, form) not in folders:
        pytest.skip("the package gguf is not installed")
    folder = folders[method, form]
    answer, run = answers[str(folder)], run_of(folder)
    with torch.no_grad():
        logits = run.model(torch.tensor(TOKENS))
    # float32, logits of about 1: the order of sums differs, of a product of factors and of a merged weight
    torch.testing.assert_close(answer["logits"], logits, rtol=0, atol=1e-5)
    for tokens, generated in zip(TOKENS, answer["generated"].tolist(), strict=True):
        assert generated == list(generate(run.model, tokens, max_new_tokens=NEW_TOKENS, temperature=0))
    assert answer["dtype"] == "torch.float32"
    assert answer["class"] == ("LowriseForCausalLM" if form == "factored" else "LlamaForCausalLM")
    assert answer["module"].startswith("transformers_modules" if form == "factored" else "transformers.")
    if form == "factored":
        assert answer["saved_again"]


@pytest.mark.parametrize("form", ["dense", "factored", "gguf"])
def test_a_stranger_reads_the_same_ids_and_the_same_text(form: str, folders: Any, answers: Any) -> None:
    if ("tsvd", form) not in folders:
        pytest.skip("the package gguf is not installed")
    answer, tokenizer = answers[str(folders["tsvd", form])], run_of(folders["tsvd", form]).tokenizer
    # A GGUF file has no word for "special tokens in a text are text".
    special = [any(token in text for token in ("<|endoftext|>", "<|pad|>")) for text in TEXTS]
    for text, quotes, ids, decoded in zip(TEXTS, special, answer["ids"], answer["decoded"], strict=True):
        if form == "gguf" and quotes:
            continue
        assert ids == tokenizer.encode(text)
        loses = form == "gguf" and transformers.__version__ < "5"  # a space at the beginning
        assert decoded == (text.removeprefix(" ") if loses else text)


def test_ranks_of_each_layer_are_in_the_configuration(folders: Any) -> None:
    config = json.loads((folders["tsvd", "factored"] / "config.json").read_text())
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= config["auto_map"].keys()
    factors = config["factors"]
    layers = run_of(folders["tsvd", "factored"]).model.model
    assert {name: options["rank"] for name, options in factors.items()} == {
        name: module.rank for name, module in layers.named_modules() if isinstance(module, LAYERS["svd"])
    }
    assert len({options["rank"] for options in factors.values()}) > 1


def test_what_a_form_cannot_hold_is_a_sentence(folders: Any, tmp_path: Path) -> None:
    runs = folders["cola", "factored"].parent
    with pytest.raises(UsageError, match=r"layers\.0\.self_attn\.q_proj has the activation silu.*factored"):
        export_run(ExportOptions(run=runs / "cola", out=tmp_path / "a"), console())
    for method in ("adamw", "lora"):
        with pytest.raises(UsageError, match=r"No map of this model is stored as two factors.*dense"):
            export_run(ExportOptions(run=runs / method, form="factored", out=tmp_path / "a"), console())
    assert list(tmp_path.iterdir()) == []
