#!/usr/bin/env bash
# zstandard 0.25.0 (Python 3.11).
# One would guess: reading a .zst file that was cut off (a broken download) ends with an error, as with gzip,
#   bz2, lzma.
# What happens: zstandard.open, stream_reader and copy_stream return what could be unpacked and then end as if
#   the file were whole. And ZstdDecompressor().decompress reads the first frame alone: a second one behind
#   it, as `cat a.zst b.zst` makes it, is dropped, while stream_reader and zstandard.open read both.
# Where it matters: corpora of *.jsonl.zst: a shard lacks its end and the run trains on the rest. Compare
#   sizes or hashes, or ask decompressobj() for `eof` at the end of the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet zstandard==0.25.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import bz2
import gzip
import io
import lzma
import random
import sys

import zstandard

print("zstandard", zstandard.__version__)
text = random.Random(0).randbytes(500_000)
packed = zstandard.compress(text)
cut = packed[: len(packed) // 2]


def length(read):
    try:
        return len(read())
    except (EOFError, zstandard.ZstdError) as error:
        return type(error).__name__


def copied():
    target = io.BytesIO()
    zstandard.ZstdDecompressor().copy_stream(io.BytesIO(cut), target)
    return target.getvalue()


silent = {
    "zstandard.open": length(lambda: zstandard.open(io.BytesIO(cut), "rb").read()),
    "stream_reader": length(lambda: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(cut)).read()),
    "copy_stream": length(copied),
}
others = {}
for module in (gzip, bz2, lzma):
    half = io.BytesIO(module.compress(text)[:250_000])
    others[module.__name__] = length(module.open(half).read)
whole = zstandard.ZstdDecompressor().decompressobj()
whole.decompress(cut)
two = zstandard.compress(b"one\n") + zstandard.compress(b"two\n")
first = zstandard.ZstdDecompressor().decompress(two)
both = zstandard.open(io.BytesIO(two), "rb").read()
print(f"{len(text)} bytes packed and cut in half: {silent}; others {others}; decompressobj().eof {whole.eof}")
print(f"two frames: decompress {first}, zstandard.open {both}")
short = all(isinstance(n, int) and 0 < n < len(text) for n in silent.values())
frames = first == b"one\n" and both == b"one\ntwo\n"
if not (short and set(others.values()) == {"EOFError"} and not whole.eof and frames):
    sys.exit("CHANGED: see the two lines above")
print("AS STATED: half a file is read without an error")
PYTHON
