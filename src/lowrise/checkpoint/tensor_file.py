"""One safetensors file: written tensor by tensor, its SHA-256 taken on the way; read by rows.

8 bytes  length of the header, little-endian
header   JSON: name -> {"dtype", "shape", "data_offsets": [begin, end)}, padded with spaces to 8 bytes
data     the tensors one after the other, widest elements first, so that each is aligned
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lowrise.errors import LowriseError
from lowrise.files import naming

NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {text: dtype for dtype, text in NAMES.items()}


def dtype_name(name: str, dtype: torch.dtype) -> str:
    """The format's word for a dtype; a sentence where it has none."""
    if dtype not in NAMES:
        raise LowriseError(f"{name} has dtype {dtype}, which a checkpoint cannot hold.")
    return NAMES[dtype]


def described(dtype: str, shape: list[int]) -> Tensor:
    """A tensor that has a shape and a dtype and no values (on the device "meta")."""
    return torch.empty(shape, dtype=DTYPES[dtype], device="meta")


def write_tensors(
    path: Path, contents: Mapping[str, Tensor], tensor_of: Callable[[str], Tensor]
) -> dict[str, Any]:
    """Write a file of the names, shapes and dtypes of `contents`; `tensor_of(name)` gives the values, asked
    for one at a time, in the file's order. Returns the file's size and SHA-256.
    """
    order = file_order(contents)
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = contents[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": dtype_name(name, tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    # Both let other threads run, so that a tensor takes the longer one of the two times, not their sum.
    with naming(path), path.open("wb") as stream, ThreadPoolExecutor(1, "sha256") as beside:
        for chunk in (len(text).to_bytes(8, "little"), text):
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        for name in order:
            data = bytes_of(tensor_of(name))
            hashed = beside.submit(digest.update, data)
            stream.write(data)
            hashed.result()
            size += len(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def file_order(contents: Mapping[str, Tensor]) -> list[str]:
    """Names in the order in which a file has them."""
    return sorted(contents, key=lambda name: (-contents[name].element_size(), name))


def bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a tensor on any device; no copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def read_header(path: Path) -> dict[str, Tensor]:
    """Name -> shape and dtype (on the device "meta") of a file's tensors; `ValueError` or `OSError` where
    the file has no such header."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(stream.read(length))
    return {
        name: described(entry["dtype"], entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


class Readers:
    """Open files of a folder, for as long as this object lives; each is mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}

    def rows(self, file: str, name: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of a tensor; of a tensor without dimensions, [0, 1) is its value."""
        if file not in self._open:
            self._open[file] = safe_open(self.folder / file, framework="pt")
        source = self._open[file].get_slice(name)
        shape = source.get_shape()
        if not shape or (begin, end) == (0, shape[0]):
            return self._open[file].get_tensor(name)
        return source[begin:end]
