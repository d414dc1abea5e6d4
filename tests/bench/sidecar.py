"""The forwarder as a process of its own, spoken to over its socket as the plugin does: what a gate costs an agent.

The records are those that OpenClaw's hooks give, with their real shape and size; the client is this process.
"""

from __future__ import annotations

import json
import random
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

from .stage import TESTS, eventually

if TYPE_CHECKING:
    from .measure import Result, Scene

BULK = 64  #: records that the plugin sends before it waits for their answers
THINK = 0.002  #: seconds of an agent between two tool calls
_COMMANDS = ("ls -la src", "git status --short && git log --oneline -5", "python3 -m pytest -q tests/unit", "grep -rn TODO src | head -20",
             "curl -s https://api.example.com/v1/orders?limit=50", "sed -n '1,80p' README.md", "npm run build --silent 2>&1 | tail -5")  # fmt: skip
_LINES = ("drwxr-xr-x  4 agent agent  4096 Nov 23 12:04 src", " M src/clawtrail/spool.py", "49 passed, 2 skipped in 3.41s", "src/app.py:118:    # TODO: retry",
          '{"id":"ord_48211","status":"open","total":"118.40"}', "The flight recorder for AI agents.", "built in 1.92s, 48 modules")  # fmt: skip


def calls(count: int, seed: int = 1) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of records, before_tool_call and after_tool_call, as the plugin writes them."""
    rnd = random.Random(seed)

    def hexa(n: int) -> str:
        return f"{rnd.getrandbits(4 * n):0{n}x}"

    for number in range(count):
        if number % 20 == 0:  # a run has about so many
            run, session = f"chatcmpl_{uuid.UUID(int=rnd.getrandbits(128))}", f"agent:main:{rnd.choice(('main', 'telegram:dm:5521', 'cron:nightly'))}"
            trace = {"traceId": hexa(32), "spanId": hexa(16), "parentSpanId": hexa(16), "traceFlags": "01"}
        which = rnd.randrange(len(_COMMANDS))
        call = f"call_{hexa(12)}"
        params = {"command": f"{_COMMANDS[which]} # SEQ{number:09d}", "workdir": "/state/workspace"}
        ctx = {"agentId": "main", "sessionKey": session, "sessionId": str(uuid.UUID(int=rnd.getrandbits(128))), "runId": run, "toolName": "exec",
               "toolCallId": call, "trace": trace, "channelId": "webchat"}  # fmt: skip
        at = "2026-11-23T14:47:40.210Z"
        before = {"rid": str(uuid.UUID(int=rnd.getrandbits(128))), "hook": "before_tool_call", "at": at, "ctx": ctx,
                  "event": {"toolName": "exec", "params": params, "runId": run, "toolCallId": call}}  # fmt: skip
        text = "\n".join([_LINES[which]] * rnd.choice((1, 2, 4, 8, 20)))
        details = {"status": "completed", "exitCode": 0, "durationMs": rnd.randrange(20, 900), "aggregated": text, "cwd": "/state/workspace"}
        after = {"rid": str(uuid.UUID(int=rnd.getrandbits(128))), "hook": "after_tool_call", "at": at, "ctx": {k: v for k, v in ctx.items() if k != "trace"},
                 "event": {"toolName": "exec", "params": params, "runId": run, "toolCallId": call, "durationMs": details["durationMs"],
                           "result": {"content": [{"type": "text", "text": text}], "details": details}}}  # fmt: skip
        yield before, after


class Forwarder:
    """The real command on a socket of its own."""

    def __init__(self, scene: Scene, durability: str) -> None:
        self.path = scene.spool / "audit.sock"
        self._log = (scene.spool / "log").open("wb")
        command = [sys.executable, "-m", "clawtrail.cli", "forwarder", "--socket", str(self.path), "--any-process", "--durability", durability,
                   "--receiver", f"127.0.0.1:{scene.sink.port}", "--tls", str(scene.sink.certificates), "--agent", "bench",
                   "--spool", str(scene.spool / "spool")]  # fmt: skip
        self._process = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.DEVNULL, stderr=self._log)
        if not eventually(self.path.is_socket, 20):
            raise RuntimeError(f"the forwarder does not listen: {(scene.spool / 'log').read_text()[-500:]}")

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        sock.connect(str(self.path))
        return sock

    def memory(self) -> tuple[int, int]:
        """Bytes: resident at most so far, and of that anonymous now."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024, int(status["RssAnon"].split()[0]) * 1024

    def cpu(self) -> float:
        """Seconds of processor time."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Busy:
    """Programs that want every processor while the measurement runs."""

    def __init__(self, count: int) -> None:
        self._processes = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"]) for _ in range(count)]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def _encoded(n: int, record: dict[str, Any], gate: bool = False) -> bytes:
    return json.dumps({"n": n, **({"gate": True} if gate else {}), **record}, separators=(",", ":")).encode() + b"\n"


def _answers(sock: socket.socket, count: int) -> int:
    """How many of the next `count` answers were a no; there must be no others under way."""
    buffer = b""
    while buffer.count(b"\n") < count:
        if not (data := sock.recv(65536)):
            raise RuntimeError(f"the forwarder hung up: {buffer[-200:]!r}")
        buffer += data
    return buffer.count(b'"ok": false')


def gate(scene: Scene, n: int, durability: str = "disk", busy: int = 0) -> Result:
    """One agent: a tool call waits for its answer, its outcome goes over the other lane and is not waited for."""
    from .measure import quantiles

    forwarder, load = Forwarder(scene, durability), None
    try:
        gates, bulk = forwarder.connect(), forwarder.connect()
        work = [(_encoded(i, b, True), _encoded(i, a)) for i, (b, a) in enumerate(calls(n + 200))]
        load = Busy(busy)
        took: list[int] = []
        pings: list[int] = []
        refused = 0
        for before, after in work:
            began = time.perf_counter_ns()
            gates.sendall(b'{"n":0,"ping":true}\n')
            _answers(gates, 1)
            pings.append(time.perf_counter_ns() - began)
            began = time.perf_counter_ns()
            gates.sendall(before)
            refused += _answers(gates, 1)
            took.append(time.perf_counter_ns() - began)
            bulk.sendall(after)
            time.sleep(THINK)
            while select.select([bulk], [], [], 0)[0]:
                bulk.recv(65536)
        return {"n": n, "refused": refused, **quantiles(took[200:]), "ping": quantiles(pings[200:])["p50"], "ping99": quantiles(pings[200:])["p99"]}
    finally:
        if load is not None:
            load.end()
        forwarder.end()


def throughput(scene: Scene, n: int, durability: str = "write") -> Result:
    """As the plugin's lane for what nobody waits for: many records, then their answers. From the first byte to the last answer."""
    forwarder = Forwarder(scene, durability)
    try:
        records = [record for pair in calls(n // 2) for record in pair]
        work = [_encoded(i, record) for i, record in enumerate(records)]
        batches = [b"".join(work[i : i + BULK]) for i in range(0, len(work), BULK)]
        sock = forwarder.connect()
        warm = [_encoded(i, record) for i, record in enumerate(r for pair in calls(100, 7) for r in pair)]
        sock.sendall(b"".join(warm))
        _answers(sock, len(warm))
        ahead = threading.Semaphore(4 * BULK)  # records under way, so that a pause of this process is none of the forwarder's
        answers = [0, 0]  # all, and those that were a no

        def read() -> None:
            while answers[0] < len(work) and (data := sock.recv(65536)):
                count = data.count(b"\n")
                answers[0] += count
                answers[1] += data.count(b"false")
                ahead.release(count or 1)

        reader = threading.Thread(target=read, daemon=True)
        spent, began = forwarder.cpu(), time.perf_counter_ns()
        reader.start()
        for batch in batches:
            for _ in range(BULK):
                ahead.acquire()
            sock.sendall(batch)
        reader.join(60)
        seconds = (time.perf_counter_ns() - began) / 1e9
        resident, anonymous = forwarder.memory()
        if answers[0] != len(work):
            raise RuntimeError("answers are missing")
        return {"n": n, "refused": answers[1], "per_second": n / seconds, "cpu": (forwarder.cpu() - spent) / n * 1e6, "resident": resident,
                "anonymous": anonymous}  # fmt: skip
    finally:
        forwarder.end()


def sizes(scene: Scene, n: int) -> Result:
    """Bytes of the stored lines of a tool call: its attempt, its outcome."""
    from clawtrail import Recorder
    from clawtrail.adapters.openclaw import OpenClaw

    with Recorder(("127.0.0.1", scene.sink.port), scene.sink.certificates, agent="bench", durability="memory") as recorder:
        openclaw = OpenClaw(recorder)
        attempt, outcome, both = [], [], []
        for before, after in calls(n):
            first, second = (sum(len(one.receipt.line) for one in openclaw.take(record)) for record in (before, after))
            attempt.append(first)
            outcome.append(second)
            both.append(first + second)
    return {"n": n, "attempt": statistics.median(attempt), "outcome": statistics.median(outcome), "both": statistics.median(both)}
