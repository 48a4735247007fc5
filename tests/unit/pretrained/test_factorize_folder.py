"""Dense folders become factored ones: the best factors there are, ranks within the budget, true numbers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import console, write_text

from lowrise.cli import main
from lowrise.data.tokenizer import Tokenizer, train_bpe
from lowrise.errors import UsageError
from lowrise.export.huggingface import write_folder
from lowrise.layers import LowRankLinear
from lowrise.model import Llama, LlamaConfig, build_model
from lowrise.pretrained.factorize_folder import (
    _corpus,
    _moments,
    _perplexity,
    factorize_folder,
)
from lowrise.pretrained.folder import open_folder
from lowrise.pretrained.options import FactorizeOptions
from lowrise.pretrained.spectra import Profile, cholesky_of, spectrum_of, spread_ranks

# ---- the mathematics


def moment_of(columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs of very unequal directions."""
    torch.manual_seed(seed)
    x = torch.randn(400, columns, dtype=torch.float64) * torch.logspace(0, -3, columns, dtype=torch.float64)
    return x.T @ x / len(x)


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12), (9, 9)])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_weighted_factors_are_the_best_for_the_output(m: int, n: int, rank: int) -> None:
    W, C = torch.randn(m, n), moment_of(n)
    L = cholesky_of(C)
    spectrum = spectrum_of(W, C)

    def felt(A: torch.Tensor, B: torch.Tensor) -> float:
        return float(((W - A @ B.T) @ L).norm() / (W.double() @ L).norm())

    A, B = spectrum.factors(rank)
    assert felt(A, B) == pytest.approx(spectrum.error(rank), rel=1e-6, abs=1e-6)
    # Eckart and Young: no product of this rank does better, that of the plain decomposition least of all.
    plain = spectrum_of(W, None)
    assert felt(A, B) <= felt(*plain.factors(rank)) + 1e-9
    for _ in range(5):
        nudged = felt(A + 1e-3 * torch.randn_like(A), B + 1e-3 * torch.randn_like(B))
        assert felt(A, B) <= nudged + 1e-9
    # For the weight itself it is the other way about.
    assert plain.energy_kept(rank) >= spectrum.energy_kept(rank) - 1e-9
    assert plain.energy_kept(rank) == pytest.approx(1 - plain.error(rank) ** 2, abs=1e-6)


def test_all_ranks_give_the_weight_back() -> None:
    W = torch.randn(8, 12)
    for C in (None, moment_of(12)):
        A, B = spectrum_of(W, C).factors(8)
        torch.testing.assert_close(A @ B.T, W.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["few directions", "none"])
def test_inputs_that_do_not_fill_the_space(kind: str) -> None:
    x = torch.randn(3, 10, dtype=torch.float64) if kind == "few directions" else torch.zeros(1, 10)
    C = x.T @ x
    spectrum = spectrum_of(torch.randn(6, 10), C)
    A, B = spectrum.factors(3)
    assert torch.isfinite(A).all()
    assert torch.isfinite(B).all()
    if kind == "few directions":  # damping aside, three directions need three ranks
        assert spectrum.error(3) < 1e-2


def test_spread_ranks_are_the_best_within_the_budget() -> None:
    torch.manual_seed(0)
    profiles = {
        str(i): Profile(m, n, torch.rand(min(m, n), dtype=torch.float64).sort(descending=True).values)
        for i, (m, n) in enumerate([(6, 6), (6, 6), (6, 6)])
    }
    for budget in (36, 60, 72):
        ranks = spread_ranks(profiles, budget)
        assert sum(ranks[n] * p.cost for n, p in profiles.items()) <= budget

        def error(ranks: dict[str, int]) -> float:
            return sum(
                float(p.s[ranks[n] :].square().sum() / p.s.square().sum()) for n, p in profiles.items()
            )

        choices = itertools.product(range(1, 3), repeat=3)  # 3 of 12 is no smaller than 36
        every = [dict(zip(profiles, choice, strict=True)) for choice in choices]
        within = [c for c in every if sum(c[n] * p.cost for n, p in profiles.items()) <= budget]
        assert error(ranks) == pytest.approx(min(map(error, within)))


# ---- folders


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("words") / "text.jsonl", 120)


