"""Norm-fixed factors against Spectron's bounded step.

The runs are `lowrise compare`'s, 200 updates of a model of width 64, in results/claims/runs/.
"""

from __future__ import annotations

from claim import Claim, Measured, run
from losses import difference, lower_is_claimed

CLAIM = Claim(
    group="Losses",
    title="Factors whose product has a fixed norm end lower than with Spectron's bounded step.",
    source="The form on A B^T is ours, after Wen et al., arXiv 2606.16899, who claim it for dense matrices.",
    hypothesis="`spectronh` ends lower than `spectron` at equal tokens, each at its own tuned rate "
    "(factors 0.4, 1 and 2.5 of the recipe's, one more where the best lies at an edge).",
    gate="95% Welch interval of the difference of means over 3 seeds. Holds below zero, fails above zero, "
    "undecided around it.",
    known="Nothing: no run of this comparison had been made.",
    scope="nano: width 64, English Wikipedia, 0.2 M tokens, 3 seeds",
    result="{difference}, so against the claim, but both best rates are the lowest of their grids, "
    "probably because in so few updates embedding and head do the learning (as in docs/transfer.md).",
    decides="Runs long enough for best rates inside of the grid: tiny, 1.6 M tokens or more, 3 seeds.",
    before=(
        "lowrise compare recipes/spectronh-tiny.toml recipes/spectron-tiny.toml "
        "--budget tokens=204800 --seeds 3 --lr-factors 0.4,1,2.5 --max-extensions 1 --out DIR "
        "--set model.preset=nano train.global_batch_size=8 eval.tokens=40000 sample.tokens=0 "
        "data.source=wiki-train-0.jsonl.xz data.valid=wiki-valid.jsonl.xz "
        "data.tokenizer=tokenizers/bpe-4096.json",
        "cp DIR/compare.json benchmarks/results/claims/runs/norm_fixed_factors.json",
    ),
)

verdict = lower_is_claimed
TABLE = "claims/runs/norm_fixed_factors"


def measure(quick: bool) -> Measured:
    return difference((TABLE, "spectronh-tiny"), (TABLE, "spectron-tiny"))


if __name__ == "__main__":
    run(CLAIM, measure, verdict)
