"""One saved checkpoint: what it holds, and its values, read where they are used.

`checkpoint.json` (`checkpoint/manifest.py`) has, in the sharded form, for each part and tensor the dtype, the
whole shape and the pieces `[first row, rows, file]`. In the whole form that is one piece in
`PART.safetensors`, and the file's own header says it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrise.checkpoint.layout import piece_of, row_count
from lowrise.checkpoint.manifest import DamagedCheckpoint, read_manifest
from lowrise.checkpoint.tensor_file import Readers, described, dtype_name, read_header
from lowrise.distributed import World
from lowrise.distributed.collectives import Words
from lowrise.errors import LowriseError

Check = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Saved:
    """One tensor: what it is as a whole (on the device "meta"), and where rows [start, start + rows) lie."""

    whole: Tensor
    pieces: tuple[tuple[int, int, str], ...]


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a part, whole, on the CPU. Each is read, and put together if it is sharded, when it is
    asked for, and not kept."""

    def __init__(self, folder: Path, saved: Mapping[str, Saved]) -> None:
        self._files = Readers(folder)
        self._saved = saved

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name, 0, row_count(self._saved[name].whole.shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._saved)

    def __len__(self) -> int:
        return len(self._saved)

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of a tensor; only the pieces that have some are touched."""
        saved = self._saved[name]
        found = [
            (max(begin, start), min(end, start + rows), start, file)
            for start, rows, file in saved.pieces
            if max(begin, start) < min(end, start + rows)
        ]
        if len(found) == 1:
            first, last, start, file = found[0]
            return self._files.rows(file, name, first - start, last - start)
        result = torch.empty((end - begin, *saved.whole.shape[1:]), dtype=saved.whole.dtype)
        for first, last, start, file in found:
            result[first - begin : last - begin] = self._files.rows(file, name, first - start, last - start)
        return result


class Checkpoint:
    """What was saved in the folder `path` after update `step`: tensors by part, and the trainer's
    `numbers`."""

    def __init__(
        self, path: Path, step: int, numbers: dict[str, Any], saved: Mapping[str, Mapping[str, Saved]]
    ) -> None:
        self.path = path
        self.step = step
        self.numbers = numbers
        self._saved = saved

    @property
    def parts(self) -> dict[str, SavedTensors]:
        """`parts[part][name]`: whole tensors on the CPU, read when used."""
        return {part: SavedTensors(self.path, tensors) for part, tensors in self._saved.items()}

    def names(self, part: str) -> list[str]:
        """The tensors of a part."""
        return list(self._saved[part])

    def described(self, part: str) -> dict[str, Tensor]:
        """Shapes and dtypes of a part, as tensors on the device "meta": nothing is read."""
        return {name: saved.whole for name, saved in self._saved[part].items()}

    def files(self, part: str) -> dict[str, list[str]]:
        """Name -> the files in which its rows lie, in their order."""
        return {name: [file for _, _, file in saved.pieces] for name, saved in self._saved[part].items()}

    @torch.no_grad()
    def load_into(
        self, part: str, tensors: Mapping[str, Tensor], world: World | None = None, check: Check | None = None
    ) -> None:
        """Copy the saved values into live tensors of any kind (`checkpoint/layout.py`), on any number of
        ranks, however many wrote them. Collective over the ranks of `world`.

        A rank reads the rows that it has, no others. First all that the ranks have together is compared with
        what was saved: `check(own, saved)` raises for names, shapes and dtypes that differ, at all ranks
        alike, and nothing has been changed.
        """
        own = _of_all_ranks(tensors, Words(world or World()))
        (check or self._require_same)(own, self.described(part))
        saved = SavedTensors(self.path, self._saved[part])
        for name, tensor in tensors.items():
            piece = piece_of(name, tensor)
            if piece.local.numel():
                piece.local.copy_(saved.rows(name, piece.start, piece.start + piece.rows))

    def _require_same(self, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
        wrong = [f"it has no {name}" for name in own if name not in saved]
        wrong += [f"there is no place for its {name}" for name in saved if name not in own]
        wrong += [
            f"{name} is {tuple(saved[name].shape)} {saved[name].dtype} there, {tuple(t.shape)} {t.dtype} here"
            for name, t in own.items()
            if name in saved and (saved[name].shape, saved[name].dtype) != (t.shape, t.dtype)
        ]
        if wrong:
            raise LowriseError(f"{self.path} does not fit: {'; '.join(wrong[:3])} ({len(wrong)} in all).")


def _of_all_ranks(tensors: Mapping[str, Tensor], words: Words) -> dict[str, Tensor]:
    """Name -> shape and dtype of what any rank has; `LowriseError` at all ranks for a name that is two
    things."""
    told = words.together(
        lambda: {name: [dtype_name(name, t.dtype), list(t.shape)] for name, t in tensors.items()}
    )
    found: dict[str, list[Any]] = {}
    for one in told:
        for name, what in one.items():
            if found.setdefault(name, what) != what:
                raise LowriseError(f"The ranks do not have the same {name}: {found[name]} and {what}.")
    return {name: described(*what) for name, what in found.items()}


def read_checkpoint(path: Path, step: int, verify: Callable[[Path, dict[str, Any]], None]) -> Checkpoint:
    """The checkpoint in a folder. `verify(file, {"bytes", "sha256"})` is called for each of its files first.

    Raises `DamagedCheckpoint` with the file and the reason, and `LowriseError` for a format of another
    version.
    """
    manifest = read_manifest(path, step)
    for name, expected in manifest["files"].items():
        verify(path / name, expected)
    table = manifest.get("tensors")
    try:
        saved = _by_headers(path, manifest["files"]) if table is None else _by_table(table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read ({error}).") from error
    return Checkpoint(path, step, manifest["numbers"], saved)


def _by_headers(path: Path, files: Mapping[str, Any]) -> dict[str, dict[str, Saved]]:
    return {
        Path(file).stem: {
            name: Saved(whole, ((0, row_count(whole.shape), file),))
            for name, whole in read_header(path / file).items()
        }
        for file in files
    }


def _by_table(table: Mapping[str, Any]) -> dict[str, dict[str, Saved]]:
    return {
        part: {
            name: Saved(
                described(entry["dtype"], entry["shape"]),
                tuple((start, rows, file) for start, rows, file in entry["pieces"]),
            )
            for name, entry in tensors.items()
        }
        for part, tensors in table.items()
    }
