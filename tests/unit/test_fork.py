"""A fork makes a second process life: neither side may lose, repeat or garble an event of the other."""

import concurrent.futures
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
import warnings

import pytest

from apart import judge
from support import eventually

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def record(recorder, who, n):
    for i in range(n):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"who": who, "i": i})


def in_child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
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
        assert recorder.close(10), recorder.stats()

    children = [in_child(lambda n=n: child(f"child {n}")) for n in range(3)]
    record(recorder, "parent", 200)
    assert all(map(succeeded, children))
    record(recorder, "parent later", 50)
    assert recorder.close(10), recorder.stats()
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
    assert recorder.close(10), recorder.stats()
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
    assert recorder.close(10), recorder.stats()
    assert len(receiver.raw) == 32 and len(of(receiver, "queued")) == 30


def test_a_fork_while_other_threads_record_leaves_no_lock_behind(receiver, recorder):
    import threading

    done = threading.Event()
    workers = [threading.Thread(target=lambda n=n: [record(recorder, f"thread {n}", 2) for _ in iter(lambda: done.wait(0.001), True)]) for n in range(2)]
    for w in workers:
        w.start()

    def child(n):
        record(recorder, f"child {n}", 5)
        assert recorder.close(10), recorder.stats()

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
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"who": "worker", "i": i})
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


# -- under load, in pools, in servers ------------------------------------------------------------------------------


def whole_epochs(receiver, n):
    """Every process life is one whole chain, seen by a parser of its own: no frame of one is in the stream of another."""
    epochs = judge(receiver.messages)
    assert len(epochs) == n, {e: len(found) for e, found in epochs.items()}
    return epochs


def test_after_forty_forks_under_load_from_threads_every_chain_is_whole(receiver, recorder):
    import threading

    done = threading.Event()
    counts = [0, 0]

    def work(n):
        while not done.is_set():
            record(recorder, f"thread {n}", 1)
            counts[n] += 1
            time.sleep(0.0005)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for w in workers:
        w.start()
    for n in range(8):
        children = [in_child(lambda n=n, c=c: (record(recorder, f"child {n} {c}", 20), recorder.close(10))) for c in range(5)]
        assert all(map(succeeded, children))
    done.set()
    for w in workers:
        w.join()
    assert recorder.close(15)
    whole_epochs(receiver, 41)
    assert [len(of(receiver, f"child {n} {c}")) for n in range(8) for c in range(5)] == [20] * 40
    assert [len(of(receiver, f"thread {n}")) for n in range(2)] == counts


def test_a_child_of_a_child_is_a_process_life_of_its_own(receiver, recorder, spool):
    def grandchild():
        record(recorder, "grandchild", 50)
        assert recorder.close(10), recorder.stats()

    def child():
        record(recorder, "child", 50)
        assert succeeded(in_child(grandchild))
        assert recorder.close(10), recorder.stats()

    record(recorder, "parent", 50)
    assert succeeded(in_child(child))
    assert recorder.close(10), recorder.stats()
    epochs = whole_epochs(receiver, 3)
    folders = {folder.name for folder in (spool / "agent-1").iterdir()}
    assert folders == set(epochs)


def test_the_lock_of_a_dead_parent_is_free_although_its_child_lives(receiver, make_recorder, pki):
    receiver.kill()
    script = """
import os, sys, time
from clawtrail import Recorder
recorder = Recorder(("127.0.0.1", int(sys.argv[1])), sys.argv[2], agent="agent-1")
for i in range(100):
    recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"who": "dead parent", "i": i})
if pid := os.fork():
    print(pid, flush=True)
    os._exit(0)
os.close(1)
time.sleep(60)
"""
    out = subprocess.run([sys.executable, "-c", script, str(receiver.port), pki.client], stdout=subprocess.PIPE, text=True, timeout=30).stdout
    child = int(out)
    try:
        receiver.start()
        recorder = make_recorder(receiver.address)
        record(recorder, "next", 1)
        eventually(lambda: len(of(receiver, "dead parent")), 100, state=recorder.stats)
        assert os.path.exists(f"/proc/{child}") and recorder.stats()["adopted"] == 101
    finally:
        os.kill(child, signal.SIGKILL)


