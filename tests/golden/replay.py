"""Replay a fixture file through the public optimizers and layers and compare every number in it.

    python tests/golden/replay.py METHOD FILE.npz [--dtype float32|float64]

Prints `case  error  bar  ok|FAIL` a line; entries that no part of lowrise covers are printed as `not
covered`, and a case that the file or lowrise makes impossible as `refused` with the reason. Exit code 0 if
all is ok, 1 if a case fails or nothing was compared, 2 with a message for a request that cannot be right.
Cases, shapes and hyperparameters are read from the file. A new method is one module in `replays` and one row
in `REPLAYS`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from replays.cola import replay_cola
from replays.common import Fixture, Line
from replays.dlr import replay_dlr
from replays.gwt import replay_gwt
from replays.hyperball import replay_hyperball
from replays.loramuon import replay_loramuon
from replays.loro import replay_loro
from replays.muon import replay_muon
from replays.normuon import replay_normuon
from replays.projected import replay_projected
from replays.relora import replay_relora
from replays.sinkgd import replay_sinkgd
from replays.sinkgd_spectral import replay_sinkgd_spectral
from replays.spectron import replay_spectron
from replays.stablespam import replay_stablespam
from replays.swan import replay_swan
from replays.tsvd import replay_tsvd

REPLAYS: dict[str, Callable[[Fixture, torch.dtype], Iterator[Line]]] = {
    "apollo": replay_projected,
    "cola": replay_cola,
    "dion2": replay_normuon,
    "dlr": replay_dlr,
    "fira": replay_projected,
    "galore": replay_projected,
    "gwt": replay_gwt,
    "hyperball": replay_hyperball,
    "loramuon": replay_loramuon,
    "loro": replay_loro,
    "muon": replay_muon,
    "normuon": replay_normuon,
    "relora": replay_relora,
    "sinkgd": replay_sinkgd,
    "sinkgd-spectral": replay_sinkgd_spectral,
    "sinkgd_spectral": replay_sinkgd_spectral,
    "spectron": replay_spectron,
    "stablespam": replay_stablespam,
    "swan": replay_swan,
    "tsvd": replay_tsvd,
}


def _usage(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """Parse, replay, print; returns the exit code."""
    parser = argparse.ArgumentParser(description="Replay a golden fixture through the public optimizers.")
    parser.add_argument("method")
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    arguments = parser.parse_args(argv)
    if arguments.method not in REPLAYS:
        return _usage(
            f"there is no replay for the method {arguments.method!r}; there is one for {', '.join(REPLAYS)}."
        )
    try:
        with np.load(arguments.file, allow_pickle=False) as archive:
            data = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        return _usage(f"{arguments.file} cannot be read as a fixture file (.npz): {error}")
    replay = REPLAYS[arguments.method](data, getattr(torch, arguments.dtype))
    compared, failed = 0, False
    try:
        for line in replay:
            print(line)
            compared += line.bar is not None
            failed = failed or line.failed
    except KeyError as error:
        return _usage(f"{arguments.file} is no fixture of {arguments.method}: it lacks the key {error}.")
    if not compared:
        print(f"{arguments.method}  -  -  FAIL: nothing in {arguments.file} was compared")
    return 1 if failed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
