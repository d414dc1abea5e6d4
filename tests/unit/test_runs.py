"""What is open in the gateway: by run, trace and span, in this process and in the one after it."""

import json

import pytest

from clawtrail import runs as module
from clawtrail.runs import Runs

TRACE, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "0" * 31 + "1"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def runs(clock):
    return Runs(clock=clock)


def test_a_run_is_found_by_its_trace_until_a_moment_after_its_end(runs, clock):
    assert runs.by_trace(TRACE) is None and runs.by_trace(None) is None
    runs.started("r1", "s1", TRACE)
    assert runs.by_trace(TRACE).run == "r1" and runs.by_trace(TRACE).session == "s1" and runs.by_trace(OTHER) is None
    runs.ended("r1")
    clock.now += module.GRACE - 0.1
    assert runs.by_trace(TRACE).run == "r1"
    clock.now += 0.2
    assert runs.by_trace(TRACE) is None and runs.open == 0


def test_runs_that_share_a_trace_are_all_found_the_newest_first_to_be_taken(runs, clock):
    runs.started("parent", "s", TRACE)
    runs.started("child", "s:sub", TRACE)
    assert runs.by_trace(TRACE).run == "child" and [r.run for r in runs.all_of(TRACE)] == ["parent", "child"]
    runs.ended("child")
    clock.now += module.GRACE + 1
    assert runs.by_trace(TRACE).run == "parent"


def test_a_run_without_a_trace_opens_nothing_to_a_request_without_one(runs):
    runs.started("r1", "s1", None)
    assert runs.by_trace(None) is None and runs.by_trace("") is None and runs.open == 1


def test_a_plugin_that_says_nothing_is_not_alive(runs, clock):
    assert not runs.alive() and runs.silence() is None
    runs.beat()
    clock.now += module.SILENT
    assert runs.alive()
    clock.now += 0.1
    assert not runs.alive()


def test_a_tool_is_open_until_its_result(runs):
    runs.tool_started("c1", "exec")
    runs.tool_started("c2", "read")
    runs.tool_ended("c2")
    runs.tool_ended("c3")
    assert [(t.call_id, t.tool) for t in runs.open_tools()] == [("c1", "exec")]


@pytest.mark.parametrize("first", ["proxy", "hook"])
def test_a_request_and_its_hook_meet_in_either_order(runs, clock, first):
    runs.started("r1", "s1", TRACE)
    told = [lambda: runs.asked("span", runs.by_trace(TRACE), "e1"), lambda: runs.called("span", "r1", "s1", "e2")]
    for tell in told if first == "proxy" else reversed(told):
        tell()
    runs.asked("span", None, "e3")  # the same call, tried again
    clock.now += 2 * module.JOIN
    assert runs.alone() == [] and runs.by_span("span").run == "r1"


def test_half_of_a_model_call_is_told_once_and_only_after_its_time(runs, clock):
    runs.asked("a", None, "e1")
    runs.called("b", "r1", "s1", "e2")
    runs.called("c", "r1", "s1", "e3")
    runs.came_to_nothing("c")
    clock.now += module.JOIN - 1
    assert runs.alone() == []
    clock.now += 2
    assert [(a.by, a.span, a.run, a.event) for a in runs.alone()] == [("proxy", "a", None, "e1"), ("hook", "b", "r1", "e2")]
    assert runs.alone() == []


def test_open_runs_are_known_to_the_next_process_and_ended_ones_are_not(tmp_path):
    path = tmp_path / "state" / "runs"
    before = Runs(path)
    before.started("r1", "s1", TRACE)
    before.started("r2", None, OTHER)
    before.ended("r2")
    with path.open("ab") as f:
        f.write(b'{"run": "torn')
    after = Runs(path)
    assert after.by_trace(TRACE).session == "s1" and after.by_trace(OTHER) is None and not after.alive()
    after.started("r3", "s3", OTHER)
    assert Runs(path).by_trace(OTHER).run == "r3"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_the_file_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILE_MAX", 4096)
    path = tmp_path / "runs"
    runs = Runs(path)
    runs.started("stays", "s", TRACE)
    for n in range(500):
        runs.started(f"r{n}", "s", OTHER)
        runs.ended(f"r{n}")
        assert path.stat().st_size <= 4096 + 200
    assert Runs(path).by_trace(TRACE).run == "stays" and json.loads(path.read_text().splitlines()[0])["run"] == "stays"


def test_a_run_that_cannot_be_saved_is_open_all_the_same_and_counted(tmp_path):
    (tmp_path / "file").write_text("")
    runs = Runs(tmp_path / "file" / "runs")
    runs.started("r1", "s1", TRACE)
    assert runs.by_trace(TRACE) and runs.unsaved >= 2


def test_what_is_remembered_is_bounded(runs, monkeypatch):
    monkeypatch.setattr(module, "_REMEMBER", 100)
    for n in range(1000):
        runs.started(f"r{n}", "s", f"t{n}")
        runs.tool_started(f"c{n}", "exec")
        runs.asked(f"a{n}", None, "e")
        runs.called(f"b{n}", "r", "s", "e")
    assert runs.open == 100 and len(runs.open_tools()) == 100 and len(runs._traces) == 100
    assert max(len(runs._asked), len(runs._called), len(runs._spans)) == 100
