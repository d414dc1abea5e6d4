"""One measurement of one peer in a process of its own; the result is one line of JSON.

    python -m bench.measure MEASUREMENT PEER '{"n": 20000}'      with BENCH_WORK=FOLDER in the environment
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any, Callable, Iterator

from . import egress, sidecar
from .events import WARM, events
from .peers import OURS, PEERS, Place, Subject
from .stage import TESTS, Sink, eventually, judge

WARM_UP = 300
SETTLED = 3.0  #: seconds without a delivery at a healthy sink: what is missing was dropped
EXIT_EVENTS = 500
EXIT_BOUND = 45.0  #: seconds after which a peer that does not leave is killed

Prepared = tuple[tuple[Any, ...], dict[str, Any]]
Result = dict[str, Any]


class Scene:
    """A sink, a peer connected to it, and what of that must be ended."""

    def __init__(self, name: str, work: Path, **sink: Any) -> None:
        self.name, self.peer = name, PEERS[name]
        self.sink = Sink(self.peer.mode, work, **sink)
        self.spool = Path(tempfile.mkdtemp(prefix="spool-", dir=work))
        self.warm = 0

    @property
    def place(self) -> Place:
        return Place(self.sink.port, self.sink.certificates, self.spool)

    def subject(self) -> Subject:
        logging.raiseExceptions = False
        return self.peer.subject(self.peer.make(self.place))

    def warm_up(self, subject: Subject, count: int = WARM_UP) -> None:
        """Connects, fills caches, and waits until the sink has it all, so that what follows is measured alone."""
        for args, options in prepared(subject, count, WARM):
            subject.call(*args, **options)
        self.warm = count
        if self.peer.delivers:
            eventually(lambda: self.sink.count() >= count, 10)
        time.sleep(0.2)

    def step(self, *commands: str) -> Callable[[], None]:
        """What the keeper is told at some moment of a measurement."""

        def take() -> None:
            for command in commands:
                self.sink.tell(command)

        return take

    def drained(self, want: int, bound: float, patience: float | None = None) -> tuple[int, int]:
        """Waits until the sink has read `want` events more than the warm-up, or for `patience` seconds nothing came.

        Returns the moment (perf_counter_ns) and the processor time (process_time_ns) of the last progress.
        """
        seen, moment, spent = self.sink.count(), time.perf_counter_ns(), time.process_time_ns()
        if not self.peer.delivers:
            return moment, spent
        deadline, patience = time.monotonic() + bound, patience or self.peer.patience
        while seen < want + self.warm and time.monotonic() < deadline:
            quiet = time.perf_counter_ns() - moment
            if quiet > patience * 1e9:
                break
            time.sleep(0.002 if quiet < 1e8 else 0.05)
            if (count := self.sink.count()) != seen:
                seen, moment, spent = count, time.perf_counter_ns(), time.process_time_ns()
        return moment, spent

    def verdict(self, sent: int) -> Result:
        """Lost, repeated, reordered. Of ours, by whole frames and after the deduplication that a store does."""
        if not self.peer.delivers:
            return {}
        if not list(self.sink.folder.glob("raw-*")):
            return judge(self.sink.numbers(), sent)
        numbers, copies, different = self.sink.unique()
        return judge(numbers, sent) | {"copies": copies, "different": different}


def prepared(subject: Subject, count: int, first: int = 0) -> list[Prepared]:
    return [subject.prepare(event) for event in events(count, first)]


def quantiles(nanoseconds: list[int]) -> Result:
    """In microseconds."""
    ordered = sorted(nanoseconds)
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * q))] / 1e3 for name, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1))}


def settle() -> None:
    """What exists now is no work for the garbage collector any more; what the peer makes from here on is."""
    gc.collect()
    gc.freeze()


# -- speed -----------------------------------------------------------------------------------------------------


def burst(scene: Scene, n: int) -> Result:
    """As fast as the caller can: latency of a call, processor time of caller and process, events delivered per second."""
    n = int(n * scene.peer.share)
    subject = scene.subject()
    work = prepared(subject, n)
    scene.warm_up(subject)
    took, call, now = [0] * n, subject.call, time.perf_counter_ns
    settle()
    sink, thread, process, began = scene.sink.cpu(), time.thread_time_ns(), time.process_time_ns(), now()
    for i, (args, options) in enumerate(work):
        before = now()
        call(*args, **options)
        took[i] = now() - before
    thread = time.thread_time_ns() - thread
    ended, spent = scene.drained(n, 60, SETTLED)
    outcome = scene.verdict(n)
    return {
        "n": n,
        **quantiles(took),
        "caller_cpu": thread / n / 1e3,
        "process_cpu": (spent - process) / n / 1e3,
        "delivered": (n - outcome["lost"]) / (ended - began) * 1e9 if scene.peer.delivers else None,
        "sink_busy": (scene.sink.cpu() - sink) / (ended - began) * 1e9,
        **outcome,
        "errors": subject.errors,
    }


def threads(scene: Scene, n: int, count: int) -> Result:
    """Several threads through one handler, as fast as they can: latency of a call."""
    subject = scene.subject()
    work = prepared(subject, n)
    scene.warm_up(subject)
    took: list[list[int]] = [[] for _ in range(count)]
    start = threading.Barrier(count)

    def emit(k: int) -> None:
        call, now, mine = subject.call, time.perf_counter_ns, took[k]
        start.wait()
        for args, options in work[k::count]:
            before = now()
            call(*args, **options)
            mine.append(now() - before)

    settle()
    running = [threading.Thread(target=emit, args=(k,)) for k in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    scene.drained(n, 60, SETTLED)
    return {"n": n, **quantiles([t for one in took for t in one]), **scene.verdict(n)}


def idle(scene: Scene, n: int) -> Result:
    """From a call after a pause to the moment at which the sink has read the event; loopback and sink included."""
    subject = scene.subject()
    work = prepared(subject, n)
    scene.warm_up(subject, 5)
    began = []
    settle()
    for args, options in work:
        time.sleep(0.02)
        began.append(time.monotonic_ns())
        subject.call(*args, **options)
    scene.drained(n, 30, SETTLED)
    read = scene.sink.stamps()
    return {"n": n, **quantiles([read[i] - began[i] for i in range(n) if i in read]), **scene.verdict(n)}


def paced(scene: Scene, n: int, rate: int) -> Result:
    """At a steady rate: processor time of the process for each event, the loop's own included."""
    subject = scene.subject()
    work = prepared(subject, n)
    scene.warm_up(subject)
    took = [0] * n
    settle()
    process = time.process_time_ns()
    for i in pace(n, rate):
        args, options = work[i]
        before = time.perf_counter_ns()
        subject.call(*args, **options)
        took[i] = time.perf_counter_ns() - before
    time.sleep(0.05)
    process = time.process_time_ns() - process
    scene.drained(n, 30, SETTLED)
    return {"n": n, **quantiles(took), "process_cpu": process / n / 1e3, **scene.verdict(n)}


