"""Time and memory of an optimizer step: ours, the authors' packages and torch's, on the shapes of one preset.

Every optimizer moves all parameters of the model (embedding and head included) with the same gradients. A
period is four updates: the first renews the bases of those that have any, the other three do not. The periods
of all optimizers take turns, so that a slow minute of the machine hits every row. On a CPU the times are
seconds of processor time over all threads, which other work on the machine disturbs less than it does the
clock; on a GPU they are the clock's. Medians.

"formula" is the state that the method needs by its definition, in float32 (`planned_state_elements`);
"allocated" is the storage behind all tensors of the state, views and pickled objects included.

    python benchmarks/optimizer_step.py [--preset 60m] [--periods 3] [--only galore fira] [--device auto]
    python benchmarks/optimizer_step.py --factors [--threads 1] [--periods 15]

With --factors: the optimizers of factored weights on the factors of one block alone, nothing else; ratios to
Spectron as published, and the rank of RANKS.

Needs galore-torch and fira (extra `peers`); apollo-torch is measured where it is installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from common import publish, timed
from torch import Tensor, nn

from lowrise.layers import factorize, param_groups
from lowrise.model import Llama, LlamaConfig
from lowrise.optim import APOLLO, OPTIMIZERS, AdamW, Fira, GaLore, Muon
from lowrise.runs.environment import choose_device

RANKS = {"60m": (128, 128), "130m": (256, 192)}  # GaLore's and Fira's, APOLLO's (released scripts)
PERIOD = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="60m", choices=RANKS)
    parser.add_argument("--periods", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=None, help="rows whose name contains one of these")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--factors", action="store_true", help="the factors of one block alone")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0: torch's choice")
    options = parser.parse_args()
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.factors:
        compare_on_factors(options, device)
        return

    with torch.device(device):
        model = Llama(LlamaConfig.preset(options.preset, vocab_size=32_000))
    for p in model.parameters():
        p.grad = torch.randn_like(p).mul_(1e-3)
    builders = {
        name: build
        for name, build in rows_of(model, *RANKS[options.preset]).items()
        if options.only is None or any(word in name for word in ["torch AdamW foreach", *options.only])
    }
    optimizers = {name: build() for name, build in builders.items()}
    plain: dict[str, list[float]] = {name: [] for name in optimizers}
    renewing: dict[str, list[float]] = {name: [] for name in optimizers}
    for period in range(options.periods + 1):  # the first one warms up
        for name, optimizer in optimizers.items():
            for step in range(PERIOD):
                seconds = step_seconds(optimizer, device)
                if period:
                    (plain if step else renewing)[name].append(seconds)

    median = {name: statistics.median(times) for name, times in plain.items()}
    median_renewing = {name: statistics.median(times) for name, times in renewing.items()}
    unit = median["torch AdamW foreach"]
    rows, record = [], {}
    for name, optimizer in optimizers.items():
        formula, allocated = formula_bytes(name, model, options.preset), allocated_bytes(optimizer)
        record[name] = {
            "plain_seconds": plain[name],
            "renewing_seconds": renewing[name],
            "formula_bytes": formula,
            "allocated_bytes": allocated,
        }
        rows.append(
            (
                name,
                f"{1e3 * median[name]:.0f}",
                f"{median[name] / unit:.2f}",
                f"{1e3 * median_renewing[name]:.0f}",
                f"{median_renewing[name] / unit:.2f}",
                f"{formula / 1e6:.1f}",
                f"{allocated / 1e6:.1f}",
            )
        )
    kind = "processor" if device.type == "cpu" else "wall-clock"
    title = (
        f"{options.preset}: a step over all parameters, {kind} ms, medians of {options.periods} periods of "
        f"{PERIOD} updates; ratios to torch AdamW foreach"
    )
    columns = ("", "plain ms", "ratio", "renewing ms", "ratio", "formula MB", "allocated MB")
    publish(
        f"optimizer_step_{options.preset}_{device.type}",
        title,
        columns,
        rows,
        {"options": vars(options), "threads": torch.get_num_threads(), "measured": record},
        device,
    )


FACTOR_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Spectron": ("spectron", {}),
    "Spectron certified": ("spectron", {"variant": "certified"}),
    "LoRA-Muon": ("loramuon", {}),
    "LoRA-Muon polar8": ("loramuon", {"msign": "polar8"}),
    "LoRA-Muon pe7": ("loramuon", {"msign": "pe7"}),
    "LoRA-Muon published": ("loramuon", {"msign": "polar8", "root": "ns7"}),
    "LoRA-Muon eigh": ("loramuon", {"root": "eigh"}),
    "LoRA-Muon tangent": ("loramuon", {"direction": "tangent"}),
    "LoRA-Muon whole bound": ("loramuon", {"bound": "whole"}),
    "Muon on factors": ("muon", {}),
    "LORO lazy": ("loro", {"exact_every": 0}),
    "AdamW": ("adamw", {}),
}


def compare_on_factors(options: argparse.Namespace, device: torch.device) -> None:
    """The table of --factors: steps take turns, one of each row a round."""
    rank = RANKS[options.preset][0]
    wanted = options.only or [""]
    names = [n for n in FACTOR_ROWS if n == "Spectron" or any(word in n for word in wanted)]
    built = {n: factor_optimizer(*FACTOR_ROWS[n], options.preset, rank, device) for n in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(PERIOD * options.periods + PERIOD):
        for name, optimizer in built.items():
            taken = step_seconds(optimizer, device)
            if round_ >= PERIOD:  # the first ones warm up
                seconds[name].append(taken)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    # Neighbours in time, so that a slow minute is in both.
    ratio = {
        name: statistics.median(a / b for a, b in zip(times, seconds["Spectron"], strict=True))
        for name, times in seconds.items()
    }
    rows = [
        (
            name,
            f"{1e3 * median[name]:.1f}",
            f"{ratio[name]:.2f}",
            f"{1e3 * min(seconds[name]):.1f}",
            f"{allocated_bytes(built[name]) / 1e6:.1f}",
        )
        for name in names
    ]
    kind = "processor" if device.type == "cpu" else "wall-clock"
    publish(
        f"optimizer_step_factors_{options.preset}_{device.type}",
        f"{options.preset}, rank {rank}: a step over the factors of one block, {kind} ms, "
        f"{torch.get_num_threads()} thread(s), {PERIOD * options.periods} rounds; ratios of a round's steps "
        "to Spectron as published",
        ("", "median ms", "ratio", "least ms", "state MB"),
        rows,
        {"options": vars(options), "threads": torch.get_num_threads(), "measured": seconds},
        device,
    )


def factor_optimizer(
    name: str, settings: dict[str, Any], preset: str, rank: int, device: torch.device
) -> Any:
    """The optimizer on the factors of one block of the preset, with weights and gradients of its own."""
    with torch.device(device):
        torch.manual_seed(0)
        block = factorize(Llama(LlamaConfig.preset(preset, num_layers=1, vocab_size=8)), rank=rank)
    (group,) = (g for g in param_groups(block, roles={"factors"}) if g["role"] == "factors")
    factors = [p for _, p in group["params"]]
    for p in factors:
        p.grad = torch.randn_like(p).mul_(1e-3)
    construct: Callable[..., Any] = OPTIMIZERS[name]
    return construct([{"params": factors, "role": "factors"}], lr=1e-5, **settings)


def rows_of(model: nn.Module, rank: int, apollo_rank: int) -> dict[str, Callable[[], Any]]:
    """Name -> a function that builds the optimizer; names that start alike are the same method."""
    lr, gap = 1e-5, {"update_proj_gap": PERIOD}
    matrices = param_groups(model, lr=lr, roles={"matrix"})
    low_rank = {"rank": rank, "update_proj_gap": PERIOD, "proj_type": "std"}
    rows: dict[str, Callable[[], Any]] = {
        "torch AdamW foreach": lambda: torch.optim.AdamW(model.parameters(), lr=lr, foreach=True),
        "torch AdamW fused": lambda: torch.optim.AdamW(model.parameters(), lr=lr, fused=True),
        "AdamW": lambda: AdamW(groups(matrices), lr=lr),
        "Muon": lambda: Muon(groups(matrices), lr=lr),
        "Muon bfloat16": lambda: Muon(groups(matrices), lr=lr, ns_dtype="bfloat16"),
        "GaLore": lambda: GaLore(groups(matrices), lr=lr, rank=rank, **gap),
        "Fira": lambda: Fira(groups(matrices), lr=lr, rank=rank, **gap),
        "APOLLO": lambda: APOLLO(groups(matrices), lr=lr, rank=apollo_rank, **gap),
        "APOLLO stored": lambda: APOLLO(
            groups(matrices), lr=lr, rank=apollo_rank, store_projection=True, **gap
        ),
        "APOLLO-Mini": lambda: APOLLO(
            groups(matrices), lr=lr, rank=1, scale_type="tensor", scale=128.0, **gap
        ),
    }
    for name in ("gwt", "swan", "sinkgd", "scale"):
        if name in OPTIMIZERS:
            cls = OPTIMIZERS[name]
            claimed = param_groups(model, lr=lr, roles=cls.roles)
            rows[cls.__name__] = lambda cls=cls, claimed=claimed: cls(groups(claimed), lr=lr)
    if hasattr(torch.optim, "Muon"):
        rows["torch Muon + fused AdamW"] = lambda: Both(
            torch.optim.Muon([p for _, p in matrices[0]["params"]], lr=lr),
            torch.optim.AdamW([p for _, p in matrices[1]["params"]], lr=lr, fused=True),
        )
    rows |= peers(matrices, lr, low_rank, apollo_rank)
    return rows


def peers(
    matrices: Any, lr: float, low_rank: dict[str, Any], apollo_rank: int
) -> dict[str, Callable[[], Any]]:
    """The authors' packages, as far as they are installed, with the groups that they ask for."""
    rows: dict[str, Callable[[], Any]] = {}
    targets, rest = ([p for _, p in group["params"]] for group in matrices)
    try:
        from galore_torch.adamw import AdamW as GaLoreAdamW

        options = low_rank | {"scale": 0.25}
        rows["GaLore, authors'"] = lambda: GaLoreAdamW(
            [{"params": rest}, {"params": targets, **options}], lr=lr, no_deprecation_warning=True
        )
    except ImportError:
        print("galore-torch is not installed: its row is left out.")
    try:
        from fira import FiraAdamW

        options_fira = low_rank | {"alpha": 0.25}
        rows["Fira, authors'"] = lambda: FiraAdamW(
            [{"params": rest}, {"params": targets, **options_fira}], lr=lr, no_deprecation_warning=True
        )
    except ImportError:
        print("fira is not installed: its row is left out.")
    try:
        from apollo_torch import APOLLOAdamW

        for name, rank, kind, scale in (
            ("APOLLO, authors'", apollo_rank, "channel", 1.0),
            ("APOLLO-Mini, authors'", 1, "tensor", 128.0),
        ):
            options_apollo = low_rank | {"rank": rank, "scale": scale, "scale_type": kind, "proj": "random"}
            rows[name] = lambda o=options_apollo: APOLLOAdamW(
                [{"params": rest}, {"params": targets, **o}], lr=lr
            )
    except ImportError:
        print("apollo-torch is not installed: its rows are left out.")
    return rows