@pytest.fixture(scope="module")
def folder(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense Llama whose maps have quickly falling singular values, as trained ones have."""
    path = tmp_path_factory.mktemp("hf") / "dense"
    path.mkdir()
    config = LlamaConfig.preset("nano", vocab_size=300, num_kv_heads=1, init_std=0.1, max_seq_len=64)
    model = build_model(config, seed=2)
    with torch.no_grad():
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                U, s, Vh = torch.linalg.svd(module.weight, full_matrices=False)
                module.weight.copy_((U * (s[0] / torch.arange(1, len(s) + 1))) @ Vh)
    tokenizer: Tokenizer = train_bpe([text.read_text()], 300)
    write_folder(path, model, tokenizer, "dense", torch.float32, 10**9)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWRISE_CACHE", str(tmp_path_factory.getbasetemp() / "factorize-cache"))


def options_of(folder: Path, text: Path, out: Path, **changes: Any) -> FactorizeOptions:
    values: dict[str, Any] = {"folder": folder, "out": out, "calibrate": (str(text),), "tokens": 2048}
    return FactorizeOptions(**{**values, **changes})


def test_moments_are_those_of_the_inputs(folder: Path) -> None:
    model = open_folder(folder).model()
    batch = torch.randint(300, (3, 9)).numpy()
    batch[-1, 5:] = -1
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0]})
        )
        for name in ("model.layers.1.self_attn.v_proj", "model.layers.0.mlp.down_proj")
    ]
    moments = _moments(model, iter([batch]))
    assert len(moments) == 14
    kept = torch.as_tensor(batch[:, :-1]) >= 0
    for handle in handles:
        handle.remove()
    for name, x in seen.items():
        real = x[kept].double()
        torch.testing.assert_close(moments[name], real.T @ real / len(real))


@pytest.mark.parametrize("spread", ["alike", "energy"])
def test_the_folder_holds_what_the_table_says(folder: Path, text: Path, tmp_path: Path, spread: Any) -> None:
    options = options_of(folder, text, tmp_path / "out", rank=0.25, spread=spread)
    result = factorize_folder(options, console())
    source = open_folder(tmp_path / "out")
    assert source.layer == "lowrank"
    assert {f"{name}": rank for name, rank in source.ranks.items()} == {r.name: r.rank for r in result.rows}
    model = source.model()
    assert sum(p.numel() for p in model.parameters()) == result.parameters_after < result.parameters_before
    corpus = _corpus(options, open_folder(folder), console())
    assert _perplexity(model, corpus, 2048) == pytest.approx(result.perplexity_after, rel=1e-6)
    dense = open_folder(folder).model()
    assert _perplexity(dense, corpus, 2048) == pytest.approx(result.perplexity_before, rel=1e-6)
    for row in result.rows:
        W = dense.get_submodule(row.name).weight
        layer = model.get_submodule(row.name)
        assert isinstance(layer, LowRankLinear)
        kept = 1 - float((W - layer.dense()).square().sum() / W.square().sum())
        assert row.energy_kept == pytest.approx(kept, abs=1e-5)
        assert 0 < row.error < 1
    written = json.loads((tmp_path / "out" / "factorize.json").read_text())
    assert len(written["rows"]) == 14


def test_calibration_and_spreading_make_the_output_better(folder: Path, text: Path, tmp_path: Path) -> None:
    """At equal parameters the change of the logits on held-out text falls with each."""
    dense = open_folder(folder).model()
    corpus = _corpus(options_of(folder, text, tmp_path), open_folder(folder), console())
    tokens = torch.as_tensor(next(corpus.valid.windows(32, 8))[:, :-1]).clamp_min(0)

    def change(name: str, **changes: Any) -> float:
        factorize_folder(options_of(folder, text, tmp_path / name, rank=0.125, **changes), console())
        model: Llama = open_folder(tmp_path / name).model()
        with torch.no_grad():
            return float((model(tokens) - dense(tokens)).square().mean())

    plain = change("plain", calibrate=(), measure=(str(text),))
    weighted = change("weighted")
    assert weighted < 0.9 * plain
    assert change("spread", spread="energy") < weighted


def test_energy_decides_ranks_and_leaves_dense_what_would_grow(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    result = factorize_folder(options_of(folder, text, tmp_path / "a", energy=0.9), console())
    assert all(row.rank is not None and row.error <= math.sqrt(0.1) + 1e-9 for row in result.rows)
    high = factorize_folder(options_of(folder, text, tmp_path / "b", energy=0.9995), console())
    assert {row.rank is None for row in high.rows} == {True, False}
    source = open_folder(tmp_path / "b")
    assert set(source.ranks) == {row.name for row in high.rows if row.rank is not None}
    assert high.perplexity_after == pytest.approx(high.perplexity_before, rel=5e-3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "one of them"),
        ({"rank": 3, "energy": 0.5}, "one of them"),
        ({"energy": 1.5}, "--energy 1.5 cannot be"),
        ({"rank": 65}, r"q_proj: rank 65 is impossible"),
        ({"rank": 1.0}, "No map would be smaller"),
        ({"rank": 4, "tokens": 0}, "--tokens 0 cannot be"),
    ],
)
def test_requests_that_cannot_be(
    changes: dict[str, Any], sentence: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        factorize_folder(options_of(folder, text, tmp_path / "out", **changes), console())
    assert list(tmp_path.iterdir()) == []


def test_the_command_shows_the_table_and_refuses_what_is_factored(
    folder: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rank", "8", "--calibrate", str(text), "--tokens", "512"]
    assert main(["factorize", str(folder), "--out", str(tmp_path / "out"), *words]) == 0
    shown = capsys.readouterr().out
    assert "output error" in shown
    assert ["model.layers.1.mlp.down_proj", "64", "x", "176", "8"] in [
        line.split()[:5] for line in shown.splitlines()
    ]
    assert "perplexity" in shown
    assert main(["factorize", str(tmp_path / "out"), "--out", str(tmp_path / "b"), *words]) == 2
    assert "is factored already" in capsys.readouterr().err
