"""Gates: an action waits until its event has come as far as its category asks for, and no longer than the deadline."""

import asyncio
import json
import threading
import time

import pytest

from clawtrail import proof
from clawtrail.breakglass import BreakGlass
from clawtrail.errors import ConfigurationError, EventError, GateClosed, QueueFull
from clawtrail.gates import CATEGORIES, Gates
from sidecar import Client, call, folder, start  # noqa: F401
from support import eventually

# -- what a person writes ------------------------------------------------------------------------------------------


def test_one_word_is_the_level_of_every_category_and_pairs_are_those_of_some():
    assert {Gates.parse("sent").level([c]) for c in CATEGORIES} == {"sent"}
    gates = Gates.parse("tool:off, credential:stored", 5, "barrier")
    assert [gates.level([c]) for c in ("tool", "credential", "model")] == ["off", "stored", "spooled"]
    assert gates.level(["tool", "credential"]) == "stored" and gates.level([]) == "spooled" and gates.deadline == 5
    assert Gates.parse("").level(["tool"]) == "spooled"


WRONG = [
    ("tool:written", "level 'written'; expected one of off, spooled, sent, stored"),
    ("tools:sent", "'tools:sent'; expected one level, or category:level with a category of config, credential, message, model, policy, session, tool"),
    ("system:off", "'system:off'; expected"),
    ("tool:sent,off", "'off'; expected one level, or category:level"),
    ("tool:sent,tool:off", "tool is there twice, sent and off; expected one level"),
    ("tool:", "level ''; expected one of"),
    ("tool:sent,", "''; expected"),
    ("credential:stored", "credential:stored with the proof 'window', which says of no event that it is stored; expected the proof barrier or the https URL"),
]


@pytest.mark.parametrize("text, said", WRONG)
def test_a_gate_that_is_none_is_refused_with_what_was_found_and_expected(text, said):
    with pytest.raises(ConfigurationError) as refused:
        Gates.parse(text)
    assert said in str(refused.value)


@pytest.mark.parametrize("deadline", ["soon", 0, "61", -1, float("nan"), float("inf")])
def test_a_deadline_that_is_none_is_refused(deadline):
    with pytest.raises(ConfigurationError, match="expected seconds, 0.1 to 60"):
        Gates.parse("sent", deadline)


# -- how far an event has come -------------------------------------------------------------------------------------


def reach(recorder, level, timeout=10.0, **fields):
    async def run():
        return await recorder.reached(recorder.record("tool.call", "attempt", **{"tool": {"name": "exec"}, **fields}), level, timeout)

    return asyncio.run(run())


@pytest.mark.parametrize("durability", ["memory", "write", "disk"])
@pytest.mark.parametrize("level", ["off", "spooled", "sent", "stored"])
def test_every_level_is_reached_while_the_receiver_is_there(level, durability, receiver, make_recorder):
    recorder = make_recorder(receiver.address, durability=durability, proof="barrier")
    assert reach(recorder, level, tool={"name": level}) is True
    if level == "stored":
        assert [e["tool"]["name"] for e in receiver.events("tool.call")] == [level], "stored was said before it was read"


def test_without_a_receiver_an_event_is_spooled_and_not_sent(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, proof="barrier")
    assert [reach(recorder, level, 0.3) for level in ("off", "spooled", "sent", "stored")] == [True, True, False, False]
    receiver.start()
    assert reach(recorder, "stored") is True


def test_what_a_receiver_never_reads_is_sent_and_not_stored(make_recorder, receiver):
    recorder = make_recorder(receiver.address, proof=Nothing())
    assert reach(recorder, "sent") is True and reach(recorder, "stored", 1.5) is False


class Nothing(proof.Watermark):
    """A store that has nothing yet."""

    upto = 0

    def stored(self, epochs):
        return {epoch: self.upto for epoch in epochs}


