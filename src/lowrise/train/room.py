"""Whether a run has room on this machine, asked before anything is built."""

from __future__ import annotations

from pathlib import Path

import torch

from lowrise.config import RunConfig
from lowrise.distributed import World
from lowrise.errors import UsageError
from lowrise.report.formatting import bytes_
from lowrise.runs.environment import precision_of
from lowrise.runs.planner import Planned, changes, remedy

_UNKNOWN = 2**62  # bytes; more than any machine has


def free_bytes(device: torch.device) -> int | None:
    """What programs may still take on the device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kibibytes = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((1024 * int(count) for count in kibibytes), None)


def require_room(config: RunConfig, vocab_size: int, world: World, device: torch.device) -> None:
    """`UsageError` where the planned peak of a rank is more than its part of what is free, at all ranks
    alike: the least that one of them has counts.

    Ranks of a machine share its memory on a CPU; on GPUs each has its own. Compiled blocks keep less than is
    planned: of them only weights, gradients and optimizer state count.
    """
    own = free_bytes(device)
    if own is not None and device.type == "cpu":
        own //= world.local_size
    free = -world.largest(-_UNKNOWN if own is None else -own)
    if free == _UNKNOWN:
        return
    planned = Planned(
        config,
        vocab_size,
        devices=world.size,
        autocast=precision_of(config, device) == "bfloat16",
        on_cpu=device.type == "cpu",
    )
    plan = planned.on_device()
    needed = plan.weights + plan.gradients + plan.state + plan.average if config.train.compile else plan.peak
    if needed <= free:
        return
    found = remedy(planned, free)
    if found is None:
        what = "take a smaller model (--model.preset) or rank, or a machine with more memory"
    else:
        settings = " ".join(f"--{key} {value}" for key, value in changes(planned.layout, found[0]).items())
        what = f"with {settings} it takes {bytes_(found[1].peak)}"
    raise UsageError(
        f"This run needs {bytes_(needed)} on {device}, {bytes_(free)} are free for it: {what}. "
        "lowrise plan shows what takes how much."
    )
