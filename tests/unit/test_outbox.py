"""The outbox: what is kept until it is proven, what is proven by what, who makes way when there is no room."""

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clawtrail import shipper
from clawtrail import segment
from clawtrail.errors import QueueFull, SpoolError, SpoolFull
from clawtrail.outbox import Outbox
from clawtrail.segment import RESERVE
from clawtrail.spool import Spool
from support import eventually

HERE = Path(__file__).parent


def epoch(n):
    return f"019aa000-0000-7000-8000-{n:012d}"


def frame(seq, size=200):
    return b"<110>1 event %d " % seq + bytes([65 + seq % 26]) * size


@pytest.fixture(params=["memory", "mapped", "written-through"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "mappable", lambda path: request.param == "mapped")
    return None if request.param == "memory" else tmp_path / "agent-1"


def opened(folder, n=0, name=epoch(9), **options):
    outbox = Outbox(folder, **{"quota": 1 << 20, "window": 0, **options})
    outbox.open(name)
    for seq in range(1, n + 1):
        outbox.append(seq, frame(seq))
    return outbox


def taken(outbox, limit=1000):
    """Each batch that waits, as the numbers in it."""
    batches = []
    while data := outbox.take(limit):
        batches.append([int(part.split(b" ")[0]) for part in data.split(b"<110>1 event ")[1:]])
    return batches


def left_by_a_dead_process(folder, name, n):
    spool = Spool.create(name, folder, 8192 + RESERVE)
    for seq in range(1, n + 1):
        spool.append(seq, frame(seq))
    spool.let_go()


# -- proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0, 1, 5000, 20_000])
def test_the_window_keeps_at_least_its_size_and_one_batch_more_at_most(window, folder):
    outbox = opened(folder, window=window)
    size = len(frame(1000))
    for seq in range(1000, 1300):
        outbox.append(seq, frame(seq))
        if seq % 7 == 0:
            taken(outbox)
            outbox.trim()
            kept = outbox.unproven * size
            sent = (seq - 999) * size
            assert min(window, sent) <= kept < window + 1001 + size
    before = outbox.unproven
    assert outbox.rewind() >= before - 7 and sum(map(len, taken(outbox))) == before
    outbox.close()


def test_what_was_not_sent_is_proven_by_nothing(folder):
    outbox = opened(folder, 50)
    first = outbox.take(1000)
    outbox.prove_stored({epoch(9): 10**9})
    assert outbox.unproven == 50 - first.count(b"event")
    outbox.prove_sent()
    assert outbox.unproven == 50 - first.count(b"event")
    assert sum(map(len, taken(outbox))) == outbox.unproven
    outbox.close()


def test_a_watermark_proves_whole_batches_up_to_its_number_and_never_takes_back(folder):
    outbox = opened(folder, 100)
    batches = taken(outbox)
    middle = batches[5][1]
    outbox.prove_stored({epoch(9): middle})
    assert outbox.own.proven == batches[4][-1] and outbox.unproven == 100 - batches[4][-1]
    for lie in ({epoch(9): 3}, {epoch(9): 0}, {epoch(9): -1}, {epoch(8): 10**9}, {}):
        outbox.prove_stored(lie)
        assert outbox.own.proven == batches[4][-1]
    assert outbox.rewind() == 100 - batches[4][-1]
    assert [n for batch in taken(outbox) for n in batch] == list(range(batches[4][-1] + 1, 101))
    outbox.close()


def test_the_overlap_sends_proven_frames_again_and_says_how_many(folder):
    outbox = opened(folder, 100, window=4000, overlap=True)
    size = len(frame(50))
    taken(outbox)
    outbox.prove_sent()
    assert outbox.unproven == 0
    again = outbox.rewind()
    assert 4000 <= again * size <= 4000 + 1000 + 2 * size and outbox.unproven == 0 and outbox.unsent == again
    numbers = [n for batch in taken(outbox) for n in batch]
    assert numbers == list(range(101 - again, 101))
    for seq in range(101, 111):
        outbox.append(seq, frame(seq))
    taken(outbox)
    assert outbox.unproven == 10
    outbox.prove_sent()
    assert outbox.unproven == 0 and outbox.own.proven == 110
    outbox.close()


def test_a_barrier_without_a_window_proves_and_sends_nothing_again(folder):
    outbox = opened(folder, 30, window=0, overlap=True)
    taken(outbox)
    outbox.prove_sent()
    assert outbox.unproven == 0 and outbox.rewind() == 0 and taken(outbox) == []
    outbox.close()


@pytest.mark.parametrize("quota", [1 << 20, 256 << 20], ids=["released early", "kept"])
@pytest.mark.parametrize("seed", range(6))
def test_breaks_barriers_and_trims_in_any_order_hide_nothing_and_count_nothing_twice(seed, quota, folder):
    rng = random.Random(seed)
    outbox = opened(folder, window=rng.choice([0, 3000, 30_000]), overlap=True, retain=0, quota=quota)
    seq = arrived = 0  # everything up to `arrived` has come out in an order without a hole
    for _ in range(500):
        for _ in range(rng.randint(0, 20)):
            try:
                outbox.append(seq + 1, frame(seq + 1, 1000))
            except SpoolFull:
                break
            seq += 1
        for _ in range(rng.randint(0, 4)):
            numbers = [int(part.split(b" ")[0]) for part in outbox.take(rng.randint(1, 30_000)).split(b"<110>1 event ")[1:]]
            if numbers:
                assert numbers == list(range(numbers[0], numbers[-1] + 1)) and numbers[0] <= arrived + 1
                arrived = max(arrived, numbers[-1])
        for chance, step in ((0.3, outbox.trim), (0.2, outbox.prove_sent), (0.2, outbox.rewind), (0.2, outbox.tidy)):
            if rng.random() < chance:
                step()
        assert outbox.own.proven <= arrived and outbox.unproven == seq - outbox.own.proven
        assert outbox.unsent >= seq - arrived  # what never came out is never hidden
    taken(outbox)
    assert outbox.unsent == 0
    outbox.prove_sent()
    assert outbox.unproven == 0 and outbox.own.released == seq
    outbox.close()


def test_what_is_proven_stays_proven_for_the_next_process(tmp_path):
    outbox = opened(tmp_path, 100)
    batches = taken(outbox)
    outbox.prove_stored({epoch(9): batches[3][-1]})
    outbox.close()
    successor = Outbox(tmp_path)
    assert not successor.adopt() and successor.adopted == 100 - batches[3][-1]
    assert [n for batch in taken(successor) for n in batch] == list(range(batches[3][-1] + 1, 101))
    successor.close()


# -- room --------------------------------------------------------------------------------------------------------


def test_unproven_events_are_never_deleted_whatever_the_quota(folder):
    outbox = opened(folder)
    with pytest.raises(SpoolFull) as caught:
        for seq in range(1, 100_000):
            outbox.append(seq, frame(seq, 1000))
            if seq % 100 == 0:
                outbox.tidy()
    assert caught.value.reason == "quota" and outbox.used <= outbox.quota
    assert [n for batch in taken(outbox, 60_000) for n in batch] == list(range(1, seq))
    outbox.close()


def test_proven_segments_make_way_for_new_events_the_oldest_first(tmp_path):
    outbox = opened(tmp_path / "a")
    for seq in range(1, 6001):
        outbox.append(seq, frame(seq, 1000))
        assert outbox.used <= outbox.quota
        if seq % 50 == 0:
            taken(outbox, 60_000)
            outbox.prove_sent()
    kept = sorted(p.stem for p in (tmp_path / "a" / epoch(9)).glob("*.seg"))
    assert kept[0] > "000030" and [int(k) for k in kept] == list(range(int(kept[0]), int(kept[-1]) + 1))
    assert outbox.used > outbox.quota * 0.7  # no more than had to
    outbox.close()


def test_proven_segments_are_kept_for_as_long_as_they_are_to_be(tmp_path):
    outbox = opened(tmp_path / "a", 3000, retain=60)
    taken(outbox)
    outbox.prove_sent()
    outbox.tidy()
    files = sorted((tmp_path / "a" / epoch(9)).glob("*.seg"))
    assert len(files) >= 4
    for segment in list(outbox.own.segments)[:2]:
        segment.touched -= 61
    outbox.tidy()
    assert sorted((tmp_path / "a" / epoch(9)).glob("*.seg")) == files[2:]
    outbox.close()


def test_a_full_disk_takes_proven_segments_before_it_refuses_an_event(tmp_path, monkeypatch):
    outbox = opened(tmp_path / "a", retain=3600)
    allocate, real = os.posix_fallocate, open

    def segments(at_most):  # room for three of them, and then not for a state either
        if len(list(tmp_path.rglob("*.seg"))) > at_most:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", lambda *a: segments(3) or allocate(*a))
    monkeypatch.setattr("builtins.open", lambda path, *a, **o: str(path).endswith("state.new") and segments(2) or real(path, *a, **o))
    with pytest.raises(SpoolFull) as caught:
        for seq in range(1, 10_000):
            outbox.append(seq, frame(seq))
    assert caught.value.reason == "disk-full"
    taken(outbox)
    outbox.prove_sent()
    with pytest.raises(SpoolError):
        outbox.tidy()  # the state has no room, and says so
    for later in range(seq, seq + 3000):
        outbox.append(later, frame(later))
        if later % 100 == 0:
            taken(outbox)
            outbox.prove_sent()
    taken(outbox)
    assert outbox.own.last == seq + 2999 and outbox.unsent == 0
    monkeypatch.undo()
    outbox.close()


def test_an_error_with_one_spool_holds_up_no_other(tmp_path, monkeypatch):
    for n in (1, 2):
        left_by_a_dead_process(tmp_path, epoch(n), 20)
    outbox = opened(tmp_path, 20)
    outbox.adopt()
    taken(outbox)
    outbox.prove_sent()
    real = Spool.save

    def save(spool):
        if spool.epoch == epoch(1):
            raise SpoolError("broken")
        real(spool)

    monkeypatch.setattr(Spool, "save", save)
    with pytest.raises(SpoolError, match="broken"):
        outbox.tidy()
    assert (tmp_path / epoch(2) / "state").exists() and (tmp_path / epoch(9) / "state").exists()
    with pytest.raises(SpoolError, match="broken"):
        outbox.close()
    monkeypatch.undo()
    assert not [s for s in (Spool.adopt(tmp_path / epoch(n)) for n in (1, 2, 9)) if s.close()]  # and none is locked


# -- what dead processes left ------------------------------------------------------------------------------------


def test_what_dead_processes_left_goes_first_each_in_its_order_and_once(tmp_path):
    left_by_a_dead_process(tmp_path, epoch(2), 120)
    left_by_a_dead_process(tmp_path, epoch(1), 80)
    outbox = opened(tmp_path, 30)
    assert not outbox.adopt() and outbox.adopted == 200 and outbox.unsent == 230
    assert not outbox.adopt() and outbox.adopted == 200  # once
    sent = []
    while data := outbox.take(1000):
        sent += [(outbox._sent[-1].spool.epoch, int(part.split(b" ")[0])) for part in data.split(b"<110>1 event ")[1:]]
    assert sent == [(epoch(1), n) for n in range(1, 81)] + [(epoch(2), n) for n in range(1, 121)] + [(epoch(9), n) for n in range(1, 31)]
    outbox.close()


def test_an_adopted_spool_is_deleted_when_it_is_proven_and_kept_long_enough_and_not_before(tmp_path):
    left_by_a_dead_process(tmp_path, epoch(1), 80)
    outbox = opened(tmp_path, 5, retain=60)
    outbox.adopt()
    outbox.tidy()
    taken(outbox)
    outbox.tidy()
    assert len(list((tmp_path / epoch(1)).glob("*.seg"))) > 1
    outbox.prove_sent()
    outbox.tidy()
    assert len(list((tmp_path / epoch(1)).glob("*.seg"))) > 1  # kept for a store that is restored
    outbox.retain = 0
    outbox.tidy()
    assert not (tmp_path / epoch(1)).exists() and (tmp_path / epoch(9)).exists()
    outbox.close()


def test_an_adopted_spool_in_the_window_is_sent_again_after_a_break(tmp_path):
    left_by_a_dead_process(tmp_path, epoch(1), 30)
    outbox = opened(tmp_path, window=1 << 19, overlap=True)
    outbox.adopt()
    taken(outbox)
    outbox.prove_sent()
    outbox.tidy()
    assert outbox.rewind() == 30
    outbox.tidy()
    assert [n for batch in taken(outbox) for n in batch] == list(range(1, 31))
    outbox.close()


def test_two_processes_with_the_same_proven_spool_do_not_disturb_each_other(tmp_path):
    left_by_a_dead_process(tmp_path, epoch(1), 30)
    first, second = (opened(tmp_path, 3, epoch(n), retain=3600) for n in (8, 9))
    first.adopt()
    assert not second.adopt() and second.adopted == 0  # it is held
    taken(first)
    first.prove_sent()
    first.tidy()
    assert not second.adopt() and second.unsent == 3
    for outbox in (first, second):
        outbox.retain = 0
        for _ in range(3):
            outbox.tidy()
    assert not (tmp_path / epoch(1)).exists()
    first.close()
    second.close()


def test_a_folder_that_was_never_finished_is_removed_after_an_hour(tmp_path):
    fresh, old = (tmp_path / f".{epoch(n)}.new" for n in (1, 2))
    for folder in (fresh, old):
        folder.mkdir()
        (folder / "lock").write_text("1\n")
    os.utime(old, (time.time() - 3700,) * 2)
    outbox = opened(tmp_path)
    assert not outbox.adopt() and fresh.exists() and not old.exists()
    outbox.close()


def test_what_is_no_spool_is_reported_once_or_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("by hand")
    (tmp_path / "empty").mkdir()
    (tmp_path / epoch(1)).mkdir()
    (tmp_path / epoch(1) / "lock").mkdir()  # cannot be locked
    outbox = opened(tmp_path, 3)
    (damage,) = outbox.adopt()
    assert (damage.epoch, damage.first, damage.last) == (epoch(1), 1, None) and "lock" in damage.reason or "Is a directory" in damage.reason
    assert not outbox.adopt() and (tmp_path / "notes.txt").exists()
    assert [n for batch in taken(outbox) for n in batch] == [1, 2, 3]
    outbox.close()


# -- the policies, through a recorder ----------------------------------------------------------------------------


def record(recorder, i, size=0):
    return recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i, "pad": "x" * size})


