"""A receiver in a process of its own, that can be stopped and killed like a real one; and load with what must hold under it.

What the receiver has read stands in a file at once, so that it is known after a SIGKILL too; before that it answers no
close_notify. It shares nothing with `clawtrail`, and frames are taken apart by the parser in `receiver.py`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

from receiver import Message, parse_message, split_frames
from support import eventually


class Apart:
    """Starts at once, on a free port that stays the same; `log` is a folder with a file per connection."""

    def __init__(self, pki, log: Path) -> None:
        self._pki, self.log = pki, log
        log.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = free.getsockname()
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, str(self.address[1]), *map(str, self._pki.server), str(self._pki.client_ca), str(self.log)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()

    def raw(self) -> list[bytes]:
        """Every whole message that was read, in the order of the connections and within them."""
        files = sorted(self.log.iterdir(), key=lambda f: int(f.name))
        return [m for f in files for m in split_frames(f.read_bytes())[0]]

    def messages(self) -> list[Message]:
        return [parse_message(m) for m in self.raw()]

    def events(self, kind: str | None = None) -> list[dict]:
        return once([m.event for m in self.messages()], kind)


def once(events: list[dict], kind: str | None = None) -> list[dict]:
    found: dict[tuple[str, int], dict] = {}
    for event in events:
        found.setdefault((event["epoch"], event["seq"]), event)
    return [e for e in found.values() if kind in (None, e["kind"])]


def judge(messages: list[Message]) -> dict[str, list[dict]]:
    """Fails unless every epoch is whole, in order, linked, and the same in every copy. Epoch → its events."""
    epochs: dict[str, dict[int, Message]] = {}
    for m in messages:
        known = epochs.setdefault(m.params["epoch"], {}).setdefault(int(m.params["seq"]), m)
        assert known.raw == m.raw, f"{m.params['seq']} came twice, and differs"
    judged = {}
    for epoch, found in epochs.items():
        assert list(found) == list(range(1, len(found) + 1)), f"missing or out of order: {_holes(list(found))}"
        previous, events = "unknown", [m.event for m in found.values()]
        for m, event in zip(found.values(), events):
            assert (event["epoch"], event["seq"], event["prev"]) == (epoch, int(m.params["seq"]), previous), m.raw
            previous = hashlib.sha256(m.msg).hexdigest()
        judged[epoch] = events
    return judged


def _holes(numbers: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in zip([0, *numbers], numbers) if b != a + 1][:5]


def whole(stats: dict) -> bool:
    return stats["accepted"] == stats["proven"] + stats["spooled"] + sum(stats["dropped"].values())


class Load:
    """Events at a steady rate from a thread of its own; `longest` is the longest record() in seconds."""

    def __init__(self, recorder, rate: float = 1000, size: int = 400) -> None:
        self._recorder, self._pause, self._text = recorder, 1 / rate, "x" * size
        self.count, self.longest, self.wrong = 0, 0.0, []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=t) for t in (self._run, self._look)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)
        assert not self.wrong, self.wrong[:2]

    def _run(self) -> None:
        due = time.monotonic()
        while not self._done.is_set():
            due += self._pause
            began = time.monotonic()
            self._recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": self.count}, content={"excerpt": self._text})
            self.count += 1
            self.longest = max(self.longest, time.monotonic() - began)
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)

    def _look(self) -> None:
        while not self._done.wait(0.002):
            if not whole(stats := self._recorder.stats()):
                self.wrong.append(stats)

    def arrived(self, receiver, within: float = 20.0) -> None:
        """Waits until all of it has come, and judges it. `receiver`: one of either kind."""
        messages = receiver.messages if callable(receiver.messages) else lambda: receiver.messages
        eventually(lambda: len(once([m.event for m in messages()], "tool.call")) >= self.count, within=within, state=self._recorder.stats)
        (events,) = judge(messages()).values()
        assert [e["params"]["i"] for e in events if e["kind"] == "tool.call"] == list(range(self.count))


def _serve(port: str, certificate: str, key: str, ca: str, log: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    listener = socket.create_server(("127.0.0.1", int(port)))
    number = len(os.listdir(log))
    print("ready", flush=True)
    while True:
        sock = listener.accept()[0]
        threading.Thread(target=_read, args=(sock, context, f"{log}/{number}"), daemon=True).start()
        number += 1


def _read(sock: socket.socket, context: ssl.SSLContext, log: str) -> None:
    kept = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        tls = context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
        while data := tls.recv(65536):
            os.write(kept, data)
        tls.unwrap()
    except OSError:
        pass
    finally:
        os.close(kept)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(*sys.argv[1:])
