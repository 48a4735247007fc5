"""Commands of `lowrise` without the seconds of their imports: a process that has imported everything forks
into one for every line that it reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"}

PROGRAM = """
import json, os, sys
import lowrise.config.command, lowrise.data.progress, lowrise.train, lowrise.__main__
for line in sys.stdin:
    words, errors, output = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, file in enumerate((os.devnull, output, errors)):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        sys.argv = ["lowrise", *words]
        sys.exit(lowrise.__main__.main())
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=ENVIRONMENT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, words: list[str], errors: Path, output: str | Path = os.devnull) -> int:
        """Begin a command; its process."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([words, str(errors), str(output)]) + "\n")
        self.process.stdin.flush()
        return self._number()

    def end(self) -> int:
        """Wait for the command that was started; its exit code."""
        return self._number()

    def _number(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()
