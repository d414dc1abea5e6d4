"""The audited secret provider over a real socket: on record first, or no secret."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from clawtrail import Recorder
from clawtrail.errors import QueueFull
from clawtrail.gatekeeper import Gatekeeper
from clawtrail.peers import Peer
from clawtrail.runs import Runs
from clawtrail.secrets_provider import SecretsProvider
from support import eventually, letters

SECRET = letters(40, seed=77)


def ask(receiver: Any, pki: Any, path: Path, request: str, runs: Runs | None = None, main: bool = False, broken: bool = False) -> tuple[dict[str, Any], dict[str, int]]:
    with Recorder(("127.0.0.1", receiver.port), pki.client, agent="agent-1") as recorder:
        provider = SecretsProvider(recorder, Gatekeeper(recorder), runs or Runs(), str(path), {"model-key": SECRET}, os.getuid(), main)
        if broken:

            def full(*_: Any, **__: Any) -> None:
                raise QueueFull("there is no room")

            recorder.record = full  # type: ignore[method-assign, assignment]

        async def talk() -> bytes:
            await provider.start()
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(request.encode() + b"\n")
            answer = await asyncio.wait_for(reader.readline(), 10)
            writer.close()
            provider.close()
            return answer

        return json.loads(asyncio.run(talk())), provider.counters


def access(receiver: Any) -> dict[str, Any]:
    found: dict[str, Any] = eventually(lambda: next((e for e in receiver.events() if e["kind"] == "credential.access"), None))
    return found


REQUEST = '{"protocolVersion":1,"provider":"clawtrail","ids":["model-key"]}'


def test_a_secret_is_given_once_its_resolution_is_on_record(receiver: Any, pki: Any, tmp_path: Path) -> None:
    answer, counters = ask(receiver, pki, tmp_path / "s", REQUEST)
    assert answer == {"protocolVersion": 1, "values": {"model-key": SECRET}, "errors": {}} and counters == {"resolved": 1, "refused": 0}
    event = access(receiver)
    assert event["outcome"] == "success" and event["credential"]["name"] == "model-key" and event["credential"]["use"] == "resolve"
    assert SECRET not in json.dumps(receiver.events())


def test_without_a_record_there_is_no_secret(receiver: Any, pki: Any, tmp_path: Path) -> None:
    answer, counters = ask(receiver, pki, tmp_path / "s", REQUEST, broken=True)
    assert answer["values"] == {} and "no record, no secret" in answer["errors"]["model-key"]["message"] and counters["refused"] == 1


def test_what_the_agent_starts_gets_no_secret_and_is_flagged(receiver: Any, pki: Any, tmp_path: Path) -> None:
    runs = Runs()
    runs.tool_started("call_1", "exec")
    answer, _ = ask(receiver, pki, tmp_path / "s", REQUEST, runs)
    assert answer["values"] == {} and "the tool exec is running" in answer["errors"]["model-key"]["message"]
    event = access(receiver)
    assert event["outcome"] == "denied" and event["flag"] == {"rule": "cred.secret-provider", "severity": "critical", "technique": "AML.T0083 T1552"}


def test_what_a_tool_left_behind_gets_no_secret_when_the_tool_is_long_over(receiver: Any, pki: Any, tmp_path: Path) -> None:
    runs = Runs()
    runs.tool_started("call_1", "exec")
    runs.tool_ended("call_1")  # after this process began
    answer, _ = ask(receiver, pki, tmp_path / "s", REQUEST, runs)
    assert answer["values"] == {} and "was started before the tool exec ended" in answer["errors"]["model-key"]["message"]


def test_a_process_that_the_gateway_did_not_start_gets_no_secret(receiver: Any, pki: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {os.getpid(): 400, 400: 300, 300: 200, 200: 0}  # the tests may themselves be a main process's, in a container
    monkeypatch.setattr(Peer, "parent", property(lambda p: tree.get(p.pid)))
    monkeypatch.setattr("clawtrail.secrets_provider._uid", lambda pid: os.getuid())
    answer, _ = ask(receiver, pki, tmp_path / "s", REQUEST, main=True)
    assert answer["values"] == {} and "expected the gateway" in answer["errors"]["model-key"]["message"]


def test_what_the_gateway_or_its_helper_starts_may_ask_and_what_is_one_further_down_may_not(receiver: Any, pki: Any, tmp_path: Path) -> None:
    tree = {500: 400, 400: 300, 300: 200, 200: 0}

    with Recorder(("127.0.0.1", receiver.port), pki.client, agent="agent-1") as recorder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Peer, "parent", property(lambda p: tree.get(p.pid)))
        patch.setattr(Peer, "started", property(lambda _: 1.0))
        patch.setattr("clawtrail.secrets_provider._uid", lambda pid: 1000 if pid in tree else None)
        provider = SecretsProvider(recorder, Gatekeeper(recorder), Runs(), str(tmp_path / "s"), {"k": SECRET}, 1000)
        assert [provider.refusal(Peer(pid, 1000)) is None for pid in (300, 400, 500)] == [True, True, False]
        assert provider.refusal(Peer(200, 1000)) is not None, "the gateway itself starts a resolver"


def test_an_orphan_that_the_first_process_took_over_is_none_of_the_gateway_s(receiver: Any, pki: Any, tmp_path: Path) -> None:
    class Orphan(Peer):
        @property
        def parent(self) -> int | None:
            return 1

    with Recorder(("127.0.0.1", receiver.port), pki.client, agent="agent-1") as recorder:
        provider = SecretsProvider(recorder, Gatekeeper(recorder), Runs(), str(tmp_path / "s"), {"k": SECRET}, 12345)
        assert "expected the gateway" in str(provider.refusal(Orphan(os.getpid(), 12345)))


def test_a_request_that_is_none_and_a_name_that_is_none_are_refused(receiver: Any, pki: Any, tmp_path: Path) -> None:
    for n, request in enumerate(("nonsense", "[]", '{"ids": [1, {}]}', '{"ids": ["other"]}')):
        answer, _ = ask(receiver, pki, tmp_path / str(n), request)
        assert answer["values"] == {} and answer["errors"]
