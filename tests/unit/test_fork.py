"""A fork makes a second process life: neither side may lose, repeat or garble an event of the other."""

import multiprocessing
import os
import subprocess
import sys
import warnings

import pytest

from support import eventually

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def record(recorder, who, n):
    for i in range(n):
        recorder.record("tool.call", "attempt", params={"who": who, "i": i})


def in_child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def succeeded(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def of(receiver, who):
    return [e for e in receiver.events("tool.call") if e["params"]["who"] == who]


@pytest.mark.parametrize("connected", [True, False], ids=["while connected", "before the first event"])
def test_parent_and_children_deliver_everything_each_under_an_epoch_of_its_own(connected, receiver, recorder):
    if connected:
        record(recorder, "before", 20)
        eventually(lambda: recorder.stats()["connected"], state=recorder.stats)

    def child(name):
        record(recorder, name, 200)
        assert recorder.close(10)

    children = [in_child(lambda n=n: child(f"child {n}")) for n in range(3)]
    record(recorder, "parent", 200)
    assert all(map(succeeded, children))
    record(recorder, "parent later", 50)
    assert recorder.close(10)
    for who, n in (("parent", 200), ("parent later", 50), *((f"child {c}", 200) for c in range(3)), ("before", 20 * connected)):
        assert [e["params"]["i"] for e in of(receiver, who)] == list(range(n)), who
    epochs = [{e["epoch"] for e in of(receiver, f"child {c}")} for c in range(3)] + [{e["epoch"] for e in of(receiver, "parent")}]
    assert [len(e) for e in epochs] == [1] * 4 and len(set().union(*epochs)) == 4
    for epoch in set().union(*epochs):
        assert [e["seq"] for e in receiver.events() if e["epoch"] == epoch] == list(range(1, 1 + sum(e["epoch"] == epoch for e in receiver.events())))
    assert receiver.connections == 4 and receiver.clean_ends == 4


def test_a_child_that_only_ends_does_not_disturb_the_parents_connection(receiver, recorder):
    record(recorder, "parent", 10)
    eventually(lambda: len(receiver.raw), 11, state=recorder.stats)
    for _ in range(5):
        assert succeeded(in_child(lambda: None))
    record(recorder, "after", 10)
    assert recorder.close(10)
    assert len(of(receiver, "after")) == 10 and recorder.stats()["connects"] == 1 and receiver.connections == 1


def test_a_child_holds_no_end_of_the_parents_connection(receiver, recorder):
    record(recorder, "parent", 1)
    eventually(lambda: len(receiver.raw), 2, state=recorder.stats)
    connection = os.fstat(recorder._shipper._connection.fileno()).st_ino

    def child():
        held = {os.fstat(int(f)).st_ino for f in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{f}")}
        assert connection not in held

    assert succeeded(in_child(child))


def test_what_the_parent_had_queued_is_not_sent_by_the_child(receiver, recorder):
    receiver.kill()
    record(recorder, "queued", 30)

    def child():
        assert recorder.stats()["accepted"] == 0
        record(recorder, "child", 5)
        recorder.close(0.2)

    assert succeeded(in_child(child))
    receiver.start()
    assert recorder.close(10)
    assert len(receiver.raw) == 32 and len(of(receiver, "queued")) == 30


def test_a_fork_while_other_threads_record_leaves_no_lock_behind(receiver, recorder):
    import threading

    done = threading.Event()
    workers = [threading.Thread(target=lambda n=n: [record(recorder, f"thread {n}", 2) for _ in iter(lambda: done.wait(0.001), True)]) for n in range(2)]
    for w in workers:
        w.start()

    def child(n):
        record(recorder, f"child {n}", 5)
        assert recorder.close(10)

    children = [in_child(lambda n=n: child(n)) for n in range(8)]
    results = [succeeded(c) for c in children]
    done.set()
    for w in workers:
        w.join()
    assert all(results) and recorder.close(15)
    assert all(len(of(receiver, f"child {n}")) == 5 for n in range(8))
    seqs = [e["seq"] for e in receiver.events() if e["epoch"] == recorder.stats()["epoch"]]
    assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) == recorder.stats()["accepted"]


def test_a_worker_of_multiprocessing_delivers_everything_without_closing(receiver, recorder):
    record(recorder, "parent", 5)
    worker = multiprocessing.get_context("fork").Process(target=record, args=(recorder, "worker", 100))
    worker.start()
    worker.join(20)
    assert worker.exitcode == 0
    eventually(lambda: len(of(receiver, "worker")), 100, state=lambda: receiver.events())


LATE = """
import multiprocessing, sys
def work(port, tls):
    from clawtrail import Recorder
    recorder = Recorder(("127.0.0.1", port), tls, agent="agent-1")
    for i in range(100):
        recorder.record("tool.call", "attempt", params={"who": "worker", "i": i})
if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[3]).Process(target=work, args=(int(sys.argv[1]), sys.argv[2]))
    worker.start()
    worker.join()
    assert "clawtrail" not in sys.modules
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_worker_that_is_the_first_to_import_us_delivers_everything_too(method, receiver, pki, tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    subprocess.run([sys.executable, tmp_path / "late.py", str(receiver.port), pki.client, method], check=True, timeout=30)
    eventually(lambda: len(of(receiver, "worker")), 100)


def test_a_child_process_that_is_executed_inherits_no_descriptor_of_ours(receiver, recorder):
    record(recorder, "parent", 5)
    eventually(lambda: len(receiver.raw), 6, state=recorder.stats)
    script = "import os; print([os.readlink(f'/proc/self/fd/{f}') for f in os.listdir('/proc/self/fd') if int(f) > 2 and os.path.exists(f'/proc/self/fd/{f}')])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, close_fds=False, timeout=20).stdout
    assert "socket" not in out