def test_an_event_is_stored_as_soon_as_the_watermark_passes_it_and_not_before(make_recorder, receiver):
    store = Nothing()
    recorder = make_recorder(receiver.address, proof=store)

    async def run():
        first = recorder.record("tool.call", "attempt", tool={"name": "exec"})
        store.upto = first.seq
        assert await recorder.reached(first, "stored", 10)
        second = recorder.record("tool.call", "attempt", tool={"name": "exec"})
        assert not await recorder.reached(second, "stored", 1.5)
        store.upto = second.seq
        assert await recorder.reached(second, "stored", 10)

    asyncio.run(run())


def test_many_that_wait_are_each_woken_by_their_own_event(make_recorder, receiver):
    recorder = make_recorder(receiver.address, proof="barrier", durability="disk")

    async def run():
        receipts = [recorder.record("tool.call", "attempt", tool={"name": "exec"}) for _ in range(200)]
        return await asyncio.gather(*(recorder.reached(r, level, 15) for r in receipts for level in ("spooled", "sent", "stored")))

    assert asyncio.run(run()) == [True] * 600
    assert not recorder._progress._waiting, "who has stopped waiting is forgotten"


def test_threads_wait_as_well_as_event_loops(make_recorder, receiver):
    recorder, reached = make_recorder(receiver.address, proof="barrier"), []
    threads = [threading.Thread(target=lambda: reached.append(recorder.wait_reached(recorder.record("tool.call", "attempt", tool={"name": "exec"}), "stored", 15))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert reached == [True] * 8


# -- the forwarder's answers -----------------------------------------------------------------------------------------


def gated(n, **more):
    return call(n, gate=True, rid=f"r{n}") | more


def test_an_action_waits_until_its_event_is_sent_and_others_do_not_wait_for_it(start, receiver):
    receiver.kill()
    client = Client(start(gate="tool:sent", gate_deadline=30).path)
    client.send(gated(1), {"n": 2, "ping": True}, call(3))
    assert [client.answer(), client.answer()] == [{"ack": 2}, {"ack": 3}], "a record that nobody waits for is acknowledged when it is spooled"
    receiver.start()
    assert client.answer() == {"ack": 1}
    assert eventually(lambda: receiver.events("tool.call"))[0]["params"]["command"] == "echo 1"


def test_at_the_deadline_the_answer_is_a_refusal_that_a_person_understands_and_it_is_on_record(start, receiver):
    receiver.kill()
    client = Client(start(gate="tool:sent", gate_deadline=0.3).path)
    refusal = client.ask(gated(1))
    assert refusal["ok"] is False and refusal["retry"] is True
    assert "This action was not carried out: its audit record was not sent to the audit server within 0.3 s" in refusal["error"]
    assert "Connection refused" in refusal["error"] and "tell whoever operates this agent" in refusal["error"]
    receiver.start()
    (decision,) = eventually(lambda: receiver.events("policy.decision"))
    (attempt,) = receiver.events("tool.call")
    assert decision["outcome"] == "denied" and decision["caused_by"] == attempt["id"]
    assert decision["policy"]["rule"] == "gate.sent" and decision["policy"]["reason"] == refusal["error"]
    assert (decision["session"], decision["run"], decision["tool"]["name"]) == ("s1", "r1", "exec")
    eventually(lambda: client.ask(gated(1)) == {"ack": 1})  # sent again under the same id: recorded once, answered by where it is now
    assert len(receiver.events("tool.call")) == 1


def test_the_highest_gate_of_what_a_call_touches_decides(start, receiver):
    receiver.kill()
    client = Client(start(gate="credential:sent", gate_deadline=0.3).path)
    harmless = gated(1)
    reaching = gated(2, event={"toolName": "exec", "toolCallId": "c2", "params": {"command": "cat ~/.ssh/id_ed25519"}})
    assert client.ask(harmless) == {"ack": 1} and client.ask(reaching)["ok"] is False


def test_stored_waits_for_the_proof(start, receiver):
    client = Client(start(gate="stored", gate_deadline=20, proof="barrier").path)
    assert client.ask(gated(1)) == {"ack": 1}
    assert [e["params"]["command"] for e in receiver.events("tool.call")] == ["echo 1"], "it was read before it was acknowledged"


def test_with_the_gate_off_an_action_runs_though_the_spool_is_full_and_that_is_on_record(start, receiver):
    receiver.kill()
    client = Client(start(gate="tool:off").path)
    full = next(n for n in range(1, 5000) if "ok" in client.ask(call(n)))
    assert client.ask(gated(9000)) == {"ack": 9000}
    assert client.ask({"n": 9001, "gate": True, "hook": "before_agent_run", "event": {}, "ctx": {}})["ok"] is False, "only that category is off"
    receiver.start()
    eventually(lambda: client.ask(call(9002, rid="later")) == {"ack": 9002})
    eventually(lambda: sum(e["dropped"]["n"] for e in receiver.events("system.drop")) >= 2, state=lambda: full)


def test_a_disk_that_fails_keeps_the_gate_closed(start, receiver, folder, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nreal = os.fdatasync\n"
        f"def broken(fd):\n    if os.path.exists({str(tmp_path / 'broken')!r}): raise OSError(5, 'Input/output error')\n    return real(fd)\n"
        "os.fdatasync = broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{__import__('os').environ.get('PYTHONPATH', '')}")
    client = Client(start(durability="disk").path)
    assert client.ask(gated(1)) == {"ack": 1}
    (tmp_path / "broken").touch()
    refusal = client.ask(gated(2))
    assert refusal["ok"] is False and "Input/output error" in refusal["error"] and "tell whoever operates this agent" in refusal["error"]
    (tmp_path / "broken").unlink()
    assert client.ask(gated(3)) == {"ack": 3}, "the next one lies in a new segment"
    eventually(lambda: receiver.events("policy.decision"))


# -- break-glass -----------------------------------------------------------------------------------------------------


@pytest.fixture
def glass(receiver, make_recorder):
    recorder = make_recorder(receiver.address)
    return BreakGlass(recorder, recorder.folder)


def decisions(receiver, rule):
    return [e for e in receiver.events("policy.decision") if e["policy"]["rule"] == rule]


def test_an_opening_is_on_record_with_who_why_and_until_when_and_alarms(glass, receiver):
    state = glass.start(60, "the archive disk is being replaced", "ada")
    assert glass.open and state["gate_reason"] == "the archive disk is being replaced" and state["gate_by"] == "ada"
    (opened,) = eventually(lambda: decisions(receiver, "gate.open"))
    assert opened["flag"] == {"rule": "gate.open", "severity": "critical", "technique": "T1562.001"}
    assert opened["actor"]["id"] == "ada" and state["gate_open"] in opened["policy"]["after"]
    assert opened["policy"]["reason"] == "the archive disk is being replaced"


@pytest.mark.parametrize("seconds, reason", [(0, "why not"), (-1, "why not"), (86401, "why not"), ("15m", "why not"), (60, ""), (60, "x" * 501), (60, None)])
def test_an_opening_without_end_or_reason_is_refused(glass, seconds, reason):
    with pytest.raises(EventError, match="expected"):
        glass.start(seconds, reason, "ada")
    assert not glass.open


def test_what_ran_unrecorded_is_counted_and_reported_when_it_ends(glass, receiver):
    glass.start(60, "the receiver is gone", "ada")
    for accepted in (True, False, False):
        glass.pass_by(accepted)
    glass.stop("bob")
    assert not glass.open and glass.state() == {}
    (closed,) = eventually(lambda: decisions(receiver, "gate.close"))
    (opened,) = decisions(receiver, "gate.open")
    assert closed["caused_by"] == opened["id"] and closed["actor"]["id"] == "bob" and closed["health"] == {"passed": 3, "unrecorded": 2}
    (drop,) = receiver.events("system.drop")
    assert (drop["dropped"]["n"], drop["dropped"]["reason"]) == (2, "gate-open")
    with pytest.raises(EventError, match="closed"):
        glass.stop("bob")


def test_it_ends_by_itself_even_when_nobody_looks(glass, receiver, monkeypatch):
    glass.start(1, "just a moment", "ada")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.01)
    assert not glass.open, "at once, before any tick"
    glass.tick()
    assert eventually(lambda: decisions(receiver, "gate.close"))[0]["policy"]["reason"] == "its time is over"


def saved(glass, recorder):
    """It is remembered whole, and nothing writes any more, as of a process that was killed."""
    file = recorder.folder / "break-glass.json"
    eventually(lambda: glass.tick() or (file.exists() and json.loads(file.read_text())["id"]))
    glass._saving.join()


def test_a_restart_within_its_time_keeps_it_open_to_the_same_moment_and_one_after_it_closes(receiver, make_recorder, monkeypatch):
    recorder = make_recorder(receiver.address)
    before = BreakGlass(recorder, recorder.folder)
    until = before.start(600, "a long repair", "ada")["gate_open"]
    saved(before, recorder)
    again = BreakGlass(recorder, recorder.folder)
    assert again.open and again.state()["gate_open"] == until
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 601)
    late = BreakGlass(recorder, recorder.folder)
    assert not late.open
    late.tick()
    assert not (recorder.folder / "break-glass.json").exists() and not BreakGlass(recorder, recorder.folder).open
    eventually(lambda: decisions(receiver, "gate.close"))


