"""An audit of matrices whose spectra are known, in every form in which a model lies on a disk."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import config_for, console, write_text

from lowrise.audit.measure import Audited, audit
from lowrise.audit.page import page
from lowrise.audit.show import short, short_names
from lowrise.audit.source import Source, open_source
from lowrise.audit.summary import document, totals, verdict
from lowrise.data.tokenizer import Tokenizer, train_bpe
from lowrise.errors import UsageError
from lowrise.export.huggingface import write_folder
from lowrise.export.native import write_native
from lowrise.layers import LowRankLinear
from lowrise.model import Llama
from lowrise.pretrained.import_run import import_run
from lowrise.pretrained.options import ImportOptions
from lowrise.runs.build import model_from

S = (10.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.01, 0.001)
"""Squares: 100, 9, 4, 1, ..., 114.2601 in all. 99% of it (113.1) takes four of them, 80% one."""
UNEVEN = 4.0  # ||A|| / ||B||
MATRICES = 14


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["the rank of a matrix is small and its norm is bounded"] * 3, 300)


def known_model(tmp_path: Path, tokenizer: Tokenizer) -> SimpleNamespace:
    """Every map is U diag(S) V^T, its factors 4 times as large on the left as on the right."""
    write_text(tmp_path / "text.jsonl")
    config = config_for(tmp_path, "lowrank", **{"layer.rank": len(S), "model.init_std": 0.02})
    model = model_from(config, tokenizer.vocab_size, torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(7)
    root = torch.tensor(S, dtype=torch.float64).sqrt()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LowRankLinear):
                for factor, scale in ((layer.A, math.sqrt(UNEVEN)), (layer.B, 1 / math.sqrt(UNEVEN))):
                    drawn = torch.randn(*factor.shape, generator=generator, dtype=torch.float64)
                    factor.copy_(torch.linalg.qr(drawn).Q * root * scale)
    return SimpleNamespace(config=config, model=model, tokenizer=tokenizer, step=8, weights="raw")


def in_form(form: str, run: SimpleNamespace, tmp_path: Path) -> Path:
    folder = tmp_path / form
    folder.mkdir()
    if form == "safetensors":
        write_native(folder, run, torch.float32)
    elif form == "run":
        write_folder(tmp_path / "hf", run.model, run.tokenizer, "factored", torch.float32, 10**9)
        import_run(ImportOptions(folder=tmp_path / "hf", run=folder))
    else:
        write_folder(folder, run.model, run.tokenizer, form, torch.float32, 10**9)
    return folder


@pytest.mark.parametrize("form", ["run", "factored", "dense", "safetensors"])
def test_known_spectra_are_found_in_every_form(form: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    run = known_model(tmp_path, tokenizer)
    (tmp_path / "hf").mkdir()
    source = open_source(in_form(form, run, tmp_path), None, console())
    found = audit(source.model, 0.99)
    assert len(found) == MATRICES
    for matrix in found:
        # float32 weights: values are right to about 1e-6 of the largest
        assert matrix.singular_values[:7] == pytest.approx(S[:7], abs=2e-5)
        assert matrix.spectral_norm == pytest.approx(10, rel=1e-6)
        assert matrix.stable_rank == pytest.approx(1.142601, rel=1e-5)
        shares = [s / sum(S) for s in S]
        entropy = math.exp(-sum(p * math.log(p) for p in shares))
        assert matrix.effective_rank == pytest.approx(entropy, rel=1e-3)
        assert matrix.energy_rank == 4
        assert matrix.spike == pytest.approx(10 / 3, rel=1e-5)
        factors = 4 * (matrix.rows + matrix.columns)
        assert matrix.parameters_at_energy == factors
        if form == "dense":
            assert (matrix.rank, matrix.factored) == (min(matrix.rows, matrix.columns), False)
            assert matrix.parameters == matrix.rows * matrix.columns
            assert matrix.balance is matrix.condition is None
        else:
            assert (matrix.rank, matrix.factored) == (8, True)
            assert matrix.parameters == 2 * factors
            assert matrix.balance == pytest.approx(UNEVEN, rel=1e-5)
            assert matrix.condition == pytest.approx(100, rel=1e-3)  # sqrt(10 / 0.001)
        assert matrix.wasted_rank == matrix.rank - 4
    sums = totals(found)
    assert sums["energy_rank"] == 4 * MATRICES
    assert sums["parameters"] - sums["parameters_at_energy"] == sums["parameters_saved"] > 0
    assert all(matrix.energy_rank == 1 for matrix in audit(source.model, 0.8))


def test_the_verdict_names_what_is_wrong(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = known_model(tmp_path, tokenizer).model
    first = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        first.A[:, 0] *= 100
        model.model.layers[1].mlp.up_proj.B[0, 0] = math.nan
    found = audit(model, 0.99)
    said = " ".join(verdict(found, 0.99))
    assert "Entries of model.layers.1.mlp.up_proj are not finite" in said
    assert "99% of the energy takes rank 4 at the median and 4 at most" in said
    assert "1 matrices have a first singular value above 10 times" in said
    assert "model.layers.0.self_attn.q_proj (333)" in said
    assert "13 pairs of factors are unbalanced, most of all model.layers.0.self_attn.q_proj" in said
    (broken,) = (m for m in found if not m.finite)
    assert broken.energy_rank is broken.spectral_norm is None
    source = Source("run", model, 8, "lowrank")
    assert "model.layers.1.mlp.up_proj" in page(tmp_path, source, found, 0.99)
    assert document(tmp_path, source, found, 0.99)["totals"]["not_finite"] == 1


def test_zero_factors_have_no_ratio(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = known_model(tmp_path, tokenizer).model
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.B.zero_()
    zero = audit(model, 0.99)[0]
    assert (zero.energy_rank, zero.effective_rank, zero.stable_rank, zero.wasted_rank) == (0, 0, 0, 8)
    assert zero.spike is zero.balance is zero.condition is None
    assert zero.parameters_at_energy == 0


def test_an_activation_between_the_factors_saves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_text(tmp_path / "text.jsonl")
    config = config_for(tmp_path, "cola", **{"layer.rank": 8})
    found = audit(model_from(config, 300, torch.device("cpu")), 0.5)
    assert all(not m.linear and m.parameters_at_energy == m.parameters for m in found)
    assert "14 maps have an activation between their factors" in " ".join(verdict(found, 0.5))


def test_adapters_are_measured_with_the_weight_beside_them(tmp_path: Path) -> None:
    write_text(tmp_path / "text.jsonl")
    model: Llama = model_from(config_for(tmp_path, "lora"), 300, torch.device("cpu"))
    first = audit(model, 0.99)[0]
    layer = model.model.layers[0].self_attn.q_proj
    assert first.rank == 64
    assert not first.factored
    assert first.spectral_norm == pytest.approx(
        float(torch.linalg.matrix_norm(layer.dense().detach(), 2)), rel=1e-5
    )
    assert first.parameters == sum(p.numel() for p in layer.parameters())


def test_a_model_of_hugging_face_with_our_layers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import lowrise
    from lowrise.pretrained.factorized_model import save_pretrained

    shape = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=90, n_positions=16)
    model = transformers.GPT2LMHeadModel(shape)
    lowrise.factorize(model, rank=4, targets=["*mlp*"])
    save_pretrained(model, tmp_path)
    source = open_source(tmp_path, None, console())
    found = {m.name: m for m in audit(source.model, 0.99)}
    assert source.kind == "factorized Hugging Face model"
    assert found["transformer.h.0.mlp.c_fc"].rank == 4
    assert not found["transformer.h.1.attn.c_attn"].factored
    assert not any("lm_head" in name or "wte" in name for name in found)


def test_other_families_are_read_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = transformers.Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=90, sliding_window=8, use_sliding_window=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(shape)
    model.save_pretrained(tmp_path)
    found = audit(open_source(tmp_path, None, console()).model, 0.99)
    assert len(found) == MATRICES
    (up,) = (m for m in found if m.name.endswith("1.mlp.up_proj"))
    weight = model.get_submodule(up.name).weight.detach().double()
    assert up.singular_values == pytest.approx(torch.linalg.svdvals(weight).tolist(), rel=1e-6)


def test_weights_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    """transformers fills what is missing with random numbers: factors that its save_pretrained wrote."""
    transformers = pytest.importorskip("transformers")
    import lowrise

    shape = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=90, n_positions=16)
    model = transformers.GPT2LMHeadModel(shape)
    lowrise.factorize(model, rank=4, targets=["*mlp*"])
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="model_type is 'gpt2'"):
        open_source(tmp_path, None, console())


def test_code_of_somebody_else_is_not_run(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = in_form("safetensors", known_model(tmp_path, tokenizer), tmp_path)
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    evil = about["recipe"].replace("plugin = []", 'plugin = ["evil.py"]')
    assert evil != about["recipe"]
    save_file(tensors, file, metadata=about | {"recipe": evil})
    with pytest.raises(UsageError, match=r"evil\.py, which would be run"):
        open_source(folder, None, console())
    short_of_one = dict(list(tensors.items())[1:])
    save_file(short_of_one, file, metadata=about)
    with pytest.raises(UsageError, match="does not fit its own recipe"):
        open_source(folder, None, console())


def test_names_are_short_where_that_is_enough() -> None:
    assert short_names(["model.layers.3.mlp.up_proj", "h.0.c_fc"]) == ["3.up_proj", "0.c_fc"]
    alike = ["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.0.c_fc", "h.1.c_proj"]
    assert short_names(alike) == ["0.attn.c_proj", "0.mlp.c_proj", "0.c_fc", "1.c_proj"]
    assert short_names(["a.x.w", "b.x.w"]) == ["a.x.w", "b.x.w"]
    assert short_names(["w"]) == ["w"]
    assert short_names([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (12, "12"), (1.5, "1.5"), (123.4, "123"), (2.5e6, "2.5e6"), (0.0312, "0.0312")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert short(value) == text


def test_no_matrix_is_a_plain_total() -> None:
    assert totals([])["energy_rank_median"] is None
    lone = Audited(
        name="w", rows=2, columns=2, rank=2, factored=False, linear=True, parameters=4, finite=False
    )
    assert verdict([lone], 0.99) == [
        "Entries of w are not finite: the training has diverged before this point."
    ]


def test_a_large_model_s_table_is_whole_at_80_columns(tmp_path: Path) -> None:
    import io

    from lowrise.audit.show import show
    from lowrise.console import Console

    row = Audited(
        name="model.layers.23.mlp.gate_proj", rows=11008, columns=4096, rank=4096, factored=False,
        linear=True, parameters=4096 * 11008, spectral_norm=123.456, stable_rank=0.001234,
        effective_rank=3999.5,
        energy_rank=4000, wasted_rank=96, spike=12.345, balance=0.012345, condition=1.2345e7,
        parameters_at_energy=4096 * 11008,
    )  # fmt: skip
    out = io.StringIO()
    show(tmp_path, Source("run", torch.nn.Identity()), [row], 0.999, Console(file=out, width=80))
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("23.gate_proj"))
    assert len(line) <= 80
    told = "23.gate_proj 11008x4096 (4096) 4000 4000 96 123 0.00123 0.0123 1.2e7 12.3"
    assert " ".join(line.split()) == told
