"""What the plugin's hooks cost a run of 40 tool calls: on demand, `pytest tests/stack/cost.py`, because it is a measurement.

Three gateways of the same image and model take turns: one with the plugin, whose records go to a forwarder, one with a
plugin in its place that has no hooks, and one without a plugin. The model is asked directly by all, so that nothing but
the hooks differs. Receiver and store stand still meanwhile: where it counts they are on another machine, and here they
would take their share of these processors for one of the three alone.
"""

from __future__ import annotations

import json
import statistics
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest
from docker.models.containers import Container
from harness import ROOT, Stack, eventually

CALLS, ROUNDS, WARM = 40, 40, 3
GOAL = 1.05
KINDS = ("hooks", "no hooks", "no plugin")
EMPTY = """
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
export default definePluginEntry({ id: "clawtrail", name: "clawtrail", description: "Nothing.", register() {} });
"""
RUN = """
const {readFileSync} = require('fs');
const token = readFileSync('/run/secrets/gateway-token', 'utf8').trim();
const [session, count] = process.argv.slice(1);
const content = Array.from({length: +count}, (_, i) => `TOOL exec {"command": "echo ${i}"}`).join('\\n');
const began = performance.now();
fetch('http://127.0.0.1:18789/v1/chat/completions', {
  method: 'POST',
  headers: {authorization: `Bearer ${token}`, 'content-type': 'application/json', 'x-openclaw-session-key': `agent:main:${session}`},
  body: JSON.stringify({model: 'openclaw', messages: [{role: 'user', content}]}),
}).then(async (r) => console.log(JSON.stringify({ms: performance.now() - began, status: r.status, said: (await r.text()).slice(0, 2000)})));
"""


def gateway(stack: Stack, folder: Path, kind: str) -> Container:
    config = json.loads((ROOT / "agent/openclaw/openclaw.json").read_text())
    config["models"]["providers"]["model"]["baseUrl"] = "http://demo-model:8080/v1"
    config["plugins"]["entries"]["clawtrail"]["enabled"] = kind != "no plugin"
    folder = folder / kind.replace(" ", "-")
    folder.mkdir()
    (folder / "openclaw.json").write_text(json.dumps(config))
    (folder / "index.js").write_text(EMPTY)
    for path in (folder, folder.parent, folder.parent.parent):
        path.chmod(0o755)
    mounts = {
        folder / "openclaw.json": "/etc/openclaw/openclaw.json",
        f"{stack.project}_audit-socket": "/run/clawtrail",
        stack.folder / "secrets/gateway-token": "/run/secrets/gateway-token",
    }
    if kind == "no hooks":
        mounts[folder / "index.js"] = "/opt/clawtrail/plugin/index.js"
    return stack.docker.containers.run(
        f"clawtrail/openclaw:{stack.env['OPENCLAW_VERSION']}-{stack.env['CLAWTRAIL_VERSION']}",
        detach=True, read_only=True, network=f"{stack.project}_models", hostname="openclaw", mem_limit="2g",
        pid_mode=f"container:{stack.container('pod').id}",  # else the forwarder does not see who speaks
        environment={k: stack.env[k] for k in ("MODEL_API", "MODEL_NAME")},
        tmpfs={"/tmp": "mode=1777", "/home/node": "uid=1000,gid=1000,mode=700", "/state": "uid=1000,gid=1000,mode=700"},
        volumes={str(source): {"bind": target, "mode": "ro"} for source, target in mounts.items()},
    )  # fmt: skip


def forwarder(stack: Stack) -> Container:
    """The stack's, without its model proxy, which would look for the requests that both gateways send past it."""
    its = stack.container("forwarder")
    command = [argument for argument in its.attrs["Config"]["Cmd"] if not argument.startswith("--model-")]
    made = stack.docker.containers.create(
        its.image, command, read_only=True, network=f"{stack.project}_ingest", mem_limit="256m",
        pid_mode=f"container:{stack.container('pod').id}", volumes_from=[its.id],
    )  # fmt: skip
    made.start()
    return made


@pytest.fixture
def gateways(running: Stack, tmp_path: Path) -> Iterator[dict[str, Container]]:
    for service in ("openclaw", "forwarder"):  # they would take their share of the processors
        running.container(service).stop(timeout=10)
    made = [forwarder(running)]
    try:
        made += [gateway(running, tmp_path, kind) for kind in KINDS]
        for container in made[1:]:
            ready = ["node", "-e", "fetch('http://127.0.0.1:18789/readyz').then(r=>process.exit(r.ok?0:1),()=>process.exit(1))"]
            eventually(lambda: container.exec_run(ready).exit_code == 0, 120, "the gateway is ready")
            container.pause()  # all but the one that is measured
        yield dict(zip(KINDS, made[1:]))
    finally:
        for container in made:
            container.remove(force=True, v=True)
        for service in ("forwarder", "openclaw"):
            running.container(service).start()


@contextmanager
def elsewhere(stack: Stack) -> Iterator[None]:
    """Receiver and store take no part."""
    containers = [stack.container(service) for service in ("syslog-ng", "loki")]
    for container in containers:
        container.pause()
    try:
        yield
    finally:
        for container in reversed(containers):
            container.unpause()


def run(container: Container, session: str) -> float:
    """Milliseconds of one run."""
    container.unpause()
    done = container.exec_run(["node", "-e", RUN, session, str(CALLS)])
    container.pause()
    result = json.loads(done.output)
    assert result["status"] == 200 and f"DONE {CALLS} tool results" in result["said"], result
    return float(result["ms"])


def test_a_run_of_forty_tool_calls_beside_one_without_hooks(running: Stack, gateways: dict[str, Container]) -> None:
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(WARM + ROUNDS):
        with elsewhere(running):
            for kind in sorted(KINDS, key=lambda kind: (KINDS.index(kind) + number) % len(KINDS)):
                took[kind].append(run(gateways[kind], f"cost-{number}"))
        query = f'{{job="audit", agent="openclaw", outcome="attempt"}} | event="tool.call" | session="agent:main:cost-{number}"'
        eventually(lambda: len(running.query(query)) == CALLS, 30, "every call of the one with hooks is on record")
    took = {kind: ms[WARM:] for kind, ms in took.items()}
    table = {kind: {"ms": ms, "quartiles": statistics.quantiles(ms), "ratio": statistics.median(a / b for a, b in zip(took["hooks"], ms)),
                    "ratio_of_means": statistics.mean(took["hooks"]) / statistics.mean(ms)} for kind, ms in took.items()}  # fmt: skip
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/cost.json").write_text(json.dumps({"calls": CALLS, "rounds": ROUNDS, "goal": GOAL, "runs": table}, indent=1) + "\n")
    for kind, row in table.items():
        spread = " ".join(f"{ms:.0f}" for ms in row["quartiles"])
        print(f"\n40 tool calls, {kind}: quartiles {spread} ms; with hooks {row['ratio']:.3f} times that (median of the rounds), "
              f"{row['ratio_of_means']:.3f} (means)", end="")  # fmt: skip
    print(f"; goal {GOAL}")
