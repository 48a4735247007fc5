"""A pool of training processes: one thread (or one GPU) each, logs in files, stopped gently, never lost.

Workers run in sessions of their own: Ctrl-C in the terminal reaches the comparison, which passes it on once,
as SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lowrise.errors import LowriseError, UsageError
from lowrise.files import exclusive, naming, open_itself

# One thread each: workers share the cores, and an idle OpenMP thread that spins would take them from the
# others.
THREAD_LIMITS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONUNBUFFERED": "1",
}
_TAIL_BYTES, _TAIL_LINES = 8192, 20


@dataclass(frozen=True)
class Job:
    """A command, run in the current folder, with its logs in `directory`: `train.log` and
    `stderr.log`.
    """

    name: str
    directory: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit status (negative: the signal that killed it) and the last lines of its
    stderr.
    """

    job: Job
    returncode: int
    stderr_tail: str
    seconds: float


@dataclass
class _Worker:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int
    stderr_start: int
    started: float = field(default_factory=time.monotonic)


class Pool:
    """At most `size` processes at once; with `gpus`, slot k sees only `gpus[k % len(gpus)]`.

    `inherit` are file descriptors that the workers keep open (a lock that must outlive this process).
    Leaving the `with` block kills what still runs: it is reached with running workers only when something
    went wrong.
    """

    def __init__(self, size: int, *, gpus: Sequence[str] = (), inherit: Sequence[int] = ()) -> None:
        self.size = size
        self._gpus = tuple(gpus)
        self._inherit = tuple(inherit)
        self._workers: dict[str, _Worker] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.signal(signal.SIGKILL)
        for worker in self._workers.values():
            worker.process.wait()
        self._workers.clear()

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the jobs that run now, oldest first."""
        return tuple(self._workers)

    @property
    def free(self) -> int:
        return self.size - len(self._workers)

    def pid(self, name: str) -> int:
        return self._workers[name].process.pid

    def start(self, job: Job) -> None:
        """Start `job` in the lowest free slot. Raises `LowriseError` if its command cannot be started."""
        assert self.free > 0, "the pool is full"
        slot = min(set(range(self.size)) - {worker.slot for worker in self._workers.values()})
        environment = {**os.environ, **THREAD_LIMITS}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        job.directory.mkdir(parents=True, exist_ok=True)
        output, stderr = (job.directory / name for name in ("train.log", "stderr.log"))
        with open_itself(output, "a") as out, open_itself(stderr, "a") as errors:
            stderr_start = errors.seek(0, os.SEEK_END)
            try:
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=errors,
                    env=environment,
                    start_new_session=True,
                    pass_fds=self._inherit,
                )
            except OSError as error:
                raise LowriseError(f"The worker {job.name} cannot start: {error}.") from error
        self._workers[job.name] = _Worker(job, process, slot, stderr_start)

    def poll(self) -> list[Ended]:
        """The processes that ended since the last call; each is reported once."""
        ended = []
        for name, worker in list(self._workers.items()):
            returncode = worker.process.poll()
            if returncode is not None:
                del self._workers[name]
                tail = read_tail(worker.job.directory / "stderr.log", worker.stderr_start)
                ended.append(Ended(worker.job, returncode, tail, time.monotonic() - worker.started))
        return ended

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every running worker; SIGKILL goes to its whole session, for the helpers it may
        have.
        """
        for worker in self._workers.values():
            with suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(worker.process.pid, number)
                else:
                    worker.process.send_signal(number)


def read_tail(path: Path, start: int = 0) -> str:
    """The last lines of a log from byte `start` on."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(line.rstrip() for line in text.splitlines()[-_TAIL_LINES:]).strip()


def slots(asked: int | None) -> tuple[int, tuple[str, ...]]:
    """(workers, GPUs): as many as were asked for, else one a GPU where there are any, else one a core that
    this process may use.
    """
    import torch

    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        return asked or len(gpus), tuple(gpus)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return asked or cores or 1, ()


@contextmanager
def hold_directory(directory: Path, command: str) -> Iterator[int]:
    """Hold `directory` for one command (as it is typed: `lowrise sweep`); yields the lock's file descriptor,
    for the workers to inherit.

    Workers that outlive a killed command hold the lock too, so a run directory never has two writers.
    Raises `LowriseError` if it is held, `UsageError` if it is of a run or of another command, whose plan and
    report would be replaced.
    """
    own = directory / "metrics.jsonl", directory / "checkpoints"
    if any(path.exists() for path in own):
        raise UsageError(f"{directory} is the folder of a run (lowrise train): give another --out.")

    def refuse(lock: IO[str]) -> None:
        lock.seek(0)
        number, _, holder = lock.read().strip().partition(" ")
        raise LowriseError(
            f"{holder or 'Another command'} (process {number or 'unknown'}), or a worker that it left "
            f"behind, still runs in {directory}. Wait until it ends, or end it, and start again."
        )

    directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory / ".lock", refuse) as lock:
        with naming(directory / ".lock"):
            lock.seek(0)
            earlier = lock.read().strip().partition(" ")[2]
            if earlier and earlier != command:
                raise UsageError(
                    f"{directory} is the folder of {earlier}, whose plan and report would be replaced: give "
                    "another --out."
                )
            lock.seek(0)
            lock.truncate(0)
            lock.write(f"{os.getpid()} {command}")
            lock.flush()
        yield lock.fileno()
