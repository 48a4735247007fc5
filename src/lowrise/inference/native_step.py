"""`NativeStep`: the step of one sequence on a CPU as one call of C++ (`decode_step.cpp`), where there is a
compiler.

A step of torch's operations spends much of its time between the products, and its products of a matrix and
a vector read memory at a fraction of its rate (docs/commands/generate.md). The C++ is compiled at first use
(`lowrise.linalg.compiled`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from lowrise.inference.frozen import MapGroup
from lowrise.linalg.compiled import library
from lowrise.model.config import LlamaConfig

SOURCE = Path(__file__).with_name("decode_step.cpp")
DTYPES = (torch.float32, torch.bfloat16)
_LINE = 64
_PAGE = 2 << 20
_HUGE_PAGES = 14  # MADV_HUGEPAGE of Linux


class _Map(ctypes.Structure):
    _fields_ = (
        ("up", ctypes.c_void_p),
        ("latent", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("silu", ctypes.c_int64),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        ("first", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("maps", ctypes.POINTER(_Map)),
        ("inputs", ctypes.c_int64),
        ("latents", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("num_maps", ctypes.c_int64),
        ("eps", ctypes.c_double),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("groups", ctypes.POINTER(_Group)),
        ("embedding", ctypes.c_void_p),
        ("rotations", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "silu", "widest", "threads")
        ),
    )


def in_reading_order(groups: Sequence[MapGroup]) -> list[MapGroup]:
    """The groups with their matrices one behind the other, in the order of a step, on large pages if the
    system has them: reading goes on from one matrix to the next, and short ones gain most."""

    def room(x: Tensor) -> int:
        return -(-x.numel() * x.element_size() // _LINE) * _LINE

    matrices = [x for g in groups for x in g.matrices]
    memory = torch.empty(sum(map(room, matrices)) + _PAGE, dtype=torch.uint8)
    used = -memory.data_ptr() % _PAGE
    with suppress(AttributeError, OSError):  # no such call: an ordinary page does
        whole = (memory.numel() - used) // _PAGE * _PAGE
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(memory.data_ptr() + used), ctypes.c_size_t(whole), _HUGE_PAGES
        )

    def place(x: Tensor) -> Tensor:
        nonlocal used
        placed = memory[used : used + x.numel() * x.element_size()].view(x.dtype).view(x.shape).copy_(x)
        used += room(x)
        return placed

    return [group.moved(place) for group in groups]


class Library:
    """The functions of the loaded library."""

    def __init__(self, handle: ctypes.CDLL) -> None:
        address, number = ctypes.c_void_p, ctypes.c_int64
        self.scratch_floats = handle.scratch_floats
        self.scratch_floats.restype = number
        self.scratch_floats.argtypes = (address, number)
        self.decode_step = handle.decode_step
        self.decode_step.restype = None
        self.decode_step.argtypes = (
            address, ctypes.c_int, address, number, number, number, number, address, address
        )  # fmt: skip
        self.apply_group = handle.apply_group
        self.apply_group.restype = None
        self.apply_group.argtypes = (address, ctypes.c_int, number, address, address, address)


class NativeStep:
    """`groups`: (q, k, v), o, (gate, up), down of every block and the head, or any others to `apply` alone.

    Holds no state: several generations may use one at a time. Make one only where `native_library` finds a
    library for the dtype, and keep the groups' tensors as they are.
    """

    def __init__(
        self,
        library: Library,
        config: LlamaConfig,
        groups: Sequence[MapGroup],
        embedding: Tensor,
        rotations: Tensor,
    ) -> None:
        self._library = library
        self._bf16 = int(embedding.dtype == torch.bfloat16)
        self._columns_of_logits = groups[-1].outputs
        self._kept: list[object] = [embedding, rotations, list(groups)]  # addresses do not keep tensors
        self._groups = (_Group * len(groups))(*map(self._group, groups))
        self._outputs = [g.outputs for g in groups]
        widths = [n for g in groups[:-1] or groups for n in (g.inputs, g.latents, g.outputs)]
        self._model = _Model(
            groups=self._groups,
            embedding=embedding.data_ptr(),
            rotations=rotations.data_ptr(),
            layers=len(groups) // 4,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            silu=config.mlp_activation == "silu",
            widest=max(*widths, groups[-1].inputs, groups[-1].latents if groups[-1].factored else 0),
            threads=0,
        )

    def _group(self, group: MapGroup) -> _Group:
        maps = (_Map * len(group.maps))(
            *(
                _Map(None if m.up is None else m.up.data_ptr(), m.first.shape[0], m.outputs, int(m.silu))
                for m in group.maps
            )
        )
        norm = None if group.norm is None else group.norm.float()
        bias = None if group.bias is None else group.bias.float()
        self._kept += [maps, norm, bias]
        return _Group(
            first=group.first.data_ptr(),
            norm=None if norm is None else norm.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            maps=maps,
            inputs=group.inputs,
            latents=group.latents,
            outputs=group.outputs,
            num_maps=len(maps),
            eps=group.eps,
        )

    def scratch(self, columns: int) -> Tensor:
        """Memory (float32) for the steps of a state of so many columns."""
        return torch.empty(self._library.scratch_floats(ctypes.byref(self._model), columns))

    def __call__(
        self, caches: ctypes.Array[ctypes.c_void_p], columns: int, padding: int, column: int, token: int,
        scratch: Tensor,
    ) -> Tensor:  # fmt: skip
        """Logits (1, vocab), float32, after `token` in `column`; `caches` are the addresses of the blocks'
        keys and values, `padding` the first column of the sequence."""
        logits = torch.empty(1, self._columns_of_logits)
        self._library.decode_step(
            self._with_threads(), self._bf16, caches, columns, padding, column, token, scratch.data_ptr(),
            logits.data_ptr(),
        )  # fmt: skip
        return logits

    def apply(self, group: int, x: Tensor, scratch: Tensor) -> Tensor:
        """One group's outputs (float32) for x (n,), float32."""
        y = torch.empty(self._outputs[group])
        self._library.apply_group(
            self._with_threads(), self._bf16, group, x.data_ptr(), scratch.data_ptr(), y.data_ptr()
        )
        return y

    def _with_threads(self) -> object:
        self._model.threads = torch.get_num_threads()
        return ctypes.byref(self._model)


def native_library(device: torch.device, dtype: torch.dtype) -> Library | None:
    """The compiled step, or None where there is none for this device and dtype, or no compiler."""
    found = library(SOURCE) if device.type == "cpu" and dtype in DTYPES else None
    return None if found is None else Library(found.handle)
