#!/bin/sh
# Everything that needs a GPU, in at most eight minutes; all options: benchmarks/gpu.sh --help
# $PYTHON: the interpreter, with what `pip install .` installs. $OUT: where the JSONs and the table go.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" benchmarks/gpu.py run --out "${OUT:-benchmarks/results/gpu}" "$@"
