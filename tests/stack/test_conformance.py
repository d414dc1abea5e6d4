"""What is hostile but legal arrives once, byte for byte and in the right place, at two receivers that others wrote."""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import socket
import ssl
import subprocess
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
from docker.errors import ImageNotFound
from harness import ROOT, Stack, eventually
from receiver import parse_message

from clawtrail import Receipt, Recorder
from clawtrail.event import KINDS, OUTCOMES
from clawtrail.pki import Authority, pem

ROOM = Path(__file__).parent / "rsyslog"
AGENT = "conformance"  #: as rsyslog.conf has it
TEXTS = {
    "quotes": "a \"b\" 'c' \\\" `d`",
    "brackets": 'x] [y]] "] [audit@32473 seq="1"] z',
    "backslashes": "\\ \\\\ \\\\\\ \\] \\\" \\n c:\\dir\\",
    "newlines": "first\n<14>1 2026-01-01T00:00:00Z h a p m - second\r\nthird\n",
    "frames": "10 0123456789\n0 12 <110>1 - - - - - - x",
    "nul": "a\x00b\x00",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80\x85\x9f",
    "separators": "a\u2028b\u2029c\u00a0d\u3000e",
    "byte order mark": "\ufeffa\ufeff",
    "emoji": "🦞 👩‍🚀 🏳️‍🌈 🇺🇦",
    "surrogates": "\ud83e \udc80 \udfff",
    "right to left": "\u202eabc\u202c \u200f\u2066x\u2069",
    "astral": "\U0010ffff\U00010000\U000e0041",
    "combining": "e\u0301" * 20 + "\u0334\u0335",
    "templates": "${.tls.x509_cn} $(format-json) `version` %msg% {{ .x }} %(agent)s $PROGRAM \\1 $1",
    "rsyslog escapes": "#000 #012 #011 %x %n %%",
    "json": '{"v":1,"seq":1,"prev":"x"}',
    "spaces": "  two  in front and behind  ",
    "long": "é" * 1000,
}  # fmt: skip
#: A value that somebody cuts at 256 bytes or characters must be cut between two characters.
EDGES = {f"{n}+{character}": "x" * n + character * 200 for n in (252, 253, 254, 255, 256) for character in "é€🦞"}