def pace(n: int, rate: int) -> Iterator[int]:
    """0 … n - 1, each at its time; one that is late comes at once."""
    began = time.perf_counter_ns()
    for i in range(n):
        early = began + i * 1e9 / rate - time.perf_counter_ns()
        if early > 60_000:  # a sleep takes 50 µs longer than it is asked to
            time.sleep((early - 50_000) / 1e9)
        yield i


# -- loss ------------------------------------------------------------------------------------------------------


def outage(scene: Scene, rate: int, before: float, away: float, after: float) -> Result:
    """The sink is killed, and comes back after `away` seconds."""
    steps = [(before, scene.step("kill")), (before + away, scene.step("start"))]
    return faulty(scene, rate, before + away + after, steps, before, away)


def hang(scene: Scene, rate: int, before: float, away: float, after: float) -> Result:
    """The sink stops reading and keeps its connections, for `away` seconds."""
    steps = [(before, scene.step("stop")), (before + away, scene.step("go_on"))]
    return faulty(scene, rate, before + away + after, steps, before, away)


def hang_kill(scene: Scene, rate: int, before: float, away: float, after: float) -> Result:
    """The sink stops reading for `away` seconds and dies with all that lies in its buffers; it is back 2 s later."""
    died = before + away
    steps = [(before, scene.step("stop")), (died, scene.step("kill")), (died + 2, scene.step("start"))]
    return faulty(scene, rate, died + 2 + after, steps, before, away)


def partition(scene: Scene, rate: int, before: float, away: float, after: float) -> Result:
    """Packets vanish for `away` seconds, and the sink dies meanwhile. Needs a network namespace of its own."""
    steps = [(before, scene.step("part")), (before + away, scene.step("kill", "join", "start"))]
    return faulty(scene, rate, before + away + after, steps, before, away)


