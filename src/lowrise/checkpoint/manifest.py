"""`checkpoint.json`: written with a checksum of its own, and read by a strict schema.

`sha256` is over all the rest (as JSON with sorted keys and no spaces). Anything else than what the schema
says is `DamagedCheckpoint`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrise.checkpoint.tensor_file import DTYPES
from lowrise.errors import LowriseError
from lowrise.files import is_count, is_plain_name, read_json, require_seal, sealed

FORMAT = 3
MANIFEST = "checkpoint.json"


class DamagedCheckpoint(LowriseError):
    """A checkpoint whose files are not what its manifest says."""


def manifest_text(
    step: int, files: Mapping[str, Any], numbers: Mapping[str, Any], tensors: Any = None
) -> str:
    """The content of `checkpoint.json`; `tensors` is the table of the sharded form."""
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "files": files, "numbers": dict(numbers)}
    if tensors is not None:
        manifest["tensors"] = tensors
    return json.dumps(sealed(manifest), indent=1 if tensors is None else None, allow_nan=False)


def read_manifest(path: Path, step: int | None = None) -> dict[str, Any]:
    """`checkpoint.json` of the folder `path`, looked at from end to end.

    `step` is the one that the folder's name says. Raises `DamagedCheckpoint`, and `LowriseError` for a format
    of another version.
    """
    file = path / MANIFEST
    try:
        manifest = read_json(file)
        _require(isinstance(manifest, dict), "it is not an object")
        _require(type(manifest.get("format")) is int, "its format is not an integer")
        if manifest["format"] == FORMAT:
            _check(manifest)
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{file} cannot be read ({error}).") from error
    if manifest["format"] != FORMAT:
        raise LowriseError(
            f"{path} has checkpoint format {manifest['format']}; this version reads {FORMAT}: use the "
            "version of lowrise that wrote it."
        )
    if step is not None and manifest["step"] != step:
        raise DamagedCheckpoint(f"{path} holds step {manifest['step']}: it was renamed or copied.")
    return manifest


def _check(manifest: dict[str, Any]) -> None:
    keys = {"format", "step", "files", "numbers", "sha256"}
    found = set(manifest) - {"tensors"}
    _require(found == keys, f"its keys differ in {', '.join(sorted(map(repr, found ^ keys)))}")
    require_seal(manifest)
    _require(is_count(manifest["step"]), "its step is not a number of updates")
    _require(isinstance(manifest["files"], dict), "its files are not an object")
    for name, facts in manifest["files"].items():
        _require(is_plain_name(name), f"{name!r} is not the name of a file in the folder")
        right = isinstance(facts, dict) and set(facts) == {"bytes", "sha256"}
        right = right and is_count(facts["bytes"]) and isinstance(facts["sha256"], str)
        _require(right, f"what it says of {name} is not bytes and sha256")
    numbers = manifest["numbers"]
    _require(isinstance(numbers, dict), "its numbers are not an object")
    for key, value in numbers.items():
        _require(isinstance(value, int | float | str), f"numbers.{key} is not a number or a string")
    if numbers.get("step", manifest["step"]) != manifest["step"]:
        raise ValueError(f"numbers.step is {numbers['step']}, but its step is {manifest['step']}")
    if "tensors" in manifest:
        _check_table(manifest["tensors"], manifest["files"])


def _check_table(table: Any, files: Mapping[str, Any]) -> None:
    _require(isinstance(table, dict), "its tensors are not an object")
    for part, tensors in table.items():
        _require(isinstance(tensors, dict), f"tensors.{part} is not an object")
        for name, entry in tensors.items():
            right = isinstance(entry, dict) and set(entry) == {"dtype", "shape", "pieces"}
            _require(right, f"{name} of {part} has not dtype, shape and pieces")
            shape, pieces = entry["shape"], entry["pieces"]
            right = isinstance(entry["dtype"], str) and entry["dtype"] in DTYPES
            right = (
                right and isinstance(shape, list) and all(map(is_count, shape)) and isinstance(pieces, list)
            )
            _require(right, f"{name} of {part} has a dtype, shape or pieces that cannot be")
            end = 0
            for piece in pieces:
                right = isinstance(piece, list) and len(piece) == 3 and all(map(is_count, piece[:2]))
                right = right and isinstance(piece[2], str) and piece[2] in files and piece[0] == end
                _require(right, f"the pieces of {name} of {part} do not follow one another")
                end += piece[1]
            _require(end == (shape[0] if shape else 1), f"the pieces of {name} of {part} are not all rows")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
