"""benchmarks/inference.py runs, and compares what it says it compares."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "inference.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks lie in the repository alone")
def test_the_script_runs_at_the_smallest_sizes(tmp_path) -> None:
    pytest.importorskip("transformers")
    options = ["--presets", "nano,tiny", "--vocab", "512", "--prompt", "5", "--tokens", "3", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *options, "--batches", "1,3", "--results", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "inference_nano_tiny_cpu.json").read_text())
    assert len(record["rows"]) == 4
    for size in record["measured"].values():
        assert all(b["byte_ratio"] > 1 for b in size["batches"].values())
        steps = [s for b in size["batches"].values() for s in b["seconds_a_step"].values()]
        assert steps
        assert all(map(math.isfinite, steps))  # a difference of times may be below 0 on a busy machine
    assert (tmp_path / "inference_nano_tiny_cpu.md").read_text().count("\n| ") == 6


@pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks lie in the repository alone")
def test_transformers_has_the_dense_models_weights_and_function(monkeypatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import inference
    import torch

    from lowrise.model import LlamaConfig

    config = LlamaConfig.preset("nano", vocab_size=97, max_seq_len=32, num_kv_heads=1)
    ours, theirs = inference.dense_pair(config, torch.float32)
    tokens = torch.randint(97, (2, 20))
    with torch.no_grad():
        # float32, sums of 176 terms in another order
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=1e-4, atol=1e-5)
