"""Every query of every board, run against the real store, returns data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from boards import run_board
from harness import ROOT, Stack, eventually, frame, send_raw

BOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))


@pytest.fixture(scope="module")
def events(running: Stack) -> Stack:
    """One event for every panel: an agent with a tool call, a result, a denial, a failure, a credential, and a claim of another name."""
    with running.recorder("board") as recorder:
        for kind, outcome in (("tool.call", "attempt"), ("tool.result", "success"), ("tool.result", "failure"), ("policy.decision", "denied"),
                              ("run.start", "attempt"), ("model.decision", "success"), ("session.start", "success")):  # fmt: skip
            more = {"policy.decision": {"policy": {"verdict": "deny"}}, "model.decision": {"decision": {"stop": "end"}}}.get(kind, {})
            recorder.record(kind, outcome, session="board-1", run="r", tool={"name": "exec"}, **more)
        recorder.record("credential.access", "attempt", session="board-1", tool={"name": "read"}, credential={"name": "ssh-key", "use": "read"})
    with running.recorder("board", agent="somebody-else") as recorder:
        recorder.record("tool.call", "attempt", session="board-1", tool={"name": "exec"})
    send_raw(running, running.receiver, "board", frame(b"no syslog message"))
    running.find('{job="audit-dlq", agent="board"}')
    running.find('{job="audit", agent="board"} | event="credential.access"')
    running.find('{job="audit", agent="board"} | spoof="1"')
    return running


@pytest.mark.parametrize("board", BOARDS, ids=lambda p: p.stem)
def test_every_query_of_the_board_returns_data(events: Stack, board: Path) -> None:
    def missing() -> list[str]:
        return run_board(json.loads(board.read_text()), events.loki_url)

    eventually(lambda: missing() == [] or print(missing()), 20, f"{board.stem} without a gap")


def test_grafana_shows_the_board_and_asks_for_a_password(events: Stack) -> None:
    if "grafana" not in events.env["COMPOSE_PROFILES"]:
        pytest.skip(f"the image {events.env['GRAFANA_IMAGE']} is not here and no registry answered")
    url = f"http://127.0.0.1:{events.env['GRAFANA_PORT']}"
    password = events.compose("run", "--rm", "-T", "setup", "clawtrail", "password").stdout.strip()
    admin = ("admin", password)
    assert requests.get(f"{url}/api/search", timeout=10).status_code == 401
    assert requests.get(f"{url}/api/datasources/uid/loki/health", auth=admin, timeout=30).json()["status"] == "OK"
    assert {b["uid"] for b in requests.get(f"{url}/api/search?type=dash-db", auth=admin, timeout=10).json()} == {json.loads(b.read_text())["uid"] for b in BOARDS}
