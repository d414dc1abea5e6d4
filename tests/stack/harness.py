"""A running stack as the tests see it: compose, containers, the store, and certificates of the tests' own."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, TypeVar

import docker
from docker.models.containers import Container

from clawtrail import Recorder, schema
from clawtrail.pki import Authority, pem
from clawtrail.store import Entry, Loki, as_json

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def eventually(ask: Callable[[], T], within: float = 15.0, what: str = "") -> T:
    """The first true answer. Fails after `within` seconds with the last answer or error."""
    deadline, last = time.monotonic() + within, "never asked"
    while time.monotonic() < deadline:
        try:
            answer = ask()
            if answer:
                return answer
            last = repr(answer)
        except Exception as e:
            last = f"{type(e).__name__}: {e}"
        time.sleep(0.1)
    raise AssertionError(f"{what or ask} did not become true within {within:.0f} s; last answer: {last[:1000]}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass
class Stack:
    """One compose project. `folder` holds its env file, certificates and secrets."""

    project: str
    folder: Path
    env: dict[str, str]
    docker: docker.DockerClient = field(repr=False)
    odd: set[str] = field(default_factory=set)

    @property
    def env_file(self) -> Path:
        return self.folder / "env"

    @property
    def command(self) -> list[str]:
        return ["docker", "compose", "--env-file", str(self.env_file), "--project-directory", str(ROOT), "-p", self.project]

    def compose(self, *arguments: str, check: bool = True, stdin: str | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self.command, *arguments], input=stdin or "", capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"compose {' '.join(arguments)} exited {done.returncode}: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return done

    def container(self, service: str) -> Container:
        found = self.docker.containers.list(
            all=True, filters={"label": [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}",
                                         "com.docker.compose.oneoff=False"]})  # fmt: skip
        assert found, f"no container of the service {service}"
        return found[0]

    def health(self, service: str) -> str:
        container = self.container(service)
        return str(container.attrs["State"].get("Health", {}).get("Status", container.status))

    def wait_healthy(self, service: str, within: float = 90) -> None:
        eventually(lambda: self.health(service) == "healthy", within, f"{service} healthy")

    def address(self, service: str, network: str) -> str:
        networks = self.container(service).attrs["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])

    def run_inside(self, service: str, *command: str) -> tuple[int, str]:
        done = self.container(service).exec_run(list(command))
        return done.exit_code, done.output.decode("utf-8", "replace")

    # -- the store -----------------------------------------------------------------------------------------------

    @property
    def loki_url(self) -> str:
        return f"http://{self.address('loki', 'store')}:3100"

    def query(self, logql: str, since: float = 3600) -> list[Entry]:
        return list(Loki(self.loki_url).query(logql, since))

    def find(self, logql: str, count: int = 1, within: float = 15.0) -> list[Entry]:
        """At least `count` entries, waited for."""
        return eventually(lambda: found if len(found := self.query(logql)) >= count else None, within, f"{count} entries of {logql}") or []

    def archived(self) -> Iterator[tuple[str, str]]:
        """What the receiver keeps beside Loki: the agent by its certificate, and the line."""
        code, text = self.run_inside("syslog-ng", "sh", "-c", "cat /var/log/audit/audit-*.jsonl")
        assert code == 0, text[-1000:]
        for row in text.splitlines():
            kept = json.loads(row)
            yield kept["agent"], kept.get("line", "")

    def events_that_are_none(self) -> list[str]:
        """What is wrong by the published schema with the events that reached the store or the archive, and the line.

        A line that does not begin as ours do is somebody else's: a stock handler's, or a test's forgery. Those of the agents
        in `odd` are nonsense on purpose.
        """
        wrong = []
        lines = {(e.labels["agent"], e.line) for e in self.query('{job="audit"}', 86400)} | {*self.archived()}
        for agent, line in sorted(lines):
            if agent not in self.odd and line.startswith('{"v":1,"id":"') and isinstance(event := as_json(line), dict):
                errors = [*schema.check(event), *(f"{path}: not in the schema" for path in schema.unknown(event))]
                wrong += [f"{agent}: {error}\n    in {line[:2000]}" for error in errors]
        return wrong

    # -- senders -------------------------------------------------------------------------------------------------

    @property
    def receiver(self) -> tuple[str, int]:
        return "localhost", int(self.env["RECEIVER_PORT"])

    @property
    def lines(self) -> tuple[str, int]:
        return "localhost", int(self.env["LINES_PORT"])

    def client(self, name: str, authority: Authority | None = None, days: float = 30, receiver_ca: Authority | None = None) -> Path:
        """A client's folder with a certificate of the stack's client CA, or of another authority."""
        ca = self.folder / "copy" / "ca"
        signer = authority or Authority.load(ca / "client-ca.crt", ca / "client-ca.key")
        folder = self.folder / "clients" / f"{name}-{os.urandom(3).hex()}"
        folder.mkdir(parents=True)
        certificate, key = signer.client(name, days)
        (folder / "client.crt").write_bytes(certificate)
        (folder / "client.key").write_bytes(key)
        (folder / "ca.crt").write_bytes(pem(receiver_ca.certificate) if receiver_ca else (ca / "server-ca.crt").read_bytes())
        return folder

    def recorder(self, name: str, **options: Any) -> Recorder:
        options.setdefault("spool", self.folder / "spool")
        return Recorder(self.receiver, options.pop("tls", None) or self.client(name), agent=options.pop("agent", name), **options)

    # -- the agent -----------------------------------------------------------------------------------------------

    def turn(self, session: str, *script: tuple[str, dict[str, Any]], timeout: int = 60) -> subprocess.CompletedProcess[str]:
        """One task for the real OpenClaw: its model calls these tools, one after the other."""
        text = "\n".join(f"TOOL {tool} {json.dumps(params)}" for tool, params in script)
        return self.compose("exec", "-T", "openclaw", "node", "/opt/clawtrail/turn.mjs", "--session", session, "--timeout", str(timeout),
                            check=False, stdin=text, timeout=timeout + 30)  # fmt: skip

    def logs(self, tail: int = 40) -> Iterator[tuple[str, str]]:
        for container in self.docker.containers.list(all=True, filters={"label": f"com.docker.compose.project={self.project}"}):
            yield container.name, container.logs(tail=tail).decode("utf-8", "replace")


def send_raw(stack: Stack, address: tuple[str, int], client: str, data: bytes) -> None:
    """Bytes over mutual TLS, closed in order, as any client may send them."""
    folder = stack.client(client)
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    with socket.create_connection(address, timeout=5) as raw, context.wrap_socket(raw, server_hostname="localhost") as tls:
        tls.sendall(data)
        tls.unwrap()


def frame(message: bytes) -> bytes:
    return b"%d %b" % (len(message), message)
