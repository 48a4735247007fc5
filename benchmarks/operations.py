"""Operations of an optimizer's step, as a GPU would launch them: for every method over 8 and over 80 blocks.

Parameters lie on the device "meta", where nothing can be read, so a step that looks at a number on the device
fails here. What counts is every operation with a tensor there, but for views and for memory that is not
written; list operations (`torch._foreach_*`, the fused AdamW) count once, however long the list is. (A GPU
cuts very long lists into several launches.) Counters of updates lie on the CPU and are the host's work.

"clipped": the caller knows a bound of the gradients' norm and says so, as `lowrise train` does. "checked":
`optimizer.step()` checks every unit and leaves bad ones as they were, without waiting.

    python benchmarks/operations.py [--only muon ...]
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowrise.optim import OPTIMIZERS, Optimizer

# Operations that launch nothing: views, and memory that nobody writes.
VIEWS = frozenset(
    [
        "alias",
        "as_strided",
        "detach",
        "diagonal",
        "expand",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "view",
        "_reshape_alias",
        "_unsafe_view",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "lift_fresh",
    ]
)
# Operations after which the host waits for the device, or whose result has a size that it has to ask for.
WAITS = frozenset(
    [
        "_local_scalar_dense",
        "equal",
        "is_nonzero",
        "item",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "_unique2",
        "_linalg_eigh",
        "_linalg_svd",
        "linalg_eig",
        "linalg_lstsq",
        "_linalg_solve_ex",
        "_linalg_check_errors",
    ]
)


class Launches(TorchDispatchMode):
    """Counts operations on one device, by name; raises `AssertionError` at one that waits for it."""

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.counts: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.bytes_read = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        result = func(*args, **(kwargs or {}))
        if any(t.device == self.device for t in tensors_of((args, kwargs, result))):
            if name in WAITS or _reads(name, args, result, self.device):
                self.waits[name] += 1
            if name not in VIEWS:
                self.counts[name] += 1
        return result

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _reads(name: str, args: Any, result: Any, device: torch.device) -> bool:
    """Whether something went from the device to the CPU."""
    moved = name in ("_to_copy", "copy_") and device.type != "cpu"
    return moved and any(t.device.type == "cpu" for t in tensors_of(result))


# name -> (class, role, options) of each row.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AdamW": ("adamw", "matrix", {}),
    "AdamW, bfloat16 weights": ("adamw", "matrix", {"dtype": torch.bfloat16}),
    "AdamW, factors": ("adamw", "factors", {}),
    "LORO, lazy": ("loro", "factors", {}),
    "SCALE": ("scale", "matrix", {}),
    "SinkGD": ("sinkgd", "matrix", {}),
    "GaLore, plain": ("galore", "matrix", {"rank": 8}),
    "Fira, plain": ("fira", "matrix", {"rank": 8}),
    "APOLLO": ("apollo", "matrix", {"rank": 8}),
    "APOLLO, stored": ("apollo", "matrix", {"rank": 8, "store_projection": True}),
    "GWT": ("gwt", "matrix", {}),
    "Muon, bfloat16 (GPU)": ("muon", "matrix", {"ns_dtype": "bfloat16"}),
    "Muon, float32": ("muon", "matrix", {}),
    "NorMuon, bfloat16 (GPU)": ("normuon", "matrix", {"ns_dtype": "bfloat16"}),
    "Dion2, bfloat16 (GPU)": ("dion2", "matrix", {"ns_dtype": "bfloat16"}),
    "Stable-SPAM": ("stablespam", "matrix", {}),
    "LoRA-Muon": ("loramuon", "factors", {}),
    "Spectron, bfloat16 (GPU)": ("spectron", "factors", {"ns_dtype": "bfloat16"}),
    "Spectron, float32": ("spectron", "factors", {}),
    "Spectron, certified": ("spectron", "factors", {"variant": "certified"}),
    "SWAN": ("swan", "matrix", {}),
    "TSVD": ("tsvd", "svd", {}),
}


def operations(row: str, blocks: int, *, clipped: bool) -> Launches:
    """Of the second step of a row over a model of so many blocks."""
    optimizer = optimizer_of(*ROWS[row], blocks)
    with Launches() as launches:
        optimizer.step(grad_norm=1.0 if clipped else None)
    return launches


def optimizer_of(name: str, role: str, options: dict[str, Any], blocks: int) -> Optimizer:
    """On the device "meta", after one update."""
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    d, f, r = 32, 86, 8

    def weight(*shape: int) -> nn.Parameter:
        p = nn.Parameter(torch.empty(shape, device="meta", dtype=dtype))
        p.grad = torch.empty_like(p)
        return p

    shapes = [(d, d), (d, d), (d, d), (d, d), (f, d), (f, d), (d, f)] * blocks
    sides = {"matrix": lambda m, n: [(m, n)], "factors": lambda m, n: [(m, r), (n, r)]}
    sides["svd"] = lambda m, n: [(m, r), (r,), (n, r)]
    claimed = [weight(*shape) for m, n in shapes for shape in sides[role](m, n)]
    others = [weight(100, d), weight(100, d), *(weight(d) for _ in range(2 * blocks + 1))]
    groups = [{"params": claimed, "role": role}, {"params": others, "role": "other"}]
    optimizer = OPTIMIZERS[name](groups, lr=1e-3, **options)
    for state in optimizer.state.values():
        state["step"].fill_(1.0)
    return optimizer


def main() -> None:
    from common import publish

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=None, help="rows whose name contains one of these")
    parser.add_argument("--names", action="store_true", help="print the operations of each row")
    options = parser.parse_args()
    rows, record = [], {}
    for row in ROWS:
        if options.only is not None and not any(word in row for word in options.only):
            continue
        counts = {
            f"{7 * blocks} matrices, {'clipped' if clipped else 'checked'}": operations(
                row, blocks, clipped=clipped
            )
            for clipped in (True, False)
            for blocks in (8, 80)
        }
        record[row] = {key: dict(launches.counts) for key, launches in counts.items()}
        rows.append((row, *(str(launches.total) for launches in counts.values())))
        if options.names:
            print(row, next(iter(counts.values())).counts.most_common())
    columns = ("", "56, clipped", "560, clipped", "56, checked", "560, checked")
    title = "operations of one step over a model's 56 and 560 matrices (three shapes), embeddings and norms"
    if options.only is None and not options.names:
        publish("operations", title, columns, rows, {"operations": record}, torch.device("cpu"))
    else:
        for line in (columns, *rows):
            print(" | ".join(line))


if __name__ == "__main__":
    main()
