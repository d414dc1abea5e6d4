"""The spool's files: what was appended comes out, in order, byte for byte, whatever became of the process or the disk."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clawtrail import segment
from clawtrail.errors import SpoolError, SpoolFull, SpoolLocked
from clawtrail.segment import HEAD, RESERVE, SIZE
from clawtrail.spool import Spool

SEGMENT = 4096 + RESERVE  #: bytes; some ten of the frames in here
EPOCH = "019aa000-0000-7000-8000-000000000001"


def writes(monkeypatch, how):
    monkeypatch.setattr(segment, "mappable", lambda path: how == "mapped")


@pytest.fixture(params=["memory", "mapped", "written-through"])
def parent(request, tmp_path, monkeypatch):
    """Where a spool lies: nowhere, or in a folder that is written in one of the two ways."""
    writes(monkeypatch, request.param)
    return None if request.param == "memory" else tmp_path / "spools"


@pytest.fixture(params=["mapped", "written-through"])
def on_disk(request, tmp_path, monkeypatch):
    writes(monkeypatch, request.param)
    return tmp_path / "spools"


def frame(seq, size=0):
    return b"<110>1 event %d %s" % (seq, random.Random(seq).randbytes(size or 50 + seq * 37 % 900))


def filled(parent, n, epoch=EPOCH, segment=SEGMENT, **options):
    spool = Spool.create(epoch, parent, segment, **options)
    for seq in range(1, n + 1):
        spool.append(seq, frame(seq))
    return spool


def drained(spool, limit=3000):
    """Everything that waits; each batch within its limit unless it is a single frame."""
    given = []
    while (batch := spool.take(limit))[0]:
        frames, last, size = batch
        assert size == sum(map(len, frames)) and (size <= limit or len(frames) == 1) and last == spool.position
        given += frames
    assert spool.taken == spool.appended
    return given


def left(spool):
    """The spool of a process that is dead, as its successor finds it."""
    spool.let_go()
    return Spool.adopt(spool.folder)


def state(epoch, proven):
    line = f"clawtrail-spool 1 {epoch} {proven} "
    return f"{line}{zlib.crc32(line.encode()):08x}\n".encode()


def failing(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def expected(first, last):
    return [frame(seq) for seq in range(first, last + 1)]


# -- order and bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 700, 3000, 1 << 20])
def test_frames_come_out_in_order_and_after_a_rewind_the_same_again(limit, parent):
    spool = filled(parent, 200)
    assert len(spool.segments) > 5
    for _ in range(3):
        assert drained(spool, limit) == expected(1, 200)
        spool.rewind()
    spool.prove(50, 50)
    spool.rewind()
    assert drained(spool, limit) == expected(51, 200)
    spool.rewind(30, 20)  # twenty proven ones once more
    assert drained(spool, limit) == expected(31, 200) and spool.unproven == 150
    spool.close()


def test_a_frame_larger_than_the_batch_or_the_segment_comes_alone(parent):
    spool = Spool.create(EPOCH, parent, SEGMENT)
    sizes = [100, 40_000, 100, 60_000, 100]
    for seq, size in enumerate(sizes, 1):
        spool.append(seq, frame(seq, size))
    assert [len(spool.take(1000)[0]) for _ in sizes] == [1] * 5
    assert spool.take(1000) == ([], 5, 0)
    spool.rewind()
    assert drained(spool, 1000) == [frame(seq, size) for seq, size in enumerate(sizes, 1)]
    spool.close()


def test_a_batch_lies_on_one_side_of_what_is_proven(parent):
    spool = filled(parent, 20)
    drained(spool)
    spool.prove(10, 10)
    spool.rewind(5, 5)
    assert spool.take(1 << 20)[1] == 10 and spool.take(1 << 20)[1] == 20
    spool.close()


def test_a_reader_beside_the_writer_gets_every_frame_once_and_in_order(parent):
    spool, given, done = Spool.create(EPOCH, parent, SEGMENT), [], threading.Event()

    def read():
        while not done.is_set() or spool.appended > spool.taken:
            frames, last, _ = spool.take(2000)
            given.extend(frames)
            if frames and len(given) % 3 == 0:
                spool.prove(last, len(given) - spool.released)
                while spool.release(float("inf")):
                    pass

    reader = threading.Thread(target=read)
    reader.start()
    for seq in range(1, 5001):
        spool.append(seq, frame(seq, 60))
    done.set()
    reader.join(20)
    assert not reader.is_alive() and given == [frame(seq, 60) for seq in range(1, 5001)]
    spool.close()


def test_a_reader_whose_segment_was_released_goes_on_with_the_next(parent):
    spool = filled(parent, 5)
    assert drained(spool) == expected(1, 5)
    spool.prove(5, 5)
    for seq in range(6, 60):
        spool.append(seq, frame(seq))
    while spool.release(float("inf")):  # the segment that was read last among them
        pass
    assert drained(spool) == expected(6, 59)
    spool.close()


def test_what_was_released_is_not_waited_for_when_it_would_be_sent_once_more(parent):
    spool = filled(parent, 100)
    drained(spool)
    spool.prove(100, 100)
    while spool.release(float("inf")):
        pass
    spool.rewind(0, 100)
    again = drained(spool)  # and says that nothing waits
    assert again == expected(101 - len(again), 100) and spool.take(1000)[0] == []
    spool.close()


def test_only_what_is_proven_and_finished_is_released_and_the_oldest_first(parent):
    spool = filled(parent, 100)
    drained(spool)
    assert not spool.release(float("inf"))
    first, second = spool.segments[0], spool.segments[1]
    spool.prove(first.last, first.last)
    assert not spool.release(first.touched - 1) and spool.release(first.touched + 1) == first.end - HEAD
    assert not spool.release(float("inf")) and spool.segments[0] is second
    spool.prove(100, 100 - spool.released)
    while spool.release(float("inf")):
        pass
    assert list(spool.segments) == [spool.active]
    spool.close()


# -- adoption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_a_successor_finds_every_event_unchanged_and_what_is_proven_proven(closed, on_disk):
    spool = filled(on_disk, 150)
    drained(spool)
    spool.prove(70, 70)
    spool.save()
    if closed:
        spool.close()
    adopted = left(spool)
    assert not adopted.damage and adopted.unproven == 80 and adopted.last == 150
    assert drained(adopted) == expected(71, 150)
    adopted.close()


def test_space_that_a_killed_process_had_not_used_is_given_back(on_disk):
    spool = filled(on_disk, 3, segment=1 << 20)
    assert (on_disk / EPOCH / "000001.seg").stat().st_size == 1 << 20
    adopted = left(spool)
    assert (on_disk / EPOCH / "000001.seg").stat().st_size < 3500 and adopted.size < 3500
    assert drained(adopted) == expected(1, 3)
    adopted.close()


def test_a_record_of_which_half_was_written_is_cut_and_named(on_disk):
    spool = filled(on_disk, 5, segment=1 << 20)
    spool.segments[0].put(spool.segments[0].end, segment.PACK(segment.MARK, 900, 0, 6) + b"half")
    adopted = left(spool)
    assert [(d.epoch, d.reason, d.first, d.last) for d in adopted.damage] == [(EPOCH, "torn", 6, None)]
    assert drained(adopted) == expected(1, 5)
    adopted.close()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\0" * 80, b"{", b'{"v":1,"proven":90}', state("another-epoch", 90),
     state(EPOCH, 101), state(EPOCH, 10**30), state(EPOCH, 90)[:-4], state(EPOCH, -1)],
    ids=["missing", "empty", "zeros", "garbage", "foreign-format", "of-another-epoch", "one-too-far", "huge", "cut", "negative"],
)  # fmt: skip
def test_without_a_state_to_be_believed_everything_comes_again(content, on_disk):
    spool = filled(on_disk, 100)
    spool.let_go()
    if content is not None:
        (on_disk / EPOCH / "state").write_bytes(content)
    adopted = Spool.adopt(on_disk / EPOCH)
    assert drained(adopted) == expected(1, 100) and not adopted.damage
    adopted.close()


def test_a_stale_state_sends_again_what_was_proven_since(on_disk):
    spool = filled(on_disk, 100)
    spool.let_go()
    (on_disk / EPOCH / "state").write_bytes(state(EPOCH, 40))
    adopted = Spool.adopt(on_disk / EPOCH)
    assert drained(adopted) == expected(41, 100) and not adopted.damage
    adopted.close()


def test_a_segment_that_is_damaged_while_it_is_adopted_is_named_and_counted(on_disk):
    adopted = left(filled(on_disk, 100))
    victim = adopted.segments[1]
    gone = list(range(victim.first + 1, victim.first + 3))
    data = bytearray(victim.path.read_bytes())
    places = [p for p in segment.records(bytes(data)) if p[2] in gone]
    data[places[0][0] : places[-1][1]] = bytes(places[-1][1] - places[0][0])
    victim.path.write_bytes(data)
    assert drained(adopted) == [frame(seq) for seq in range(1, 101) if seq not in gone]
    assert [(d.reason, d.first, d.last, d.lost) for d in adopted.damage] == [("damaged", gone[0], gone[-1], 2)]
    assert adopted.unproven == 98
    adopted.close()


def test_a_segment_that_is_deleted_under_a_living_process_costs_what_was_not_proven_and_no_more(on_disk):
    spool = filled(on_disk, 100)
    drained(spool)
    victim = spool.segments[1]
    spool.prove(victim.first, victim.first)  # in the middle of it
    victim.path.unlink()
    spool.rewind()
    assert drained(spool) == expected(victim.last + 1, 100)
    assert [(d.first, d.last, d.lost) for d in spool.damage] == [(victim.first + 1, victim.last, victim.last - victim.first)]
    assert spool.unproven == 100 - victim.last and spool.lost == victim.last - victim.first
    spool.close()


# -- who holds it ------------------------------------------------------------------------------------------------

HOLD = """
import os, sys
from pathlib import Path
from clawtrail.spool import Spool
spool = Spool.create(sys.argv[2], Path(sys.argv[1]), 65536)
spool.append(1, b"from the child")
if len(sys.argv) > 3 and os.fork() == 0:  # a child lives on, as a forked recorder does
    spool.let_go()
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
if len(sys.argv) == 3:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


