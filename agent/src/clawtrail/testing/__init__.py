"""For tests of agents: what was recorded, and a receiver that fails in every way a real one does.

No network, no certificates, nothing on the disk:

    with testing.capture() as events:
        logging.config.dictConfig(config)  # or Recorder(...), or testing.recorder()
        my_agent.run("delete the backups")
    testing.one(events, "tool.call", outcome="denied", tool__name="exec")

A real receiver on a free port of this machine, as a pytest fixture (certificates need the extra `stack`):

    @pytest.fixture
    def receiver(tmp_path):
        files = testing.certificates(tmp_path)
        with testing.Receiver(files.certificate, files.key, files.client_ca) as receiver:
            yield receiver, Recorder(receiver.address, files.client, agent="agent-1")
"""

from __future__ import annotations

import functools
import json
import os
import ssl
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence
from unittest import mock

from .. import recorder as _recorder
from ..errors import ConfigurationError
from ..recorder import Recorder
from ..shipper import Shipper
from ..transport import TLSFiles
from .receiver import Receiver

__all__ = ["Files", "Receiver", "capture", "certificates", "find", "one", "recorder"]

_SAME_IN_ALL = {"v", "id", "ts", "agent", "host", "epoch", "seq", "prev", "kind", "category", "outcome"}


# -- what was recorded ---------------------------------------------------------------------------------------------


@contextmanager
def capture() -> Iterator[list[dict[str, Any]]]:
    """Inside the block every event that is recorded in this process and accepted is appended to the list that it gives.

    An event is the line as it would be stored, parsed: redacted, numbered, linked. What a recorder adds of its own
    accord (system.start, system.heartbeat, …) is left out, and what a forked child records. A recorder (or handler) that is
    made inside the block ships nothing, then and later, and reads no certificates: its settings are checked, its
    events stay in memory and count as proven. One that was made before ships as ever, and is captured too.
    """
    events: list[dict[str, Any]] = []

    def tap(line: bytes) -> None:
        events.append(json.loads(line))

    _recorder._taps.add(tap)
    try:
        with _shipping_nothing():
            yield events
    finally:
        _recorder._taps.discard(tap)


def recorder(**options: Any) -> Recorder:
    """A recorder that ships nothing; see `capture()`. `options` are those of `Recorder`."""
    with _shipping_nothing():
        return Recorder(("receiver.invalid", 6514), _NoFiles(), **{"agent": "agent-1", **options})


def find(events: Iterable[dict[str, Any]], kind: str | None = None, /, **fields: Any) -> list[dict[str, Any]]:
    """The events of this kind with these values; `tool__name="exec"` is `name` in the group `tool`."""
    return [e for e in events if kind in (None, e["kind"]) and all(_has(e, path.split("__"), v) for path, v in fields.items())]


def one(events: Iterable[dict[str, Any]], kind: str | None = None, /, **fields: Any) -> dict[str, Any]:
    """The one event that `find` finds. Raises AssertionError with everything that was recorded when there are none or several."""
    every = list(events)
    found = find(every, kind, **fields)
    if len(found) == 1:
        return found[0]
    wanted = " ".join([kind or "any kind", *(f"{path.replace('__', '.')}={value!r}" for path, value in fields.items())])
    lines = [f"  {'>' if any(e is f for f in found) else ' '} {_shown(e)}" for e in every]
    raise AssertionError("\n".join([f"{len(found)} events are {wanted}; expected 1 of the {len(every)} recorded:", *lines]))


def _has(value: Any, path: Sequence[str], wanted: Any) -> bool:
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return False
        value = value[name]
    return bool(value == wanted)


def _shown(event: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in event.items() if k not in _SAME_IN_ALL and v is not None}
    return f"{event.get('seq')} {event.get('kind')} {event.get('outcome')} {json.dumps(rest, ensure_ascii=False):.300}"


@contextmanager
def _shipping_nothing() -> Iterator[None]:
    made = Recorder.__init__

    @functools.wraps(made)
    def make(self: Recorder, address: Any, tls: Any, **options: Any) -> None:
        start = self._start

        def start_nowhere() -> None:
            with mock.patch.object(_recorder, "Shipper", _Nowhere):
                start()

        self.__dict__["_start"] = start_nowhere  # a forked child starts again, perhaps long after the block
        made(self, address, _NoFiles(), **{**options, "durability": "memory", "proof": "window"})

    with mock.patch.object(Recorder, "__init__", make):
        yield


class _NoFiles(TLSFiles):
    """No certificate is read; whoever connects with this verifies, and trusts nobody."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))

    def context(self, minimum_version: object = None) -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Nowhere(Shipper):
    """What is to be shipped is proven on the spot. There is no thread and no connection."""

    _one_at_a_time = threading.Lock()

    def wake(self) -> None:
        with self._one_at_a_time:
            while self.outbox.take(1 << 20):
                pass
            self.outbox.prove_sent()

    def close(self, timeout: float) -> bool:
        self.wake()
        return super().close(timeout)


# -- certificates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """`certificate` and `key` of a receiver, the `client_ca` whose clients it admits, the folder of a `client`."""

    certificate: Path
    key: Path
    client_ca: Path
    client: Path


def certificates(
    folder: str | PathLike[str], agent: str = "agent-1", names: Sequence[str] = ("localhost", "127.0.0.1", "::1"), days: float = 1
) -> Files:
    """Makes a CA, a receiver's certificate for `names` and a client's folder for `agent`, all good for `days`.

    Raises ConfigurationError without the extra `stack`, FileExistsError where a folder has certificates already.
    """
    try:
        from ..pki import Authority, pem, write
    except ImportError as e:
        raise ConfigurationError(f"certificates are made with the package cryptography ({e}); expected: pip install 'clawtrail[stack]'") from None
    base, ca = Path(folder), Authority.create("clawtrail testing CA")
    server, client = ca.server(list(names), days), ca.client(agent, days)
    files = Files(base / "server.crt", base / "server.key", base / "ca.crt", base / "client")
    for path, data in (
        *zip((files.certificate, files.key), server),
        *zip((files.client / "client.crt", files.client / "client.key"), client),
        (files.client_ca, pem(ca.certificate)),
        (files.client / "ca.crt", pem(ca.certificate)),
    ):
        write(path, data, 0o600, os.geteuid())
    return files
