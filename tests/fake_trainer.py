"""Stands in for `lowrise train` in tests of the pool: same arguments, same files, a made-up loss, a few
milliseconds.

The recipe decides what happens: `fake.base` is the loss's minimum, `fake.best_lr` where it lies,
`fake.seconds` the time, `fake.step_ms` what it says that a step takes, `fake.diverges_above` the learning
rate from which it diverges, `fake.crash_seeds` the seeds that crash while the file `fake.crash_while` is
there; `fake.average_best_lr` where the loss of averaged weights lies lowest, in a run that keeps them.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any


def settings(arguments: list[str]) -> tuple[str, Path, dict[str, Any]]:
    recipe, run_flag, run = arguments[:3]
    assert run_flag == "--run"
    pairs = zip(arguments[3::2], arguments[4::2], strict=True)
    return recipe, Path(run), {key.removeprefix("--"): parsed(value) for key, value in pairs}


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(arguments: list[str]) -> int:
    recipe, run, flags = settings(arguments)
    config = tomllib.loads(Path(recipe).read_text())
    fake, seed, steps = config["fake"], flags["seed"], flags.get("train.steps", 5)
    lr = flags.get("optimizer.lr", config["optimizer"]["lr"])
    run.mkdir(parents=True, exist_ok=True)
    lines = [f"{key!r} = {json.dumps(value)}" for key, value in flags.items()]
    (run / "config.toml").write_text("\n".join(lines) + "\n")
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    checkpoint = run / "checkpoint.json"
    first = json.loads(checkpoint.read_text()) + 1 if checkpoint.exists() else 1
    with (run / "starts.txt").open("a") as file:
        file.write(f"{first}\n")
    loss = fake["base"] + math.log(lr / fake["best_lr"]) ** 2 + 0.001 * seed
    loss += 0.1 * math.log2(flags.get("layer.rank", 16) / 16) ** 2
    summary = {
        "method": fake["method"],
        "seed": seed,
        "steps": steps,
        "tokens": steps * 100,
        "params_total": 1000,
        "tokens_per_second": 1e5 / fake.get("step_ms", 10.0),
    }
    with (run / "metrics.jsonl").open("a") as metrics:
        for step in range(first, steps + 1):
            time.sleep(fake["seconds"] / steps)
            metrics.write(
                json.dumps(
                    {
                        "step": step,
                        "tokens": step * 100,
                        "loss": loss,
                        "val_loss": loss,
                        "step_ms": fake.get("step_ms", 10.0),
                    }
                )
                + "\n"
            )
            metrics.flush()
            if stopped:
                checkpoint.write_text(json.dumps(step))
                (run / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
                return 1
    if seed in fake.get("crash_seeds", []) and Path(fake["crash_while"]).exists():
        print("a crash, as asked", file=sys.stderr)
        return 1
    if lr > fake.get("diverges_above", math.inf):
        summary |= {"status": "failed", "error": "The loss was non-finite 3 times in a row."}
        (run / "summary.json").write_text(json.dumps(summary))
        return 1
    summary |= {
        "status": "completed",
        "val_loss": loss,
        "val_perplexity": math.exp(loss),
        "train_flops": steps * 1e6,
    }
    if best := fake.get("average_best_lr"):
        averaged = fake["base"] - 0.2 + math.log(lr / best) ** 2 + 0.001 * seed
        summary |= {"ema_val_loss": averaged, "ema_val_perplexity": math.exp(averaged)}
    (run / "summary.json").write_text(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
