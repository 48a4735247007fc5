"""A folder of checkpoints.

`step-00001000/` holds safetensors files and `checkpoint.json` with the trainer's numbers and the SHA-256 of
every file. In the whole form there is one file a part (model, optimizer, random), written by rank 0. In the
sharded form rank k of N writes its own rows as `PART.0000k-of-0000N.safetensors`, and `checkpoint.json` says
which rows of which tensor lie where.

It is written under another name, flushed to the disk and renamed, so a folder of that name is complete.
Loading reads tensors and JSON: nothing is executed.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lowrise.checkpoint.layout import Parts, Plan, agree
from lowrise.checkpoint.manifest import MANIFEST, DamagedCheckpoint, manifest_text, read_manifest
from lowrise.checkpoint.reader import Checkpoint, read_checkpoint
from lowrise.checkpoint.tensor_file import write_tensors
from lowrise.checkpoint.writer import table, whole_file, write_share
from lowrise.distributed import World
from lowrise.distributed.collectives import Words
from lowrise.errors import LowriseError, UsageError
from lowrise.files import flush, write_whole

_NAME = re.compile(r"step-(\d{8,})")
_LEFT_BEHIND = re.compile(r"\.(writing|retired)-\d{8,}")


class CheckpointStore:
    """Save, find and retire checkpoints below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        if not self.root.is_dir():
            return []
        found = (_NAME.fullmatch(entry.name) for entry in self.root.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in found if match)

    # --- saving -------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        parts: Parts,
        numbers: Mapping[str, Any],
        *,
        world: World | None = None,
        whole: bool = False,
    ) -> Path:
        """Write one checkpoint now: each of `world`'s ranks gives the parts that it has, rank 0 the numbers.
        With `whole`, rank 0 collects what others have.

        On any failure at any rank all ranks raise, and the folder is as before; a full disk gets a sentence.
        """
        words = Words(world or World())
        plan = agree(parts, words, collect=whole)
        pieces = plan.pieces(parts, words.world.rank)
        if plan.by_all:
            self.write(step, plan, pieces, numbers, words)
        else:
            words.together(lambda: self.write(step, plan, pieces, numbers, words))
        return self.path(step)

    def write(
        self,
        step: int,
        plan: Plan,
        pieces: Mapping[str, Mapping[str, Tensor]],
        numbers: Mapping[str, Any],
        words: Words,
    ) -> None:
        """Write the pieces of this rank by the plan, and at rank 0 all that makes them a checkpoint.

        Collective where the plan is `by_all`; else rank 0 does its work and the others return at once.
        """
        if not plan.by_all:
            if not words.world.leads:
                return
            words = Words(World())
        leads = words.world.leads
        aside = self.root / f".writing-{step:08d}"
        try:
            self._together(step, words, lambda: self._make(aside) if leads else None)
            files = self._together(step, words, lambda: write_share(aside, plan, pieces, words))
            every = {file: facts for told in files for file, facts in told.items()}
            tensors = table(plan, words.world.size) if plan.sharded else None
            text = manifest_text(step, every, numbers, tensors)
            self._together(step, words, lambda: self._complete(step, aside, text) if leads else None)
        except Exception:
            if leads:
                shutil.rmtree(aside, ignore_errors=True)
            raise

    def _together(self, step: int, words: Words, action: Callable[[], Any]) -> list[Any]:
        """`words.together`, with a sentence for what a disk refuses."""

        def explained() -> Any:
            try:
                return action()
            except OSError as error:
                full = error.errno == errno.ENOSPC
                what = "No space left to write" if full else f"{error}: cannot write"
                raise LowriseError(
                    f"{what} the checkpoint of step {step} in {self.root}: "
                    f"{'free some space' if full else 'look into it'} and start again; the run continues "
                    f"from step {max(self.steps(), default=0)}."
                ) from error

        return words.together(explained)

    def _make(self, aside: Path) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()

    def _complete(self, step: int, aside: Path, text: str) -> None:
        """The manifest, and the name that says that all is there. By rank 0, after all have flushed."""
        write_whole(aside / MANIFEST, text)
        target = self.path(step)
        # There is one already if a restart has fallen back to an older one.
        earlier = self._renamed_away(step) if target.exists() else None
        aside.rename(target)
        if earlier is not None:
            shutil.rmtree(earlier, ignore_errors=True)
        flush(self.root)

    def _renamed_away(self, step: int) -> Path:
        """A checkpoint under the name of those that are to be deleted: a kill in the middle of deleting must
        not leave a half-deleted one.
        """
        away = self.root / f".retired-{step:08d}"
        shutil.rmtree(away, ignore_errors=True)
        return self.path(step).rename(away)

    # --- finding ------------------------------------------------------------------------------------------

    def load(self, step: int, *, verify: bool = True) -> Checkpoint:
        """One checkpoint, its files verified, its tensors to be read where they are used.

        Raises `DamagedCheckpoint` with the file and the reason. Without `verify` the sums are taken for
        right: another rank has looked.
        """
        return read_checkpoint(self.path(step), step, check_file if verify else lambda file, expected: None)

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint. Damaged ones are set aside as `step-N.damaged` and named through
        `warn`."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except DamagedCheckpoint as error:
                path = self.path(step)
                aside = path.with_name(path.name + ".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                warn(
                    f"The checkpoint of step {step} is damaged: {error} It is kept as {aside.name}; "
                    "the one before it is used."
                )
        return None

    # --- cleaning -----------------------------------------------------------------------------------------

    def retire(self, keep: int, keep_every: int = 0, besides: Collection[int] = ()) -> None:
        """Delete all but the newest `keep` checkpoints, those whose step is a multiple of `keep_every`, and
        those of the steps `besides`."""
        for step in self.steps()[:-keep]:
            if not (keep_every and step % keep_every == 0) and step not in besides:
                shutil.rmtree(self._renamed_away(step), ignore_errors=True)

    def sweep(self) -> None:
        """Delete what a kill in the middle of saving has left. Only for the process that holds the run."""
        if self.root.is_dir():
            for entry in self.root.iterdir():
                if _LEFT_BEHIND.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)


