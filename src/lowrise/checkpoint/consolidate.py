"""A sharded checkpoint as a whole one, offline, in one process and one tensor at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

from lowrise.checkpoint.checkpoint import read_checkpoint
from lowrise.checkpoint.manifest import MANIFEST, manifest_text, read_manifest
from lowrise.checkpoint.store import check_file
from lowrise.checkpoint.tensor_file import write_tensors
from lowrise.checkpoint.writing import whole_file
from lowrise.errors import UsageError
from lowrise.files import flush, write_whole


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