def hostile() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """kind, outcome, fields."""
    outcomes = sorted(OUTCOMES)
    for i, kind in enumerate(KINDS):
        yield kind, outcomes[i % len(outcomes)], {}
    for severity in range(8):
        yield "log.record", "unknown", {"log": {"severity": severity, "logger": "root"}, "content": {"excerpt": ""}}
    for outcome in outcomes:
        yield "tool.result", outcome, {"session": "", "tool": {"name": ""}, "content": {"excerpt": ""}}
    for text in TEXTS.values():
        yield "message.in", "success", {"content": {"excerpt": text}, "params": {text[:100]: text}}
        yield "tool.call", "attempt", {"session": text, "run": text, "tool": {"name": text}, "credential": {"name": text}}
        yield "tool.call", "denied", {"claim": text}
    for text in EDGES.values():
        yield "tool.call", "attempt", {"session": text, "run": text, "tool": {"name": text}, "credential": {"name": text}, "claim": text}
    for size in range(8186, 8196):  # a line that ends on either side of 8 KiB, made of characters of two bytes
        yield "message.out", "success", {"params": {f"p{i}": "é" * 1000 for i in range(3)}, "content": {"excerpt": "é" * 500, "pad": "x" * (size - 8186)}}
    for character in "xé€🦞\\\"\x00":
        yield "tool.result", "success", {"params": {f"p{i}": character * (2048 // (len(json.dumps(character, ensure_ascii=False).encode()) - 2)) for i in range(19)}}
    now = int(time.time())
    for moment in (now - 1800, now - 1 + 1e-6, now - 1 + 0.5, now - 1 + 0.999999):
        yield "log.record", "unknown", {"time": moment}


def send(recorder: Recorder) -> list[tuple[Receipt, str]]:
    """Every event's receipt and the name that it claims."""
    sent = []
    for kind, outcome, fields in hostile():
        sent.append((recorder.record(kind, outcome, **fields), fields.get("claim") or AGENT))
    assert len(sent) > 60 and max(len(r.line) for r, _ in sent) > 38 * 1024
    assert recorder.flush(30), recorder.stats()
    recorder.close(10)
    return sent


def written(text: str) -> str:
    """A lone surrogate has no UTF-8; it is written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    """In a PARAM-VALUE a control character is a space, and no more than 256 bytes stand in it, whole characters."""
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]", " ", text).encode()[:256].decode("utf-8", "ignore")


def header(text: str, limit: int) -> str:
    return re.sub("[^!-~]", "_", text)[:limit] or "-"


def params(event: dict[str, Any], claim: str) -> dict[str, str]:
    """The structured data that an event of ours has, from the event alone."""
    found = {"agent": visible(written(claim)[:255]), "category": event["category"], "outcome": event["outcome"]}
    found |= {"epoch": event["epoch"], "seq": str(event["seq"])}
    ids = {"session": event.get("session"), "run": event.get("run")}
    ids |= {group: event.get(group, {}).get("name", "")[:255] for group in ("tool", "credential")}
    return found | {k: visible(v) for k, v in ids.items() if v}


# -- rsyslog ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gtls", "ossl"])
def rsyslog(request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A running rsyslog with TLS by GnuTLS or OpenSSL: `address`, `folder` of the clients, and `messages()` that it has written down."""
    image = rsyslog_image(stack)
    folder = tmp_path_factory.mktemp("rsyslog")
    server_ca, client_ca = Authority.create("receiver CA"), Authority.create("client CA")
    certificate, key = server_ca.server(["localhost"])
    files = {"tls/server.crt": certificate, "tls/server.key": key, "tls/client-ca.crt": pem(client_ca.certificate)}
    for name, ca in ((AGENT, client_ca), ("another", client_ca), ("stranger", Authority.create("somebody else's CA"))):
        certificate, key = ca.client(AGENT if name == "stranger" else name)
        files |= {f"{name}/client.crt": certificate, f"{name}/client.key": key, f"{name}/ca.crt": pem(server_ca.certificate)}
    for file, data in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
    (folder / "out").mkdir()
    container = stack.docker.containers.run(
        image,
        name=f"{stack.project}-rsyslog-{uuid.uuid4().hex[:8]}",
        detach=True,
        user=f"{os.getuid()}:{os.getgid()}",
        cap_drop=["ALL"],
        environment={"DRIVER": request.param},
        ports={"6514/tcp": ("127.0.0.1", None)},
        volumes={str(folder / "tls"): {"bind": "/tls", "mode": "ro"}, str(folder / "out"): {"bind": "/out"}},
    )
    try:
        container.reload()
        address = ("localhost", int(container.ports["6514/tcp"][0]["HostPort"]))
        eventually(lambda: handshake(address, folder / AGENT), what="rsyslog speaks TLS")

        def messages() -> list[dict[str, str]]:
            file = folder / "out/messages"
            return [json.loads(line) for line in file.read_bytes().split(b"\n") if line] if file.exists() else []

        def log() -> str:
            return container.logs().decode("utf-8", "replace")

        yield SimpleNamespace(address=address, folder=folder, messages=messages, log=log)
    finally:
        print(f"--- rsyslog\n{container.logs(tail=40).decode('utf-8', 'replace')}")
        container.remove(force=True)


def handshake(address: tuple[str, int], client: Path) -> str | None:
    """The TLS version of a connection that ends at once."""
    context = ssl.create_default_context(cafile=str(client / "ca.crt"))
    context.load_cert_chain(client / "client.crt", client / "client.key")
    with socket.create_connection(address, timeout=5) as raw, context.wrap_socket(raw, server_hostname="localhost") as tls:
        return tls.version()


def rsyslog_image(stack: Stack) -> str:
    """Built from the stack's own base image; the builder keeps the layers, so that only the first time takes long."""
    base, local = stack.env["DEBIAN_IMAGE"], "clawtrail/debian:trixie"
    if not present(stack, base) and present(stack, local):
        base = local
    image = "clawtrail/test-rsyslog:trixie"
    done = subprocess.run(
        ["docker", "buildx", "build", "--load", "--progress=plain", "--build-arg", f"DEBIAN_IMAGE={base}", "-t", image, str(ROOM)],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    if done.returncode and not present(stack, base) and "load metadata" in done.stderr:
        pytest.skip(f"no base image {base}: {done.stderr[-600:]}")
    assert done.returncode == 0, done.stderr[-4000:]
    return image


def present(stack: Stack, image: str) -> bool:
    try:
        return bool(stack.docker.images.get(image))
    except ImageNotFound:
        return False


def test_rsyslog_reads_every_hostile_event_once_as_it_was_sent(rsyslog: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: 'hôst "of] \\many words')
    sent = send(Recorder(rsyslog.address, rsyslog.folder / AGENT, agent=AGENT, durability="memory"))
    arrived = eventually(lambda: found if len(found := rsyslog.messages()) >= len(sent) + 2 else None, 30, "all events in rsyslog's file")
    by_seq: dict[int, list[dict[str, str]]] = {}
    for message in arrived:
        by_seq.setdefault(json.loads(message["msg"])["seq"], []).append(message)
    assert sorted(by_seq) == list(range(1, len(by_seq) + 1)), "every number, none twice, and no message beside"
    assert {n: len(found) for n, found in by_seq.items() if len(found) != 1} == {}
    for receipt, claim in sent:
        (message,), event = by_seq[receipt.seq], json.loads(receipt.line)
        assert message["msg"].encode() == receipt.line
        severity = event.get("log", {}).get("severity", {"failure": 4, "denied": 4, "unknown": 5}.get(event["outcome"], 6))
        assert message["pri"] == str(13 * 8 + severity)
        assert message["timestamp"].replace("+00:00", "Z") == event["ts"]
        assert [message["hostname"], message["app-name"], message["procid"], message["msgid"]] == [
            header(event["host"]["name"], 255), header(written(claim), 48), str(os.getpid()), event["kind"]]  # fmt: skip
        sd = parse_message(f"<0>1 - - - - - {message['structured-data']}".encode()).sd
        assert sd == {"audit@32473": params(event, claim)}
        assert parse_message(message["rawmsg"].encode()).sd == sd


# Not ("ossl", "another"): rsyslog's OpenSSL driver lets every name of the CA in (rsyslog issue 6350).
@pytest.mark.parametrize(("rsyslog", "client"), [("gtls", "another"), ("gtls", "stranger"), ("ossl", "stranger")], indirect=["rsyslog"])
def test_rsyslog_takes_nothing_from_another_name_or_another_ca(rsyslog: SimpleNamespace, client: str) -> None:
    """So that the test above is one of mutual TLS."""
    mark = uuid.uuid4().hex
    recorder = Recorder(rsyslog.address, rsyslog.folder / client, agent=AGENT, durability="memory")
    recorder.record("message.in", "success", session=mark)
    refusal = {"another": "peer name not authorized", "stranger": "certificate invalid|certificate verify failed"}[client]
    eventually(lambda: re.search(refusal, rsyslog.log()) and recorder.stats()["last_error"], what="refused")
    recorder.close(0.1)
    assert not [m for m in rsyslog.messages() if mark in m["rawmsg"]]


# -- syslog-ng --------------------------------------------------------------------------------------------------------


def test_syslog_ng_stores_every_hostile_event_once_as_it_was_sent(running: Stack) -> None:
    running.odd.add(AGENT)
    sent = send(running.recorder(AGENT, durability="memory"))
    stored, dead = f'{{job="audit", agent="{AGENT}"}} | epoch="{sent[0][0].epoch}"', f'{{job="audit-dlq", agent="{AGENT}"}}'

    def settled() -> bool:
        return len(running.query(stored)) + len(running.query(dead)) >= len(sent) + 2

    eventually(settled, 60, f"{len(sent) + 2} entries of {stored}")
    assert [base64.b64decode(e.line) for e in running.query(dead)] == []
    entries = running.query(stored)
    by_seq = {int(e.labels["seq"]): e for e in entries}
    assert len(by_seq) == len(entries) and sorted(by_seq) == list(range(1, len(entries) + 1)), "every number, none twice"
    for receipt, claim in sent:
        entry, event = by_seq[receipt.seq], json.loads(receipt.line)
        assert entry.line.encode() == receipt.line
        expected = params(event, claim) | {"job": "audit", "event": event["kind"], "agent": AGENT}
        if claim != AGENT:
            expected |= {"spoof": "1", "claimed": params(event, claim)["agent"]}
        assert entry.labels == expected, receipt.seq
