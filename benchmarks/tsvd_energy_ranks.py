"""Energy thresholds against chosen ranks, on the spectra of a golden file of TSVD.

Two tables. For each case of the file: the least number k of values that hold the threshold's share of the
energy, and the rank chosen from it (a multiple, within its bounds), the file's beside ours. For its longest
spectra: the rank, of the length of the spectrum, at a range of thresholds, multiples of 8.

    python benchmarks/tsvd_energy_ranks.py FILE.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from common import publish

from lowrise.linalg import energy_count, energy_rank

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    with np.load(file) as arrays:
        case = {key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith("energy/")}
    spectra = [
        torch.from_numpy(row[:length]) for row, length in zip(case["spectrum"], case["length"], strict=True)
    ]
    rows, wrong = [], 0
    for i, s in enumerate(spectra):
        threshold, multiple, least = (case[key][i].item() for key in ("threshold", "multiple", "r_min"))
        k = energy_count(s, threshold)
        rank = energy_rank(k, rank=len(s), multiple=multiple, least=least)
        expected = int(case["k"][i]), int(case["rank"][i])
        wrong += (k, rank) != expected
        rows.append(
            (
                f"{len(s)}",
                f"{threshold:g}",
                f"{multiple}",
                f"{least}",
                f"{expected[0]} / {k}",
                f"{expected[1]} / {rank}",
            )
        )
    device = torch.device("cpu")
    publish(
        "tsvd_energy_ranks",
        f"{file.name}: {wrong} of {len(rows)} cases differ",
        ("length", "threshold", "multiple", "least", "k, file / ours", "rank, file / ours"),
        rows,
        {"differ": wrong},
        device,
    )
    longest = [s for s in spectra if len(s) == max(map(len, spectra))]
    ranks = [
        [energy_rank(energy_count(s, t), rank=len(s), multiple=8, least=8) for t in THRESHOLDS]
        for s in longest
    ]
    table = [(f"{len(s)}", *map(str, row)) for s, row in zip(longest, ranks, strict=True)]
    publish(
        "tsvd_energy_ranks_by_threshold",
        "Rank at each threshold",
        ("length", *map(str, THRESHOLDS)),
        table,
        {"thresholds": THRESHOLDS, "ranks": ranks},
        device,
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
