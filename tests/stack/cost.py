"""What the plugin's hooks cost a run of 40 tool calls: on demand, `pytest tests/stack/cost.py`, because it is a measurement.

Two gateways of the same image and model take turns: one with the plugin, whose records go to the stack's forwarder, and
one with the plugin switched off. The model is asked directly by both, so that nothing but the hooks differs.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Iterator

import pytest
from docker.models.containers import Container
from harness import ROOT, Stack, eventually

CALLS, ROUNDS, WARM = 40, 15, 3
GOAL = 1.05
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


def gateway(stack: Stack, folder: Path, plugin: bool) -> Container:
    config = json.loads((ROOT / "agent/openclaw/openclaw.json").read_text())
    config["models"]["providers"]["model"]["baseUrl"] = "http://demo-model:8080/v1"
    config["plugins"]["entries"]["clawtrail"]["enabled"] = plugin
    file = folder / f"openclaw-{plugin}.json"
    file.write_text(json.dumps(config))
    for path in (folder, folder.parent):
        path.chmod(0o755)
    secrets = stack.folder / "secrets"
    return stack.docker.containers.run(
        f"clawtrail/openclaw:{stack.env['OPENCLAW_VERSION']}-{stack.env['CLAWTRAIL_VERSION']}",
        detach=True, read_only=True, network=f"{stack.project}_models", hostname="openclaw", mem_limit="2g",
        pid_mode=f"container:{stack.container('pod').id}",  # else the forwarder does not see who speaks
        environment={k: stack.env[k] for k in ("MODEL_API", "MODEL_NAME")},
        tmpfs={"/tmp": "mode=1777", "/home/node": "uid=1000,gid=1000,mode=700", "/state": "uid=1000,gid=1000,mode=700"},
        volumes={
            str(file): {"bind": "/etc/openclaw/openclaw.json", "mode": "ro"},
            f"{stack.project}_audit-socket": {"bind": "/run/clawtrail", "mode": "ro"},
            str(secrets / "gateway-token"): {"bind": "/run/secrets/gateway-token", "mode": "ro"},
        },
    )  # fmt: skip


@pytest.fixture
def pair(running: Stack, tmp_path: Path) -> Iterator[dict[bool, Container]]:
    running.container("openclaw").stop(timeout=10)  # it would take its share of the processors
    both: dict[bool, Container] = {}
    try:
        for plugin in (True, False):
            both[plugin] = gateway(running, tmp_path, plugin)
        for container in both.values():
            ready = ["node", "-e", "fetch('http://127.0.0.1:18789/readyz').then(r=>process.exit(r.ok?0:1),()=>process.exit(1))"]
            eventually(lambda: container.exec_run(ready).exit_code == 0, 120, "the gateway is ready")
        yield both
    finally:
        for container in both.values():
            container.remove(force=True, v=True)
        running.container("openclaw").start()


def run(container: Container, session: str) -> float:
    """Milliseconds of one run."""
    done = container.exec_run(["node", "-e", RUN, session, str(CALLS)])
    result = json.loads(done.output)
    assert result["status"] == 200 and f"DONE {CALLS} tool results" in result["said"], result
    return float(result["ms"])


def test_a_run_of_forty_tool_calls_beside_one_without_hooks(running: Stack, pair: dict[bool, Container]) -> None:
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(WARM + ROUNDS):
        for plugin in ((True, False), (False, True))[number % 2]:
            took[plugin].append(run(pair[plugin], f"cost-{number}"))
    on, off = (took[plugin][WARM:] for plugin in (True, False))
    pairs = statistics.median(a / b for a, b in zip(on, off))
    found = {"calls": CALLS, "rounds": ROUNDS, "with_ms": on, "without_ms": off, "median_with_ms": statistics.median(on),
             "median_without_ms": statistics.median(off), "ratio_of_medians": statistics.median(on) / statistics.median(off),
             "median_of_ratios": pairs, "goal": GOAL}  # fmt: skip
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/cost.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n40 tool calls: {found['median_with_ms']:.0f} ms with the hooks, {found['median_without_ms']:.0f} ms without; "
          f"ratio {found['ratio_of_medians']:.3f}, of pairs {pairs:.3f}; goal {GOAL}")  # fmt: skip
    query = '{job="audit", agent="openclaw", outcome="attempt"} | event="tool.call" | session=~"agent:main:cost-.*"'
    eventually(lambda: len(running.query(query)) >= CALLS * (WARM + ROUNDS), 30, "every call of the one with hooks is on record")