def balance(stats):
    return stats["accepted"] - stats["proven"] - stats["spooled"] - sum(stats["dropped"].values())


def test_block_waits_as_long_as_it_may_and_then_refuses_without_a_number(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, full_timeout=0.3)
    with pytest.raises(QueueFull):
        for i in range(10_000):
            began = time.monotonic()
            record(recorder, i, 3000)
    assert 0.3 <= time.monotonic() - began < 3
    stats = recorder.stats()
    assert stats["refused"] == {"quota": 1} and not stats["dropped"] and balance(stats) == 0
    receiver.start()
    eventually(lambda: recorder.stats()["unsent"], 0, state=recorder.stats)
    eventually(lambda: receiver.events("system.drop"), state=recorder.stats)
    assert [e["params"]["i"] for e in receiver.events("tool.call")] == list(range(i))
    seqs = [e["seq"] for e in receiver.events()]
    assert seqs == list(range(1, len(seqs) + 1))


def test_fail_refuses_at_once_and_a_full_spool_is_reported_where_nothing_else_fits(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, when_full="fail")
    refused = 0
    for i in range(1000):
        began = time.monotonic()
        try:
            record(recorder, i, 3000)
        except QueueFull:
            refused += 1
            assert time.monotonic() - began < 1
            if refused == 50:
                break
    assert refused == 50 and recorder.stats()["refused"] == {"quota": 50}
    accepted = recorder.stats()["accepted"]
    receiver.start()
    eventually(lambda: len(receiver.events()) >= accepted, state=recorder.stats)
    told = receiver.events("system.drop")[0]  # accepted while it was full
    assert told["dropped"]["reason"] == "quota" and told["seq"] == accepted