def holder(parent, *more):
    return subprocess.Popen([sys.executable, "-c", HOLD, parent, EPOCH, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_spool_of_a_living_process_is_not_touched_and_the_error_names_the_process(tmp_path):
    with holder(tmp_path) as process:
        pid = int(process.stdout.readline())
        before = {p.name: p.read_bytes() for p in (tmp_path / EPOCH).iterdir()}
        with pytest.raises(SpoolLocked, match=rf"in use by process {pid}\b"):
            Spool.adopt(tmp_path / EPOCH)
        assert {p.name: p.read_bytes() for p in (tmp_path / EPOCH).iterdir()} == before
        process.kill()
    adopted = Spool.adopt(tmp_path / EPOCH)
    assert drained(adopted) == [b"from the child"]
    adopted.close()


def test_a_spool_is_free_when_its_process_dies_though_a_forked_child_lives(tmp_path):
    with holder(tmp_path, "fork") as process:
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child}").exists()
        adopted = Spool.adopt(tmp_path / EPOCH)
        assert drained(adopted) == [b"from the child"]
        adopted.close()
        os.kill(child, signal.SIGKILL)


def test_a_spool_is_opened_once_also_within_one_process(tmp_path):
    spool = filled(tmp_path, 1)
    for _ in range(3):
        with pytest.raises(SpoolLocked, match=str(os.getpid())):
            Spool.adopt(tmp_path / EPOCH)
    adopted = left(spool)
    with pytest.raises(SpoolLocked):
        Spool.adopt(tmp_path / EPOCH)
    adopted.close()


ADOPT = """
import sys
from pathlib import Path
from clawtrail.errors import SpoolLocked
from clawtrail.spool import Spool
print("ready", flush=True)
sys.stdin.readline()
try:
    spool = Spool.adopt(Path(sys.argv[1]))
    print(len(spool.take(1 << 20)[0]), flush=True)
except SpoolLocked:
    print("locked", flush=True)
sys.stdin.readline()
"""


def test_of_processes_that_adopt_at_the_same_moment_exactly_one_does(tmp_path):
    filled(tmp_path, 10).let_go()
    command = [sys.executable, "-c", ADOPT, tmp_path / EPOCH]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for p in processes:
        assert p.stdout.readline() == "ready\n"
    for p in processes:
        p.stdin.write("\n")
        p.stdin.flush()
    answers = sorted(p.stdout.readline().strip() for p in processes)
    for p in processes:
        p.communicate("\n", timeout=20)
    assert answers == ["10", "locked", "locked", "locked"]


# -- what the disk refuses ---------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SpoolError, match=rf"{tmp_path}/file/.*Not a directory"):
        Spool.create(EPOCH, tmp_path / "file", SEGMENT)


def test_a_spool_that_could_not_be_finished_is_made_at_the_next_attempt(tmp_path, monkeypatch):
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", failing(errno.ENOSPC))
    with pytest.raises(SpoolFull) as caught:
        Spool.create(EPOCH, tmp_path, SEGMENT)
    assert caught.value.reason == "disk-full"
    monkeypatch.setattr(Path, "rename", rename)
    spool = filled(tmp_path, 5)
    assert drained(spool) == expected(1, 5)
    spool.close()


def test_a_disk_that_refuses_a_segment_takes_nothing_and_the_next_attempt_succeeds(on_disk, monkeypatch):
    spool, allocate = filled(on_disk, 5), os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(SpoolFull, match="expected free space") as caught:
        for seq in range(6, 100):
            spool.append(seq, frame(seq))
    assert caught.value.reason == "disk-full" and spool.last == seq - 1 == spool.appended
    spool.append(seq, frame(seq), reserved=True)  # what tells of it has its place
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    for later in range(seq + 1, 100):
        spool.append(later, frame(later))
    assert drained(spool) == expected(1, 99)
    spool.close()


def test_an_error_of_the_disk_at_the_end_of_a_segment_loses_nothing(on_disk, monkeypatch):
    monkeypatch.setattr(os, "truncate", failing(errno.EIO))
    spool = filled(on_disk, 100)
    assert drained(spool) == expected(1, 100)
    spool.close()
    adopted = Spool.adopt(on_disk / EPOCH)
    assert drained(adopted) == expected(1, 100) and not adopted.damage
    adopted.close()


def test_after_a_failed_sync_the_segment_is_left_and_what_follows_is_synced(on_disk, monkeypatch):
    spool = filled(on_disk, 3, durable=True)
    spool.sync()
    spool.append(4, frame(4))
    synced, real = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    with pytest.raises(SpoolError, match=r"000001\.seg: Input/output error"):
        spool.sync()
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    spool.append(5, frame(5))
    spool.sync()
    assert [os.path.basename(p) for p in synced] == ["000002.seg"]
    assert spool.unsafe(4) and not spool.unsafe(5) and drained(spool) == expected(1, 5)
    spool.close()
    adopted = Spool.adopt(on_disk / EPOCH)
    assert drained(adopted) == expected(1, 5) and not adopted.damage
    adopted.close()


def test_a_segment_that_is_proven_before_it_is_synced_is_no_error(on_disk):
    spool = filled(on_disk, 100, durable=True)
    drained(spool)
    spool.prove(100, 100)
    while spool.release(float("inf")):
        pass
    spool.sync()
    assert len(spool._unsynced) == 1
    spool.close()


class Struck(BaseException):
    """What a signal handler raises, as KeyboardInterrupt is."""


def strike(do, first, then):
    """Calls `do`, with an exception raised where a signal's can be: at the `first` such moment, and on the way out of
    it `then` calls later once more (0: not). False: it has fewer moments."""
    moments = calls = 0

    def profile(_, what, __):
        nonlocal moments
        moments += what in ("call", "c_return")
        if moments == first:
            raise Struck

    def trace(*_):
        nonlocal calls
        calls += moments >= first
        if calls == then and calls:
            raise Struck

    try:
        sys.settrace(trace)
        sys.setprofile(profile)
        do()
    except Struck:
        pass
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    return moments >= first


def struck_at_every_moment(parent, durable, then):
    reached, first = True, 0
    while reached:
        first += 1
        spool, seq = Spool.create(f"{EPOCH[:-4]}{first:03d}{durable:d}", parent, SEGMENT, durable), 0
        while (active := spool.active) is None or active.end + SIZE + len(frame(seq + 1)) <= active.size - RESERVE:
            seq += 1
            spool.append(seq, frame(seq))
        reached = strike(lambda: spool.append(seq + 1, frame(seq + 1)), first, then)
        for later in range(spool.last + 1, 100):
            spool.append(later, frame(later))
        assert drained(spool) == expected(1, 99), (first, spool.segments)
        if spool.folder is not None:
            assert len(list(spool.folder.glob("*.seg"))) == len(spool.segments)
        if durable:
            spool.sync()
        spool.close()
    assert first > 5


@pytest.mark.parametrize("then", range(4))
def test_an_exception_at_any_moment_of_a_new_segment_neither_loses_nor_refuses_nor_holds_up_an_event(parent, then):
    for durable in sorted({False, parent is not None}):
        struck_at_every_moment(parent, durable, then)


# -- any sequence ------------------------------------------------------------------------------------------------


class AnySequence(RuleBasedStateMachine):
    """append, take, prove, rewind, release, save, close, adopt, as they come; a model beside it knows what must be there."""

    parent: Path | None = None

    def __init__(self):
        super().__init__()
        self.parent = Path(os.environ["CLAWTRAIL_SPOOL"]) / f"{time.monotonic_ns()}"
        self.spool = Spool.create(EPOCH, self.parent, 900 + RESERVE)
        self.frames: dict[int, bytes] = {}
        self.given: list[int] = []  # since the last rewind
        self.sent: list[tuple[int, int]] = []  # batches that are not proven: (last, count)
        self.proven = self.saved = self.adoptions = 0

    @precondition(lambda self: not self.adoptions)
    @rule(sizes=st.lists(st.integers(0, 700), min_size=1, max_size=6), skip=st.booleans())
    def append(self, sizes, skip):
        for size in sizes:
            seq = max(self.frames, default=0) + 1 + skip
            self.frames[seq] = b"%d:" % seq + bytes(size)
            self.spool.append(seq, self.frames[seq])

    @rule(limit=st.integers(1, 3000))
    def take(self, limit):
        frames, last, size = self.spool.take(limit)
        numbers = [int(f.split(b":")[0]) for f in frames]
        assert all(self.frames[n] == f for n, f in zip(numbers, frames))
        before = self.given[-1] if self.given else self.proven
        assert numbers == [n for n in self.frames if before < n <= last]
        if numbers:
            self.given += numbers
            self.sent.append((last, len(numbers)))

    @precondition(lambda self: self.sent)
    @rule()
    def prove(self):
        last, count = self.sent.pop(0)
        self.spool.prove(last, count)
        self.proven = last

    @rule()
    def rewind(self):
        self.spool.rewind()
        self.given, self.sent = [], []

    @rule()
    def release(self):
        if self.spool.release(float("inf")):
            self.saved = self.proven

    @rule()
    def save(self):
        self.spool.save()
        self.saved = self.proven

    @rule(close=st.booleans())
    def die_and_be_adopted(self, close):
        if close:
            self.spool.close()
            self.saved = self.proven
        self.spool.let_go()
        self.spool = Spool.adopt(self.parent / EPOCH)
        assert not self.spool.damage
        self.adoptions += 1
        self.proven, self.given, self.sent = self.saved, [], []
        assert self.spool.unproven == sum(n > self.proven for n in self.frames)

    @invariant()
    def nothing_unproven_is_gone(self):
        assert self.spool.unproven == sum(n > self.proven for n in self.frames)
        assert self.spool.appended - self.spool.taken == sum(n > (self.given[-1] if self.given else self.proven) for n in self.frames)

    def teardown(self):
        self.spool.rewind()
        waiting = [n for n in self.frames if n > self.proven]
        assert [int(f.split(b":")[0]) for f in drained(self.spool)] == waiting
        self.spool.close()
        shutil.rmtree(self.parent)


def test_any_sequence_of_operations_delivers_everything_and_releases_nothing_unproven():
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(AnySequence)
