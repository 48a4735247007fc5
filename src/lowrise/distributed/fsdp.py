"""Weights, gradients and state shared by rows, by torch's FSDP2 (`fully_shard`).

1. A mesh of N ranks ("fsdp"), or of N / S copies of the model with S ranks each ("hsdp").
2. On the meta device each block, and then what is left (embedding, norms, head), becomes a unit whose
   parameters are shared by rows. Parameters that `keep_whole` names stay copies, whose gradients
   `GradientSum` sums.
3. A forward pass gathers one unit after the other, and frees it; so does the backward pass, after which
   gradients are summed over all ranks and each keeps its rows.

Every rank's loss is its part of the mean over the global batch, so gradients are summed, not averaged.

What is outside the blocks is not freed between forward and backward pass. Bytes sent:
`ledger/communication.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lowrise.distributed.world import World
from lowrise.errors import UsageError


def mesh_of(world: World, device: torch.device, shards: int) -> DeviceMesh:
    """Step 1 for copies of `shards` ranks each, which divide all (`runs/parallel.py`). Collective."""
    if shards == world.size:
        return init_device_mesh(device.type, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (world.size // shards, shards), mesh_dim_names=("copy", "shard"))


# torch 2.13's names for what older versions call otherwise.
_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_sum = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


@dataclass
class CommStats:
    """What one rank sent, for gathers and sums since `reset`, and what that took."""

    sent_bytes: int = 0
    seconds: float = 0.0
    """In which this process waited for them, on a CPU alone."""

    def reset(self) -> None:
        self.sent_bytes, self.seconds = 0, 0.0


def is_supported() -> bool:
    """Whether this torch lets its gathers and sums be replaced, which came with 2.8."""
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, "set_custom_all_gather")


def shard_model(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    *,
    keep_whole: Collection[nn.Parameter] = (),
    gather_dtype: torch.dtype | None = None,
) -> CommStats:
    """Step 2, in place, on the meta device or on real weights, which must be alike at all ranks.

    `gather_dtype`: weights are rounded to it before they are gathered, and their gradients summed in float32.
    Returns the counts of what its gathers and sums send. Needs torch 2.8.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if not is_supported():
        raise UsageError(
            f'parallel.data = "fsdp" and "hsdp" need torch 2.8 or newer, not {torch.__version__}: install '
            'it, or use "ddp".'
        )
    policy = MixedPrecisionPolicy()
    if gather_dtype is not None:
        # Autocast sees to the inputs; rotary angles must stay in float32.
        policy = MixedPrecisionPolicy(
            param_dtype=gather_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": set(keep_whole)}
    for block in blocks:
        fully_shard(block, reshard_after_forward=True, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    traffic, copies = CommStats(), mesh.size() // mesh.size(mesh.ndim - 1)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_custom_all_gather(_Gather(traffic))  # type: ignore[arg-type]
            module.set_custom_reduce_scatter(_Sum(traffic, copies))  # type: ignore[arg-type]
    return traffic


def reshard(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass (evaluation, sampling) has left gathered, so that the
    model's parameters are each rank's rows again. A model that is not sharded is left as it is.

    FSDP2 keeps the root's unit gathered until its backward pass; the next gather writes into the same
    storage, whoever holds the tensors.
    """
    for module in model.modules():
        if hasattr(module, "set_reshard_after_backward"):  # FSDPModule, whose import needs torch.distributed
            module.reshard()  # type: ignore[operator]


@contextmanager
def gathered_root(model: nn.Module) -> Iterator[None]:
    """For forward passes of a language model that do not begin at the root's `forward`, as generation's: what
    is outside the blocks is gathered within, and freed after. All ranks must enter together.

    A pass of one token gathers it: FSDP2 takes the module of the first pass for the root, and this may be the
    first one since a resume.
    """
    roots = [model] if hasattr(model, "set_reshard_after_backward") else []
    try:
        for root in roots:
            with torch.no_grad():
                root(torch.zeros(1, 1, dtype=torch.long, device=next(root.parameters()).device))
        yield
    finally:
        for root in roots:
            reshard(root)


@dataclass(frozen=True)
class _Counted:
    """A collective of FSDP2 whose bytes and time are counted."""

    traffic: CommStats

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def _counted(self, start: Callable[[], dist.Work | None], sent: int, on_cpu: bool) -> dist.Work | None:
        self.traffic.sent_bytes += sent
        began = time.perf_counter()
        work = start()
        if on_cpu and work is not None:
            work.wait()  # gloo's threads have no core of their own: waiting here shows what it takes
            work = None
        self.traffic.seconds += time.perf_counter() - began if on_cpu else 0.0
        return work


class _Gather(_Counted):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        def start() -> Any:
            return _gather(output_tensor, input_tensor, group=group, async_op=async_op)

        others = group.size() - 1
        return self._counted(start, input_tensor.nbytes * others, input_tensor.device.type == "cpu")


@dataclass(frozen=True)
class _Sum(_Counted):
    """FSDP2 lets a sum over copies of the model follow, of the rows that remain."""

    copies: int

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        def start() -> Any:
            return _sum(output_tensor, input_tensor, op=op, group=group, async_op=async_op)

        over_copies = 2 * output_tensor.nbytes * (self.copies - 1) // self.copies
        sent = output_tensor.nbytes * (group.size() - 1) + over_copies
        return self._counted(start, sent, input_tensor.device.type == "cpu")