def test_drop_spends_the_numbers_and_names_every_one_of_them(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, when_full="drop", window=0)
    receipts = [record(recorder, i, 3000) for i in range(600)]
    dropped = [r for r in receipts if not r.line]
    assert len(dropped) > 100 and len({r.seq for r in receipts}) == 600
    assert recorder.stats()["dropped"] == {"quota": len(dropped)} and balance(recorder.stats()) == 0
    receiver.start()
    eventually(lambda: recorder.stats()["unsent"], 0, state=recorder.stats)
    eventually(lambda: record(recorder, "later").line, state=recorder.stats)
    assert recorder.flush(10)
    last = recorder.stats()["accepted"]
    eventually(lambda: receiver.events()[-1]["seq"] == last, state=recorder.stats)
    there = {e["seq"] for e in receiver.events()}
    named = [n for e in receiver.events("system.drop") for n in range(e["dropped"]["first"], e["dropped"]["last"] + 1)]
    assert sorted(named) == sorted(set(range(1, last + 1)) - there)
    assert sum(e["dropped"]["n"] for e in receiver.events("system.drop")) == recorder.stats()["dropped"]["quota"]


def test_a_loss_before_the_first_event_leaves_a_gap_that_is_told_and_the_next_event_begins_the_epoch(receiver, make_recorder):
    recorder = make_recorder(receiver.address)
    recorder.lost("unrecordable")
    record(recorder, "first")
    eventually(lambda: recorder.stats()["unsent"], 0, state=recorder.stats)
    eventually(lambda: len(receiver.events()), 3, state=recorder.stats)
    assert [(e["kind"], e["seq"]) for e in receiver.events()] == [("system.start", 2), ("system.drop", 3), ("tool.call", 4)]
    (told,) = receiver.events("system.drop")
    assert (told["dropped"]["first"], told["dropped"]["last"], told["dropped"]["reason"]) == (1, 1, "unrecordable")
    assert balance(recorder.stats()) == 0


