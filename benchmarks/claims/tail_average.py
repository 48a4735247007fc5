"""An average of the last weights at a constant rate, against a rate that falls to zero over them."""

from __future__ import annotations

import statistics

import torch
from claim import Claim, Measured, Values, Verdict, run
from toy import batches, loss_of, model_of

from lowrise.optim import AdamW

CLAIM = Claim(
    group="Losses",
    title="An average of the last weights does what a decaying learning rate does.",
    source="A rule of thumb of weight averaging; `[ema]` here is the form of modded-nanogpt's track 3.",
    hypothesis="A constant rate whose weights are averaged over the last third of training, E <- E + (W - E) "
    "/ H, ends as low as a rate that falls linearly to zero over that third, from the same weights.",
    gate="Byte model of width 64, AdamW at rate 3e-3, 300 updates, the last 100 of them averaged (H = 33) or "
    "decayed; loss of 64 fixed windows of the text, 3 seeds. s is (raw - average) / (raw - decayed), the "
    "means over seeds: the share of decay's gain that the average gives. Holds at s of 0.8 to 1.25, fails "
    "below 0.5 or above 2, undecided between, or where decay gains less than 0.02 nats.",
    known="Nothing at this size.",
    scope="a byte model of width 64 at one rate, losses on its training text",
    result="The average ends at {average} nats, decay at {decayed}, the last weights at {raw}: the "
    "average has {share} times decay's gain, so more than decay and not the same.",
    decides="Rates tuned for each side, and held-out text: at a rate that is too high for the raw weights an "
    "average gains more.",
)

STEPS, TAIL, HORIZON, LR = 300, 100, 33, 3e-3


def measure(quick: bool) -> Measured:
    seeds = range(1 if quick else 3)
    tail = 20 if quick else TAIL
    found = [one_seed(seed, 40 if quick else STEPS, tail) for seed in seeds]
    names = ("raw", "average", "decayed")
    means = {name: statistics.fmean(one[name] for one in found) for name in names}
    gain = means["raw"] - means["decayed"]
    values = {name: round(mean, 4) for name, mean in means.items()}
    values |= {"gain": round(gain, 4), "share": round((means["raw"] - means["average"]) / gain, 2)}
    rows = [(name, f"{means[name]:.4f}", ", ".join(f"{one[name]:.4f}" for one in found)) for name in names]
    return Measured(("weights", "loss, nats", "of single seeds"), rows, values)


def verdict(values: Values) -> Verdict:
    share = values["share"]
    if values["gain"] < 0.02:
        return "undecided"
    if 0.8 <= share <= 1.25:
        return "holds"
    return "fails" if share < 0.5 or share > 2.0 else "undecided"


def one_seed(seed: int, steps: int, tail: int) -> dict[str, float]:
    """Losses of the last weights at a constant rate, of their average, and at a falling rate."""
    losses = {}
    for decayed in (False, True):
        model = model_of(64, seed=seed)
        parameters = list(model.parameters())
        optimizer = AdamW.from_model(model, lr=LR)
        average: list[torch.Tensor] = []
        for number, batch in zip(range(1, steps + 1), batches(seed=seed), strict=False):
            left = min(1.0, (steps - number + 1) / tail)
            for group in optimizer.param_groups:
                group["lr"] = LR * (left if decayed else 1.0)
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            if number == steps - tail:
                average = [p.detach().clone() for p in parameters]
            elif number > steps - tail:
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1.0 / HORIZON)
        losses["decayed" if decayed else "raw"] = seen(model)
        if not decayed:
            with torch.no_grad():
                torch._foreach_copy_(parameters, average)
            losses["average"] = seen(model)
    return losses


@torch.no_grad()
def seen(model: torch.nn.Module) -> float:
    """Loss of 64 windows, the same for all."""
    return float(loss_of(model, next(batches(sequences=64, seed=999))))  # type: ignore[arg-type]


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
