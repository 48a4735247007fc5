"""Weights in safetensors files of bounded size, with the index that Hugging Face's loaders read."""

from __future__ import annotations

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lowrise.errors import UsageError
from lowrise.export.forms import Named
from lowrise.files import strict_json, write_whole

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def parse_size(text: str) -> int:
    """Bytes of a size such as "5GB" or "500MB"; `UsageError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    size = 0 if match is None or unit is None else int(float(match[1]) * unit)
    if size < 1:
        raise UsageError(
            f"--shard-size {text!r} is no size: give a number of bytes, or one with KB, MB or GB (or KiB, "
            "MiB, GiB), such as 5GB."
        )
    return size


def write_shards(folder: Path, tensors: Named, shard_bytes: int) -> int:
    """Write the tensors in their order; a file ends before the tensor that would make it larger than
    `shard_bytes` (a larger tensor has a file of its own). Returns the bytes of all tensors.
    """
    files: list[list[str]] = []
    total = 0
    shard: dict[str, Tensor] = {}
    size = 0

    def flush_shard() -> None:
        save_tensors(shard, _temporary(folder, len(files)), {"format": "pt"})
        files.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        size_of_tensor = tensor.numel() * tensor.element_size()
        if shard and size + size_of_tensor > shard_bytes:
            flush_shard()
            size = 0
        shard[name] = tensor.detach().contiguous()
        size += size_of_tensor
        total += size_of_tensor
    flush_shard()
    _name_files(folder, files, total)
    return total


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write one file, readable by whoever may read its folder's other files: the library makes it private."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # also what the disk refused, its number within the text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)


def _temporary(folder: Path, number: int) -> Path:
    return folder / f"shard-{number}.safetensors"


def _name_files(folder: Path, files: list[list[str]], total: int) -> None:
    """How many there are is known at the end, and stands in their names."""
    if len(files) == 1:
        _temporary(folder, 0).rename(folder / WHOLE)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        _temporary(folder, number).rename(folder / name)
        places |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_whole(folder / INDEX, strict_json(index, indent=2) + "\n")
