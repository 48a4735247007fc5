#!/usr/bin/env bash
# CPython 3.11, module lzma.
# One would guess: lzma.open reads what xz reads: all streams of a file.
# What happens: the .xz format allows padding between streams, zero bytes in a multiple of four (its
#   specification, "Stream Padding"). xz tests and unpacks such a file whole; Python returns the first stream
#   and drops the rest, in silence, as it does with any bytes behind a whole stream that do not begin another
#   one. gzip in the same situation skips the zeros and reads on.
# Where it matters: corpora put together from .xz parts: documents are missing from the training data and
#   nothing tells. Compare the number of unpacked bytes with `xz --list`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import gzip
import io
import lzma
import platform
import shutil
import subprocess
import sys

print("Python", platform.python_version(), "liblzma through the module lzma")


def parts(module, between):
    return module.compress(b"one\n") + between + module.compress(b"two\n")


zeros = bytes(4)
adjacent = lzma.open(io.BytesIO(parts(lzma, b""))).read()
padded = lzma.open(io.BytesIO(parts(lzma, zeros))).read()
at_once = lzma.decompress(parts(lzma, zeros))
with_gzip = gzip.open(io.BytesIO(parts(gzip, zeros))).read()
print(f"lzma, two streams: {adjacent}; with 4 zero bytes between them: {padded}, lzma.decompress {at_once}")
print(f"gzip, with 4 zero bytes between the members: {with_gzip}")
by_xz = b"one\ntwo\n"
if shutil.which("xz"):
    by_xz = subprocess.run(["xz", "-dc"], input=parts(lzma, zeros), stdout=subprocess.PIPE, check=True).stdout
    print(f"xz -dc, with 4 zero bytes between the streams: {by_xz}, exit status 0")
else:
    print("xz is not installed: not compared with it")
both = b"one\ntwo\n"
if not (adjacent == both and padded == at_once == b"one\n" and with_gzip == both and by_xz == both):
    sys.exit("CHANGED: see the results above")
print("AS STATED: the second stream of a valid .xz file is dropped in silence")
PYTHON
