"""A short turn on the processor, so that whoever waits for a gate is not behind a whole turn of somebody's computation.

Linux 6.12 and newer let every process ask for the length of its turns (its slice, sched(7), sched_setattr(2)): one that
wakes up with a shorter slice than whoever runs goes first, and has no larger share of the processor for it. It needs no
right, and Docker's seccomp profile allows it. Python has no name for it, so it is asked by number.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SHORTEST = 100_000  #: nanoseconds; the kernel gives no less

#: sched_setattr and sched_getattr of 64-bit Linux, by machine; the others go without.
_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275), "ppc64le": (355, 356), "s390x": (345, 346)}
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  #: struct sched_attr, version 0: size, policy, flags, nice, priority, runtime, deadline, period
_POLICIES = (os.SCHED_OTHER, os.SCHED_BATCH) if hasattr(os, "SCHED_BATCH") else ()  #: those whose runtime is a slice
_KEPT = 1  #: the flag that may be handed back as it was: SCHED_FLAG_RESET_ON_FORK


def shorten(nanoseconds: int = SHORTEST) -> int | None:
    """Asks for slices of that length, for the calling thread and those that it starts from now on; priority and policy
    stay. Returns the slice in force in nanoseconds, or None where the kernel gives none: nothing has changed then."""
    try:
        size, policy, flags, nice, priority, slice_, _, _ = _attributes(0)
        if policy in _POLICIES and (slice_ > nanoseconds or not slice_):
            _call(0, 0, ctypes.create_string_buffer(_ATTRIBUTES.pack(_ATTRIBUTES.size, policy, flags & _KEPT, nice, priority, nanoseconds, 0, 0)), 0)
    except OSError:
        return None
    return current()


def current(thread: int = 0) -> int | None:
    """The slice of a thread in nanoseconds, by its number, 0 for the calling one; None where the kernel does not tell."""
    try:
        _, policy, _, _, _, slice_, _, _ = _attributes(thread)
    except OSError:
        return None
    return slice_ if policy in _POLICIES and slice_ else None


def _attributes(thread: int) -> tuple[int, ...]:
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    _call(1, thread, buffer, _ATTRIBUTES.size, 0)
    return _ATTRIBUTES.unpack(buffer.raw)


def _call(which: int, thread: int, *arguments: object) -> None:
    numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None
    if numbers is None:
        raise OSError(f"{sys.platform} on {platform.machine()}: the number of sched_setattr is not known")
    if ctypes.CDLL(None, use_errno=True).syscall(numbers[which], thread, *arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
