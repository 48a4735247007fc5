"""What a run needs of a device, planned before anything is there: bytes by kind, bytes sent, the peak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from lowrise.config import RunConfig
from lowrise.distributed.sharding import ShardGroup, rows_of
from lowrise.ledger.activations import ActivationPlan, plan_activations
from lowrise.ledger.communication import planned_communication
from lowrise.model import Llama
from lowrise.optim import Optimizer
from lowrise.optim.engine.units import units_of
from lowrise.runs.build import build_optimizer, model_from
from lowrise.runs.parallel import copied_parameters
from lowrise.runs.plan import RunPlan, plan_of


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is laid out on devices: what may be changed where it does not fit."""

    micro_batch_size: int
    """Sequences a pass, at one device."""
    recompute: str
    fsdp: bool
    """Whether the devices share weights, gradients and state by rows."""


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """Bytes of the device that needs most."""

    weights: int
    gradients: int
    state: int
    average: int
    """Of the tail's average, from its start on."""
    activations: int
    """What one pass keeps for its backward pass, and the largest block that is formed again."""
    workspace: int
    """The loss's chunk of logits, its gradient of the head, weights gathered for a pass."""
    peak: int
    """Most at one time: gradients grow while activations shrink, so less than the sum."""
    communicated: int
    """Sent by one device in an update, the mean of all."""


