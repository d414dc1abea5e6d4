"""Decisions that could not be recorded in time, in a file that has its room from the start.

They come late above all because there is no room for them, so the file takes its own beforehand and gives none back.
A line per decision, ended by a newline; behind the last one zeros. A delivered one begins with DONE.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOM = 4 << 20  #: bytes of the file
LINE_MAX = 64 << 10  #: bytes of one decision; what is larger is kept without its content
DONE = b"-"


class LateDecisions:
    """A queue on disk. `lost`: decisions for which the file had no room.

    Raises OSError at once when the file cannot be made.
    """

    def __init__(self, path: Path, room: int = ROOM) -> None:
        self.path, self.room, self.lost = path, room, 0
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self._file, 0, room)
        except OSError:
            os.close(self._file)
            raise
        self._waiting: list[tuple[int, int]] = []  # place and length
        self._end = 0
        self._read()

    def __len__(self) -> int:
        return len(self._waiting)

    def _read(self) -> None:
        whole = os.pread(self._file, os.fstat(self._file).st_size, 0)
        at = 0
        while (end := whole.find(b"\n", at)) >= 0 and whole[at : at + 1] in (b"{", DONE):
            if whole[at : at + 1] == b"{" and _object(whole[at:end]) is not None:
                self._waiting.append((at, end - at))
            at = end + 1
        self._end = at
        if not self._waiting:
            self._clear()

    def _clear(self) -> None:
        if self._end or os.pread(self._file, 1, 0) != b"\0":
            os.pwrite(self._file, bytes(max(self._end, 1)), 0)
        self._end = 0

    def put(self, decision: dict[str, Any]) -> bool:
        """Writes it down; it outlives the process when this returns true. False: no room, and it is counted."""
        line = json.dumps(decision, separators=(",", ":")).encode() + b"\n"
        if len(line) > LINE_MAX:
            line = json.dumps({**decision, "content": None}, separators=(",", ":")).encode() + b"\n"
        try:
            if self._end + len(line) > self.room:
                raise OSError("full")
            os.pwrite(self._file, line, self._end)
        except OSError:
            self.lost += 1
            return False
        self._waiting.append((self._end, len(line) - 1))
        self._end += len(line)
        return True

    def first(self) -> dict[str, Any] | None:
        """The decision that waits longest."""
        while self._waiting:
            at, length = self._waiting[0]
            decision = _object(os.pread(self._file, length, at))
            if decision is not None:
                return decision
            self._waiting.pop(0)
        return None

    def delivered(self) -> None:
        """The first one is on record."""
        at, _ = self._waiting.pop(0)
        os.pwrite(self._file, DONE, at)
        if not self._waiting:
            self._clear()

    def close(self) -> None:
        os.close(self._file)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