def check_file(file: Path, expected: Mapping[str, Any]) -> None:
    """Raise `DamagedCheckpoint` unless a file has the size and the SHA-256 that were recorded."""
    if file.is_symlink():
        raise DamagedCheckpoint(f"{file} is a symbolic link: copy the file itself.")
    if not file.is_file():
        raise DamagedCheckpoint(f"{file} is missing.")
    if file.stat().st_size != expected["bytes"]:
        raise DamagedCheckpoint(f"{file} has {file.stat().st_size} bytes, not {expected['bytes']}.")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
            raise DamagedCheckpoint(
                f"{file} does not have the SHA-256 that was recorded when it was written."
            )


def newest_checkpoint(store: CheckpointStore, world: World, warn: Callable[[str], None]) -> Checkpoint | None:
    """As `CheckpointStore.newest`, for the processes that train: rank 0 alone sweeps up what a kill has left,
    verifies the files and sets damaged ones aside. Every rank then reads what it needs by itself.
    """
    found: Checkpoint | None = None

    def look() -> int:
        nonlocal found
        store.sweep()
        found = store.newest(warn)
        return -1 if found is None else found.step

    step = world.by_rank_0(look)
    return found if step < 0 or world.size == 1 else load_by_all(store, step, world, verify=False)


# How long a rank looks for what rank 0 sees: a shared file system may keep a folder's list for a minute.
SEEN_SECONDS = 90.0


def load_by_all(store: CheckpointStore, step: int, world: World, *, verify: bool = True) -> Checkpoint:
    """The checkpoint of `step`, which rank 0 has chosen, at every rank; its files are verified by rank 0, if
    at all.

    Raises at every rank where one does not see it, or has another one of that name: folders that machines do
    not share may be left from another time.
    """
    if world.size == 1:
        return store.load(step, verify=verify)
    found: list[Checkpoint] = []

    def load() -> str:
        if not world.leads:
            _wait_for(store.path(step), world)
        found.append(store.load(step, verify=verify and world.leads))
        return hashlib.sha256((store.path(step) / MANIFEST).read_bytes()).hexdigest()

    manifests = Words(world).together(load)
    other = next((rank for rank, sha256 in enumerate(manifests) if sha256 != manifests[0]), None)
    if other is not None:
        raise LowriseError(
            f"{store.path(step)} is another checkpoint at rank {other} than at rank 0: put the run's folder "
            "(--run) on a file system that all machines share, or remove what lies there from another time."
        )
    return found[0]


def _wait_for(path: Path, world: World) -> None:
    until = time.monotonic() + SEEN_SECONDS
    while not path.is_dir():
        if time.monotonic() > until:
            raise LowriseError(
                f"Rank {world.rank} does not see {path}, which rank 0 does: put the run's folder (--run) on "
                "a file system that all machines share."
            )
        time.sleep(0.5)


def consolidate(checkpoint_folder: str | Path, out_folder: str | Path) -> Path:
    """Write the checkpoint in `checkpoint_folder` (`.../step-00001000`) in the whole form to `out_folder`,
    which must not exist: one `PART.safetensors` a part, for any tool that reads safetensors; lowrise reads it
    too, where it lies among a run's checkpoints under its step's name.

    The files are verified first; raises `DamagedCheckpoint`. No kill leaves half an `out_folder`.
    """
    source, out = Path(checkpoint_folder), Path(out_folder)
    if out.exists():
        raise UsageError(f"{out} is there already: give a folder that is not.")
    manifest = read_manifest(source)
    checkpoint = read_checkpoint(source, manifest["step"], check_file)
    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        files = {}
        for part, tensors in checkpoint.parts.items():
            file = whole_file(part)
            files[file] = write_tensors(aside / file, checkpoint.described(part), tensors.__getitem__)
            flush(aside / file)
        text = manifest_text(manifest["step"], files, manifest["numbers"])
        write_whole(aside / MANIFEST, text)
        aside.rename(out)
        flush(out.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return out
