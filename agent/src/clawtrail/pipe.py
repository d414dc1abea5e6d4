"""`clawtrail pipe`: events from any program, one a line on standard input; on request an answer for each on standard output.

A line is a JSON object with `kind`, `outcome` (success unless given) and the event's other fields; `time` is seconds
since the epoch. With text, each line is a `log.record`, whatever it looks like. An answer is one line, in the order of
the lines: `{"ack": id, "seq": number}` when the event is accepted, as durably as the recorder is told to, or
`{"error": why, "retry": whether the same line may be accepted later}`; with a gate, when the event has come that far. So a shell script asks, reads, and then acts.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, BinaryIO, TextIO

from . import event
from .adapters.scribe import Scribe
from .errors import ClawtrailError, Denied, EventError, GateClosed, QueueFull, SpoolError
from .recorder import Receipt
from .redact import Found

LINE_MAX = 1 << 20  #: bytes
EXCERPT = 2048  #: bytes of a bad line that are kept
TELL = 1.0  #: seconds between two events about bad lines, which count all in between


class Pipe:
    """Reads lines until the end of the input; `accepted`, `bad` (no events) and `refused` (no room, a rule, a gate) are counted.

    Args:
        scribe: what records.
        text: every line is a plain text.
        fields: go into every event that does not have them itself, `session` and `run` above all.
        answers: where each line is answered; None: nowhere.
        errors: where a line that is not recorded is named.
    """

    def __init__(
        self, scribe: Scribe, *, text: bool = False, fields: dict[str, Any] | None = None, answers: TextIO | None = None,
        errors: TextIO,
    ) -> None:  # fmt: skip
        self._scribe, self._text, self._fields = scribe, text, fields or {}
        self._answers, self._errors = answers, errors
        self._untold, self._last_told = 0, float("-inf")
        self.accepted = self.bad = self.refused = 0
        event.body("log.record", "unknown", dict(self._fields))

    def run(self, lines: BinaryIO) -> None:
        """Records every line. What is wrong with one is answered, counted and recorded, and the next one is read."""
        number = 0
        while raw := lines.readline(LINE_MAX + 1):
            number += 1
            whole = len(raw) <= LINE_MAX
            while not whole and not raw.endswith(b"\n") and (more := lines.readline(1 << 16)):
                raw = raw[:EXCERPT] + more[-1:]
            if not (line := raw.strip()):
                continue
            try:
                receipt = self._take(line) if whole else _too_long()
            except (QueueFull, SpoolError) as e:
                self.refused += 1
                self._not_recorded(number, str(e), retry=True)
            except (Denied, GateClosed) as e:  # on record, and the action is not to happen
                self.refused += 1
                print(f"[x] line {number}: {e}", file=self._errors)
                self._answer({"error": str(e), "retry": isinstance(e, GateClosed)})
            except ClawtrailError as e:
                self.bad += 1
                self._untold += 1
                self._tell(str(e), line)
                self._not_recorded(number, str(e), retry=False)
            else:
                self.accepted += 1
                self._answer({"ack": receipt.id, "seq": receipt.seq})
        self._tell("", b"", last=True)

    def _take(self, line: bytes) -> Receipt:
        if self._text:
            written = line.decode("utf-8", "backslashreplace")
            return self._scribe.record("log.record", "unknown", {**self._fields, "content": self._scribe.content(written)})
        told = parse(line)
        kind, outcome = told.pop("kind"), told.pop("outcome", "success")
        return self._scribe.record(kind, outcome, {**self._fields, **told})

    def _not_recorded(self, number: int, why: str, retry: bool) -> None:
        print(f"[x] line {number} is not recorded: {why}", file=self._errors)
        self._answer({"error": why, "retry": retry})

    def _answer(self, answer: dict[str, Any]) -> None:
        if self._answers is None:
            return
        try:
            print(json.dumps(answer), file=self._answers, flush=True)
        except BrokenPipeError:  # nobody reads them: what comes is recorded all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._answers.fileno())
            self._answers = None

    def _tell(self, why: str, line: bytes, last: bool = False) -> None:
        """A bad line is an event itself; of many in one second the first, and how many they were."""
        now = time.monotonic()
        if not self._untold or (now - self._last_told < TELL and not last):
            return
        recorder = self._scribe.recorder
        excerpt = recorder.redactor.string(line[:EXCERPT].decode("utf-8", "backslashreplace"), Found())
        try:
            recorder.record(
                "system.drop", "failure", dropped={"n": self._untold, "reason": "rejected"},
                error={"type": "rejected", "message": why} if why else None,
                content={"size": len(line), "excerpt": excerpt} if line else None,
            )  # fmt: skip
        except ClawtrailError as e:
            print(f"[x] {self._untold} bad lines could not be put on record: {e}", file=self._errors)
        self._untold, self._last_told = 0, now


def parse(line: bytes) -> dict[str, Any]:
    """The event that a line of JSON tells. Raises EventError for any other."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise EventError(f"{line[:60]!r} is not JSON ({e}); expected one object per line, or --text") from None
    if not isinstance(told, dict):
        raise EventError(f"the line is a {type(told).__name__}; expected an object such as " + '{"kind": "tool.call", "outcome": "attempt"}')
    if "kind" not in told:
        raise EventError(f"the object has no kind; expected one of {' '.join(event.KINDS)}")
    return told


def _too_long() -> Receipt:
    raise EventError(f"the line has more than {LINE_MAX} bytes; expected fewer")
