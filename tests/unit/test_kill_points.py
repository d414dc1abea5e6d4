"""A process that is killed (SIGKILL) at every point that matters: what `record()` has accepted arrives all the same.

The child makes the points itself, around the calls of the operating system that the package makes. Its oracle is a
pipe: an event's number is written there after `record()` returned, so what stands there was promised.
"""

import hashlib
import random
import signal
import subprocess
import sys
import threading

import pytest

from clawtrail.native import native
from support import eventually

CHILD = r"""
import ctypes, itertools, mmap, os, sys, threading
from pathlib import Path

port, tls, durability, point, nth, options = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6:]
if point in ("before append", "after append", "mid-copy"):
    os.environ["CLAWTRAIL_NATIVE"] = "0"  # where Python stores; the same points of the compiled way are those of a lane
from clawtrail import Recorder, segment, shipper, spool, transport

shipper.BACKOFF, shipper.TICK, shipper.BARRIER = (0.01, 0.05), 0.05, (0.02, 0.1, 500)
if "written-through" in options:
    segment.mappable = lambda path: False
reached = itertools.count(1)


def die(name):
    if name == point and next(reached) == nth:
        os.kill(os.getpid(), 9)


def around(owner, name, where, which=lambda *a: True):
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
        wanted = which(*args)
        if wanted:
            die(f"before {where}")
        result = real(*args, **kwargs)
        if wanted:
            die(f"after {where}")
        return result

    setattr(owner, name, wrapped)


def ends(suffix):
    return lambda path, *_: str(path).endswith(suffix)


around(spool.Spool, "append", "append")
around(os, "fdatasync", "fdatasync")
around(os, "truncate", "truncate")
around(os, "open", "open", ends(".seg"))
around(os, "posix_fallocate", "fallocate")
around(Path, "rename", "folder rename", lambda path, *_: path.name.endswith(".new") and path.name.startswith("."))
around(Path, "rename", "state rename", ends("state.new"))
around(Path, "unlink", "unlink", ends(".seg"))

send = transport.Connection.send


def half(connection, data):
    if point in ("mid-frame", "after send") and len(data) > 300 and next(reached) == nth:
        if point == "mid-frame":
            send(connection, data[: len(data) // 2 + 7])
        else:
            while data:
                data = data[send(connection, data) :]
        os.kill(os.getpid(), 9)
    return send(connection, data)


transport.Connection.send = half
copied = itertools.count(1)


class Half:
    # a mapping that is killed in the middle of a copy; `nth` says how much of the record was stored
    def __init__(self, real):
        self.real = real

    def __getitem__(self, at):
        return self.real[at]

    def __setitem__(self, at, data):
        if point == "mid-copy" and len(data) > 300 and next(copied) == 30:
            part = len(data) * nth // 4
            self.real[at.start : at.start + part] = data[:part]
            os.kill(os.getpid(), 9)
        self.real[at] = data


if point == "mid-copy" and "written-through" in options:
    pwrite = os.pwrite

    def half_pwrite(fd, data, at):
        if len(data) > 300 and next(copied) == 30:
            pwrite(fd, data[: len(data) * nth // 4], at)
            os.kill(os.getpid(), 9)
        return pwrite(fd, data, at)

    os.pwrite = half_pwrite
elif point == "mid-copy":
    append = spool.Spool.append

    def half_append(self, seq, frame, reserved=False):
        if seq == 30:
            self.active.map = Half(self.active.map)
            next(itertools.islice(copied, 28, None))
        append(self, seq, frame, reserved)

    spool.Spool.append = half_append

recorder = Recorder(
    ("127.0.0.1", port), tls, agent="agent-1", durability=durability, retain=0, heartbeat=0, full_timeout=20,
    # the kernels of both sides may hold more than a small window; so where connections break, it is a barrier that proves
    **({"quota": 16 << 20, "proof": "barrier", "window": 6 << 20} if "breaks" in options else {"quota": 1 << 20, "window": 20_000}),
)


class Watched:
    # a lane that is killed before it stores an event, after that, or in the middle of the copy, by a page that it cannot write to
    def __init__(self, real):
        self.real, self.open, self.shut = real, real.open, real.shut

    def put(self, *args):
        die("before lane")
        active = recorder._outbox.own and recorder._outbox.own.active
        if point == "mid-lane" and active:
            page = (active.end // 4096 + 1) * 4096
            if active.end + 1000 > page > active.end + 200 and next(reached) == nth:
                libc, base = ctypes.CDLL(None, use_errno=True), ctypes.addressof(ctypes.c_char.from_buffer(active.map))
                assert libc.mprotect(ctypes.c_void_p(base + page), ctypes.c_size_t(4096), mmap.PROT_READ) == 0
        receipt = self.real.put(*args)
        if receipt:
            die("after lane")
        return receipt


if point.endswith("lane"):
    recorder.lane = Watched(recorder.lane)


def work(name):
    for i in range(int(options[0]) if options and options[0].isdigit() else 1500):
        receipt = recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"who": name, "i": i, "pad": "x" * 900})
        os.write(1, f"{receipt.epoch} {receipt.seq} {name} {i}\n".encode())
        die("after record")


threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(2 if "threads" in options else 1)]
for t in threads:
    t.start()
for t in threads:
    t.join()
os.write(1, b"done\n")
recorder.close(0.1)
"""


