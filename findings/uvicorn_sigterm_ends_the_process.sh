#!/usr/bin/env bash
# uvicorn 0.54.0 (Python 3.11, Linux).
# One would guess: SIGTERM makes Server.run() (and uvicorn.run()) shut down and return, so that `finally`,
#   what stands after the call, and atexit functions run, and the process ends with status 0.
# What happens: after its orderly shutdown uvicorn puts the earlier handler back and raises the signal again.
#   For SIGTERM the earlier handler is the operating system's: the process dies of the signal within run().
#   `finally`, atexit and the code behind it do not run. For SIGINT it is Python's: `finally` and atexit run,
#   by way of KeyboardInterrupt. The application's own lifespan shutdown runs in both cases.
# Where it matters: a model server that writes logs, deletes temporary files or frees a lock after run().
#   Works at Ctrl-C, not under a process manager. Do it in the lifespan, or set a handler for SIGTERM before
#   run().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet uvicorn==0.54.0
cd "$folder"
cat > server.py <<'PYTHON'
"""A server on a free port that sends itself the signal named in argv once it has started."""
import atexit
import os
import signal
import sys
import threading
import time

import uvicorn


def say(word):
    print(word, end=" ", flush=True)


async def application(scope, receive, send):
    while scope["type"] == "lifespan":
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            say("lifespan")
            return


def signal_when_started():
    while not server.started:
        time.sleep(0.05)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))


if sys.argv[2:] == ["handled"]:
    signal.signal(getattr(signal, sys.argv[1]), lambda *_: say("handler"))
server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="error"))
threading.Thread(target=signal_when_started, daemon=True).start()
atexit.register(say, "atexit")
try:
    server.run()
    say("after")
finally:
    say("finally")
PYTHON
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

print("uvicorn", version("uvicorn"))
seen = {}
for arguments in (["SIGTERM"], ["SIGINT"], ["SIGTERM", "handled"]):
    command = [sys.executable, "server.py", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=60)
    seen[" ".join(arguments)] = done.returncode, done.stdout.split()
    print(f"{' '.join(arguments)}: status {done.returncode}, ran: {done.stdout}")
expected = {
    "SIGTERM": (-15, ["lifespan"]),
    "SIGINT": (-2, ["lifespan", "finally", "atexit"]),
    "SIGTERM handled": (0, ["lifespan", "handler", "after", "finally", "atexit"]),
}
if seen != expected:
    sys.exit(f"CHANGED: expected {expected}")
print("AS STATED: after SIGTERM neither `finally` nor atexit ran, with a handler of one's own both did")
PYTHON
