#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1 (Python 3.11).
# One would guess: load_dataset("json", ...) of lines {"text": "..."} gives the strings that stand in the
#   file.
# What happens: it depends on the other lines. Where every string looks like a date, the column becomes
#   timestamps. And where a single line holds a number instead of a string, the column becomes of the type
#   Json, whose strings are decoded once more: "007" is 7, "null" is None, "[1, 2]" is a list, "\"q\"" loses
#   its quotes; "hello" stays. No error, no warning, streaming or not. features=Features({"text":
#   Value("string")}) does not help: the dates come as "2024-01-01 00:00:00", and beside the number "hello"
#   comes as "\"hello\"", with quotes.
# Where it matters: corpora with a "text" key: other texts are trained on than stand in the file, or None is
#   met where a string was. Reading the lines with Python's json module keeps them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
cd "$folder"
export HF_HOME="$folder/cache" HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - <<'PYTHON'
import datetime
import json
import sys

import datasets

datasets.disable_progress_bars()
print("datasets", datasets.__version__)


def loaded(name, texts, **options):
    """The column "text" of a file with these texts, and whether a stream gives the same values."""
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    files = f"{name}.jsonl"
    table = datasets.load_dataset("json", data_files=files, split="train", **options)
    rows = datasets.load_dataset("json", data_files=files, split="train", streaming=True, **options)
    stream = [row["text"] for row in rows]
    values = list(table["text"])
    print(f"{name}: {texts}\n  -> {table.features['text']}: {values}; streaming the same: {stream == values}")
    return values, stream == values


strings = ["007", "hello", "null", "[1, 2]", '"q"']
dates = ["2024-01-01", "2024-01-02"]
plain, a = loaded("strings", strings)
mixed, b = loaded("one_number", [*strings, 2])
days, c = loaded("dates", dates)
text = datasets.Features({"text": datasets.Value("string")})
told_days, d = loaded("dates_as_strings", dates, features=text)
told_mixed, e = loaded("one_number_as_strings", [*strings, 2], features=text)
expected = [7, "hello", None, [1, 2], "q", 2]
as_days = [datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)]
quoted = ["007", '"hello"', "null", "[1, 2]", '"q"', "2"]
without = plain == strings and mixed == expected and days == as_days
told = told_mixed == quoted and told_days == ["2024-01-01 00:00:00", "2024-01-02 00:00:00"]
if not (without and told and a and b and c and d and e):
    sys.exit("CHANGED: see the values above")
print("AS STATED: one number among strings decodes all of them; dates become timestamps")
PYTHON
