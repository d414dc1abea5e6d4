"""The audited secret provider: OpenClaw's `exec` provider asks here for a secret, and gets it once that is on record.

The resolver in OpenClaw's image passes one line on, OpenClaw's own request (`{"protocolVersion": 1, "provider": …,
"ids": […]}`), and prints the answer. It is heard when the kernel says that the gateway, or its helper, started it, and
while no tool that starts programs was open; anyone else is refused, recorded and flagged. No record, no secret.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Mapping

from .errors import ClawtrailError
from .gatekeeper import Gatekeeper
from .lines import STAYS, Hear, Lines
from .peers import Peer
from .recorder import Recorder
from .runs import Runs

log = logging.getLogger("clawtrail.secrets")

_STARTERS = frozenset({"exec", "process", "terminal", "bash", "shell", "code_execution"})  # tools that start programs
_IDS_MAX = 64


class SecretsProvider:
    """Serves one socket.

    Args:
        secrets: id → value. The recorder's redactor learns every value.
        gateway_uid: uid of the gateway and of what it starts; None: any.
        main_process: hear only what a container's main process started.
    """

    def __init__(
        self, recorder: Recorder, gatekeeper: Gatekeeper, runs: Runs, path: str, secrets: Mapping[str, str], gateway_uid: int | None, main_process: bool = True
    ) -> None:
        self._recorder, self._gatekeeper, self._runs, self._path = recorder, gatekeeper, runs, path
        self._secrets, self._uid, self._main = dict(secrets), gateway_uid, main_process
        self._asking: set[asyncio.Task[None]] = set()
        self.counters = {"resolved": 0, "refused": 0}
        for name, value in self._secrets.items():
            recorder.redactor.learn(name, value)

    async def start(self) -> None:
        """Listens. Raises OSError."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: Lines(self._made, lambda: b"", lambda _: None), self._path)
        os.chmod(self._path, 0o666)  # who may ask is decided by process, not by file mode

    def close(self) -> None:
        self._server.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def refusal(self, peer: Peer) -> str | None:
        """Why this process gets no secret; None when it may ask."""
        if peer.pid == 0 or self._uid is not None and peer.uid != self._uid:
            return f"process {peer.pid} of uid {peer.uid}; expected the resolver, started by the gateway"
        if self._main and not self._of_the_gateway(peer):
            return f"process {peer.pid} was started by process {peer.parent}; expected the gateway, or its helper that starts programs"
        if open_ := [t.tool for t in self._runs.open_tools() if t.tool in _STARTERS]:
            return f"the tool {open_[0]} is running; a secret is resolved only while no tool can start programs"
        started = peer.started
        if after := [t for t in sorted(_STARTERS) if started is None or started <= self._runs.last_end(t)]:
            return f"process {peer.pid} was started before the tool {after[0]} ended; expected the gateway to start it"
        return None

    def _of_the_gateway(self, peer: Peer) -> bool:
        """A child of a main process, or of its child: OpenClaw starts programs itself or through a helper process."""
        parent = peer.parent
        for _ in range(2):
            if not parent or _uid(parent) != peer.uid:
                return False
            parent = Peer(parent, peer.uid).parent
            if parent == 0:
                return True
        return False

    def _made(self, connection: Lines) -> Hear:
        peer = Peer.of(connection.transport.get_extra_info("socket"))

        def hear(connection: Lines, raw: bytes) -> None:
            task = asyncio.get_running_loop().create_task(self._answer(connection, peer, raw))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

        return hear

    async def _answer(self, connection: Lines, peer: Peer, raw: bytes) -> None:
        values: dict[str, str] = {}
        errors: dict[str, Any] = {}
        for name in _ids(raw):
            try:
                why = self.refusal(peer) or (None if name in self._secrets else f"{name!r} is no secret of this provider")
                if (trouble := await self._record(peer, name, why)) is None:
                    values[name] = self._secrets[name]
                    continue
                why = why or trouble
            except ClawtrailError as e:
                why = str(e)
            self.counters["refused"] += 1
            log.warning("refused %s: %s", name, why)
            errors[name] = {"code": "REFUSED", "message": f"clawtrail: {why} (no record, no secret)"}
        self.counters["resolved"] += len(values)
        connection.answer(json.dumps({"protocolVersion": 1, "values": values, "errors": errors}).encode() + b"\n", 1)
        connection.end(STAYS)

    async def _record(self, peer: Peer, name: str, why: str | None) -> str | None:
        """Puts the resolution, or its refusal, on record. Why the secret must not be given; None: it may."""
        fields: dict[str, Any] = {
            "actor": {"type": "system" if why is None else "agent", "id": "gateway" if why is None else f"pid {peer.pid}"},
            "target": {"type": "process", "id": peer.command or f"pid {peer.pid}"},
            "credential": {"name": name, "provider": "clawtrail", "use": "resolve"},
        }
        if why is not None:
            fields |= {
                "policy": {"engine": "clawtrail", "rule": "resolver-only", "verdict": "deny", "reason": why},
                "flag": {"rule": "cred.secret-provider", "severity": "critical", "technique": "AML.T0083 T1552"},
            }
        else:
            fields["credential"]["fp"] = self._recorder.redactor.fingerprint(self._secrets[name])
        receipt = self._recorder.record("credential.access", "denied" if why else "success", **fields)
        if why is not None:
            return why
        return await self._gatekeeper.refusal(self._gatekeeper.level(["credential"]), receipt, receipt.id, fields)


def _ids(raw: bytes) -> list[str]:
    """The ids that a request names; what is no request asks for one that does not exist."""
    try:
        ids = json.loads(raw)["ids"]
        return [i[:128] for i in ids[:_IDS_MAX] if isinstance(i, str)] or ["unknown"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ["unknown"]


def _uid(pid: int) -> int | None:
    """A process' uid; from its status, because the files of one that must not be dumped belong to root."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])
    except (OSError, StopIteration, ValueError):
        return None