@pytest.mark.parametrize("proof", ["window", "barrier"])
@pytest.mark.parametrize("when_full", ["block", "fail", "drop"])
def test_accepted_is_proven_plus_spooled_plus_dropped_at_every_moment(when_full, proof, receiver, make_recorder, monkeypatch):
    monkeypatch.setattr(shipper, "BARRIER", (0.05, 0.1, 300))
    monkeypatch.setattr(shipper, "TICK", 0.05)
    recorder = make_recorder(receiver.address, quota=4 << 20, when_full=when_full, full_timeout=0.05, proof=proof, retain=0)
    done, wrong, proven = threading.Event(), [], [0]

    def load():
        i = 0
        while not done.is_set():
            i += 1
            try:
                record(recorder, i, 20_000)
            except QueueFull:
                pass

    def sample():
        while not done.is_set():
            stats = recorder.stats()
            if balance(stats) or stats["spooled"] < 0 or stats["unsent"] < 0 or stats["proven"] < proven[-1]:
                wrong.append(stats)
            proven.append(stats["proven"])
            time.sleep(0.001)

    threads = [threading.Thread(target=f) for f in (load, load, sample)]
    for t in threads:
        t.start()
    for _ in range(3):
        time.sleep(0.15)
        receiver.kill()
        time.sleep(0.15)
        receiver.start()
    done.set()
    for t in threads:
        t.join(20)
    assert not wrong, wrong[:3]
    eventually(lambda: recorder.stats()["connected"] and not recorder.stats()["unsent"], state=recorder.stats)
    assert recorder.close(15) and balance(recorder.stats()) == 0
    there = {e["seq"] for e in receiver.events()}
    stats = recorder.stats()
    assert len(there) == stats["accepted"] - sum(stats["dropped"].values()) == stats["proven"]


