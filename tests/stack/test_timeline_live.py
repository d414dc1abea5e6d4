"""One command shows a session over a real OpenClaw, its model proxy, its subagent and a Python agent in the same trace."""

from __future__ import annotations

import json
import os
from typing import Any

from harness import Stack, eventually
from test_commands import make

from clawtrail import context


def shown(running: Stack, session: str) -> list[dict[str, Any]]:
    done = make(running, "timeline", f"SESSION={session}", "JSON=1")
    return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []


def test_one_command_shows_a_session_over_a_real_openclaw_its_proxy_its_subagent_and_a_python_agent(running: Stack) -> None:
    name = f"timeline-{os.urandom(3).hex()}"
    session, child_task = f"agent:main:{name}", 'TOOL exec {"command": "echo from the subagent"}'
    done = running.turn(name, ("exec", {"command": "echo before"}), ("sessions_spawn", {"task": child_task, "label": "helper"}))
    assert done.returncode == 0, done.stdout + done.stderr
    started = json.loads(running.find(f'{{job="audit", agent="openclaw"}} | session="{session}" | event="run.start"')[0].line)
    trace = {"id": started["trace"]["id"], "span": os.urandom(8).hex(), "parent": started["trace"]["span"]}
    with running.recorder("omega") as recorder, context(session="nano-worker", run="w1", trace=trace):
        with recorder.action("fetch", params={"url": "https://docs.example"}, target={"type": "url", "id": "https://docs.example"}) as action:
            action.result("a page with \x1b[31mcolours\x1b[0m")

    def whole() -> list[dict[str, Any]]:
        rows = shown(running, session)
        kinds = {(row["agent"], row["event"]["kind"]) for row in rows}
        return rows if {("openclaw", "subagent.end"), ("openclaw", "run.end"), ("omega", "tool.result")} <= kinds else []

    rows = eventually(whole, 60, "the whole session on the timeline")
    place = {row["event"]["id"]: row["n"] for row in rows}

    def first(kind: str, tool: str | None = None, own: bool = True, agent: str = "openclaw") -> int:
        return next(row["n"] for row in rows if row["agent"] == agent and row["event"]["kind"] == kind and (row["event"]["session"] == session) is own
                    and tool in (None, row["event"].get("tool", {}).get("name")))  # fmt: skip

    # who asked, what was decided, what ran, what came back; the subagent after its start, the Python agent after the run
    assert first("run.start") < first("model.decision") < first("tool.call", "exec") < first("tool.result", "exec")
    assert first("tool.call", "sessions_spawn") < first("subagent.start") < first("run.start", own=False) < first("tool.call", "exec", own=False)
    assert first("run.start") < first("tool.call", "fetch", own=False, agent="omega") < first("tool.result", "fetch", own=False, agent="omega")
    assert {"hook", "proxy"} <= {row["event"]["model"]["via"] for row in rows if row["event"]["kind"] == "model.decision" and row["event"]["session"] == session}
    assert all(place[cause] < row["n"] for row in rows if (cause := row["event"].get("caused_by")) in place)
    assert all(row["depth"] > 0 for row in rows if row["event"]["session"] not in (session, None))

    page = make(running, "timeline", f"SESSION={session}")
    assert page.returncode == 0 and all(c.isprintable() for line in page.stdout.splitlines() for c in line)
    for said in ('exec {"command":"echo before"}', "sessions_spawn", "colours", "nano-worker  omega, 2 events", f"s1  {session}  openclaw"):
        assert said in page.stdout, page.stdout
    print(page.stdout)


def test_a_session_that_is_not_there_is_said_to_be_none_with_exit_code_1(running: Stack) -> None:
    done = make(running, "timeline", "SESSION=agent:main:nobody-was-here")
    assert done.returncode != 0 and "no event of the session 'agent:main:nobody-was-here'" in done.stderr and not done.stdout
    done = make(running, "timeline")
    assert done.returncode != 0 and "SESSION is empty" in done.stdout + done.stderr
