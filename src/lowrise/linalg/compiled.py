"""C++ of our own, compiled for this machine at first use: the one place that builds, keeps and loads it.

A source is one file. The library is compiled in a second or two with the compiler that $CXX names (else g++,
c++ or clang++; an empty $CXX forbids it), and kept in the cache folder under a name that depends on the
source, the flags, the compiler and the processor. Where anything of that fails there is no library, and
whoever asked does without: torch's operations are the reference of everything that is done here.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from lowrise.files import cache_root

_COMPILERS = ("g++", "c++", "clang++")
# No -ffast-math: linked into a library it changes how the whole process rounds.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_SECONDS = 60


class Library(NamedTuple):
    """A loaded library; `threaded`: whether it takes several threads, which are torch's own."""

    handle: ctypes.CDLL
    threaded: bool


def library(source: Path) -> Library | None:
    """The library of a C++ file; None without a compiler, or if it takes one thread and torch has several."""
    found = _library(source, os.environ.get("CXX"))
    if found is None or (torch.get_num_threads() > 1 and not found.threaded):
        return None
    return found


@functools.cache
def _library(source: Path, named: str | None) -> Library | None:
    names = _COMPILERS if named is None else (named,)
    compilers = [found for found in map(shutil.which, names) if found]
    for tuning in ("-march=native", "-mcpu=native") if compilers else ():  # which, depends on the processor
        for openmp in (_openmp_of_torch(), None):
            try:
                path = _built(source, compilers[0], (*_FLAGS, tuning), openmp)
                return Library(ctypes.CDLL(str(path)), openmp is not None)
            except (OSError, subprocess.SubprocessError):
                continue
    return None


def _openmp_of_torch() -> Path | None:
    """torch's own OpenMP, so that a process has one set of threads."""
    return next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)


def _built(source: Path, compiler: str, flags: tuple[str, ...], openmp: Path | None) -> Path:
    """The library for this machine, from the cache or new."""
    # What the result depends on, the processor's instructions among it: machines may share a cache folder.
    seen = [_run(compiler, "--version"), _run(compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull)]
    about = [source.read_text(encoding="utf-8"), *seen, compiler, *flags, str(openmp)]
    name = hashlib.sha256("\0".join(about).encode()).hexdigest()[:24] + ".so"
    folder = _own_folder()
    if not (folder / name).exists():
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            _compile(source, compiler, flags, openmp, Path(aside) / name)
            (Path(aside) / name).replace(folder / name)
    return folder / name


def _own_folder() -> Path:
    """A folder for code that this user alone can write to: what lies there is run."""
    folder = cache_root() / "native"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    temporary = tempfile.mkdtemp(prefix="lowrise-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _compile(source: Path, compiler: str, flags: tuple[str, ...], openmp: Path | None, out: Path) -> None:
    if openmp is None:
        _run(compiler, *flags, "-Wno-unknown-pragmas", "-shared", str(source), "-o", str(out))
        return
    part = out.with_suffix(".o")
    _run(compiler, *flags, "-fopenmp", "-c", str(source), "-o", str(part))
    _run(compiler, "-shared", str(part), str(openmp), "-o", str(out))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