# -- the disk ----------------------------------------------------------------------------------------------------


def test_a_failed_sync_is_told_to_everyone_whose_event_was_in_it_and_the_next_events_are_durable(receiver, make_recorder, monkeypatch):
    recorder = make_recorder(receiver.address, durability="disk")
    record(recorder, "before")
    real, failing, entered = os.fdatasync, threading.Event(), threading.Event()

    def sync(fd):
        if failing.is_set():
            entered.set()
            eventually(lambda: recorder.stats()["accepted"] >= 6)  # the others have appended meanwhile, and wait
            failing.clear()
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", sync)
    failing.set()
    outcomes = {}

    def one(name):
        try:
            outcomes[name] = record(recorder, name)
        except SpoolError as e:
            outcomes[name] = e

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    threads[0].start()
    entered.wait(10)
    for t in threads[1:]:
        t.start()
    for t in threads:
        t.join(20)
    assert all(isinstance(o, SpoolError) and o.accepted for o in outcomes.values()), outcomes
    assert any("000001.seg: Input/output error" in str(o) for o in outcomes.values())
    assert record(recorder, "after").line
    (folder,) = [p for p in recorder.folder.iterdir() if not p.name.startswith(".")]
    assert b'"i":"after"' in (folder / "000002.seg").read_bytes()
    assert recorder.close(10)
    assert [e["params"]["i"] for e in receiver.events("tool.call")][0] == "before" and len(receiver.events("tool.call")) == 6


