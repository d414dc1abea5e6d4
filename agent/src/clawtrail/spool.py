"""The spool: one process life's frames in segments, appended once, read in order, released when proven.

A folder per process life: `lock` (flock: who holds it is alive), `state` (how far it is proven) and the segments
`000001.seg`, `000002.seg` … Without a folder the same segments lie in memory.

Nothing that is found in a spool stops it from being opened: a torn tail is cut, a damaged record skipped to the next
good one, a missing segment noticed, and each is reported as `Damage`.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from .errors import SpoolError, SpoolFull, SpoolLocked
from .segment import HEAD, MARK, PACK, RESERVE, SIZE, Segment, crc, datasync, explain, first_line, gather, number_of, records

try:
    import fcntl
except ImportError:  # a platform without flock has no spool on disk
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Damage:
    """What is lost of a spool. `first`..`last` are numbers of events; `last` None: to an end that nobody knows."""

    epoch: str
    segment: str
    reason: str  #: "damaged", "torn", "missing" or "unreadable"
    first: int
    last: int | None
    start: int = 0  #: bytes of the segment
    end: int = 0
    lost: int = 0  #: events, where that is known


_Judged: TypeAlias = "tuple[Segment, int | None, list[tuple[str, int, int | None, int, int]]]"
#: the segment, the number before its first if known, and (reason, first, last, start, end) of each damaged range


class Spool:
    """The segments of one epoch.

    `last`: the newest number; `proven`: everything up to it has arrived. Counts are of events: `appended`, `taken`
    (given out by `take` and not rewound), `released` (proven), `lost` (damaged since they were counted as appended).
    One thread at a time appends; one thread takes, proves and rewinds. Each field has one of the two as its writer,
    and the order in which they write keeps them apart, so that neither waits for the other.

    Args:
        epoch: the process life whose events these are.
        folder: where its files are; None: in memory.
        segment_size: bytes of a segment.
        durable: segments stay open until `sync` has seen them.
    """

    def __init__(self, epoch: str, folder: Path | None, segment_size: int = 0, durable: bool = False) -> None:
        self.epoch, self.folder, self.segment_size, self.durable = epoch, folder, segment_size, durable
        self.segments: deque[Segment] = deque()
        self.active: Segment | None = None
        self.last = self.proven = 0
        self.taken = self.released = self.lost = 0
        self.stored = 0  #: bytes of the records that were ever appended
        self.damage: list[Damage] = []  #: found and not reported yet
        self._appended = 0
        self._unsynced: deque[Segment] = deque()
        self._named, self._rooted = True, False
        self._serial = 0
        self._saved = 0
        self._lock_fd = -1
        self._after = 0  # numbers up to this one are not given out
        self._cursor: Segment | None = None
        self._view: Any = b""  # what the cursor reads: bytes, or the mapping of a segment that is still written
        self._live = False
        self._at = 0

    # -- opening -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, epoch: str, parent: Path | None, segment_size: int, durable: bool = False) -> Spool:
        """A new, empty spool `parent/epoch`, locked. Raises SpoolFull or SpoolError."""
        spool = cls(epoch, parent / epoch if parent else None, segment_size, durable)
        if spool.folder is not None:
            fresh = spool.folder.with_name(f".{epoch}.new")  # nobody may find it before it is locked
            try:
                fresh.mkdir(0o700, parents=True, exist_ok=True)  # it may have failed before, on a full disk
                spool._lock(fresh)
                spool.remove()  # an empty one, if a signal's exception kept an attempt before from its caller
                fresh.rename(spool.folder)
            except BaseException as e:
                spool.let_go()
                spool.remove()
                if isinstance(e, OSError):
                    raise explain(e, fresh) from e
                raise
        return spool

    @classmethod
    def adopt(cls, folder: Path) -> Spool:
        """What a process left behind: locked, read once, ready to be taken; what is wrong with it stands in `damage`.

        Raises SpoolLocked while that process lives, SpoolError when the folder cannot be read.
        """
        spool = cls(folder.name, folder)
        try:
            spool._lock(folder)
            spool._examine(number_of(folder / "state", spool.epoch) or 0)  # without it all is sent again, and the store shows it once
        except OSError as e:
            spool.let_go()
            raise explain(e, folder) from e
        except SpoolError:
            spool.let_go()
            raise
        return spool

    def _lock(self, folder: Path) -> None:
        if fcntl is None:
            raise SpoolError("this platform has no flock; expected durability 'memory'")
        self._lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise SpoolLocked(f"spool {folder} is in use by process {holder}; expected a spool that no living process holds") from None
        try:
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, b"%d\n" % os.getpid(), 0)
        except OSError:  # a full disk: it is locked all the same, only the message says less
            pass

    def _examine(self, proven: int) -> None:
        """Reads every segment once: what is there, what is proven, what is damaged."""
        assert self.folder is not None
        heads = sorted(((number_of(path, self.epoch), path) for path in self.folder.glob("*.seg")), key=lambda h: (h[0] is None, h))
        found = []
        for n, (before, path) in enumerate(heads):
            after = heads[n + 1][0] if n + 1 < len(heads) else None
            settled = before is not None and after is not None and before < after <= proven
            found.append(self._settled(path, before, after) if settled else self._judge(path, before, proven))
        found.sort(key=lambda f: (f[1] is None, f[1] or 0, -f[0].last))  # one that tells no number comes last
        newest = 0
        for n, (segment, before, damage) in enumerate(found):
            if segment.count and segment.last <= newest:
                continue  # a copy: all of it stands in another one
            if before is not None:
                self._report(segment, "missing", max(newest, proven) + 1, before)  # what is proven was released
                newest = max(newest, before)
            following = found[n + 1][1] if n + 1 < len(found) else None
            for reason, first, last, start, end in damage:
                last = following if last is None else last
                self._report(segment, reason, max(first or newest + 1, proven + 1), last, start, end)
                newest = max(newest, last or 0)
            newest = max(newest, segment.last)
            self.segments.append(segment)
        if proven > newest:  # no such number was ever recorded, or its end is gone: the state is not to be believed
            self.segments.clear()
            self.damage.clear()
            return self._examine(0)
        self.last = newest
        self.released = sum(s.proven for s in self.segments)
        self.proven = proven
        self._appended = sum(s.count for s in self.segments)
        self.rewind()

    def _report(self, segment: Segment, reason: str, first: int, last: int | None, start: int = 0, end: int = 0, lost: int = 0) -> None:
        if last is None or first <= last:
            self.damage.append(Damage(self.epoch, segment.name, reason, first, last, start, end, lost))

    def _settled(self, path: Path, before: int | None, last: int | None) -> _Judged:
        """A segment that is proven as a whole: kept for a while, not read."""
        segment = Segment(path.stem, path)
        segment.sealed, segment.last = True, last or 0
        stat = path.stat()
        segment.touched, segment.end = stat.st_mtime, stat.st_size
        return segment, before, []

    def _judge(self, path: Path, before: int | None, proven: int) -> _Judged:
        segment = Segment(path.stem, path)
        segment.sealed, segment.last = True, before or 0
        try:
            segment.touched = path.stat().st_mtime
            data = segment.read()
        except OSError as e:
            return segment, before, [(f"unreadable: {e.strerror}", 0, None, 0, 0)]
        damage: list[tuple[str, int, int | None, int, int]] = []
        at, newest = HEAD, 0
        for start, stop, seq in records(data):
            if start > at:
                damage.append(("damaged", newest + 1 if newest else 0, seq - 1, at, start))
            segment.first = segment.first or seq
            segment.count += 1
            segment.proven += seq <= proven
            at, newest = stop, max(newest, seq)
        segment.last = newest or segment.last
        segment.end = max(at, len(data.rstrip(b"\0")))
        if segment.end > at:
            damage.append(("torn", newest + 1 if newest else 0, None, at, segment.end))
        if segment.end < len(data):
            try:
                os.truncate(path, segment.end)  # the space that a killed process had not used yet
            except OSError:
                segment.end = len(data)
        return segment, before if before is not None or not newest else segment.first - 1, damage

    # -- appending ---------------------------------------------------------------------------------------------

    def append(self, seq: int, frame: bytes, reserved: bool = False) -> None:
        """Stores one frame. `reserved`: it may use the reserve. Raises SpoolFull or SpoolError, and stores nothing."""
        segment, size = self.active, SIZE + len(frame)
        if segment is None or segment.end + size > segment.size - RESERVE:
            segment = self._segment_for(size, reserved)
        at = segment.end
        record = PACK(MARK, len(frame), crc(frame, seq), seq) + frame
        if segment.write_through:
            try:
                segment.put(at, record)
            except OSError as e:
                raise explain(e, segment.path) from e
        else:
            segment.map[at : at + size] = record  # type: ignore[index]
        segment.first = segment.first or seq
        segment.count += 1
        segment.last = self.last = seq
        segment.end = at + size  # from here on it is there, for the reader too
        self._appended += 1
        self.stored += size

    def _segment_for(self, size: int, reserved: bool) -> Segment:
        old = self.active
        try:
            wanted = max(self.segment_size, HEAD + size + RESERVE)
            new = Segment.create(f"{self._serial + 1:06d}", self.folder, wanted, self.epoch, self.last)
        except SpoolError:
            if reserved and old is not None and old.end + size <= old.size:
                return old
            raise
        try:
            self.segments.append(new)
        finally:  # a signal's exception may come in between, and out of each call; so assignments first
            self._serial += 1
            self.active = new
            if old is not None:
                old.sealed = True
            if self.durable:
                self._named = False
                self._unsynced.append(new)
            if old is not None:
                old.seal(keep_open=self.durable and not old.unsafe)
        return new

    def sync(self) -> None:
        """What was appended before is on the disk when this returns. One thread at a time. Raises SpoolError.

        After an error the kernel may have thrown the pages away and call the next sync a success: the segment is
        `unsafe`, and what follows goes to a new one.
        """
        for segment in list(self._unsynced):
            sealed = segment.sealed
            try:
                datasync(segment.fd)
                if not self._named:
                    self._named = True
                    self._sync_names()
            except OSError as e:
                if not self._forget(segment):
                    continue  # it was proven and released meanwhile
                self._named = False
                segment.unsafe = True
                segment.size = 0  # so the next append leaves it, in the thread that appends
                raise explain(e, segment.path) from e
            if sealed and self._forget(segment):
                segment.let_go()

    def _forget(self, segment: Segment) -> bool:
        """No sync waits for it any more. False: none did."""
        try:
            self._unsynced.remove(segment)
        except ValueError:
            return False
        return True

    def unsafe(self, seq: int) -> bool:
        """Whether event number `seq` lies where a sync has failed."""
        return any(s.unsafe and s.first <= seq <= s.last for s in list(self.segments))

    def _sync_names(self) -> None:
        """The names of the segments; the first time, those of all folders above too, as far as we may."""
        assert self.folder is not None
        for folder in (self.folder, *(() if self._rooted else self.folder.parents)):
            try:
                fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError:
                if folder in (self.folder, self.folder.parent):
                    raise
        self._rooted = True

    # -- taking ------------------------------------------------------------------------------------------------

    def take(self, limit: int) -> tuple[list[bytes], int, int]:
        """The next frames, at least one and up to `limit` bytes, the last one's number, and how many bytes they are."""
        frames: list[bytes] = []
        size, last, appended = 0, self._after, self._appended
        edge = self.proven if last < self.proven else 0  # no batch lies on both sides of it: they are counted
        full = False
        while size < limit and not full:
            segment = self._cursor
            if segment is None:
                if not self._enter_next():
                    self.taken = max(self.taken, appended - self.lost - len(frames))
                    break
                continue
            sealed, view = segment.sealed, self._view  # sealed first: then its end is final
            end = segment.end if self._live else len(view)
            more, last, self._at, full = gather(view, self._at, end, last, edge, limit - size, bool(frames))
            size += sum(map(len, more))
            frames = frames + more if frames else more
            if not full and not (sealed and self._enter_next()):  # what was released or lost meanwhile counts as taken
                self.taken = max(self.taken, appended - self.lost - len(frames))
                break
        self._after = last
        self.taken += len(frames)
        return frames, last, size

    def _enter_next(self) -> bool:
        """Moves the cursor into the next segment. False: there is none yet."""
        segments = list(self.segments)
        passed = segments.index(self._cursor) + 1 if self._cursor in segments else 0  # else it was released meanwhile
        for segment in segments[passed:]:
            if segment.last > self._after or not segment.sealed:
                self._enter(segment)
                return True
        return False

    def _enter(self, segment: Segment) -> None:
        self._cursor, self._at = segment, HEAD
        mapped = segment.map
        self._live = mapped is not None
        if mapped is not None:
            self._view = mapped
            return
        self._view = b""  # before the next one is read: a segment has some megabytes
        try:
            data = segment.read()
        except OSError as e:
            data, reason = b"", f"unreadable: {e.strerror}"
        else:
            reason = "damaged"
        good = list(records(data))
        if len(good) < segment.count:  # it was whole when it was written or adopted
            self._lose(segment, reason, [seq for _, _, seq in good])
        ends = [HEAD, *(stop for _, stop, _ in good)]
        if all(start == end for (start, _, _), end in zip(good, ends)):
            self._view = data[: ends[-1]]
        else:
            self._view = b"".join([bytes(HEAD), *(data[start:stop] for start, stop, _ in good)])

    def _lose(self, segment: Segment, reason: str, good: list[int]) -> None:
        newest = max(self.proven, segment.first - 1)
        left = min(segment.count, segment.last - newest) - sum(seq > newest for seq in good)
        segment.count = len(good)
        self.lost += max(0, left)
        for seq in (*good, segment.last + 1):
            lost = max(0, min(left, seq - 1 - newest))
            self._report(segment, reason, newest + 1, seq - 1, lost=lost)
            newest, left = max(newest, seq), left - lost

    def rewind(self, after: int | None = None, back: int = 0) -> None:
        """The next `take` begins behind what is proven, or behind number `after`, which lies `back` events before that."""
        self._after = self.proven if after is None else after
        self.taken = self.released - back
        self._cursor, self._view, self._live, self._at = None, b"", False, 0

    # -- releasing ---------------------------------------------------------------------------------------------

    def prove(self, last: int, count: int) -> None:
        """Everything up to number `last`, `count` events more than before, has arrived."""
        self.proven = last
        self.released += count

    def release(self, before: float) -> int:
        """Deletes the oldest segment if it is proven and was written before that time; how many bytes that were, else 0."""
        segment = self.segments[0] if self.segments else None
        if segment is None or not segment.sealed or segment.last > self.proven or segment.touched > before:
            return 0
        try:
            self.save()
        except SpoolFull:  # what is deleted here makes the room for it
            pass
        self.segments.popleft()
        self._forget(segment)
        segment.discard()
        return segment.end - HEAD

    def save(self) -> None:
        """Writes down how far it is proven, when that has changed. Raises SpoolError."""
        if self.folder is None or self.proven == self._saved:
            return
        proven = self.proven
        new = self.folder / "state.new"
        try:
            with open(new, "wb") as f:
                f.write(first_line(self.epoch, proven))
                if self.durable:
                    f.flush()
                    os.fsync(f.fileno())
            new.rename(self.folder / "state")
        except OSError as e:
            raise explain(e, new) from e
        self._saved = proven

    def close(self) -> None:
        """Seals what is open, saves the state, lets the next process have it."""
        if self.active is not None:
            self.active.seal(keep_open=False)
            self.active = None
        self._unsynced.clear()
        self.rewind()
        try:
            self.save()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Closes the descriptors and writes nothing: also right in a forked child, whose parent goes on."""
        for segment in self.segments:
            segment.let_go()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def remove(self) -> None:
        """Deletes the folder."""
        if self.folder is not None:
            try:
                for path in self.folder.iterdir():
                    path.unlink(missing_ok=True)
                self.folder.rmdir()
            except OSError:  # another process of this agent is at it, or was
                pass

    @property
    def locked(self) -> bool:
        return self._lock_fd >= 0

    @property
    def appended(self) -> int:
        """Events, without those that were lost since."""
        return self._appended - self.lost

    @property
    def position(self) -> int:
        """The number behind which the next `take` begins."""
        return self._after

    @property
    def unproven(self) -> int:
        """Events."""
        return self.appended - self.released

    @property
    def size(self) -> int:
        """Bytes of all records."""
        return sum([s.end - HEAD for s in list(self.segments)])

    def __repr__(self) -> str:
        return f"<Spool {self.epoch} {self.folder or 'in memory'}: {self.appended} events, proven up to {self.proven} of {self.last}>"
