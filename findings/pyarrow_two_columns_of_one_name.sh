#!/usr/bin/env bash
# pyarrow 26.0.1 (Python 3.11).
# One would guess: reading columns=["text"] of a Parquet file that has two columns of this name is refused, or
#   gives the first one, the same in each way of reading.
# What happens: pyarrow.parquet.read_table raises ArrowInvalid ("Multiple matches"). ParquetFile.iter_batches,
#   asked for the same columns, gives batches of both, and to_pylist (as to_pydict) makes one key of them: the
#   last column's values, in silence.
# Where it matters: readers of corpora stream with iter_batches(columns=["text"]). A file joined from two
#   tables is read by its second text. Compare `batch.num_columns` with the columns asked for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

print("pyarrow", pa.__version__)
table = pa.Table.from_arrays([pa.array(["first"]), pa.array(["second"])], names=["text", "text"])
pq.write_table(table, "twice.parquet")
(batch,) = pq.ParquetFile("twice.parquet").iter_batches(columns=["text"])
rows = batch.to_pylist()
columns = batch.to_pydict()
print(f"iter_batches(columns=['text']): {batch.num_columns} columns, to_pylist {rows}, to_pydict {columns}")
try:
    refused = f"no error, {pq.read_table('twice.parquet', columns=['text']).num_columns} columns"
except pa.ArrowInvalid as error:
    refused = str(error).split(" in ")[0]
print("read_table(columns=['text']):", refused)
if batch.num_columns != 2 or rows != [{"text": "second"}] or not refused.startswith("Multiple matches"):
    sys.exit("CHANGED: see the two lines above")
print("AS STATED: the second column's text, in silence, where read_table refuses")
PYTHON