def faulty(scene: Scene, rate: int, lasts: float, steps: list[tuple[float, Callable[[], None]]], fault: float, away: float) -> Result:
    """Emits at a steady rate while the steps are taken at their times; then waits for what still comes.

    `fault`: seconds until the receiver is no receiver any more; it is none for `away` seconds.
    """
    subject = scene.subject()
    wanted = int(rate * lasts)
    work = prepared(subject, wanted)
    scene.warm_up(subject)
    took, waits = array("q", bytes(8 * wanted)), array("q", bytes(8 * wanted))  # made before memory is looked at
    sent = raised = 0
    settle()
    watch = Watch(subject, fault, away)
    began = time.monotonic()
    taken = threading.Event()
    threading.Thread(target=take, args=(steps, began, taken), daemon=True).start()
    schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    for i in range(wanted):
        early = began + i / rate - time.monotonic()
        if early > 6e-5:
            time.sleep(early)
        at = time.monotonic() - began
        if at > lasts:
            break
        watch.look(at)
        args, options = work[i]
        waited, before = waited_for_cpu(schedule), time.perf_counter_ns()
        try:
            subject.call(*args, **options)
        except Exception:
            raised += 1
        took[i] = time.perf_counter_ns() - before
        waits[i] = waited_for_cpu(schedule) - waited
        sent += 1
    if not taken.wait(10):
        raise RuntimeError("the fault was not made")
    scene.drained(sent, 40)
    longest = max(range(wanted), key=took.__getitem__)
    return {
        "wanted": wanted,
        "sent": sent,
        **scene.verdict(sent),
        "longest_ms": took[longest] / 1e6,
        "longest_waited_for_cpu_ms": min(waits[longest], took[longest]) / 1e6,
        "over_10_ms": sum(t > 10e6 for t in took),
        "raised": raised,
        "errors": subject.errors,
        **watch.figures(),
        "stats": subject.stats(),
    }


def take(steps: list[tuple[float, Callable[[], None]]], began: float, taken: threading.Event) -> None:
    for at, step in steps:
        time.sleep(max(0.0, began + at - time.monotonic()))
        step()
    taken.set()


def waited_for_cpu(schedule: int) -> int:
    """Nanoseconds that this thread could have run and was not let; `schedule` is its schedstat."""
    return int(os.pread(schedule, 64, 0).split()[1])


class Watch:
    """Looks at memory and at our counters ten times a second.

    What is accepted during the fault is the payload that has to be held, and memory is what grows in the same seconds.
    """

    def __init__(self, subject: Subject, fault: float, away: float) -> None:
        self._stats, self._fault, self._away = subject.stats, fault, away
        self._base = self._peak = memory()
        self._accepted = self._held = self._later = 0
        self._looked = 0.0
        self._detected: float | None = None

    def look(self, at: float) -> None:
        if at - self._looked < 0.1:
            return
        self._looked = at
        now, stats = memory(), self._stats()
        accepted = stats.get("accepted_bytes", 0)
        if at < self._fault:
            self._base = self._peak = now
            self._accepted = accepted
        elif at < self._fault + self._away:
            self._peak, self._held = {k: max(v, now[k]) for k, v in self._peak.items()}, accepted
        self._later = max(self._later, now["anonymous"])
        if self._detected is None and at > self._fault and not stats.get("connected", True):
            self._detected = at - self._fault

    def figures(self) -> Result:
        return {
            "detected_s": self._detected,
            "anonymous": self._peak["anonymous"] - self._base["anonymous"],
            "mapped": self._peak["mapped"] - self._base["mapped"],
            "anonymous_later": self._later - self._base["anonymous"],
            "payload": self._held - self._accepted or None,
        }


def memory() -> dict[str, int]:
    """Bytes of this process: anonymous memory, and pages of files mapped into it."""
    found = {}
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("RssAnon", "RssFile"):
                found["anonymous" if name == "RssAnon" else "mapped"] = int(value.split()[0]) * 1024
    return found


# -- exit ------------------------------------------------------------------------------------------------------


