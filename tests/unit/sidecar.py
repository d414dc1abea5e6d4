"""The forwarder as a process of its own, and a client that speaks to its socket as the plugin does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support import eventually

SERVE = """
import asyncio, json, logging, sys
from pathlib import Path
from clawtrail import Recorder
from clawtrail.forwarder import Forwarder
from clawtrail.rules import Rules
logging.basicConfig(level="INFO", stream=sys.stderr)
port, tls, path, uid, main, rules, options = sys.argv[1:]
with Recorder(("127.0.0.1", int(port)), tls, agent="agent-1", **json.loads(options)) as recorder:
    rules = Rules.load([Path(rules)]) if rules else None
    asyncio.run(Forwarder(recorder, path, int(uid) if uid else None, main_process=main == "main", rules=rules).serve())
"""


class Running:
    def __init__(self, path, process, wrapped):
        self.path, self.process, self._wrapped = path, process, wrapped

    @property
    def pid(self):
        """The forwarder's own pid, which is a child's when something stands around it."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]) if self._wrapped else pid

    def stop(self):
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="clawtrail-"))
    path.chmod(0o755)  # pytest's own folders are closed to other uids
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(receiver, pki, folder):
    made = []

    def run(uid="", main="any", prefix=(), rules="", **options):
        """`rules`: the text of a file with rules."""
        path = folder / "audit.sock"
        mine = folder / "rules.d"
        mine.mkdir(exist_ok=True)
        (mine / "mine.yaml").write_text(rules or "version: 1\n")
        options = json.dumps({"quota": 1 << 20, "spool": str(folder / "spool"), **options})
        arguments = [*prefix, sys.executable, "-c", SERVE, str(receiver.port), pki.client, path, str(uid), main, str(mine) if rules else "", options]
        process = subprocess.Popen(arguments, stderr=(folder / "log").open("ab"))
        made.append(Running(path, process, bool(prefix)))
        eventually(lambda: "listening" in (folder / "log").read_text() and path.is_socket(), state=lambda: (folder / "log").read_text())
        return made[-1]

    yield run
    for running in made:
        running.stop()


class Client:
    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(15)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("rb")

    def send(self, *records):
        self.sock.sendall(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records))
        return self

    def answer(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def ask(self, record):
        return self.send(record).answer()


def call(n, **more):
    return {"n": n, "hook": "before_tool_call", "event": {"toolName": "exec", "toolCallId": f"c{n}", "params": {"command": f"echo {n}"}}, "ctx": {"sessionKey": "s1", "runId": "r1"}} | more