def test_a_clock_that_was_set_back_prolongs_nothing(receiver, make_recorder, monkeypatch):
    recorder = make_recorder(receiver.address)
    glass = BreakGlass(recorder, recorder.folder)
    glass.start(60, "a repair", "ada")
    saved(glass, recorder)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert not BreakGlass(recorder, recorder.folder).open


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"until": "x"}', "\0\0"])
def test_a_file_that_is_none_leaves_the_gates_closed(content, receiver, make_recorder):
    recorder = make_recorder(receiver.address)
    (recorder.folder / "break-glass.json").write_text(content)
    assert not BreakGlass(recorder, recorder.folder).open


def test_an_opening_that_finds_no_room_is_recorded_when_there_is_some(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, when_full="fail")
    with pytest.raises(QueueFull):
        for _ in range(5000):
            recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"text": "x" * 1500})
    glass = BreakGlass(recorder, recorder.folder)
    glass.start(60, "the receiver is gone and work must go on", "ada")
    glass.pass_by(accepted=False)
    assert glass.open
    glass.stop("ada")
    receiver.start()
    eventually(lambda: glass.tick() or (decisions(receiver, "gate.open") and decisions(receiver, "gate.close")))
    assert [e["dropped"]["n"] for e in receiver.events("system.drop") if e["dropped"]["reason"] == "gate-open"] == [1]


