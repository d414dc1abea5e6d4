"""Every event that a test makes is checked against the published schema: those that are accepted in this process, those
that reach a receiver, and those that are left in a spool, whoever recorded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterable

from clawtrail import schema

_BEGIN = b'{"v":1,"id":"'
_DECODE = json.JSONDecoder().raw_decode


class Shapes:
    """What was wrong with the events of one test, and which were seen; `own`: with those that a recorder adds by itself."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.own: list[str] = []
        self._seen: set[str] = set()
        self._accepted: list[bytes] = []

    def accepted(self, line: bytes) -> None:
        """A line that a recorder hands out, perhaps in a signal handler: to be checked when there is time for it."""
        self._accepted.append(line)

    def check_accepted(self) -> None:
        while self._accepted:
            self.line(self._accepted.pop())

    def line(self, line: bytes) -> None:
        """Checks one line, if it is an event of ours: tests also send what is none."""
        if not line.startswith(_BEGIN):
            return
        try:
            event = json.loads(line)
        except ValueError:
            return
        if event["id"] not in self._seen:
            self._seen.add(event["id"])
            self.event(event, line)

    def event(self, event: dict[str, Any], line: bytes) -> None:
        for error in [*schema.check(event), *(f"{path}: not in the schema" for path in schema.unknown(event))]:
            wrong = self.own if event.get("category") == "system" else self.wrong
            if len(wrong) < 20:
                wrong.append(f"{error}\n    in {line[:1500]!r}")

    def frames(self, messages: Iterable[bytes]) -> None:
        """What a receiver read: header, structured data, line."""
        for message in messages:
            self.line(message[max(message.find(_BEGIN), 0) :])

    def spool(self, folder: Path) -> None:
        """What dead processes left: every event that stands in a file there as a whole."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                for part in file.read_bytes().split(_BEGIN)[1:]:
                    text = (_BEGIN + part).decode("utf-8", "replace")
                    try:
                        event, end = _DECODE(text)
                    except ValueError:  # torn
                        continue
                    self.line(text[:end].encode())
