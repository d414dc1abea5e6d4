"""What becomes of recorders when a process forks, and when it ends, in whichever way it does."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol


class Lived(Protocol):
    """A recorder, as far as its life is concerned."""

    def close(self) -> bool: ...

    def after_fork(self) -> None: ...


live: weakref.WeakSet[Lived] = weakref.WeakSet()
unclosed: set[Lived] = set()  #: from its first event on a recorder lives until it is closed, whoever lets go of it


@atexit.register
def _close_all() -> None:
    for recorder in list(unclosed):
        try:
            recorder.close()
        except Exception as e:  # the interpreter is going; say what was not sent
            print(f"clawtrail: close at exit failed: {e}", file=sys.stderr)


def _reset_after_fork() -> None:
    for recorder in list(live):
        recorder.after_fork()
    unclosed.clear()
    _close_in_workers()


def _close_in_workers() -> None:
    if util := sys.modules.get("multiprocessing.util"):
        util.register_after_fork(_close_all, _close_at_end_of_worker)


def _close_at_end_of_worker(_: object = None) -> None:
    """A worker of multiprocessing leaves by os._exit(), past atexit; it runs its own list of finalizers."""
    sys.modules["multiprocessing.util"].Finalize(None, _close_all, exitpriority=0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
_close_in_workers()  # a worker of a forkserver imports the main module, and us with it, before it begins
if (process := sys.modules.get("multiprocessing.process")) and process.parent_process() is not None:
    _close_at_end_of_worker()  # imported for the first time inside of a worker
