"""The receiver and the store go away under load; every accepted event is in the store afterwards, once."""

from __future__ import annotations

import json
import threading
import time
import uuid

import pytest
from harness import Stack, eventually

from clawtrail import Recorder

RATE = 200  # events per second
SECONDS = 30


class Load(threading.Thread):
    """Records at a steady rate and writes down each event after it was accepted: the oracle of what must arrive."""

    def __init__(self, recorder: Recorder, session: str, seconds: float) -> None:
        super().__init__()
        self.accepted: dict[int, bytes] = {}
        self.longest = 0.0
        self._recorder, self._session, self._seconds = recorder, session, seconds

    def run(self) -> None:
        began = time.monotonic()
        for i in range(int(RATE * self._seconds)):
            time.sleep(max(0.0, began + i / RATE - time.monotonic()))
            at = time.monotonic()
            receipt = self._recorder.record("tool.call", "attempt", session=self._session, tool={"name": "load"}, params={"i": i})
            self.longest = max(self.longest, time.monotonic() - at)
            self.accepted[receipt.seq] = receipt.line


def assert_all_stored_once(stack: Stack, load: Load, session: str) -> None:
    query = f'{{job="audit", agent="omicron"}} | session="{session}"'
    stored = eventually(
        lambda: found if len(found := stack.query(query)) >= len(load.accepted) else None, 90, f"{len(load.accepted)} entries of {query}"
    )
    assert len(stored) == len(load.accepted)
    assert {int(e.labels["seq"]): e.line.encode() for e in stored} == load.accepted


@pytest.mark.stops("syslog-ng")
@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGSTOP", "SIGKILL"]], ids=["stopped", "hung, then killed"])
def test_a_receiver_that_stops_for_20_s_under_load_loses_nothing(running: Stack, signals: list[str]) -> None:
    """One that hangs before it dies takes with it what was sent meanwhile: two seconds of events that nobody read."""
    session = f"outage-{uuid.uuid4().hex[:8]}"
    recorder = running.recorder("omicron")
    load = Load(recorder, session, SECONDS)
    load.start()
    time.sleep(4)
    receiver = running.container("syslog-ng")
    for signal in signals:
        receiver.kill(signal)
        time.sleep(2)
    eventually(lambda: running.container("syslog-ng").status == "exited", what="receiver stopped")
    time.sleep(20)
    receiver.start()
    load.join()
    assert load.longest < 1.0, "the agent waited for the receiver"
    assert recorder.stats()["dropped"] == {}
    assert eventually(lambda: recorder.stats()["connected"], 40, "connected again")
    assert recorder.close(20), recorder.stats()
    assert_all_stored_once(running, load, session)


@pytest.mark.stops("loki")
def test_a_store_that_stops_for_10_s_under_load_loses_nothing(running: Stack) -> None:
    session = f"store-{uuid.uuid4().hex[:8]}"
    recorder = running.recorder("omicron")
    load = Load(recorder, session, 15)
    load.start()
    time.sleep(2)
    store = running.container("loki")
    store.kill("SIGKILL")
    time.sleep(10)
    store.start()
    load.join()
    assert recorder.close(20), recorder.stats()
    running.wait_healthy("loki")
    assert_all_stored_once(running, load, session)


SPEAK = """
import json, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect("/run/clawtrail/audit.sock")
lines = sock.makefile("rwb")
for n in range(int(sys.argv[2])):
    lines.write(json.dumps({"n": n, "kind": "tool.call", "outcome": "attempt", "tool": {"name": "load"}, "session": sys.argv[1], "params": {"i": n}}).encode() + b"\\n")
lines.flush()
print(sum(json.loads(lines.readline()) == {"ack": n} for n in range(int(sys.argv[2]))))
"""


@pytest.mark.stops("syslog-ng", "forwarder")
def test_what_the_forwarder_acknowledged_outlives_its_kill_while_the_receiver_is_away(running: Stack) -> None:
    session = f"spooled-{uuid.uuid4().hex[:8]}"
    receiver, forwarder = running.container("syslog-ng"), running.container("forwarder")
    receiver.kill("SIGKILL")
    eventually(lambda: running.container("syslog-ng").status == "exited", what="receiver stopped")
    said = forwarder.exec_run(["python3", "-c", SPEAK, session, "50"], user="1000")
    assert said.output.split() == [b"50"], said.output
    forwarder.kill("SIGKILL")
    eventually(lambda: running.container("forwarder").status == "exited", what="forwarder killed")
    receiver.start()
    forwarder.start()
    stored = running.find(f'{{job="audit", agent="openclaw"}} | session="{session}"', 50, 60)
    assert sorted(json.loads(e.line)["params"]["i"] for e in stored) == list(range(50))
    assert len({json.loads(e.line)["epoch"] for e in stored}) == 1
