#!/usr/bin/env bash
# Every method side by side at three budgets of size: equal parameters, where the width follows (the rank's share stays);
# equal bytes at inference, where the rank follows; equal optimizer state, where the width follows. Nano, on the built-in
# text, tuned alike, three seeds, each against AdamW.
# usage: benchmarks/study/all.sh OUT [TOKENS [FLAG...]] , for example /tmp/all, or /tmp/all 8k --seeds 1 --lr-factors 1
# Without TOKENS a run has 160 updates, and all of it takes about 100 minutes of one core: enough to see every method train, too few to tell methods apart
# (docs/results.md); 1310720 tokens are 1,280 updates and a day of one core. Stopped, it goes on with the same
# command. The three tables share the runs that are the same. FLAG: of lowrise compare, instead of those below.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
out=$1
tokens=${2:-163840}
shift $(($# > 2 ? 2 : $#))
[ $# -gt 0 ] || set -- --seeds 3 --lr-factors 0.4,1,2.5 --max-extensions 4 --correction holm
recipes=()
for method in $("${PYTHON:-python}" -c "from lowrise.methods import METHODS; print(*METHODS)"); do
  recipes+=("recipes/$method-tiny.toml")
done
[ ${#recipes[@]} -gt 0 ] || exit 1

# Sizes: AdamW of width 64 has 231,744 parameters; 1.5 MB is its state at width 52.
failed=0
for budget in "params=232k width" "inference=480kB auto" "bytes=1.5MB width"; do
  "${LOWRISE:-lowrise}" compare "${recipes[@]}" --budget "tokens=$tokens" "${budget% *}" --size-by "${budget#* }" \
    --out "$out" "$@" --set model.preset=nano data.vocab_size=1024 train.global_batch_size=8 train.threads=1 \
    checkpoint.every=0 checkpoint.keep=1 sample.tokens=0 log.telemetry_every=0 log.tensorboard=false
  status=$?
  [ $status -lt 128 ] || exit $status # stopped
  [ $status -eq 0 ] || failed=$status # a run or a table: the others are made all the same
done
exit $failed
