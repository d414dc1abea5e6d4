"""Rules that need a session's history, for which OpenClaw gives no occasion: told by a program of its own through `clawtrail pipe`.

It says what happened, and no flag: those are the rules' own. Each rule stands beside what is almost the same and no case
for it. What the real gateway gives occasion for is in test_played, test_coverage and test_bypass; test_fields sees to it
that no rule is left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from harness import Stack

AGENT = "house-bot"  #: whose flags test_fields takes for set by rules
SAM = {"type": "user", "id": "sam", "auth": "verified", "owner": True, "tenant": "acme"}
GUEST = {"type": "user", "id": "guest-7", "auth": "verified", "owner": False}
Line = dict[str, Any]


def call(name: str, actor: Line, kind: str = "mcp", **more: Any) -> Line:
    return {"kind": "tool.call", "outcome": "attempt", "tool": {"name": name, "type": kind, "call_id": f"{name}-1"}, "params": {}, "actor": actor, **more}


def change(what: str, name: str, after: str, **more: str) -> Line:
    return {"kind": "config.change", "change": {"what": what, "name": name, "after": after, **more}}


def login(who: str, address: str) -> Line:
    return {"kind": "auth.login", "actor": {"type": "user", "id": who, "auth": "verified", "addr": address}}


def answered(n: int, waited: int) -> Line:
    return {"kind": "approval.result", "approval": {"id": f"a{n}", "state": "allow-once", "by": "sam", "waited_ms": waited}}


def said(text: str, actor: Line, **content: str) -> list[Line]:
    return [{"kind": "run.start", "outcome": "attempt", "actor": actor}, {"kind": "message.out", "content": {"excerpt": text, "size": len(text), **content}}]


def result(tenant: str) -> list[Line]:
    return [{"kind": "run.start", "outcome": "attempt", "actor": SAM},
            {"kind": "tool.result", "tool": {"name": "crm__tasks", "type": "mcp"}, "store": {"kind": "external", "op": "read", "origin": f"tenant:{tenant}", "n": 3}}]  # fmt: skip


#: Rule → what happens, the last of it being the case; and what is almost the same.
CASES: dict[str, tuple[list[Line], list[Line]]] = {
    "tool.by-unverified": ([call("crm__read", {"id": "kim", "display": "Kim", "auth": "none"})], [call("crm__read", SAM)]),
    "tool.privileged-by-unprivileged": (
        [call("wp__update_user", {**GUEST, "role": "subscriber"})],
        [call("wp__update_user", {**GUEST, "role": "subscriber"}, policy={"verdict": "allow"})],
    ),
    "tenant.mismatch": (result("globex"), result("acme")),
    "pii.to-non-owner": (said("her number is on file", GUEST, classes="ssn"), said("her number is on file", SAM, classes="ssn")),
    "auth.new-device": ([login("phone-1", "192.0.2.1"), login("phone-2", "192.0.2.2")], [login("phone-1", "192.0.2.1"), login("phone-1", "192.0.2.1")]),
    "auth.new-source": ([login("phone-1", "192.0.2.1"), login("phone-1", "203.0.113.9")], [login("phone-1", "192.0.2.1"), login("phone-1", "192.0.2.1")]),
    "tool.definition-changed": (
        [change("tool", "crm__read", "2" * 16, before="1" * 16)],
        [change("tool", "crm__read", "2" * 16, before="none")],
    ),
    "capability.added-by-agent": ([change("plugin", "stealth", "1.0", by="agent")], [change("plugin", "stealth", "1.0", by="operator")]),
    "capability.changed-after-approval": (
        [change("mcp", "crm", "1" * 16), change("mcp", "crm", "2" * 16)],
        [change("mcp", "crm", "1" * 16), change("mcp", "crm", "1" * 16)],
    ),
    "approval.rubber-stamp": ([answered(n, 300) for n in range(3)], [answered(n, 30_000) for n in range(3)]),
    "message.loop": (
        [{"kind": "message.in", "peer": {"agent": "other-bot", "session": "o1", "proof": "cert"}, "content": {"excerpt": "and you?", "size": 8}}] * 61,
        [{"kind": "message.in", "peer": {"agent": "other-bot", "session": "o1", "proof": "cert"}, "content": {"excerpt": "and you?", "size": 8}}] * 60,
    ),
}  # fmt: skip


def pipe(stack: Stack, session: str, lines: list[Line]) -> None:
    """The lines as a program writes them: one session, one process."""
    host, port = stack.receiver
    command = [sys.executable, "-m", "clawtrail", "pipe", "--receiver", f"{host}:{port}", "--tls", str(stack.client(AGENT)), "--agent", AGENT,
               "--spool", str(stack.folder / "spool"), "--session", session, "--run", f"run-{session}"]  # fmt: skip
    done = subprocess.run(command, input="".join(json.dumps(line) + "\n" for line in lines), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def flagged(event: dict[str, Any]) -> list[str]:
    flag = event.get("flag", {})
    return [*filter(None, [flag.get("rule")]), *str(flag.get("also", "")).split()]


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_that_needs_a_history_flags_its_case_and_not_what_is_almost_one(rule: str, running: Stack) -> None:
    for name, lines in zip(("case", "almost"), CASES[rule]):
        session = f"{rule}-{name}"
        pipe(running, session, lines)
        found = running.find(f'{{job="audit", agent="{AGENT}"}} | session="{session}"', len(lines))
        events = sorted((json.loads(entry.line) for entry in found), key=lambda e: e["seq"])
        assert len(events) == len(lines)
        assert [rule in flagged(e) for e in events] == [False] * (len(lines) - 1) + [name == "case"], [flagged(e) for e in events]