POOL = """
import concurrent.futures, logging, multiprocessing, sys
from clawtrail import TLSSysLogHandler
log = logging.getLogger("agent")

def setup(port, tls):
    log.setLevel("INFO")
    log.addHandler(TLSSysLogHandler(address=["127.0.0.1", port], tls=tls, agent="agent-1"))

def work(n):
    for i in range(20):
        log.info("task %d %d", n, i)
    return n

if __name__ == "__main__":
    method, port, tls = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    setup(port, tls)
    log.info("parent 0")
    how = {"initializer": setup, "initargs": (port, tls)} if method != "fork" else {}
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, **how) as pool:
        assert list(pool.map(work, range(20))) == list(range(20))
    if "multiprocessing" in sys.argv:
        with context.Pool(2, how.get("initializer"), how.get("initargs", ())) as pool:
            assert pool.map(work, range(20, 40)) == list(range(20, 40))
            pool.close()
            pool.join()
    log.info("parent 1")
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_the_workers_of_a_pool_deliver_everything(method, receiver, pki, tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    command = [sys.executable, tmp_path / "pool.py", method, str(receiver.port), pki.client, *(["multiprocessing"] if method == "fork" else [])]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and not run.stderr, run.stderr
    tasks = 40 if method == "fork" else 20
    wanted = sorted(["parent 0", "parent 1", *(f"task {n} {i}" for n in range(tasks) for i in range(20))])
    eventually(lambda: len(receiver.events("log.record")) >= len(wanted))
    assert sorted(e["content"]["excerpt"] for e in receiver.events("log.record")) == wanted
    judge(receiver.messages)


APP = """
import logging, os
from clawtrail import TLSSysLogHandler
log = logging.getLogger("agent")
log.setLevel("INFO")
log.addHandler(TLSSysLogHandler(address=os.environ["RECEIVER"], tls=os.environ["TLS"], agent="agent-1"))
def app(environ, start_response):
    log.info("request %s of %d", environ["PATH_INFO"], os.getpid())
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_the_workers_of_a_preloaded_gunicorn_deliver_every_request(receiver, pki, tmp_path):
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "RECEIVER": f"127.0.0.1:{receiver.port}", "TLS": str(pki.client)}
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "4", "--bind", f"127.0.0.1:{port}", "--log-level", "warning", "--no-control-socket", "app:app"]
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)

    def get(n):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/{n}", timeout=5).read() == b"ok"
        except OSError:
            return False

    try:
        eventually(lambda: get("up") or server.poll() is not None)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(get, range(300)))
    finally:
        server.terminate()
        errors = server.communicate(timeout=20)[1]
    assert "Traceback" not in errors, errors
    eventually(lambda: len(receiver.events("log.record")) >= 301)
    texts = [e["content"]["excerpt"].split() for e in receiver.events("log.record")]
    assert sorted(t[1] for t in texts) == sorted(["/up", *(f"/{n}" for n in range(300))])
    assert {len({t[3] for t in texts}), len(judge(receiver.messages))} == {len(judge(receiver.messages))} != {1}  # the master logs nothing


@pytest.mark.parametrize("how", ["posix_spawn", "subprocess", "vfork and exec of a shell"])
def test_no_descriptor_of_ours_is_inherited_by(how, receiver, make_recorder):
    recorder = make_recorder(receiver.address, durability="disk")
    record(recorder, "parent", 5)
    eventually(lambda: len(receiver.raw), 6, state=recorder.stats)
    ours = {os.readlink(f"/proc/self/fd/{f}") for f in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{f}")}
    ours = {o for o in ours if "-spool/" in o or o.startswith("socket:") or "eventfd" in o}
    assert any("lock" in o for o in ours) and any(".seg" in o for o in ours) and any("socket" in o for o in ours)
    if how == "posix_spawn":
        pid = os.posix_spawn("/bin/sleep", ["sleep", "20"], {})
    else:
        child = subprocess.Popen(["sleep", "20"] if how == "subprocess" else "exec sleep 20", shell=how != "subprocess", close_fds=False)
        pid = child.pid
    try:
        eventually(lambda: open(f"/proc/{pid}/comm").read().strip(), "sleep")
        held = {os.readlink(f"/proc/{pid}/fd/{f}") for f in os.listdir(f"/proc/{pid}/fd")}
        assert not held & {o for o in ours if "eventfd" not in o} and not any("eventfd" in h for h in held), held
    finally:
        os.kill(pid, signal.SIGKILL)
        child.wait() if how != "posix_spawn" else os.waitpid(pid, 0)
