"""Stands in for `lowrise train` in tests of sweeps: same words, same files, a loss by a law, in milliseconds.

The recipe decides: `fake.seconds` the time, `fake.times` how much of the law's tokens it needs,
`fake.crash_width` the width that crashes while the file `fake.crash_while` is there, `fake.diverges_width`
the one that diverges.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import tomllib
from pathlib import Path


def main(arguments: list[str]) -> int:
    recipe, _, run = arguments[:3]
    flags = {
        k.removeprefix("--"): json.loads(v) for k, v in zip(arguments[3::2], arguments[4::2], strict=True)
    }
    fake = tomllib.loads(Path(recipe).read_text())["fake"]
    folder, steps, width = Path(run), flags["train.steps"], flags["model.hidden_size"]
    folder.mkdir(parents=True, exist_ok=True)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    checkpoint = folder / "checkpoint.json"
    first = json.loads(checkpoint.read_text()) + 1 if checkpoint.exists() else 1
    with (folder / "starts.txt").open("a") as file:
        file.write(f"{first}\n")
    params, tokens = 12 * width**2, 100 * steps
    law = 1.8 + 20.0 * params**-0.3 + 60.0 * (tokens / fake.get("times", 1.0)) ** -0.35
    loss = law + 0.01 * abs(flags["optimizer.lr"] - 0.01)
    summary = {"method": fake["method"], "seed": flags["seed"], "params_total": params + 1000 * width}
    summary |= {"params_non_embedding": params, "tokens": tokens, "train_flops": 6 * params * tokens}
    for step in range(first, first + 100):
        time.sleep(fake.get("seconds", 0.01) / 100)
        if stopped:
            checkpoint.write_text(json.dumps(step))
            (folder / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
            return 1
    if width == fake.get("crash_width") and Path(fake["crash_while"]).exists():
        print("a crash, as asked", file=sys.stderr)
        return 1
    if width == fake.get("diverges_width"):
        summary |= {"status": "failed", "error": "The loss was non-finite 3 times in a row."}
        (folder / "summary.json").write_text(json.dumps(summary))
        return 1
    (folder / "summary.json").write_text(json.dumps({**summary, "status": "completed", "val_loss": loss}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
