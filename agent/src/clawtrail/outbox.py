"""What has to leave: this process' spool and those that dead ones left, in order, until each event is proven.

Frames leave in the order in which they came. One that was handed to the connection is kept until it is proven, and
comes again after a break, byte for byte: syslog has no acknowledgement, so "sent" proves nothing. Three proofs:

- `window`: what lies further back than `window` bytes of sent frames, more than the buffers of both kernels hold.
- `barrier`: the receiver answered our close_notify, so it had read everything before. What it had read it may still
  lose, so after a break the window is sent again all the same.
- `watermark`: the store says up to which number it has the events of an epoch.
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping

from .errors import ConfigurationError, SpoolError, SpoolFull, SpoolLocked
from .segment import RESERVE
from .spool import Damage, Spool

_UNFINISHED = 3600.0  #: seconds after which a spool that was never finished being made is removed
_RETRY = 0.05  #: seconds between two looks for room while there is none


@dataclass(slots=True)
class Batch:
    """What one `take` gave out: the events of one spool behind number `before`, up to number `last`."""

    spool: Spool
    before: int
    last: int
    count: int
    size: int


class Outbox:
    """The bounded queue between the agent and the wire. One thread at a time appends, one takes and proves.

    Args:
        folder: the agent's folder of spools, one per process life; None: in memory.
        durable: `sync` returns when what was appended is on the disk.
        quota: bytes of all spools at most; proven segments make way first.
        retain: seconds that proven segments are kept, so that a store that was restored can be filled again.
        window: bytes of sent frames that are sent again after a break.
        overlap: send the window again even where it is proven.
    """

    def __init__(
        self,
        folder: Path | None = None,
        durable: bool = False,
        quota: int = 256 << 20,
        retain: float = 86400.0,
        window: int = 8 << 20,
        overlap: bool = False,
    ) -> None:
        self.folder, self.durable, self.quota, self.retain, self.window = folder, durable, quota, retain, window
        self.own: Spool | None = None
        self.adopted = 0  #: events that dead processes left
        self._overlap = overlap
        self._segment_size = min(4 << 20, quota // 8) + RESERVE
        self._foreign: list[Spool] = []
        self._refused: set[str] = set()  # folders that could not be read, reported once
        self._sent: deque[Batch] = deque()
        self._kept: deque[Batch] = deque()  # proven, and in the window all the same
        self._sent_bytes = self._kept_bytes = 0
        self._foreign_bytes = self._freed = 0
        self._room = threading.Condition()
        self._full = False
        self._limit = 0
        self._next_look = 0.0
        self._sync_lock = threading.Lock()
        self._synced = 0
        self._moments: deque[tuple[int, float]] = deque()  # (number, time.monotonic()), ten a second at most
        self._next_moment = 0.0

    # -- the agent's side --------------------------------------------------------------------------------------

    def open(self, epoch: str) -> None:
        """Makes this process' spool. Raises SpoolError."""
        self.own = Spool.create(epoch, self.folder, self._segment_size, self.durable)
        self._set_limit()

    def append(self, seq: int, frame: bytes, reserved: bool = False) -> None:
        """Takes one frame. Raises SpoolFull or SpoolError, and takes nothing. `reserved`: quota and reserve stand open."""
        own = self.own
        assert own is not None
        if not reserved and own.stored + len(frame) > self._limit:
            self._make_room(len(frame))
        while True:
            try:
                own.append(seq, frame, reserved)
                break
            except SpoolFull:  # of the disk: proven segments make way here too
                if not self._make_way():
                    raise
        now = time.monotonic()
        if now >= self._next_moment:
            self._next_moment = now + 0.1
            self._moments.append((seq, now))

    @property
    def last(self) -> int:
        """The number of the newest frame, 0 before the first."""
        return self.own.last if self.own else 0

    @property
    def used(self) -> int:
        """Bytes of all spools, the proven segments that are still kept included."""
        return (self.own.stored if self.own else 0) - self._freed + self._foreign_bytes

    def _make_room(self, size: int) -> None:
        wanted = size + (self.quota // 8 if self._full else 0)  # full is full until there is room for more than one
        if not self._full or time.monotonic() >= self._next_look:
            while self.used + wanted > self.quota and self._make_way():
                pass
            self._full = self.used + wanted > self.quota
            self._set_limit()
            self._next_look = time.monotonic() + _RETRY
            if not self._full:
                return
        raise SpoolFull(f"the spool is full: {self.used} of {self.quota} bytes wait for the receiver", "quota")

    def _make_way(self) -> int:
        """Deletes one proven segment; how many bytes that frees. Waits for no lock for long: who holds it, in the thread
        that ships, may run a finalizer that logs, and wait for whoever appends here."""
        if not self._room.acquire(timeout=_RETRY):
            return 0
        try:
            return self._release(float("inf"))
        finally:
            self._room.release()

    def _set_limit(self) -> None:
        """`_limit`: what this process may have stored in all when the quota is reached, so that `append` looks at one number."""
        self._limit = 0 if self._full else self.quota + self._freed - self._foreign_bytes

    def wait_for_room(self, timeout: float) -> None:
        """Waits until something was released, at most `timeout` seconds."""
        with self._room:
            self._room.wait(timeout)

    def sync(self, seq: int) -> None:
        """Returns when event number `seq` is on the disk; one sync serves all that wait for it. Raises SpoolError."""
        own = self.own
        if not self.durable or own is None:
            return
        try:
            if self._synced < seq:
                with self._sync_lock:
                    if self._synced < seq:
                        upto = own.last
                        own.sync()
                        self._synced = upto
            if own.unsafe(seq):
                raise SpoolError(f"spool {own.folder}: a sync failed; event {seq} is in it, and may not be on the disk")
        except SpoolError as e:
            e.accepted = True
            raise

    # -- the wire's side ---------------------------------------------------------------------------------------

    def adopt(self) -> list[Damage]:
        """Takes over what dead processes of this agent left behind; returns what of it is damaged."""
        found: list[Spool] = []
        damage: list[Damage] = []
        known = {spool.epoch for spool in self._foreign}
        for folder in sorted(self.folder.iterdir()) if self.folder is not None and self.folder.is_dir() else ():
            if folder.name.startswith("."):
                _remove_unfinished(folder)
                continue
            if folder.name in known or (self.own and folder.name == self.own.epoch) or not folder.is_dir():
                continue
            try:
                spool = Spool.adopt(folder)
            except SpoolLocked:
                continue
            except SpoolError as e:
                if folder.name not in self._refused and folder.is_dir():
                    self._refused.add(folder.name)
                    damage.append(Damage(folder.name, "", str(e), 1, None))
                continue
            damage += spool.damage
            spool.damage.clear()
            self.adopted += spool.unproven
            if not spool.unproven:
                spool.close()
            found.append(spool)
        with self._room:
            self._foreign_bytes += sum(spool.size for spool in found)
            self._foreign = sorted([*self._foreign, *found], key=lambda s: s.epoch)
            self._set_limit()
        return damage

    def take(self, limit: int) -> bytes:
        """The next frames, joined, at least one and up to `limit` bytes; empty when nothing waits."""
        for spool in (*self._foreign, self.own):
            if spool is not None and spool.appended > spool.taken:
                before = spool.position
                frames, last, size = spool.take(limit)
                if frames:
                    self._sent.append(Batch(spool, before, last, len(frames), size))
                    self._sent_bytes += size
                    return b"".join(frames)
        return b""

    def trim(self) -> None:
        """What lies behind the window is proven. Called when all that was taken is written to the connection."""
        while self._sent and self._sent_bytes - self._sent[0].size >= self.window:
            self._prove_oldest()

    def prove_sent(self) -> None:
        """The receiver has read all that was sent (it answered our close_notify)."""
        while self._sent:
            self._prove_oldest()

    def prove_stored(self, stored: Mapping[str, int]) -> None:
        """The store has these epochs up to these numbers. What was not sent is not believed."""
        while self._sent and self._sent[0].last <= stored.get(self._sent[0].spool.epoch, 0):
            self._prove_oldest()

    def _prove_oldest(self) -> None:
        batch = self._sent.popleft()
        self._sent_bytes -= batch.size
        spool = batch.spool
        if batch.last > spool.proven:  # else it was proven before, and sent once more
            spool.prove(batch.last, batch.count)
        if self._overlap:
            self._kept.append(batch)
            self._kept_bytes += batch.size
            while self._kept and self._kept_bytes - self._kept[0].size >= self.window:
                self._kept_bytes -= self._kept.popleft().size
        if spool is self.own:
            while len(self._moments) > 1 and self._moments[1][0] <= batch.last + 1:
                self._moments.popleft()

    def rewind(self) -> int:
        """After a break: what is unproven, and with `overlap` the window, waits again. Returns how many events were sent before."""
        again = [*self._kept, *self._sent]
        for spool in (*self._foreign, self.own):
            mine = [batch for batch in again if batch.spool is spool]
            if spool is not None and mine:
                taken = spool.taken - sum(batch.count for batch in mine)
                spool.rewind(mine[0].before, spool.released - taken)
        for batches in (self._kept, self._sent):
            batches.clear()
        self._sent_bytes = self._kept_bytes = 0
        return sum(batch.count for batch in again)

    def tidy(self) -> None:
        """Saves how far each spool is proven and deletes what was kept long enough. Raises SpoolError."""
        errors: list[SpoolError] = []
        with self._room:
            self._each(Spool.save, errors)
            while self._release(time.time() - self.retain):
                pass
            again = {batch.spool.epoch for batch in self._kept}
            for spool in list(self._foreign):
                if spool.locked and not spool.unproven and spool.taken == spool.appended and spool.epoch not in again:
                    spool.close()
                if not spool.segments:
                    self._foreign.remove(spool)
                    spool.close()
                    spool.remove()
        if errors:
            raise errors[0]

    def _each(self, work: Callable[[Spool], None], errors: list[SpoolError]) -> None:
        for spool in (*self._foreign, self.own):
            if spool is not None:
                try:
                    work(spool)
                except SpoolError as e:  # of one spool: the others have a right to it all the same
                    errors.append(e)

    def _release(self, before: float) -> int:
        """Deletes one proven segment, the oldest; how many bytes that frees."""
        for spool in (*self._foreign, self.own):
            if spool is not None and (size := spool.release(float("inf") if spool.folder is None else before)):
                if spool is self.own:
                    self._freed += size
                else:
                    self._foreign_bytes -= size
                self._set_limit()
                self._room.notify_all()
                return size
        return 0

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        """Events that were not handed to the connection yet, those of dead processes included."""
        own = self.own
        waiting = own.appended - own.taken if own is not None else 0
        return waiting + sum([spool.appended - spool.taken for spool in self._foreign]) if self._foreign else waiting

    @property
    def unproven(self) -> int:
        """Events, those of dead processes included."""
        return sum(spool.unproven for spool in (*self._foreign, self.own) if spool is not None)

    @property
    def epochs(self) -> list[str]:
        """The epochs of which something was sent and is not proven."""
        return list(dict.fromkeys(batch.spool.epoch for batch in list(self._sent)))

    @property
    def damage(self) -> list[Damage]:
        """What was found damaged since the last look, in spools that were whole when they were opened."""
        found: list[Damage] = []
        for spool in (*self._foreign, self.own):
            if spool is not None and spool.damage:
                found += spool.damage
                spool.damage.clear()
        return found

    def oldest(self) -> float:
        """Seconds that the oldest unproven event of this process waits, to a tenth; 0 when there is none."""
        if self.own is None or not self.own.unproven or not self._moments:
            return 0.0
        return time.monotonic() - self._moments[0][1]

    def close(self) -> None:
        """Everything is saved and unlocked; what is unproven is for the next process. Raises SpoolError."""
        errors: list[SpoolError] = []
        try:
            if self.own is not None and self.own.unproven:
                self.sync(self.own.last)
        except SpoolError as e:
            errors.append(e)
        with self._sync_lock, self._room:
            self._each(Spool.close, errors)
        if errors:
            raise errors[0]

    def let_go(self) -> None:
        """In a forked child: closes the descriptors, touches nothing of the parent's."""
        for spool in (*self._foreign, self.own):
            if spool is not None:
                spool.let_go()

    def __repr__(self) -> str:
        return f"<Outbox {self.folder or 'in memory'}: {self.unproven} unproven, {self.unsent} unsent, {self.used} of {self.quota} bytes>"


def folder_of(spool: str | os.PathLike[str] | None, agent: str) -> Path:
    """The folder of an agent's spools, made if need be. Raises ConfigurationError when it cannot be written to."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    root = Path(spool or os.environ.get("CLAWTRAIL_SPOOL") or f"{state}/clawtrail/spool").expanduser().absolute()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", agent)[:64].lstrip(".") or "_"
    if name != agent:  # two agents never share a folder
        name = f"{name}-{zlib.crc32(agent.encode('utf-8', 'surrogatepass')):08x}"
    folder = root / name
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as e:
        raise ConfigurationError(
            f"spool {folder}: {e.strerror}; expected a folder that can be written to (setting spool, or $CLAWTRAIL_SPOOL), "
            "or durability 'memory', which does not survive the process"
        ) from None
    return folder


def _remove_unfinished(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime > _UNFINISHED:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    except OSError:  # it was finished meanwhile, or is somebody else's
        pass
