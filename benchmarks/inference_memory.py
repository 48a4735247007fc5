"""Memory of making a `FrozenDecoder`: the peak above the process without a model, beside the model's weights.

A row is a process of its own: it builds a model with random weights in float32, as a run's checkpoint gives
it, and then a decoder, which keeps the model (as for `eval --tasks`) or takes its weights over (`release`, as
`generate` and `serve` do). "weights" are the model's bytes, "peak" and "after" are resident memory over what
the process had before the model.

    python benchmarks/inference_memory.py [--presets 60m,350m] [--dtypes float32,bfloat16]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import RESULTS, publish
from inference import DTYPES, random_model

from lowrise.inference.decoder import FrozenDecoder
from lowrise.model import LlamaConfig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default="60m,350m")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, metavar=("PRESET", "DTYPE", "RELEASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return
    rows, record = [], []
    for preset in options.presets.split(","):
        for dtype in options.dtypes.split(","):
            for release in ("kept", "released"):
                command = [sys.executable, __file__, "--one", preset, dtype, release]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                one = json.loads(done.stdout.splitlines()[-1])
                record.append({"preset": preset, "dtype": dtype, "model": release, **one})
                weights = one["weights"]
                sizes = [f"{one[key] / 2**20:.0f} ({one[key] / weights:.2f}x)" for key in ("peak", "after")]
                rows.append((preset, dtype, release, f"{weights / 2**20:.0f}", *sizes))
    columns = ("", "decoder", "model", "weights, MiB", "peak", "after")
    title = "Memory of making a decoder of one sequence, factored at rank d/4 (float32 model)"
    publish(
        "inference_memory_cpu", title, columns, rows, {"rows": record}, torch.device("cpu"), options.results
    )


def measured(preset: str, dtype: str, release: str) -> dict[str, int]:
    """Bytes of the weights, and of resident memory at the peak and afterwards."""
    config = LlamaConfig.preset(preset, vocab_size=32_000, max_seq_len=256)
    warm = random_model(LlamaConfig.preset("nano", vocab_size=300), torch.float32, 8)
    FrozenDecoder(warm, dtype=DTYPES[dtype])  # the compiler and libraries
    before = resident("VmRSS")
    model = random_model(config, torch.float32, config.hidden_size // 4)
    weights = sum(p.nbytes for p in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    decoder = FrozenDecoder(model, dtype=DTYPES[dtype], release=release == "released")
    if release == "released":
        del model
    assert decoder.native
    return {"weights": weights, "peak": resident("VmHWM") - before, "after": resident("VmRSS") - before}


def resident(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
