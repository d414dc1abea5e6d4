"""Every known way to a model, or to an action, past the hooks: refused, or recorded and flagged."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import ROOT, Stack, eventually

OPENCLAW = "/opt/openclaw/node_modules/openclaw/openclaw.mjs"
PROXY = "http://forwarder:8300/model"
#: Node, because it is what the agent's container has: status and body of one request.
ASK = """
const [path, body, token, more] = process.argv.slice(1);
const headers = {authorization: "Bearer " + token, "content-type": "application/json", ...JSON.parse(more ?? "{}")};
fetch("%s" + path, {method: "POST", headers, body}).then(async (r) => console.log(r.status, await r.text())).catch((e) => console.log("failed", e.cause?.code ?? e));
""" % PROXY  # fmt: skip
MESSAGES = [{"role": "user", "content": "TOOL exec {}"}]
TOOLS = [{"type": "function", "function": {"name": "exec", "parameters": {"type": "object"}}}]


def exists(stack: Stack, path: str) -> bool:
    return stack.run_inside("openclaw", "test", "-e", path)[0] == 0


def token(stack: Stack) -> str:
    """The gateway's own, as one would have it who has got it out of the gateway."""
    return (stack.folder / "secrets" / "agent-token").read_text().strip()


def ask(stack: Stack, path: str, body: dict[str, Any], **headers: str) -> str:
    return stack.run_inside("openclaw", "node", "-e", ASK, path, json.dumps(body), token(stack), json.dumps(headers))[1]


def requests(stack: Stack, outcome: str, rules: str, after: float, within: float = 20) -> list[dict[str, Any]]:
    """Requests at the proxy with this policy since `after`."""
    query = f'{{job="audit", agent="openclaw", outcome="{outcome}"}} | event="model.request" | json | model_via="proxy" | policy_rule=~"{rules}"'

    def look() -> list[dict[str, Any]]:
        return [json.loads(e.line) for e in stack.query(query, time.time() - after + 1)]

    return eventually(look, within, f"requests of {rules}")


def unplugged(target: str, token: str) -> str:
    """A shell line that makes a configuration without our plugin, and with the token itself, from the gateway's own."""
    return (
        f"mkdir -p {target} && node -e 'const fs=require(\"fs\");const c=JSON.parse(fs.readFileSync(\"/etc/openclaw/openclaw.json\",\"utf8\"));"
        f'delete c.plugins;c.models.providers.model.apiKey="{token}";fs.writeFileSync("{target}/openclaw.json",JSON.stringify(c))\''
    )


def agent_exec(stack: Stack, target: str, marker: str, *options: str) -> str:
    script = json.dumps({"command": f"touch {marker}"})
    return (
        f"{unplugged(target, token(stack))} && OPENCLAW_CONFIG_PATH={target}/openclaw.json OPENCLAW_STATE_DIR={target}/state HOME={target} "
        f"timeout 100 node {OPENCLAW} agent exec {' '.join(options)} 'TOOL exec {script}' > {target}/said 2>&1; echo ended >> {target}/said"
    )


def test_a_tools_own_call_with_the_agents_token_is_refused_or_recorded_and_flagged(running: Stack) -> None:
    began, session = time.time(), f"own-{uuid.uuid4().hex[:8]}"
    commands = []
    for body in ({"model": "demo", "messages": MESSAGES, "tools": TOOLS}, {"model": "demo", "messages": MESSAGES}):
        commands.append(("exec", {"command": f"node -e '{ASK}' /chat/completions '{json.dumps(body)}' {token(running)}"}))
    said = running.turn(session, *commands).stdout
    assert "400" in said and "200" in said, said
    (refused,) = requests(running, "denied", "run-gate", began)[:1]
    assert refused["flag"]["rule"] == "trail.bypass" and refused["flag"]["severity"] == "high"
    allowed = [e for e in requests(running, "attempt", "no-tools", began) if "flag" in e]
    assert allowed and allowed[0]["flag"] == {"rule": "trail.bypass", "severity": "medium", "technique": "T1562.001"}, "a tool was open, and asked"