class Both:
    """Two optimizers that take their steps together."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    @property
    def state(self) -> list[Any]:
        return [optimizer.state for optimizer in self.optimizers]


def groups(template: Any) -> list[dict[str, Any]]:
    """A copy: an optimizer rewrites the dicts that it is given."""
    return [dict(group) for group in template]


def step_seconds(optimizer: Any, device: torch.device) -> float:
    """One step: processor time of all threads on a CPU, the clock's on a GPU."""
    if device.type != "cpu":
        return timed(optimizer.step, device)
    started = time.process_time()
    optimizer.step()
    return time.process_time() - started


def formula_bytes(name: str, model: nn.Module, preset: str) -> int:
    """What the method keeps by definition, in float32; the authors' row has that of ours."""
    rank, apollo_rank = RANKS[preset]
    key = name.removesuffix(", authors'")
    if name.startswith("torch"):
        key = "Muon" if "Muon" in name else "AdamW"
    cls, options = {
        "GaLore": (GaLore, {"rank": rank}),
        "Fira": (Fira, {"rank": rank}),
        "APOLLO": (APOLLO, {"rank": apollo_rank}),
        "APOLLO stored": (APOLLO, {"rank": apollo_rank, "store_projection": True}),
        "APOLLO-Mini": (APOLLO, {"rank": 1}),
        "Muon bfloat16": (Muon, {}),
    }.get(key, (None, {}))
    if cls is None:
        cls = next(c for c in OPTIMIZERS.values() if c.__name__ == key)
    template = param_groups(model, lr=1.0, roles=cls.roles)
    return 4 * sum(
        cls.planned_state_elements(group["role"], [p.shape for _, p in group["params"]], options)
        for group in template
    )


def allocated_bytes(optimizer: Any) -> int:
    """Storages behind all tensors of the state, each once; step counters (one number) are left out."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors_in(optimizer.state)
        if t.numel() > 1 or t.untyped_storage().nbytes() > 8
    }
    return sum(storages.values())


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """Every tensor in dicts, lists and the attributes of objects."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from tensors_in(value)
    elif hasattr(thing, "__dict__"):
        yield from tensors_in(vars(thing))


if __name__ == "__main__":
    main()