def leave(scene: Scene, up: bool) -> Result:
    """500 events and the end of the program, nothing closed by hand; with the sink up, or gone just before.

    What lies in our spool and arrives when the program starts again is not lost.
    """
    child = start(scene, "emit")
    try:
        answer(child, "ready", 20)
        if not up:
            scene.sink.kill()
        tell(child, "go")
        began = int(answer(child, "began", 20))
        try:
            child.wait(EXIT_BOUND)
            took, killed = (time.monotonic_ns() - began) / 1e9, False
        except subprocess.TimeoutExpired:
            took, killed = EXIT_BOUND, True
    finally:
        end(child)
    time.sleep(0.5)
    at_exit = judge(scene.sink.numbers(), EXIT_EVENTS)
    if scene.peer.ours:
        if not up:
            scene.sink.start()
        child = start(scene, "adopt")
        try:
            answer(child, "ready", 20)
            scene.drained(EXIT_EVENTS, 20)
        finally:
            end(child)
    return {"exit_s": took, "killed": killed, "delivered": EXIT_EVENTS - at_exit["lost"], **scene.verdict(EXIT_EVENTS)}


def start(scene: Scene, role: str) -> subprocess.Popen[str]:
    place = {"port": scene.sink.port, "spool": str(scene.spool), "certificates": str(scene.sink.certificates), "role": role}
    command = [sys.executable, "-m", "bench.measure", "child", scene.name, json.dumps(place)]
    return subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdin is not None
    child.stdin.write(word + "\n")
    child.stdin.flush()


def answer(child: subprocess.Popen[str], word: str, within: float) -> str:
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], within)[0]:
        raise RuntimeError(f"the child did not say {word!r} within {within:.0f} s")
    said = child.stdout.readline().split()
    if said[:1] != [word]:
        raise RuntimeError(f"the child said {said!r}, expected {word!r}")
    return said[-1]


def end(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()


def child(name: str, port: int, spool: str, certificates: str, role: str) -> None:
    """The program that leaves (`emit`), or the same program started again (`adopt`)."""
    logging.raiseExceptions = False
    peer = PEERS[name]
    subject = peer.subject(peer.make(Place(port, Path(certificates), Path(spool))))
    args, options = prepared(subject, 1, WARM)[0]
    subject.call(*args, **options)
    if role == "adopt":
        print("ready", flush=True)
        time.sleep(60)
    work = prepared(subject, EXIT_EVENTS)
    time.sleep(0.5)
    print("ready", flush=True)
    sys.stdin.readline()
    for args, options in work:
        subject.call(*args, **options)
    print("began", time.monotonic_ns(), flush=True)


# -- the sink itself -------------------------------------------------------------------------------------------


def ceiling(scene: Scene, n: int, record: int) -> Result:
    """What the sink takes: frames of 900 bytes in TLS records of one event, or of `record` bytes."""
    import socket

    place = scene.place
    frames = [b"900 " + (b"SEQ%09d" % i).ljust(900, b"x") for i in range(n)]
    each = max(1, record // len(frames[0]))
    writes = [b"".join(frames[i : i + each]) for i in range(0, n, each)]
    sock = place.context().wrap_socket(socket.create_connection(place.address), server_hostname="127.0.0.1")
    busy, began = scene.sink.cpu(), time.perf_counter_ns()
    for data in writes:
        sock.sendall(data)
    ended, _ = scene.drained(n, 30)
    busy = scene.sink.cpu() - busy
    return {"n": n, "events_per_write": each, "events_per_second": n / (ended - began) * 1e9, "events_per_cpu_second": n / busy, **scene.verdict(n)}


MEASUREMENTS: dict[str, Callable[..., Result]] = {
    f.__name__: f for f in (burst, threads, idle, paced, outage, hang, hang_kill, partition, leave, ceiling, sidecar.gate, sidecar.throughput, sidecar.sizes, egress.egress)
}
SINK: dict[str, dict[str, bool]] = {"idle": {"stamps": True}, **{name: {"raw": True} for name in ("outage", "hang", "hang_kill", "partition")}}


def main() -> None:
    name, peer, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if name == "child":
        child(peer, **given)
        return
    options = SINK.get(name, {})
    scene = Scene(peer, Path(os.environ["BENCH_WORK"]), **{k: v for k, v in options.items() if k != "raw" or PEERS[peer].ours})
    try:
        result = MEASUREMENTS[name](scene, **given)
    finally:
        scene.sink.end()
        shutil.rmtree(scene.sink.folder, ignore_errors=True)
        shutil.rmtree(scene.spool, ignore_errors=True)
    print(json.dumps(result), flush=True)
    os._exit(0)  # how a peer leaves is a measurement of its own; here none may keep the run from going on


if __name__ == "__main__":
    main()