def test_a_made_up_trace_and_hidden_tools_are_refused(running: Stack) -> None:
    began, body = time.time(), {"model": "demo", "messages": MESSAGES, "tools": TOOLS}
    assert ask(running, "/chat/completions", body, traceparent=f"00-{'a' * 32}-{'b' * 16}-01").startswith("400 ")
    hidden = '{"model":"demo","messages":[],"tools":[{"type":"function"}],"tools":[]}'
    assert running.run_inside("openclaw", "node", "-e", ASK, "/chat/completions", hidden, token(running))[1].startswith("400 ")
    assert ask(running, "/batches", body).startswith("404 ")
    assert ask(running, "/chat/completions", body, authorization="Bearer guessed-guessed-guessed").startswith("400 ")
    rules = {"run-gate", "body", "path", "agent-token"}
    eventually(lambda: {e["policy"]["rule"] for e in requests(running, "denied", ".+", began)} >= rules, 20, f"each of {rules} is on record")


def test_a_call_without_tools_and_with_a_made_up_span_is_flagged_because_no_hook_tells_of_it(running: Stack) -> None:
    span = uuid.uuid4().hex[:16]
    assert ask(running, "/chat/completions", {"model": "demo", "messages": MESSAGES}, traceparent=f"00-{'c' * 32}-{span}-01").startswith("200 ")
    query = f'{{job="audit", agent="openclaw"}} | event="policy.decision" | json | policy_rule="model-join" | trace_span="{span}"'
    (flagged,) = running.find(query, within=90)[:1]
    assert json.loads(flagged.line)["flag"]["rule"] == "trail.bypass"


def test_agent_exec_without_our_plugin_gets_no_model_and_the_gateway_keeps_its_own(running: Stack) -> None:
    began, name = time.time(), uuid.uuid4().hex[:8]
    running.run_inside("openclaw", "sh", "-c", agent_exec(running, f"/tmp/{name}", f"/tmp/marker-{name}"))
    said = running.run_inside("openclaw", "cat", f"/tmp/{name}/said")[1]
    assert "no recorded run matches" in said, said
    assert not exists(running, f"/tmp/marker-{name}")
    assert requests(running, "denied", "run-gate", began)[0]["flag"]["severity"] == "high"
    assert "still-served" in running.turn(f"after-{name}", ("exec", {"command": "echo still-served"})).stdout, "a refusal does not lock the gateway's key"


def test_agent_exec_that_the_agent_starts_itself_gets_no_model_while_its_own_run_goes_on(running: Stack) -> None:
    began, name = time.time(), uuid.uuid4().hex[:8]
    line = agent_exec(running, f"/tmp/{name}", f"/tmp/marker-{name}")
    running.turn(f"nested-{name}", ("exec", {"command": line, "timeoutSeconds": 110}), timeout=150)
    eventually(lambda: "ended" in running.run_inside("openclaw", "cat", f"/tmp/{name}/said")[1], 110, "the inner agent has ended")
    assert not exists(running, f"/tmp/marker-{name}")
    assert requests(running, "denied", "run-gate", began)
    (end,) = running.find(f'{{job="audit", agent="openclaw"}} | session="agent:main:nested-{name}" | event="run.end"', within=60)[:1]
    assert json.loads(end.line)["outcome"] == "success"


def test_an_isolated_agent_gets_no_model(running: Stack) -> None:
    name = uuid.uuid4().hex[:8]
    running.run_inside("openclaw", "sh", "-c", agent_exec(running, f"/tmp/{name}", f"/tmp/marker-{name}", "--isolated"))
    said = running.run_inside("openclaw", "cat", f"/tmp/{name}/said")[1]
    assert "ended" in said and not exists(running, f"/tmp/marker-{name}"), said
    assert "No route-compatible authentication source is configured" in said, said


