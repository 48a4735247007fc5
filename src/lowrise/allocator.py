"""The C library's allocator: memory that a training step frees is kept for the next one.

glibc gives large blocks back to the system when they are freed and asks for them anew in the next step, so
that the system clears every page of every activation and temporary again: at the preset tiny tens of
thousands of page faults a second, a tenth to a fifth of the time. The three settings of `keep_freed_memory`
end that. They change where memory comes from and nothing that is computed. What the process holds stays near
its peak between steps, where it would have fallen and risen again.
"""

from __future__ import annotations

import ctypes
import os

from lowrise.errors import UsageError

VARIABLE = "LOWRISE_ALLOCATOR"
CHOICES = ("keep", "system")

# <malloc.h>: the parameter's number, and its value here in bytes (a C int).
_SETTINGS = {
    "M_MMAP_THRESHOLD": (
        -3,
        1 << 30,
    ),  # blocks below 1 GiB come from the heap, not from mappings of their own
    "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1),  # the heap's free top goes back to the system only above 2 GiB
    "M_TOP_PAD": (-2, 64 << 20),  # the heap grows by 64 MiB at a time
}
# Before 2.35 glibc refuses a threshold above half of an arena.
_LARGEST_OLD_THRESHOLD = 32 << 20


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory; True if that was done.

    Nothing happens without glibc (musl, macOS), with LOWRISE_ALLOCATOR=system, or where the user has set the
    allocator up (MALLOC_*_, malloc tunables, another allocator by LD_PRELOAD). Raises `UsageError` for any
    other value of the variable than "keep" and "system".
    """
    choice = os.environ.get(VARIABLE, "keep")
    if choice not in CHOICES:
        raise UsageError(f"{VARIABLE} is {choice!r} in the environment; choose {' or '.join(CHOICES)}.")
    if choice == "system" or _set_by_the_user() or not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(number, value) for number, value in _SETTINGS.values()]
    if not done[0]:
        done[0] = mallopt(_SETTINGS["M_MMAP_THRESHOLD"][0], _LARGEST_OLD_THRESHOLD)
    return all(done)


def give_freed_memory_back() -> None:
    """Return freed pages to the system, those between blocks in use too; nothing happens without glibc."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def _set_by_the_user() -> bool:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
    return (
        any(name in os.environ for name in names)
        or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
        or "malloc" in os.environ.get("LD_PRELOAD", "")
    )


def _has_glibc() -> bool:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # no C library to open that way (Windows)
        return False
    return hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")