def test_a_recorder_whose_folder_is_gone_says_so_and_goes_on_when_it_is_back(receiver, make_recorder, spool):
    recorder = make_recorder(receiver.address, quota=1 << 20, retain=0)
    record(recorder, "first")
    hidden = spool.with_name(f"{spool.name}-hidden")
    spool.rename(hidden)
    try:
        with pytest.raises(SpoolError, match="No such file or directory"):
            for i in range(100):
                record(recorder, i, 5000)
    finally:
        hidden.rename(spool)
    record(recorder, "later")
    assert recorder.close(10)
    assert [e["params"]["i"] for e in receiver.events("tool.call")] == ["first", *range(i), "later"]


FULL = """
import json, os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
mount, pki, retain, when_full, why = sys.argv[2:7]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
from clawtrail import Recorder, shipper
from clawtrail.errors import QueueFull
from receiver import Receiver
from support import eventually
shipper.BACKOFF = (0.02, 0.2)
shipper.BARRIER, shipper.TICK = (0.05, 0.2, 1000), 0.05
receiver = Receiver(f"{pki}/server/server.crt", f"{pki}/server/server.key", f"{pki}/client-ca.crt").start()
receiver.refuse = "connect"
if why == "others":  # somebody else has filled the disk before we come
    with open(f"{mount}/other", "wb") as f:
        try:
            while True:
                f.write(bytes(65536))
                f.flush()
        except OSError:
            pass
recorder = Recorder(
    receiver.address, f"{pki}/client", agent="agent-1", spool=mount, quota=8 << 20, retain=float(retain),
    when_full=when_full, full_timeout=0.2,
    proof="barrier", window=0,
)
known, refused, dropped = [], 0, 0
def one(i):
    global refused, dropped
    try:
        if recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i, "pad": "x" * 3000}).line:
            known.append(i)
        else:
            dropped += 1
    except QueueFull as e:
        assert "disk-full" in recorder.stats()["refused"], (str(e), recorder.stats())
        refused += 1
i = 0
while refused + dropped < 5:
    i += 1
    one(i)
    assert i < 5000
first = i
stats = recorder.stats()
assert (stats["dropped"] if when_full == "drop" else stats["refused"]) == {"disk-full": 5}, stats
assert stats["accepted"] == stats["proven"] + stats["spooled"] + sum(stats["dropped"].values())
if why == "others":
    assert not known
    os.unlink(f"{mount}/other")  # space is back
receiver.refuse = None
def again():
    one(-len(known))
    return known[-1:] and known[-1] <= 0
eventually(again, state=recorder.stats)
for i in range(first + 1, first + 3000):
    one(i)
    if i % 100 == 0:
        recorder.flush(10)
        eventually(lambda: recorder.stats()["spooled"], 0, state=recorder.stats)
assert len(known) > 2500, len(known)
assert recorder.close(15), recorder.stats()
assert [e["params"]["i"] for e in receiver.events("tool.call")] == known
drops = receiver.events("system.drop")
assert drops and drops[0]["dropped"]["reason"] == "disk-full", drops
there, last = {e["seq"] for e in receiver.events()}, recorder.stats()["accepted"]
named = {n for e in drops if "first" in e["dropped"] for n in range(e["dropped"]["first"], e["dropped"]["last"] + 1)}
assert set(range(1, last + 1)) - there == named
receiver.kill()
print("whole", flush=True)
"""


@pytest.mark.parametrize(
    "retain, when_full, why",
    [("0", "block", "own"), ("86400", "fail", "own"), ("86400", "drop", "own"), ("0", "fail", "others"), ("0", "drop", "others")],
)
def test_a_disk_that_is_really_full_is_reported_and_recording_goes_on_when_there_is_space(retain, when_full, why, pki, tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace of our own: unshare -m is not permitted here")
    command = ["unshare", "-m", sys.executable, "-c", FULL, HERE, tmp_path, pki.base, retain, when_full, why]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0 and done.stdout == "whole\n", f"{done.returncode}: {done.stdout} {done.stderr[-3000:]}"


def test_a_disk_that_cannot_be_written_to_is_refused_with_the_setting_that_helps(pki, tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace of our own: unshare -m is not permitted here")
    script = (
        "import subprocess, sys\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', sys.argv[1]], check=True)\n"
        "from clawtrail import Recorder\n"
        "Recorder(('127.0.0.1', 1), sys.argv[2], agent='agent-1', spool=sys.argv[1])\n"
    )
    done = subprocess.run(["unshare", "-m", sys.executable, "-c", script, tmp_path, pki.client], capture_output=True, text=True, timeout=30)
    assert "ConfigurationError" in done.stderr and "Read-only file system" in done.stderr and "durability 'memory'" in done.stderr
