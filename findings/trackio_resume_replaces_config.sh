#!/usr/bin/env bash
# trackio 0.43.0, runs kept in a local folder (Python 3.11).
# One would guess: trackio.init(name=..., resume="allow" or "must") goes on with the run as it is: its config
#   stays, keys given anew are added or changed; a step that is logged again is replaced, or refused.
# What happens: the config of the run becomes the one of the last init. Keys that it does not name are gone,
#   and without config= all of them, without a word; _Created becomes the time of the continuation. A step
#   logged again is kept beside the first: get_logs and `trackio get metric --step` give both.
# Where it matters: runs that go on after an interruption from a script that gives the config only at the
#   start, or only what has changed: the record no longer says what was trained. Give the whole config each
#   time; of two values of a step take the later row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet trackio==0.43.0
cd "$folder"
cat > run.py <<'PYTHON'
import json
import sys

import trackio
from trackio.sqlite_storage import SQLiteStorage

resume, config, values, path = sys.argv[1:]
trackio.init("project", name="run", resume=resume, config=json.loads(config), embed=False, auto_log_cpu=False)
for step, loss in json.loads(values):
    trackio.log({"loss": loss}, step=step)
trackio.finish()
runs = list(trackio.Api().runs("project"))
config = {key: value for key, value in runs[0].config.items() if not key.startswith("_")}
logs = [[row["step"], row["loss"]] for row in SQLiteStorage.get_logs("project", "run")]
with open(path, "a") as result:
    print(len(runs), "run, config", json.dumps(config), "created", runs[0].config["_Created"], file=result)
    print("  steps and losses", json.dumps(logs), file=result)
PYTHON
venv/bin/python -c 'import trackio; print("trackio", trackio.__version__)'
export TRACKIO_DIR="$folder/runs" HF_HUB_OFFLINE=1
again() {
    timeout 120 venv/bin/python -W always run.py "$@" result >>said 2>&1
}
again never '{"lr": 0.1, "rank": 8}' '[[0, 5.0], [1, 4.0], [2, 3.0]]'
again allow '{"lr": 0.2}' '[[2, 3.5], [3, 2.5]]'
again must null '[[4, 2.0]]'
cat result
timeout 120 venv/bin/trackio get metric --project project --run run --metric loss --step 2 | tee step
echo "lines with warning or config in what the three said: $(grep -ciE 'warn|config' said || true)"
cat > expected <<'TEXT'
1 run, config {"lr": 0.1, "rank": 8}
  steps and losses [[0, 5.0], [1, 4.0], [2, 3.0]]
1 run, config {"lr": 0.2}
  steps and losses [[0, 5.0], [1, 4.0], [2, 3.0], [2, 3.5], [3, 2.5]]
1 run, config {}
  steps and losses [[0, 5.0], [1, 4.0], [2, 3.0], [2, 3.5], [3, 2.5], [4, 2.0]]
TEXT
created=$(grep -o 'created .*' result | sort -u | wc -l)
shown=$(grep -c '^2 ' step || true)
if ! sed 's/ created .*//' result | cmp -s - expected || [ "$created" != 3 ] || [ "$shown" != 2 ] ||
    grep -qiE 'warn|config' said; then
    cat said >&2
    echo "CHANGED: see the lines above" >&2
    exit 1
fi
echo "AS STATED: the last init's config is all there is, and the step logged again is there twice"
