"""What leaves a DLR run is folded: factors with the residual in them, and one matrix where there is no
activation.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import config_for, console, run_training

from lowrise.errors import UsageError
from lowrise.export.export import export_run
from lowrise.export.options import ExportOptions
from lowrise.inference.generate import generate
from lowrise.layers import DLRLinear
from lowrise.runs.load import TrainedRun, load_run

PLACE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def linear_run(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dlr")
    settings = {"layer.activation": "none", "layer.train_alpha": True, "train.steps": 3, "eval.every": 0}
    run_training(config_for(text_folder, "dlr", **settings), folder / "run")
    return folder / "run"


def layer_of(run: TrainedRun) -> DLRLinear:
    layer = run.model.get_submodule(PLACE)
    assert isinstance(layer, DLRLinear)
    return layer


@pytest.mark.parametrize("form", ["dense", "factored"])
def test_exported_weights_are_those_of_the_folded_layer(form: str, linear_run: Path, tmp_path: Path) -> None:
    export_run(ExportOptions(run=linear_run, out=tmp_path / form, form=form), console())
    saved = load_file(tmp_path / form / "model.safetensors")
    layer = layer_of(load_run(linear_run, "cpu", console()))
    wanted = layer.dense().detach()
    assert not torch.allclose(layer.A @ layer.B.T, wanted), "the residual is part of it"
    parts = [key for key in saved if key.startswith(f"{PLACE}.")]
    if form == "dense":
        assert parts == [f"{PLACE}.weight"]
        got = saved[parts[0]]
    else:
        assert sorted(parts) == [f"{PLACE}.down.weight", f"{PLACE}.up.weight"]
        got = saved[f"{PLACE}.up.weight"] @ saved[f"{PLACE}.down.weight"]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)  # float32


def test_a_gguf_file_is_dense(linear_run: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    export_run(ExportOptions(run=linear_run, out=tmp_path / "out", to="gguf"), console())
    (file,) = (tmp_path / "out").glob("*.gguf")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    wanted = layer_of(load_run(linear_run, "cpu", console())).dense().detach()
    torch.testing.assert_close(
        torch.from_numpy(found["blk.0.ffn_up.weight"].copy()), wanted, rtol=0, atol=1e-6
    )


def test_generation_is_the_same_folded(linear_run: Path) -> None:
    run = load_run(linear_run, "cpu", console())
    before = list(generate(run.model, [0, 5, 9], max_new_tokens=8, temperature=0))
    tokens = torch.tensor([[0, 5, 9, 40]])
    with torch.no_grad():
        logits = run.model(tokens)
        for module in run.model.modules():
            if isinstance(module, DLRLinear):
                module.fold()
        torch.testing.assert_close(run.model(tokens), logits, rtol=1e-5, atol=1e-5)
    assert list(generate(run.model, [0, 5, 9], max_new_tokens=8, temperature=0)) == before


def test_with_an_activation_there_is_no_dense_form(text_folder: Path, tmp_path: Path) -> None:
    run_training(config_for(text_folder, "dlr", **{"train.steps": 2, "eval.every": 0}), tmp_path / "run")
    with pytest.raises(UsageError, match=r"activation silu between its factors.*factored"):
        export_run(ExportOptions(run=tmp_path / "run", out=tmp_path / "out"), console())
