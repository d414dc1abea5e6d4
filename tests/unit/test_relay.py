"""An agent whose recorder is another process: the real nanobot, the forwarder's socket, its model proxy, and the scripted model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from clawtrail.adapters.relay import Relay
from clawtrail.demo_model import DemoModel
from clawtrail.errors import Denied, EventError, GateClosed
from sidecar import folder  # noqa: F401
from support import eventually

TOKEN, KEY = "the-token-of-nano-and-of-nobody-else", "fp" * 16
RULES = """version: 1
rules:
- {id: no-reboot, name: x, on: [command], match: 'reboot', severity: high, technique: [T1529], action: deny, why: not here, hit: [reboot], miss: [ls]}
"""


class Sidecar:
    """`clawtrail forwarder` with the model proxy in front of the scripted model."""

    def __init__(self, base, receiver, pki):
        self.base, self.path = base, base / "audit.sock"
        self.model = DemoModel("127.0.0.1", 0)
        threading.Thread(target=self.model.serve_forever, daemon=True).start()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        for name, text in (("token", TOKEN), ("key", "the-providers-own-key"), ("fps", (b"k" * 32).hex()), ("rules/own.yaml", RULES)):
            (base / name).parent.mkdir(exist_ok=True)
            (base / name).write_text(text)
        self.command = [
            sys.executable, "-m", "clawtrail", "forwarder", f"--socket={self.path}", f"--spool={base / 'spool'}", f"--receiver=127.0.0.1:{receiver.port}",
            f"--tls={pki.client}", "--agent=agent-1", "--agent-type=nanobot", "--any-process", f"--rules={base / 'rules'}", f"--fingerprint-key={base / 'fps'}",
            f"--model-listen=127.0.0.1:{self.port}", f"--model-url=http://127.0.0.1:{self.model.server_address[1]}/v1", f"--model-key={base / 'key'}",
            f"--agent-token={base / 'token'}",
        ]  # fmt: skip
        self.start()

    def start(self):
        log = self.base / "log"
        log.write_text("")
        self.process = subprocess.Popen(self.command, stderr=log.open("ab"))
        eventually(lambda: "model proxy on port" in log.read_text() and self.path.is_socket(), state=log.read_text)

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(20)


@pytest.fixture
def sidecar(folder, receiver, pki):  # noqa: F811
    made = Sidecar(folder, receiver, pki)
    yield made
    made.stop()
    made.model.shutdown()
    made.model.server_close()


@pytest.fixture
def relay(sidecar):
    made = Relay(str(sidecar.path), "agent-1", deadline=2.0)
    yield made
    made.close()


def events(receiver, *kinds):
    return [e for e in receiver.events() if e["kind"] in kinds]


# -- the relay itself ------------------------------------------------------------------------------------------------


def test_what_is_handed_over_is_redacted_judged_and_joined_on_the_other_side(relay, receiver):
    start = relay.record("run.start", "attempt", {"session": "s", "run": "r", "content": relay.content("go", excerpt=False), "model": {"system": relay.digest("be kind")}})
    call = {"session": "s", "run": "r", "tool": {"name": "exec", "call_id": "c1"}}
    relay.record("tool.call", "attempt", {**call, "params": {"command": "cat /etc/shadow"}, "caused_by": start.id})
    relay.record("tool.result", "success", {**call, "content": relay.content("password=Tr0ub4dor-and-3")})
    eventually(lambda: len(events(receiver, "credential.access")) == 2)
    begun, called, attempt, result, access = events(receiver, "run.start", "tool.call", "credential.access", "tool.result")
    assert called["caused_by"] == begun["id"] and result["caused_by"] == called["id"] == attempt["caused_by"]
    assert called["flag"]["rule"] == "cred.shadow" and (attempt["outcome"], access["outcome"]) == ("attempt", "success")
    assert "Tr0ub4dor" not in json.dumps(receiver.events()) and result["content"]["fps"]
    assert "excerpt" not in begun["content"] and len(begun["model"]["system"]) == 64


def test_a_rule_of_the_forwarder_forbids_and_says_so_in_its_words(relay, receiver):
    with pytest.raises(Denied, match="forbidden by the rule no-reboot: not here$") as e:
        relay.record("tool.call", "attempt", {"tool": {"name": "exec", "call_id": "c1"}, "params": {"command": "reboot"}})
    assert (e.value.rule, e.value.approve) == ("no-reboot", False)
    eventually(lambda: events(receiver, "policy.decision"))


def test_a_long_text_is_shortened_for_the_way_and_its_size_is_the_true_one(relay, receiver):
    relay.record("message.in", "success", {"session": "s", "content": relay.content("a long story " * 200_000)})
    eventually(lambda: events(receiver, "message.in"))
    assert events(receiver, "message.in")[0]["content"]["size"] == len("a long story " * 200_000)


def test_what_never_will_be_an_event_is_refused_by_name(relay):
    with pytest.raises(EventError, match="no.such"):
        relay.record("no.such", "attempt", {})


def test_a_forwarder_that_comes_back_in_time_has_each_record_once(sidecar, relay, receiver):
    relay.record("session.start", "success", {"session": "before"})
    sidecar.stop(signal.SIGKILL)
    threading.Timer(0.3, sidecar.start).start()
    relay._deadline = 20.0
    relay.record("session.start", "success", {"session": "after"})
    eventually(lambda: len(events(receiver, "session.start")) == 2)
    assert [e["session"] for e in events(receiver, "session.start")] == ["before", "after"]


def test_without_a_forwarder_nothing_is_done(sidecar, relay):
    sidecar.stop()
    with pytest.raises(GateClosed, match="no record, no action: no recorder answers at"):
        relay.record("tool.call", "attempt", {"tool": {"name": "exec"}})


# -- nanobot behind it -----------------------------------------------------------------------------------------------


@pytest.fixture
def nano(sidecar, folder):  # noqa: F811
    pytest.importorskip("nanobot", reason="nanobot-ai is not installed")
    path = folder / "config.json"
    path.write_text(json.dumps({
        "agents": {"defaults": {"workspace": str(folder / "ws"), "model": "demo", "provider": "custom"}},
        "providers": {"custom": {"apiKey": "${MODEL_KEY}", "apiBase": f"http://127.0.0.1:{sidecar.port}/model"}}}))  # fmt: skip

    def turn(text, token=TOKEN, command=("clawtrail", "nanobot", f"--socket={sidecar.path}"), **environment):
        (folder / "given").write_text(token)
        secret = [f"--secret=MODEL_KEY={folder / 'given'}"] if command[0] == "clawtrail" else []
        arguments = [sys.executable, "-m", *command, *secret, "agent", f"--config={path}", "--session=s-1", "--message", text]
        environment = {**os.environ, "HOME": str(folder), "NO_COLOR": "1", "CLAWTRAIL_AGENT": "agent-1", **environment}
        environment.pop("CLAWTRAIL_SPOOL")
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    return turn


def test_nanobot_asks_its_model_through_the_proxy_for_a_run_that_is_on_record(nano, receiver):
    code, said = nano('TOOL exec {"command": "echo hello-there"}')
    assert code == 0 and "hello-there" in said, said
    eventually(lambda: events(receiver, "run.end"))
    hook = [e for e in events(receiver, "model.request", "model.decision") if e["model"]["via"] == "hook"]
    proxy = [e for e in events(receiver, "model.request", "model.decision") if e["model"]["via"] == "proxy"]
    assert [e["outcome"] for e in proxy] == ["attempt", "success", "attempt", "success"]
    assert [e["trace"]["span"] for e in proxy] == [e["trace"]["span"] for e in hook], "each call is told twice, by its two sides"
    assert {(e["session"], e["run"]) for e in proxy} == {("s-1", hook[0]["run"])} and not any("asserted" in e or "flag" in e for e in proxy)
    order = [e["kind"] + "/" + e["model"].get("via", "") if "model" in e else e["kind"] for e in receiver.events() if e.get("run")]
    assert order.index("model.decision/proxy") < order.index("tool.call"), "no recorded decision, no tool call"
    resolved = events(receiver, "credential.access")
    assert [e["outcome"] for e in resolved] == ["attempt", "success"] and resolved[1]["caused_by"] == resolved[0]["id"]
    assert TOKEN not in json.dumps(receiver.events()) and len({e["epoch"] for e in receiver.events()}) == 1, "one chain"


def test_nanobot_without_the_hook_gets_no_model(nano, receiver, folder):  # noqa: F811
    code, said = nano(f'TOOL exec {{"command": "touch {folder}/done"}}', command=("nanobot",), MODEL_KEY=TOKEN)
    assert not (folder / "done").exists(), said
    eventually(lambda: [e for e in events(receiver, "model.request") if e["outcome"] == "denied"])
    denied = events(receiver, "model.request")[0]
    assert (denied["policy"]["rule"], denied["flag"]["rule"]) in {("run-gate", "trail.bypass"), ("plugin-pulse", "trail.bypass")}


def test_a_child_with_the_token_is_refused_while_its_run_is_open(nano, sidecar, receiver, folder):  # noqa: F811
    body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "exec"}}]})
    (folder / "body").write_text(body)
    url = f"http://127.0.0.1:{sidecar.port}/model/chat/completions"
    script = f"import urllib.request as r; r.urlopen(r.Request('{url}', open('{folder}/body','rb').read(), {{'authorization': 'Bearer {TOKEN}', 'content-type': 'application/json'}}))"
    (folder / "child.py").write_text(script)
    code, said = nano(f'TOOL exec {{"command": "{sys.executable} {folder}/child.py"}}')
    assert code == 0 and "Traceback" in said, said
    eventually(lambda: [e for e in events(receiver, "model.request") if e["outcome"] == "denied"])
    denied = next(e for e in events(receiver, "model.request") if e["outcome"] == "denied")
    assert denied["policy"]["rule"] == "run-gate" and denied["flag"]["severity"] == "high"


def test_nanobot_runs_nothing_when_its_recorder_is_away(nano, sidecar, folder):  # noqa: F811
    sidecar.stop()
    code, said = nano(f'TOOL exec {{"command": "touch {folder}/done"}}')
    assert code == 1 and "no recorder answers" in said and not (folder / "done").exists(), said


def test_the_proxy_says_that_it_lives(sidecar):
    with urllib.request.urlopen(f"http://127.0.0.1:{sidecar.port}/healthz", timeout=5) as answer:
        assert json.load(answer) == {"ok": True}