def test_there_is_no_way_out_of_the_agents_container_but_the_proxy(running: Stack) -> None:
    model = running.address("demo-model", "models")
    tries = [f"http://{model}:8080/healthz", "http://demo-model:8080/healthz", "http://1.1.1.1/", "https://api.openai.com/v1/models"]
    out = "Promise.all(process.argv.slice(1).map((u)=>fetch(u,{signal:AbortSignal.timeout(4000)}).then((r)=>r.status,()=>'no way'))).then((a)=>console.log(a.join()))"
    assert running.run_inside("openclaw", "node", "-e", out, f"{PROXY.removesuffix('/model')}/healthz")[1].strip() == "200"
    code, said = running.run_inside("openclaw", "node", "-e", out, *tries)
    assert said.strip() == "no way,no way,no way,no way", said
    code, said = running.run_inside("openclaw", "sh", "-c", "cat /run/secrets/* /proc/1/environ 2>/dev/null | tr '\\0' '\\n'; env")
    assert "the-demo-model-takes-any-key" not in said and "MODEL_BASE_URL" not in said


@pytest.mark.stops("forwarder")
def test_a_forwarder_that_is_started_anew_within_a_run_knows_the_run_and_the_turn_finishes(running: Stack) -> None:
    name = uuid.uuid4().hex[:8]
    turns: list[str] = []
    script = (("exec", {"command": f"touch /tmp/first-{name} && sleep 5"}), ("exec", {"command": f"echo it-went-on > /tmp/second-{name}"}))
    turn = threading.Thread(target=lambda: turns.append(running.turn(f"restart-{name}", *script, timeout=100).stdout))
    turn.start()
    eventually(lambda: exists(running, f"/tmp/first-{name}"), 30, "the first tool runs")
    running.container("forwarder").restart(timeout=3)
    turn.join(120)
    assert turns and turns[0].startswith("DONE 2"), turns
    assert exists(running, f"/tmp/second-{name}")


@pytest.mark.stops("forwarder")
def test_a_run_whose_start_is_on_no_record_is_flagged_when_it_ends(running: Stack) -> None:
    """The forwarder that comes back knows of no run: what it kept of them is gone."""
    began, name = time.time(), uuid.uuid4().hex[:8]
    turn = threading.Thread(target=lambda: running.turn(f"unknown-{name}", ("exec", {"command": f"touch /tmp/first-{name} && sleep 8"}), timeout=100))
    turn.start()
    eventually(lambda: exists(running, f"/tmp/first-{name}"), 30, "the first tool runs")
    forwarder = running.container("forwarder")
    forwarder.kill()
    image = f"clawtrail/agent:{running.env['CLAWTRAIL_VERSION']}"
    forget = ["find", "/spool", "(", "-name", "runs", "-o", "-name", "watch", ")", "-type", "f", "-print", "-delete"]
    gone = running.docker.containers.run(image, forget, user="0:0", network_mode="none", remove=True, volumes={f"{running.project}_spool": {"bind": "/spool"}})
    assert len(gone.split()) == 2, gone
    forwarder.start()
    turn.join(120)

    def look() -> list[dict[str, Any]]:
        query = '{job="audit", agent="openclaw"} | event="policy.decision" | json | policy_rule="run-gate" | policy_verdict="none"'
        return [json.loads(e.line) for e in running.query(query, time.time() - began + 1)]

    (told,) = eventually(look, 60, "the end of the run is flagged")
    assert {told["flag"]["rule"], *told["flag"]["also"].split()} == {"trail.bypass", "hooks.bypassed"} and told["flag"]["severity"] == "critical"


def test_a_recorder_that_hangs_holds_the_model_and_the_same_turn_finishes_when_it_is_back(running: Stack) -> None:
    name = uuid.uuid4().hex[:8]
    turns: list[str] = []
    script = (("exec", {"command": f"touch /tmp/first-{name} && sleep 2"}), ("exec", {"command": f"touch /tmp/second-{name}"}))
    turn = threading.Thread(target=lambda: turns.append(running.turn(f"hang-{name}", *script, timeout=100).stdout))
    turn.start()
    eventually(lambda: exists(running, f"/tmp/first-{name}"), 30, "the first tool runs")
    forwarder = running.container("forwarder")
    forwarder.pause()
    try:
        # a request of the gateway lies in the proxy's socket, unread: port 8300, established
        eventually(lambda: ":206C 01" in running.run_inside("openclaw", "cat", "/proc/net/tcp")[1], 30, "the model is asked")
        assert not exists(running, f"/tmp/second-{name}")
    finally:
        forwarder.unpause()
    turn.join(120)
    assert turns and turns[0].startswith("DONE 2"), turns
    assert exists(running, f"/tmp/second-{name}")