class Planned:
    """A run on `devices` devices, from shapes alone; `autocast` as its precision says, `on_cpu` (None: where
    `train.device` is "cpu") for its chunks of logits.
    """

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        *,
        devices: int = 1,
        autocast: bool = False,
        on_cpu: bool | None = None,
    ) -> None:
        self.config, self.devices, self.autocast = config, devices, autocast
        self.on_cpu = config.train.device == "cpu" if on_cpu is None else on_cpu
        self.model: Llama = model_from(config, vocab_size, torch.device("meta"))
        self.optimizer: Optimizer = build_optimizer(config, self.model)
        self.run: RunPlan = plan_of(config, self.model, self.optimizer)
        self.copies = copied_parameters(self.model, config.parallel.replicate_below)

    @property
    def share(self) -> int:
        """Sequences of an update at one device."""
        return max(1, self.config.train.global_batch_size // self.devices)

    @property
    def layout(self) -> Layout:
        """As the configuration says; "hsdp" as copies of shards of all devices, which is fsdp."""
        share = self.share
        return Layout(
            micro_batch_size=min(self.config.train.micro_batch_size or share, share),
            recompute=self.model.config.recompute,
            fsdp=self.devices > 1 and self.config.parallel.data in ("fsdp", "hsdp"),
        )

    def on_device(self, layout: Layout | None = None) -> DevicePlan:
        """The plan of a layout, or of the run's own."""
        layout = layout or self.layout
        rows = self._by_rows(layout)
        owners = self._owners(layout)
        activations = plan_activations(
            self.model,
            self.config.train.seq_len,
            sequences=layout.micro_batch_size,
            autocast=self.autocast,
            recompute=layout.recompute,
            on_cpu=self.on_cpu,
        )
        passes = -(-self.share // layout.micro_batch_size)
        weights = sum(_held(p, rows, self.devices) for p in self.model.parameters())
        weights += sum(b.numel() * b.element_size() for b in self.model.buffers())
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        sizes = [_held(p, rows, self.devices) for p in trainable]
        # Per-layer updates free each gradient at once, unless earlier passes have left all of them.
        gradients = max(sizes) if self.config.train.per_layer and passes == 1 else sum(sizes)
        state = self._state(owners, rows)
        gathered = self._gathered(rows)
        average = self._average(rows)
        held = weights + state + average + gathered
        kept = sum(activations.blocks) + activations.outside
        return DevicePlan(
            weights=weights,
            gradients=gradients,
            state=state,
            average=average,
            activations=kept + max(activations.recomputed, default=0),
            workspace=activations.logits + activations.cast + activations.head_gradient + gathered,
            peak=held + self._transient(activations, gradients, rows, all_gradients=passes > 1),
            communicated=planned_communication(
                self.model,
                self.model.model.layers,
                self.optimizer,
                ranks=self.devices,
                passes=passes,
                gathered_bytes=2 if self.config.parallel.param_dtype == "bfloat16" else None,
                ranks_of_copy=self.devices,
                by_rows=rows,
                owned=owners,
            ),
        )

    # ---- parts

    def _by_rows(self, layout: Layout) -> set[Tensor]:
        return {p for p in self.model.parameters() if p not in self.copies} if layout.fsdp else set()

    def _owners(self, layout: Layout) -> dict[Tensor, int]:
        """First parameter of a unit -> the device that moves it, for units that have one."""
        spread = self.devices > 1 and (layout.fsdp or self.config.parallel.distribute_optimizer)
        if not spread:
            return {}
        optimizer = build_optimizer(self.config, self.model)
        optimizer.share_work(ShardGroup(cast(dist.ProcessGroup, None), self.devices, 0))
        units = (unit for group in optimizer.param_groups for unit in units_of(group))
        return {unit[0]: owner for unit in units if (owner := optimizer.ownership.owner(unit)) is not None}

    def _state(self, owners: dict[Tensor, int], rows: set[Tensor]) -> int:
        """Bytes at the device that has most."""
        common, owned = 0, [0] * self.devices
        kind = type(self.optimizer)
        for group in self.optimizer.param_groups:
            for unit in units_of(group):
                by_rows = unit[0] not in owners
                shapes = [_rows(p, self.devices) if by_rows and p in rows else tuple(p.shape) for p in unit]
                size = kind.planned_state_bytes(group["role"], shapes, group, dtype=unit[0].dtype)
                if by_rows:
                    common += size
                else:
                    owned[owners[unit[0]]] += size
        return common + max(owned)

    def _average(self, rows: set[Tensor]) -> int:
        """One more copy of what is trained, in float32; in an evaluation with it the weights are kept beside,
        where the gradients were."""
        if self.config.ema.start is None:
            return 0
        trained = (p for p in self.model.parameters() if p.requires_grad)
        return sum(_held(p, rows, self.devices) // p.element_size() * 4 for p in trained)

    def _gathered(self, rows: set[Tensor]) -> int:
        """Weights of two blocks (the one at work, the next) or of the head, whole, while rows are shared."""
        if not rows:
            return 0
        element = 2 if self.config.parallel.param_dtype == "bfloat16" else None
        sizes = [
            sum(p.numel() * (element or p.element_size()) for p in block.parameters() if p in rows)
            for block in self.model.model.layers
        ]
        head = self.model.lm_head.weight
        return max(2 * max(sizes, default=0), head.numel() * (element or head.element_size()))

    def _transient(
        self, activations: ActivationPlan, gradients: int, rows: set[Tensor], *, all_gradients: bool
    ) -> int:
        """Most that gradients, activations and the loss's workspace take together: at the end of the forward
        pass, at the start of the backward pass, or in the backward pass of a block, from the last to the
        first; at last all gradients alone.
        """
        head = activations.head_gradient
        there = gradients if all_gradients else 0
        peaks = [
            there + activations.kept + activations.cast + activations.logits,
            there + activations.kept + head,
            gradients,
        ]
        grown = _held(self.model.lm_head.weight, rows, self.devices)
        left = sum(activations.blocks)
        blocks = zip(self.model.model.layers, activations.blocks, activations.recomputed, strict=True)
        for block, kept, again in reversed(list(blocks)):
            peaks.append((there or min(grown, gradients)) + left + again + activations.backward)
            grown += sum(_held(p, rows, self.devices) for p in block.parameters() if p.requires_grad)
            left -= kept
            peaks.append((there or min(grown, gradients)) + left)
        return max(peaks)


def remedy(planned: Planned, free: int) -> tuple[Layout, DevicePlan] | None:
    """The layout nearest to the run's own that fits in `free` bytes per device; None where none does."""
    for layout in _layouts(planned):
        plan = planned.on_device(layout)
        if plan.peak <= free:
            return layout, plan
    return None


def _layouts(planned: Planned) -> Iterator[Layout]:
    """Smaller micro-batches first, which cost nothing but passes; then recomputation; then shared rows."""
    own = planned.layout
    modes = [own.recompute] if own.recompute != "none" else ["none", "block"]
    shared = [own.fsdp] if own.fsdp or planned.devices == 1 else [False, True]
    for fsdp in shared:
        for mode in modes:
            size = own.micro_batch_size
            while size:
                yield replace(own, micro_batch_size=size, recompute=mode, fsdp=fsdp)
                size //= 2


def changes(own: Layout, other: Layout) -> dict[str, Any]:
    """The settings by which another layout differs, as keys of a recipe."""
    settings: dict[str, Any] = {}
    if other.micro_batch_size != own.micro_batch_size:
        settings["train.micro_batch_size"] = other.micro_batch_size
    if other.recompute != own.recompute:
        settings["model.recompute"] = other.recompute
    if other.fsdp != own.fsdp:
        settings["parallel.data"] = "fsdp"
    return settings


def _rows(p: Tensor, devices: int) -> tuple[int, ...]:
    """The shape of the first device's rows, the most that one has."""
    rows = rows_of(p.shape[0], devices, 0)
    return (rows.stop - rows.start, *p.shape[1:])


def _held(p: Tensor, rows: set[Tensor], devices: int) -> int:
    """Bytes of a parameter at the first device."""
    elements = torch.Size(_rows(p, devices)).numel() if p in rows else p.numel()
    return elements * p.element_size()
