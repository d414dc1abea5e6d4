"""Durability `disk`: what `record()` has returned for is there after a power cut, at any moment.

The disk is a model, and a strict one. Durable is a file's content as of its last fsync or fdatasync, and a folder's
names as of the folder's last fsync, nothing else; of what was not synced any 4 KiB pages may have reached the disk, and
any folder's newest names, or none. At a cut the folder is built anew from that alone, and opened.
"""

import os
import random
import stat
import threading
import time
from pathlib import Path

import pytest

from clawtrail import shipper
from clawtrail.errors import ClawtrailError, QueueFull
from clawtrail.spool import Spool

SEED = int(os.environ.get("CLAWTRAIL_SEED", "20261123"))
PAGE = 4096
CUTS = 40  #: per case; there are six cases of `disk`


class Disk:
    """What is durable of the files below `root`."""

    def __init__(self, root, monkeypatch):
        self.root, self.lock, self.rng = root, threading.Lock(), random.Random(SEED)
        self._held: dict[int, int] = {}  # inode → a descriptor of our own, so that its number is not given to another file
        self.content: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {root.stat().st_ino: self._listed(root)}
        self.syncs = 0
        monkeypatch.setattr(os, "fsync", self.sync)
        monkeypatch.setattr(os, "fdatasync", self.sync)

    @staticmethod
    def _listed(folder):
        return {entry.name: entry.inode() for entry in os.scandir(folder)}

    def sync(self, fd):
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if self.root != path and self.root not in path.parents:
            return
        status = os.fstat(fd)
        with self.lock:
            if status.st_ino not in self._held:
                self._held[status.st_ino] = os.dup(fd)
        if stat.S_ISDIR(status.st_mode):
            names = self._listed(f"/proc/self/fd/{fd}")  # as it is when the sync begins; what comes during it has no promise
            store, found = self.names, names
        else:
            store, found = self.content, os.pread(fd, status.st_size, 0)
        time.sleep(0.001)  # so that several wait for one sync
        with self.lock:
            store[status.st_ino] = found
            self.syncs += 1

    def cut(self, to):
        """The power goes now: what is left, as a folder `to`."""
        alive: dict[int, Path] = {self.root.stat().st_ino: self.root}
        for base, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                try:
                    alive[os.stat(os.path.join(base, name)).st_ino] = Path(base, name)
                except FileNotFoundError:  # deleted meanwhile
                    pass
        self._build(self.root.stat().st_ino, to, alive)

    def _build(self, inode, to, alive):
        to.mkdir()
        names = self.names.get(inode, {})
        if inode in alive and self.rng.random() < 0.3:
            names = self._listed(alive[inode])
        for name, child in names.items():
            if child in self.names or child in alive and alive[child].is_dir():
                self._build(child, to / name, alive)
            else:
                (to / name).write_bytes(self._file(child, alive))

    def _file(self, inode, alive):
        data = bytearray(self.content.get(inode, b""))
        try:
            newest = alive[inode].read_bytes() if inode in alive and self.rng.random() < 0.5 else b""
        except FileNotFoundError:
            newest = b""
        for at in range(0, len(newest), PAGE):
            if self.rng.random() < 0.3:
                if len(data) < at:
                    data.extend(bytes(at - len(data)))
                data[at : at + PAGE] = newest[at : at + PAGE]
        return bytes(data)

    def close(self):
        for fd in self._held.values():
            os.close(fd)


def what_is_left(folder):
    """The (epoch, number) of every event in the spools below, each adopted as a successor does."""
    there = set()
    for epoch in sorted((folder / "agent-1").iterdir()) if (folder / "agent-1").is_dir() else ():
        if epoch.name.startswith("."):
            continue
        spool = Spool.adopt(epoch)
        spool.proven = 0  # kept ones too: the oracle does not know what is proven
        spool.rewind()
        while frames := spool.take(1 << 20)[0]:
            there |= {(epoch.name, int(frame.split(b' seq="', 1)[1].split(b'"', 1)[0])) for frame in frames}
        spool.close()
    return there


def cuts(recorder, receiver, disk, tmp_path, n=CUTS):
    """Cuts the power n times while three threads record. How many events each cut has lost that were promised."""
    known, done, errors = [], threading.Event(), []

    def load(who):
        for i in range(100_000):
            try:
                receipt = recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"who": who, "i": i, "pad": "x" * 700})
            except QueueFull:
                pass
            except ClawtrailError as e:
                return errors.append(e)
            else:
                known.append((receipt.epoch, receipt.seq))
            if done.is_set():
                return

    threads = [threading.Thread(target=load, args=(f"t{t}",)) for t in range(3)]
    for t in threads:
        t.start()
    taken = []
    for cut in range(n):
        seen = len(known) + disk.rng.randint(0, 25)
        deadline = time.monotonic() + 0.2
        while len(known) < seen and time.monotonic() < deadline:
            time.sleep(0.0002)
        with disk.lock:  # no sync ends while the power goes
            promised = set(known)
            arrived = receiver.bytes_read and len(receiver.raw)
            disk.cut(tmp_path / f"cut-{cut}")
        taken.append((promised, arrived))
    done.set()
    for t in threads:
        t.join(30)
    recorder.close(0.1)
    assert not errors
    lost = []
    order = [(m.params["epoch"], int(m.params["seq"])) for m in receiver.messages]
    for cut, (promised, arrived) in enumerate(taken):
        lost.append(promised - what_is_left(tmp_path / f"cut-{cut}") - set(order[:arrived]))
    assert len(taken[-1][0]) > n
    return lost


@pytest.fixture
def disk(tmp_path, spool, monkeypatch):
    spool.mkdir(parents=True)
    model = Disk(spool, monkeypatch)
    yield model
    model.close()


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("receiving", [False, True], ids=["receiver away", "receiver reading"])
def test_what_was_promised_to_be_on_the_disk_is_there_after_a_power_cut(
    receiving, case, receiver, make_recorder, disk, tmp_path, monkeypatch
):
    disk.rng.seed(f"{SEED}/{receiving}/{case}")
    monkeypatch.setattr(shipper, "BARRIER", (0.01, 0.02, 50))
    monkeypatch.setattr(shipper, "TICK", 0.02)
    if not receiving:
        receiver.kill()
    recorder = make_recorder(receiver.address, durability="disk", quota=1 << 20, retain=0, proof="barrier", when_full="fail")
    lost = cuts(recorder, receiver, disk, tmp_path)
    assert not any(lost), f"seed {SEED}: {[sorted(x)[:3] for x in lost if x]}"
    assert 0 < disk.syncs < recorder.stats()["accepted"] + 200  # one sync served several


def test_the_model_does_lose_what_was_never_synced(receiver, make_recorder, disk, tmp_path):
    # the test's own control: durability `write` promises nothing about power, and the model shows it
    receiver.kill()
    recorder = make_recorder(receiver.address, durability="write", quota=16 << 20, when_full="fail")
    lost = cuts(recorder, receiver, disk, tmp_path, 20)
    assert sum(map(bool, lost)) >= 15