@pytest.fixture(scope="module")
def altered(running: Stack) -> Iterator[Path]:
    """The gateway with a plugin and a configuration that a test may change, in `plugin/` and `openclaw.json`."""
    folder = running.folder / "altered"
    shutil.copytree(ROOT / "agent/openclaw/plugin", folder / "plugin")
    shutil.copy(ROOT / "agent/openclaw/openclaw.json", folder / "openclaw.json")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    volumes = [f"{folder}/plugin:/opt/clawtrail/plugin:ro", f"{folder}/openclaw.json:/etc/openclaw/openclaw.json:ro"]
    (folder / "compose.yml").write_text(json.dumps({"services": {"openclaw": {"volumes": volumes}}}))
    running.compose("-f", str(ROOT / "docker-compose.yml"), "-f", str(folder / "compose.yml"), "up", "-d", "--no-deps", "openclaw")
    running.wait_healthy("openclaw", 120)
    yield folder
    running.compose("up", "-d", "openclaw")
    running.wait_healthy("openclaw", 120)


def loaded(stack: Stack) -> bool:
    return stack.run_inside("openclaw", "node", "/opt/clawtrail/healthcheck.mjs")[0] == 0


def test_a_plugin_that_is_switched_off_while_the_gateway_runs_leaves_it_without_a_model(running: Stack, altered: Path) -> None:
    began, marker = time.time(), f"/tmp/off-{uuid.uuid4().hex[:8]}"
    whole = (altered / "openclaw.json").read_text()
    config = json.loads(whole)
    config["plugins"]["entries"]["clawtrail"]["enabled"] = False
    (altered / "openclaw.json").write_text(json.dumps(config))
    try:
        eventually(lambda: not loaded(running), 60, "the plugin is switched off")
        answer = running.turn("off", ("exec", {"command": f"touch {marker}"}), timeout=150)
        assert answer.returncode != 0 or "clawtrail" in answer.stdout, answer.stdout
        assert not exists(running, marker)
        assert requests(running, "denied", "run-gate|plugin-pulse", began)[0]["flag"]["rule"] == "trail.bypass"
    finally:
        (altered / "openclaw.json").write_text(whole)
    eventually(lambda: loaded(running), 60, "the plugin is switched on again")


def test_a_gateway_that_does_not_let_the_plugin_see_conversations_says_so_and_is_flagged(running: Stack, altered: Path) -> None:
    began = time.time()
    whole = (altered / "openclaw.json").read_text()
    config = json.loads(whole)
    config["plugins"]["entries"]["clawtrail"]["hooks"]["allowConversationAccess"] = False
    (altered / "openclaw.json").write_text(json.dumps(config))
    try:
        running.container("openclaw").restart(timeout=10)
        query = '{job="audit", agent="openclaw"} | event="system.heartbeat" | json | flag_rule="hook.disabled"'
        beat = eventually(lambda: running.query(query, time.time() - began + 1), 90, "a heartbeat with the missing hooks")[0]
        assert "before_agent_run" in json.loads(beat.line)["health"]["hooks_missing"].split()
    finally:
        (altered / "openclaw.json").write_text(whole)
        running.container("openclaw").restart(timeout=10)
    running.wait_healthy("openclaw", 120)


def test_a_plugin_that_throws_at_import_leaves_the_gateway_without_a_model(running: Stack, altered: Path) -> None:
    began, marker = time.time(), f"/tmp/thrown-{uuid.uuid4().hex[:8]}"
    (altered / "plugin/index.js").write_text('throw new Error("broken on purpose");\n')
    running.container("openclaw").restart(timeout=10)
    ready = "fetch('http://127.0.0.1:18789/readyz').then(r=>process.exit(r.ok?0:1),()=>process.exit(1))"
    eventually(lambda: running.run_inside("openclaw", "node", "-e", ready)[0] == 0, 90, "the gateway is ready without its plugin")
    running.turn("thrown", ("exec", {"command": f"touch {marker}"}), timeout=150)
    assert not exists(running, marker)
    assert requests(running, "denied", "run-gate|plugin-pulse", began)[0]["flag"]["rule"] == "trail.bypass"
