"""The decoding step in C++ against torch's operations and the plain forward pass."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrise.inference.batch import Batch
from lowrise.inference.decoder import FrozenDecoder
from lowrise.inference.generate import generate
from lowrise.inference.native_step import native_library
from lowrise.inference.sampling import Sampling
from lowrise.layers import LAYERS
from lowrise.linalg import compiled
from lowrise.model import Llama, LlamaConfig, build_model

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="there is no C++ compiler"
)
PROMPT = [3, 1, 4, 1, 5]


def build(layer: str, rank: int = 8, dtype: torch.dtype = torch.float32, **changes: object) -> Llama:
    values = {"vocab_size": 51, "num_kv_heads": 1, "max_seq_len": 60, "init_std": 0.2, **changes}
    model = build_model(
        LlamaConfig.preset("nano", **values), layer=layer, rank=None if layer == "dense" else rank
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape))
            elif name.endswith(".A") and not parameter.any():
                parameter.normal_(std=0.1)
    return model.to(dtype).eval()


def greedy(decoder: FrozenDecoder, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for step in Batch(decoder, prompts, max_new_tokens=tokens, sampling=Sampling(temperature=0)):
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
    return rows


def worst_difference(decoder: FrozenDecoder, model: Llama, steps: int = 20) -> float:
    """Of logits from the plain pass, relative to the largest, along its greedy tokens."""
    with torch.no_grad():
        cache = model.new_cache()
        state, logits = decoder.prefill([PROMPT], steps)
        expected = model(torch.tensor([PROMPT]), cache=cache)[0, -1]
        worst = 0.0
        for _ in range(steps):
            worst = max(worst, float((logits[0] - expected).abs().max() / expected.abs().max()))
            token = expected.argmax().view(1)
            logits = decoder.step(state, token)
            expected = model(token[None], cache=cache)[0, -1]
        return worst


@needs_compiler
@pytest.mark.parametrize("layer", ["dense", *LAYERS])
def test_float32_is_the_plain_pass_to_rounding(layer: str) -> None:
    model = build(layer)
    decoder = FrozenDecoder(model, forms="stored")
    assert decoder.native
    assert worst_difference(decoder, model) < 1e-5  # sums of some hundred terms in another order
    expected = list(generate(model, PROMPT, max_new_tokens=40, temperature=0))
    assert greedy(decoder, [PROMPT], 40) == [expected]


@needs_compiler
@pytest.mark.parametrize(
    "changes",
    [
        {"num_kv_heads": 2},
        {"tie_embeddings": True},
        {"mlp_activation": "none"},
        {"rope_theta": 500.0, "norm_eps": 1e-3},
        {"hidden_size": 60, "num_heads": 6, "num_kv_heads": 3, "intermediate_size": 77},
        {"hidden_size": 24, "num_heads": 12, "num_kv_heads": 12, "intermediate_size": 17},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", [7, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_shape(changes: dict, rank: int, dtype: torch.dtype) -> None:
    # Widths that are no multiples of what a vector holds, odd ranks, heads of two entries.
    model = build("lowrank", rank, dtype, **changes)
    wide = build("lowrank", rank, torch.float32, **changes)
    wide.load_state_dict(model.state_dict())
    # Weights are the same numbers; only keys and values are rounded, to 8 bits in bfloat16.
    limit = 1e-5 if dtype == torch.float32 else 0.03
    assert worst_difference(FrozenDecoder(model, forms="stored"), wide) < limit


@needs_compiler
def test_bfloat16_is_nearer_to_exact_weights_than_torch_in_bfloat16() -> None:
    model = build("cola", dtype=torch.bfloat16)
    wide = build("cola")
    wide.load_state_dict(model.state_dict())
    native, torch_ = (FrozenDecoder(model, native=n) for n in (True, False))
    assert (native.native, torch_.native) == (True, False)
    assert worst_difference(native, wide) < worst_difference(torch_, wide)


@needs_compiler
def test_maps_of_different_kinds_and_biases_in_one_group() -> None:
    from lowrise.layers import factorize

    model = build("dense")
    factorize(model, layer="lowrank", rank={"*q_proj": 5, "*v_proj": 16, "*gate_proj": 7})
    for name, module in model.named_modules():
        if name.endswith(("k_proj", "gate_proj", "down_proj")):
            out = module.out_features
            module.bias = nn.Parameter(torch.randn(out) * 0.3)
    decoder = FrozenDecoder(model, forms="stored")
    assert decoder.native
    assert worst_difference(decoder, model) < 1e-5


@needs_compiler
def test_the_last_row_of_a_padded_batch_goes_on_alone() -> None:
    model = build("lowrank")
    prompts = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3]]
    alone = [list(generate(model, p, max_new_tokens=30, temperature=0)) for p in prompts]
    decoder = FrozenDecoder(model)
    batch = Batch(decoder, prompts, max_new_tokens=30, sampling=Sampling(temperature=0))
    seen: list[int] = []
    for number, step in enumerate(batch):
        seen.append(step[1])
        if number == 4:
            batch.over[0] = batch.over[2] = True  # row 1, with five columns of padding, stays
    assert seen == alone[1]


@needs_compiler
def test_threads_change_no_bit() -> None:
    code = (
        "import torch; from test_native_step import *\n"
        "torch.manual_seed(0); d = FrozenDecoder(build('cola', 7))\n"
        "for n in (1, 3):\n"
        "    torch.set_num_threads(1)\n"
        "    s, _ = d.prefill([PROMPT], 9)\n"
        "    torch.set_num_threads(n)\n"
        "    print(d.native, [d.step(s, torch.tensor([i])).double().sum().item() for i in range(9)])\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    one, three = done.stdout.splitlines()
    assert one.startswith("True")
    assert three == one


def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    model = build("lowrank")
    decoder = FrozenDecoder(model)
    assert not decoder.native
    assert worst_difference(decoder, model) < 1e-5
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native_library(CPU, torch.float32) is None


def test_what_has_no_native_step() -> None:
    assert native_library(CPU, torch.float64) is None
    assert native_library(torch.device("meta"), torch.float32) is None
    assert not FrozenDecoder(build("lowrank"), rows=2).native


@needs_compiler
def test_code_is_kept_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled._library.cache_clear()
    monkeypatch.setenv("LOWRISE_CACHE", str(tmp_path))
    assert native_library(CPU, torch.float32) is not None
    folder = tmp_path / "native"
    (kept,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = kept.stat().st_mtime_ns
    compiled._library.cache_clear()
    assert native_library(CPU, torch.float32) is not None
    assert kept.stat().st_mtime_ns == before
    folder.chmod(0o777)
    kept.write_bytes(b"of somebody else")
    compiled._library.cache_clear()
    assert native_library(CPU, torch.float32) is not None
    assert kept.read_bytes() == b"of somebody else"
    compiled._library.cache_clear()
