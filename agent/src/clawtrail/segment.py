"""One segment of a spool: a file of records, or the same in memory.

A segment begins with a line of text and then holds records: mark, length, CRC-32, number, frame. Its space is allocated
before it is used, so that a full disk shows when a segment is made and never later, and it is written through a shared
mapping: what was stored survives a kill of the process at once, at the cost of a memory copy. Where a mapping is no
safe way to write (network and copy-on-write file systems) it is written by `pwrite`.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Callable, Iterator, TypeAlias

from .errors import SpoolError, SpoolFull
from .native import native

MARK = b"\xc1\xa7ct"  #: begins a record; 0xC1 occurs in no UTF-8 text
HEAD = 128  #: bytes of a segment's first line, padded with zeros
FRAME_MAX = 64 * 1024  #: bytes; no record is larger
RESERVE = 16 * 1024  #: bytes at the end of each segment for the report of a full spool
Buffer: TypeAlias = "bytes | mmap.mmap"
RECORD = struct.Struct("<4sIIQ")
PACK, UNPACK, SIZE = RECORD.pack, RECORD.unpack_from, RECORD.size
_MAPPABLE = frozenset({"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs", "overlay"})  # allocated means allocated, so no SIGBUS


class Segment:
    """One file of records, or the same in memory. `first` and `last`: numbers of its events; `end`: bytes used."""

    def __init__(self, name: str, path: Path | None, size: int = 0) -> None:
        self.name, self.path, self.size = name, path, size
        self.first = self.last = self.count = 0
        self.proven = 0  #: events that were proven when it was adopted
        self.end = HEAD
        self.sealed = self.unsafe = False  # unsafe: a sync failed, so nobody knows what of it is on the disk
        self.touched = time.time()
        self.map: mmap.mmap | None = None  #: while it is written; in memory: always
        self.fd = -1
        self.write_through = False

    @classmethod
    def create(cls, name: str, folder: Path | None, size: int, epoch: str, before: int) -> Segment:
        """A new segment with its space allocated. Raises SpoolFull when there is none, SpoolError for other errors."""
        segment = cls(name, folder / f"{name}.seg" if folder else None, size)
        try:
            segment._allocate()
            segment.put(0, first_line(epoch, before))
        except BaseException as e:  # a signal's too
            segment.discard()
            if isinstance(e, OSError):
                raise explain(e, segment.path) from e
            raise
        return segment

    def _allocate(self) -> None:
        if self.path is not None:
            # Not O_EXCL: an attempt that a signal broke off may have left the file, and the spool's lock keeps others out.
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, self.size)
            self.write_through = not mappable(self.path)
        in_memory = self.path is None or self.write_through
        self.map = mmap.mmap(-1, self.size) if in_memory else mmap.mmap(self.fd, self.size)

    def put(self, at: int, data: bytes) -> None:
        if self.write_through and os.pwrite(self.fd, data, at) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.map[at : at + len(data)] = data  # type: ignore[index]

    def seal(self, keep_open: bool) -> None:
        """No more is appended: the unused space is given back. The mapping goes with its last reader."""
        self.sealed = True  # first, so that its reader goes on whatever comes next
        self.touched = time.time()
        if self.path is not None:
            self.map = None
            try:
                os.truncate(self.path, self.end)  # by its name: who syncs may close the descriptor meanwhile
            except OSError:  # then it stays as long as it is; the events are in it all the same
                pass
        if not keep_open:
            self.let_go()

    def let_go(self) -> None:
        """Closes the descriptor; once, though who seals it and who releases it may come here together."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def discard(self) -> None:
        self.let_go()
        self.map = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def read(self) -> bytes:
        """All of it, as it lies on the disk. Raises OSError."""
        assert self.path is not None
        return self.path.read_bytes()

    def __repr__(self) -> str:
        return f"<Segment {self.name} {self.first}..{self.last}, {self.end} bytes{', sealed' if self.sealed else ''}>"


def records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(start, end, number) of every intact record; what lies between two of them is damaged."""
    at = HEAD
    while True:
        if at + SIZE <= len(data):
            mark, length, check, seq = UNPACK(data, at)
            stop = at + SIZE + length
            if mark == MARK and length <= FRAME_MAX and stop <= len(data) and crc(data[at + SIZE : stop], seq) == check:
                yield at, stop, seq
                at = stop
                continue
        at = data.find(MARK, at + 1)
        if at < 0:
            return


def _gather(view: Buffer, at: int, end: int, last: int, edge: int, room: int, some: bool) -> tuple[list[bytes], int, int, bool]:
    """The frames of the records from `at` to `end` whose numbers are greater than `last`: at most `room` bytes, but one at
    least unless there are `some` already, and none behind number `edge` together with one up to it.

    Returns them, the last one's number, where the next record begins, and whether they end for want of room.
    """
    frames: list[bytes] = []
    while at < end:
        _, length, _, seq = UNPACK(view, at)
        start, stop = at + SIZE, at + SIZE + length
        if seq > last:
            if (some or frames) and (length > room or last <= edge < seq):
                return frames, last, at, True
            frames.append(view[start:stop])
            room -= length
            last = seq
        at = stop
    return frames, last, at, False


gather: Callable[[Buffer, int, int, int, int, int, bool], tuple[list[bytes], int, int, bool]] = native.gather if native else _gather


def crc(frame: bytes, seq: int) -> int:
    return zlib.crc32(frame, (seq ^ seq >> 32) & 0xFFFFFFFF)


def first_line(epoch: str, number: int) -> bytes:
    """The first line of a segment, and the state: a number that belongs to an epoch."""
    line = f"clawtrail-spool 1 {epoch} {number} "
    return f"{line}{zlib.crc32(line.encode()):08x}\n".encode()


def number_of(path: Path, epoch: str) -> int | None:
    """The number in that line: the one before a segment's first, or up to which it is proven; None when it is damaged."""
    try:
        with open(path, "rb") as f:
            line = f.read(HEAD).partition(b"\n")[0]
        number = int(line.split()[3])
        return number if line + b"\n" == first_line(epoch, number) else None
    except (OSError, ValueError, IndexError):
        return None


def datasync(fd: int) -> None:
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)


def mappable(path: Path) -> bool:
    """Whether a shared mapping is a safe way to write there: on these file systems allocated space cannot run out."""
    return _mappable(os.stat(path).st_dev)


@lru_cache(64)
def _mappable(device: int) -> bool:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as f:
            for line in f:
                left, _, right = line.partition(" - ")
                if left.split()[2] == wanted:
                    return right.split()[0] in _MAPPABLE and hasattr(os, "posix_fallocate")
    except (OSError, IndexError):
        pass
    return False


def explain(error: OSError, path: Path | None) -> SpoolError:
    """The error of a spool that an error of the operating system means."""
    what = f"spool {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SpoolFull(f"{what}; expected free space", "disk-full")
    return SpoolError(what)
