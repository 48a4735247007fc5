#!/usr/bin/env bash
# The study of docs/results.md: factored against dense methods on Wikipedia, tiny, tuned alike, three seeds.
# usage: benchmarks/study/run.sh TEXT_FOLDER OUT BUDGET... , for example ../shared/data /tmp/study tokens=1638400
# Stopped, it goes on with the same command; budgets in one OUT share the runs that are the same.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
recipes=$here/../../recipes
text=$1
out=$2
shift 2
cd "$text"
exec "${LOWRISE:-lowrise}" compare \
  "$recipes"/{muon,adamw,normuon}-tiny.toml "$here/muonh-ema.toml" \
  "$recipes"/{lowrank,spectron}-tiny.toml "$here/spectron-certified.toml" \
  "$recipes/loramuon-tiny.toml" "$here/loramuon-tangent.toml" \
  "$recipes"/{loro-tiny-lazy-spectral,loro-tiny-spectral,spectronh-tiny,dlr-tiny}.toml \
  --budget "$@" --out "$out" --seeds 3 --lr-factors 0.4,1,2.5 --max-extensions 1 --correction holm \
  --set data.source=wiki-train-0.jsonl.xz data.valid=wiki-valid.jsonl.xz data.tokenizer=tokenizers/bpe-4096.json \
  checkpoint.keep=1 sample.tokens=0 log.telemetry_every=200 train.threads=1
