"""What one rank does for a checkpoint: write its pieces, or send them to rank 0, which writes whole tensors.

Collected tensors pass rank 0 one at a time, in the order of the file, so that it never holds more than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrise.checkpoint.layout import Plan, Planned
from lowrise.checkpoint.tensor_file import dtype_name, file_order, write_tensors
from lowrise.distributed.collectives import Words
from lowrise.files import flush

Pieces = Mapping[str, Mapping[str, Tensor]]


class Buffers:
    """Memory for copies on the CPU, kept from one save to the next: pages that a process asks for anew are
    cleared by the system first, which takes several times as long as the copy.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    def copied(self, pieces: Pieces) -> dict[str, dict[str, Tensor]]:
        """Copies of `pieces` that later updates do not touch, good until the next call. From a GPU all copies
        are on their way before the first is waited for; they land in pinned memory.
        """
        before, self._kept = self._kept, {}
        devices: set[torch.device] = set()

        def copy(key: tuple[str, str], tensor: Tensor) -> Tensor:
            on_cpu = tensor.device.type == "cpu"
            there = before.pop(key, None)
            if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
                there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=not on_cpu)
            self._kept[key] = there
            if not on_cpu:
                devices.add(tensor.device)
            return there.copy_(tensor.detach(), non_blocking=not on_cpu)

        done = {
            part: {name: copy((part, name), t) for name, t in tensors.items()}
            for part, tensors in pieces.items()
        }
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return done


def write_share(folder: Path, plan: Plan, pieces: Pieces, words: Words) -> dict[str, Any]:
    """Write and flush this rank's files; file name -> its bytes and SHA-256."""
    if plan.collected:
        return _collect(folder, plan, pieces, words)
    files = {}
    for part, tensors in pieces.items():
        if tensors or not plan.sharded:
            file = file_of(part, words.world.rank, words.world.size) if plan.sharded else whole_file(part)
            files[file] = write_tensors(folder / file, tensors, tensors.__getitem__)
            flush(folder / file)
    return files


def whole_file(part: str) -> str:
    return f"{part}.safetensors"


def file_of(part: str, rank: int, size: int) -> str:
    return f"{part}.{rank:05d}-of-{size:05d}.safetensors"


def table(plan: Plan, size: int) -> dict[str, Any]:
    """Where which rows lie, for the manifest of the sharded form."""
    return {
        part: {
            name: {
                "dtype": dtype_name(name, planned.whole.dtype),
                "shape": list(planned.whole.shape),
                "pieces": [[s.start, s.rows, file_of(part, s.writer, size)] for s in planned.shares],
            }
            for name, planned in tensors.items()
        }
        for part, tensors in plan.tensors.items()
    }


def _collect(folder: Path, plan: Plan, pieces: Pieces, words: Words) -> dict[str, Any]:
    """Rank 0 writes the whole form, of pieces that the others send in the order of its files.

    Where its disk is full it still takes what they send, so that all can then be told.
    """
    files: dict[str, Any] = {}
    failed: OSError | None = None
    for part, planned in plan.tensors.items():
        contents = {name: tensor.whole for name, tensor in planned.items()}
        if not words.world.leads:
            _send(file_order(contents), planned, pieces[part], words)
            continue
        missing = dict.fromkeys(file_order(contents))
        own = pieces[part]

        def gathered(
            name: str,
            planned: Mapping[str, Planned] = planned,
            own: Mapping[str, Tensor] = own,
            missing: dict[str, None] = missing,
        ) -> Tensor:
            del missing[name]
            return _gather(planned[name], own.get(name), words)

        try:
            if failed is None:
                file = whole_file(part)
                files[file] = write_tensors(folder / file, contents, gathered)
                flush(folder / file)
        except OSError as error:
            failed = error
        for name in list(missing):
            gathered(name)
    if failed is not None:
        raise failed
    return files


def _send(order: list[str], planned: Mapping[str, Planned], own: Mapping[str, Tensor], words: Words) -> None:
    for name in order:
        if planned[name].whole.numel():
            for share in planned[name].shares:
                if share.writer == words.world.rank:
                    words.send(own[name].cpu())


def _gather(planned: Planned, own: Tensor | None, words: Words) -> Tensor:
    """One whole tensor at rank 0."""
    whole = torch.empty(planned.whole.shape, dtype=planned.whole.dtype)
    for share in planned.shares if whole.numel() else ():
        rows = whole[share.start : share.start + share.rows] if whole.dim() else whole
        if share.writer != 0:
            words.receive_(rows, share.writer)
        elif own is not None:
            rows.copy_(own)
    return whole
