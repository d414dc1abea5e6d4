"""Certificates of our own CAs, receivers that really listen, recorders that really ship."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from clawtrail import Recorder, TLSSysLogHandler, shipper
from clawtrail import recorder as recorder_module
from clawtrail.pki import Authority, pem, write
from receiver import PlainListener, Receiver
from shapes import Shapes

settings.register_profile("unit", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("unit")

NAMES = ["localhost", "127.0.0.1", "::1"]


def client_folder(folder: Path, server_ca: Authority, client_ca: Authority, name: str, days: float = 1) -> Path:
    certificate, key = client_ca.client(name, days)
    for file, data in (("ca.crt", pem(server_ca.certificate)), ("client.crt", certificate), ("client.key", key)):
        write(folder / file, data, 0o600, os.geteuid())
    return folder


def server_files(folder: Path, ca: Authority, names: list[str], days: float = 1) -> tuple[Path, Path]:
    certificate, key = ca.server(names, days)
    write(folder / "server.crt", certificate, 0o600, os.geteuid())
    write(folder / "server.key", key, 0o600, os.geteuid())
    return folder / "server.crt", folder / "server.key"


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """`client`, a client's folder; `server`, the receiver's certificate and key; and everything that is wrong with others."""
    base = tmp_path_factory.mktemp("pki")
    server_ca, client_ca, foreign = (Authority.create(n) for n in ("receiver CA", "client CA", "somebody else's CA"))
    for name, ca in (("server-ca", server_ca), ("client-ca", client_ca), ("foreign-ca", foreign)):
        write(base / f"{name}.crt", pem(ca.certificate), 0o644, os.geteuid())
    return SimpleNamespace(
        base=base,
        client=client_folder(base / "client", server_ca, client_ca, "agent-1"),
        stranger=client_folder(base / "stranger", server_ca, foreign, "agent-1"),
        expired_client=client_folder(base / "expired-client", server_ca, client_ca, "agent-1", days=-1),
        server=server_files(base / "server", server_ca, NAMES),
        foreign_server=server_files(base / "foreign-server", foreign, NAMES),
        misnamed_server=server_files(base / "misnamed-server", server_ca, ["other.example"]),
        expired_server=server_files(base / "expired-server", server_ca, NAMES, days=-1),
        ca=base / "server-ca.crt",
        client_ca=base / "client-ca.crt",
        foreign_ca=base / "foreign-ca.crt",
    )


@pytest.fixture(autouse=True)
def shapes(request):
    """No test makes an event that the schema does not describe, unless it says that it does so on purpose."""
    shapes = Shapes()
    recorder_module._taps.add(shapes.accepted)
    yield shapes
    recorder_module._taps.discard(shapes.accepted)
    shapes.check_accepted()
    wrong = shapes.own if request.node.get_closest_marker("odd_events") else shapes.own + shapes.wrong
    assert not wrong, "\n".join(["events that are not of the schema:", *wrong])


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch, shapes):
    """Where recorders that are told nothing else keep their events: nobody adopts what another test left."""
    folder = tmp_path.with_name(f"{tmp_path.name}-spool")
    monkeypatch.setenv("CLAWTRAIL_SPOOL", str(folder))
    yield folder
    shapes.spool(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The longest wait between two attempts, in a suite that breaks hundreds of connections."""
    monkeypatch.setattr(shipper, "BACKOFF", (0.02, 0.2))


@pytest.fixture
def make_receiver(pki, shapes):
    made: list[Receiver] = []

    def make(files=None, client_ca: Path | None = None, tls: ssl.TLSVersion | None = None) -> Receiver:
        receiver = Receiver(*(files or pki.server), client_ca or pki.client_ca, tls).start()
        made.append(receiver)
        return receiver

    yield make
    for receiver in made:
        receiver.kill()
        assert receiver.raw is not None and not receiver.failures  # all of it was frames, whether the test looked or not
        shapes.frames(receiver.raw)


@pytest.fixture
def receiver(make_receiver):
    return make_receiver()


@pytest.fixture
def make_recorder(pki):
    made: list[Recorder] = []

    def make(address, tls=None, **options) -> Recorder:
        recorder = Recorder(address, tls or pki.client, **{"agent": "agent-1", **options})
        made.append(recorder)
        return recorder

    yield make
    for recorder in made:
        recorder.close(0.05)


@pytest.fixture
def recorder(receiver, make_recorder):
    return make_recorder(receiver.address)


@pytest.fixture
def plain_listener():
    made: list[PlainListener] = []

    def make(answer: bytes = b"") -> PlainListener:
        made.append(PlainListener(answer))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


@pytest.fixture
def make_handler(receiver, pki):
    made = []

    def make(cls=TLSSysLogHandler, **given):
        given = {"address": list(receiver.address), "tls": str(pki.client), "agent": "agent-1"} | given
        made.append(cls(**{k: v for k, v in given.items() if v is not ...}))
        return made[-1]

    yield make
    for handler in made:
        handler.recorder.close(0.05)  # what a test wants delivered, it has waited for
        handler.close()


@pytest.fixture
def quiet(monkeypatch):
    """What `handleError` is given, in place of a traceback on standard error."""
    failed = []
    monkeypatch.setattr(TLSSysLogHandler, "handleError", lambda self, record: failed.append(record))
    return failed


@pytest.fixture
def log(make_handler):
    logger = logging.getLogger("app.audit")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handler = make_handler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


@pytest.fixture
def restore_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level = before[0], before[1]
