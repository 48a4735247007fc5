"""What a result was made on: versions and hardware."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lowrise
from lowrise.config import RunConfig
from lowrise.errors import UsageError
from lowrise.linalg.passes import path
from lowrise.optim import Optimizer

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "transformers")


def choose_device(name: str) -> torch.device:
    """The torch device for `train.device`; a sentence for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"train.device = {name!r} is not a device: use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"train.device = {name!r}, but torch sees no CUDA device here: use --train.device cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"train.device = {name!r}, but there are {torch.cuda.device_count()} CUDA devices.")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"train.device = {name!r} is not supported: use auto, cpu, cuda or cuda:N.")
    return device


def set_numerics(config: RunConfig, device: torch.device) -> None:
    """Threads, seed, precision and kernels of a run."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.manual_seed(config.seed)
    if config.train.deterministic:
        # cuBLAS reads this when it starts; without it torch refuses its deterministic mode.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.cuda.reset_peak_memory_stats(device)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """torch's generators, for a checkpoint."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put the generators back, as far as they were saved."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def describe(device: torch.device, ranks: int = 1) -> dict[str, Any]:
    """Versions, processor and accelerator (of this rank), for environment.json."""
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "lowrise": lowrise.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "ranks": ranks,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: allocated by torch on a GPU, resident set of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def processor_name() -> str:
    """The model of this machine's CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def autocast_for(config: RunConfig, device: torch.device) -> torch.autocast:
    """bfloat16 arithmetic over float32 weights where the configuration asks for it."""
    enabled = precision_of(config, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def precision_of(config: RunConfig, device: torch.device) -> str:
    """What `train.precision` comes out as on this device: float32 or bfloat16."""
    if config.train.precision != "auto":
        return config.train.precision
    return "bfloat16" if device.type == "cuda" else "float32"


def passes_of(optimizer: Optimizer, device: torch.device) -> str:
    """What does the elementwise passes of an optimizer's steps: "native" (C++) or "torch"."""
    return path() if optimizer.native_passes and device.type == "cpu" else "torch"
