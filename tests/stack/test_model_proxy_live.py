"""The model proxy before the real OpenClaw: the only way to a model, and each use of it on record."""

from __future__ import annotations

import json
import uuid
from typing import Any, Iterator

import pytest
from harness import Stack


def events(stack: Stack, session: str, kind: str, count: int = 1, via: str = "proxy", within: float = 20) -> list[dict[str, Any]]:
    query = f'{{job="audit", agent="openclaw"}} | event="{kind}" | session="agent:main:{session}" | json | model_via="{via}"'
    return [json.loads(entry.line) for entry in stack.find(query, count, within)]


def test_each_model_call_of_a_turn_is_seen_by_the_hook_and_by_the_proxy_and_is_the_same_call(running: Stack) -> None:
    session = f"proxied-{uuid.uuid4().hex[:8]}"
    assert "through-the-proxy" in running.turn(session, ("exec", {"command": "echo through-the-proxy"})).stdout
    requests, hooks = events(running, session, "model.request", 2), events(running, session, "model.request", 2, "hook")
    assert {e["trace"]["span"] for e in requests} == {e["trace"]["span"] for e in hooks}
    assert {e["run"] for e in requests} == {e["run"] for e in hooks} and len({e["run"] for e in requests}) == 1
    assert all(e["model"]["tools_n"] > 10 and e["model"]["requested"] == "demo" and "flag" not in e for e in requests)
    decisions = events(running, session, "model.decision", 2)
    assert [d["decision"]["stop"] for d in decisions] == ["tool", "end"]
    assert [d["caused_by"] for d in decisions] == [r["id"] for r in requests]
    hook_decisions = events(running, session, "model.decision", 2, "hook")
    assert [d["content"]["sha256"] for d in decisions] == [d["content"]["sha256"] for d in hook_decisions]
    (call,) = running.find(f'{{job="audit", agent="openclaw"}} | event="tool.call" | session="agent:main:{session}"')
    assert decisions[0]["decision"]["calls"][0]["sha256"] == json.loads(call.line)["content"]["sha256"], "what ran is what was decided"


@pytest.fixture(params=["openai-responses", "anthropic-messages", "google-generative-ai"])
def in_another_api(running: Stack, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The same stack, whose gateway and proxy speak this API; the demo model speaks them all."""
    before = running.env_file.read_text()
    assert "MODEL_API=openai-completions" in before
    running.env_file.write_text(before.replace("MODEL_API=openai-completions", f"MODEL_API={request.param}"))
    try:
        again(running)
        yield running
    finally:
        running.env_file.write_text(before)
        again(running)


def again(stack: Stack) -> None:
    for service in ("forwarder", "openclaw"):
        stack.compose("up", "--detach", "--no-deps", service)
        stack.wait_healthy(service)


def test_the_real_gateway_s_calls_are_read_in_each_api(in_another_api: Stack) -> None:
    stack, session = in_another_api, f"api-{uuid.uuid4().hex[:8]}"
    assert "in-its-words" in stack.turn(session, ("exec", {"command": "echo in-its-words"})).stdout
    requests, decisions, hooks = (events(stack, session, kind, 2, via) for kind, via in (("model.request", "proxy"), ("model.decision", "proxy"), ("model.request", "hook")))
    assert [d["decision"]["stop"] for d in decisions] == ["tool", "end"]
    assert [d["caused_by"] for d in decisions] == [r["id"] for r in requests]
    assert {r["trace"]["span"] for r in requests} == {h["trace"]["span"] for h in hooks}
    assert decisions[0]["decision"]["calls"][0]["tool"] == "exec" and "in-its-words" in decisions[1]["content"]["excerpt"]
    assert all(r["model"]["tools_n"] > 10 and r["model"]["requested"] == "demo" and "flag" not in r for r in requests)
    assert all(d["usage"]["input"] > 0 and d["usage"]["output"] > 0 for d in decisions)