def run(receiver, pki, durability, point, nth, *options, kill_after=None):
    """Runs the child to its end. What it knows to be accepted: [(epoch, number, who, i)]."""
    command = [sys.executable, "-c", CHILD, receiver.port, pki.client, durability, point, nth, *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if kill_after is not None:
        threading.Timer(kill_after, lambda: process.poll() is None and process.kill()).start()
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    killed = -signal.SIGSEGV if point == "mid-lane" else -signal.SIGKILL
    assert process.returncode in (killed, 0), err.decode()
    lines = [line.split() for line in out.decode().splitlines() if line != "done"]
    known = [(epoch, int(seq), who, int(i)) for epoch, seq, who, i in (line for line in lines if len(line) == 4)]
    return known, process.returncode == killed


def judge(receiver, make_recorder, runs):
    """A successor on the same spool: everything that is known arrives, whole chains, in order, before its own."""
    successor = make_recorder(receiver.address)
    last = successor.record("tool.call", "success", tool={"name": "exec"}, params={"who": "successor"})
    known = [event for events in runs for event in events]
    wanted = {(epoch, seq) for epoch, seq, _, _ in known} | {(last.epoch, last.seq)}
    eventually(lambda: not successor.stats()["unsent"], within=90, state=successor.stats)  # a hundred thousand events and more
    eventually(lambda: wanted <= {(e["epoch"], e["seq"]) for e in receiver.events()}, state=successor.stats)
    assert successor.close(10), successor.stats()
    events = receiver.events()
    by_place = {(e["epoch"], e["seq"]): e for e in events}
    for epoch, seq, who, i in known:
        assert (by_place[epoch, seq]["params"]["who"], by_place[epoch, seq]["params"]["i"]) == (who, i)
    copies: dict[tuple[str, str], set[bytes]] = {}
    for m in receiver.messages:
        copies.setdefault((m.params["epoch"], m.params["seq"]), set()).add(m.raw)
    assert all(len(c) == 1 for c in copies.values())  # what was sent again is the same, byte for byte
    lines = {(m.event["epoch"], m.seq): m.msg for m in receiver.messages}
    for epoch in {e["epoch"] for e in events}:
        seqs = [e["seq"] for e in events if e["epoch"] == epoch]
        assert seqs == list(range(1, len(seqs) + 1)), f"a hole or out of order: {epoch}"
        prev = "unknown"
        for seq in seqs:
            assert by_place[epoch, seq]["prev"] == prev
            prev = hashlib.sha256(lines[epoch, seq]).hexdigest()
    own = next(n for n, e in enumerate(events) if e["epoch"] == last.epoch)
    assert all(e["epoch"] == last.epoch for e in events[own:])
    lost = [e["dropped"] for e in receiver.events("system.spool-damage")]
    assert all("last" not in d and (d["epoch"], d["first"]) not in wanted for d in lost), lost  # at most a record that nobody was promised
    return successor


POINTS = {
    "before append": [1, 2, 400],
    "after append": [1, 2, 400],
    "after record": [1, 50, 1000],
    "mid-frame": [1, 3, 8],
    "after send": [1, 3, 8],
    "before truncate": [1, 2, 5],
    "after truncate": [1, 2, 5],
    "before open": [1, 2, 5],
    "after open": [1, 2, 5],
    "before fallocate": [1, 2, 5],
    "after fallocate": [1, 2, 5],
    "before folder rename": [1],
    "after folder rename": [1],
    "before unlink": [1, 2, 4],
    "after unlink": [1, 2, 4],
    "before state rename": [1, 2, 4],
    "after state rename": [1, 2, 4],
    "mid-copy": [1, 2, 3],
}


@pytest.mark.parametrize("point, nth", [(p, n) for p, positions in POINTS.items() for n in positions])
def test_what_was_accepted_arrives_after_a_kill(point, nth, receiver, make_recorder, pki):
    known, killed = run(receiver, pki, "write", point, nth)
    assert killed, "the point was never reached"
    judge(receiver, make_recorder, [known])


@pytest.mark.skipif(native is None, reason="the package was built without a C compiler, or CLAWTRAIL_NATIVE=0 is set")
@pytest.mark.parametrize("point, nth", [(p, n) for p in ("before lane", "after lane", "mid-lane") for n in (2, 40, 200)])
def test_what_was_accepted_arrives_after_a_kill_on_the_compiled_way(point, nth, receiver, make_recorder, pki):
    known, killed = run(receiver, pki, "write", point, nth)
    assert killed, "the point was never reached"
    judge(receiver, make_recorder, [known])


@pytest.mark.parametrize("point, nth", [(p, n) for p in ("before fdatasync", "after fdatasync", "after append") for n in (1, 3, 40)])
def test_what_was_accepted_arrives_after_a_kill_around_a_sync(point, nth, receiver, make_recorder, pki):
    known, killed = run(receiver, pki, "disk", point, nth, "200", "threads")
    assert killed, "the point was never reached"
    judge(receiver, make_recorder, [known])


@pytest.mark.parametrize(
    "point, nth", [("mid-copy", 1), ("mid-copy", 3), ("after append", 400), ("before truncate", 2), ("after unlink", 2)]
)
def test_what_was_accepted_arrives_after_a_kill_where_no_mapping_is_safe(point, nth, receiver, make_recorder, pki):
    known, killed = run(receiver, pki, "write", point, nth, "1500", "written-through")
    assert killed, "the point was never reached"
    judge(receiver, make_recorder, [known])


@pytest.mark.parametrize("point", ["before folder rename", "after folder rename"])
def test_an_unfinished_folder_is_in_nobodys_way(point, receiver, make_recorder, pki, spool):
    for _ in range(2):
        assert run(receiver, pki, "write", point, 1) == ([], True)
    judge(receiver, make_recorder, [])
    assert len([p for p in (spool / "agent-1").iterdir() if p.name.startswith(".")]) == 2 * (point == "before folder rename")


def test_kills_at_random_moments_under_load_lose_nothing(receiver, make_recorder, pki):
    # twenty lives in a row, each adopts what the one before left; the receiver resets connections now and then
    rng = random.Random(20261123)
    runs, kills = [], 0
    for life in range(20):
        receiver.reset_after = rng.choice([None, None, 30_000, 200_000])
        if rng.random() < 0.2:
            receiver.kill()
        known, killed = run(receiver, pki, "write", "none", 0, "100000", "threads", "breaks", kill_after=rng.uniform(0.25, 0.8))
        runs.append(known)
        kills += killed
        if receiver._killed:
            receiver.start()
    receiver.reset_after = None
    assert kills == 20 and sum(map(len, runs)) > 1000
    judge(receiver, make_recorder, runs)