# -- Python agents ---------------------------------------------------------------------------------------------------


def test_a_python_action_waits_for_its_gate_and_does_not_run_without(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, gate="tool:sent", gate_deadline=0.3)
    ran = []

    @recorder.action()
    def act():
        ran.append(1)

    with pytest.raises(GateClosed, match="not sent to the audit server within 0.3 s"):
        act()
    assert ran == []
    with recorder.action("other", gate="spooled"):
        ran.append(2)
    receiver.start()
    eventually(lambda: receiver.events("tool.result"))
    act()
    assert ran == [2, 1]
    attempt, denied, decision = receiver.events("tool.call")[0], receiver.events("tool.result")[0], receiver.events("policy.decision")[0]
    assert denied["outcome"] == "denied" and attempt["id"] == denied["caused_by"] == decision["caused_by"]


def test_an_awaited_action_waits_for_the_proof(receiver, make_recorder):
    recorder = make_recorder(receiver.address, proof="barrier", gate="stored", gate_deadline=20)

    async def run():
        async with recorder.action("exec"):
            return len(receiver.events("tool.call"))

    assert asyncio.run(run()) == 1


def test_a_gate_that_would_stop_an_event_loop_is_refused(receiver, make_recorder):
    recorder = make_recorder(receiver.address)

    async def run():
        with recorder.action("exec", gate="sent"):
            pass

    with pytest.raises(ConfigurationError, match="expected `async with`"):
        asyncio.run(run())


def test_with_the_gate_off_a_python_action_runs_though_nothing_can_be_recorded(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, when_full="fail")
    with pytest.raises(QueueFull):
        for _ in range(5000):
            recorder.record("log.record", "unknown", content={"excerpt": "x" * 1500})
    with pytest.raises(QueueFull), recorder.action("exec"):
        raise AssertionError("it ran")
    with recorder.action("exec", gate="off") as act:
        assert act.attempt is None
