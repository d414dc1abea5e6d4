"""What surrounds a measurement: certificates, the sink as a process, what it has read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

from .sink import STAMP, TOKEN, WIDTH

TESTS = Path(__file__).resolve().parents[1]


def certify(folder: Path) -> None:
    """The files of a receiver at 127.0.0.1 and of one client."""
    from clawtrail.pki import Authority, pem, write

    receivers, clients = Authority.create("bench receiver CA"), Authority.create("bench client CA")
    server, server_key = receivers.server(["127.0.0.1", "localhost"])
    client, client_key = clients.client("bench")
    for name, data in (
        ("ca.crt", pem(receivers.certificate)),
        ("client-ca.crt", pem(clients.certificate)),
        ("server.crt", server),
        ("server.key", server_key),
        ("client.crt", client),
        ("client.key", client_key),
    ):
        write(folder / name, data, 0o600, os.geteuid())


class Sink:
    """bench.sink in a folder of its own, with a keeper that kills, stops and starts it again on its port."""

    def __init__(self, mode: str, work: Path, *, raw: bool = False, stamps: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sink-", dir=work))
        self.certificates = work / "certificates"
        options = ["--mode", mode, *(["--raw"] if raw else []), *(["--stamps"] if stamps else [])]
        options += ["--folder", str(self.folder), "--certificates", str(self.certificates)]
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "bench.keeper", *options], cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = self._pid = 0
        self.start()

    def tell(self, command: str) -> str:
        assert self._keeper.stdin is not None and self._keeper.stdout is not None
        self._keeper.stdin.write(command + "\n")
        self._keeper.stdin.flush()
        if not (answer := self._keeper.stdout.readline()):
            raise RuntimeError(f"the keeper of the sink ended at {command!r}")
        return answer

    def start(self) -> None:
        self.port, self._pid = map(int, self.tell("start").split())

    def kill(self) -> None:
        self.tell("kill")

    def end(self) -> None:
        """The sink and its keeper are gone; what was read can still be asked for."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(10)

    def cpu(self) -> float:
        """Seconds of processor time of its threads."""
        total = 0
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:  # the thread of a connection that has just ended
                pass
        return total / 1e9

    # -- what it has read --------------------------------------------------------------------------------------

    def count(self) -> int:
        """Events read, repeated ones included."""
        try:
            return os.stat(self.folder / "seen").st_size // WIDTH
        except FileNotFoundError:
            return 0

    def numbers(self) -> list[int]:
        """Every event's number, in the order in which they were read."""
        try:
            data = (self.folder / "seen").read_bytes()
        except FileNotFoundError:
            return []
        return [int(data[i : i + WIDTH]) for i in range(0, len(data), WIDTH)]

    def stamps(self) -> dict[int, int]:
        """Number → nanoseconds of CLOCK_MONOTONIC at its first reading."""
        first: dict[int, int] = {}
        for moment, number in STAMP.iter_unpack((self.folder / "stamps").read_bytes()):
            first.setdefault(number, moment)
        return first

    def unique(self) -> tuple[list[int], int, int]:
        """Of a peer with octet-counted frames and our structured data: (numbers in the order of their first whole frame,
        copies that the deduplication by epoch and number takes out, frames that say something else than their first)."""
        first: dict[bytes, bytes] = {}
        copies = different = 0
        numbers: list[int] = []
        for raw in sorted(self.folder.glob("raw-*")):
            for frame in _frames(raw.read_bytes()):
                epoch, seq, token = _EPOCH.search(frame), _SEQ.search(frame), TOKEN.search(frame)
                if not (epoch and seq):
                    different += 1
                    continue
                key = epoch[1] + b" " + seq[1]
                if key in first:
                    copies += 1
                    different += first[key] != frame
                    continue
                first[key] = frame
                if token:
                    numbers.append(int(token[1]))
        return numbers, copies, different


_EPOCH, _SEQ = re.compile(rb' epoch="([^"]+)"'), re.compile(rb' seq="(\d+)"')


def _frames(stream: bytes) -> list[bytes]:
    """The whole frames of one connection; what a break has cut off is no frame."""
    frames, at = [], 0
    while (space := stream.find(b" ", at, at + 11)) > 0:
        end = space + 1 + int(stream[at:space])
        if end > len(stream):
            break
        frames.append(stream[space + 1 : end])
        at = end
    return frames


def judge(numbers: list[int], sent: int) -> dict[str, int]:
    """Lost, repeated and out of order, of the events 0 … sent - 1."""
    known = [n for n in numbers if n < sent]
    first: set[int] = set()
    highest, late = -1, 0
    for n in known:
        if n in first:
            continue
        first.add(n)
        late += n < highest
        highest = max(highest, n)
    return {"lost": sent - len(first), "repeated": len(known) - len(first), "reordered": late}


def eventually(condition: Callable[[], object], within: float, every: float = 0.01) -> bool:
    """Whether the condition came to hold within so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
