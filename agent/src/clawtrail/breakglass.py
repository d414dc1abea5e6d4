"""Break-glass: an operator opens the gates for a stated time and reason, on record.

While they are open, actions run whether or not their events are accepted. What ran without being accepted is counted
and reported as soon as there is room. It ends by itself: over a restart too, it never outlives the moment it was given.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import event
from .errors import ClawtrailError, EventError
from .recorder import Recorder

log = logging.getLogger("clawtrail.breakglass")

LONGEST = 86400.0  #: seconds that one opening may last
REASON_MAX = 500  #: characters
_FILE = "break-glass.json"


@dataclass
class Opening:
    """What an operator asked for, and what happened meanwhile. Moments are seconds since the epoch."""

    since: float
    until: float
    reason: str
    by: str
    passed: int = 0  #: actions that did not wait for their event
    unrecorded: int = 0  #: of these, actions whose event was not accepted
    id: str = ""  #: of the event that says so; empty while that could not be recorded


class BreakGlass:
    """Whether the gates stand open. `tick` is to be called about once a second.

    Args:
        recorder: where opening, closing and what was missed are recorded.
        folder: where an opening is remembered over a restart; None: it ends with the process.
    """

    def __init__(self, recorder: Recorder, folder: Path | None) -> None:
        self._recorder = recorder
        self._file = folder / _FILE if folder else None
        self._now: Opening | None = None
        self._owed: deque[tuple[str, str, dict[str, Any]]] = deque(maxlen=100)  # events that found no room yet
        self._saved = 0.0
        self._saving: threading.Thread | None = None
        self._ends = 0.0  # time.monotonic(): a clock that is set back does not prolong it
        self._load()

    @property
    def open(self) -> bool:
        return self._now is not None and time.monotonic() < self._ends and time.time() < self._now.until

    def start(self, seconds: float, reason: str, by: str) -> dict[str, Any]:
        """Opens, or replaces the opening that there is. Raises EventError for a time or a reason that is none."""
        if not isinstance(seconds, (int, float)) or not 1 <= seconds <= LONGEST:
            raise EventError(f"break-glass for {seconds!r}; expected seconds, 1 to {LONGEST:.0f}")
        if not isinstance(reason, str) or not 3 <= len(reason.strip()) <= REASON_MAX:
            raise EventError(f"break-glass with the reason {reason!r:.100}; expected 3 to {REASON_MAX} characters that say why")
        if self._now is not None:
            self._end("opened anew", by)
        now = time.time()
        self._now = Opening(now, now + seconds, reason.strip(), by or "unknown")
        self._ends = time.monotonic() + seconds
        self._save(at_once=True)
        log.critical("the gates stand open until %s: %s", event.timestamp(self._now.until), self._now.reason)
        self._tell_opened()
        return self.state()

    def stop(self, by: str) -> dict[str, Any]:
        """Closes. Raises EventError when nothing is open."""
        if self._now is None:
            raise EventError("the gates are closed; expected them open")
        self._end("closed by the operator", by or "unknown")
        return self.state()

    def pass_by(self, accepted: bool) -> None:
        """An action runs without waiting for its event."""
        if self._now is not None:
            self._now.passed += 1
            if not accepted:
                self._now.unrecorded += 1

    def tick(self) -> None:
        """Ends what is over, records what found no room before, remembers the counters."""
        if self._now is not None and not self.open:
            self._end("its time is over", "")
        while self._owed and self._record(*self._owed[0]):
            self._owed.popleft()
        if self._now is not None and not self._now.id:
            self._tell_opened()
        self._save()

    def state(self) -> dict[str, Any]:
        """For a heartbeat: empty while the gates are closed."""
        now = self._now
        if now is None:
            return {}
        return {"gate_open": event.timestamp(now.until), "gate_reason": now.reason, "gate_by": now.by,
                "gate_passed": now.passed, "gate_unrecorded": now.unrecorded}  # fmt: skip

    # -- on record ---------------------------------------------------------------------------------------------

    def _tell_opened(self) -> None:
        now = self._now
        assert now is not None
        with suppress(ClawtrailError):
            now.id = self._recorder.record("policy.decision", "success", time=now.since, **_decision(now, "gate.open", "open", now.reason, now.by),
                                           flag={"rule": "gate.open", "severity": "critical", "technique": "T1562.001"}).id  # fmt: skip
            self._save(at_once=True)

    def _end(self, why: str, by: str) -> None:
        now, self._now = self._now, None
        assert now is not None
        if not now.id:
            self._owe("policy.decision", "success", _decision(now, "gate.open", "open", now.reason, now.by)
                      | {"time": now.since, "flag": {"rule": "gate.open", "severity": "critical", "technique": "T1562.001"}})  # fmt: skip
        if now.unrecorded:
            self._owe("system.drop", "failure", {"dropped": {"n": now.unrecorded, "reason": "gate-open", "from": event.timestamp(now.since),
                                                             "to": event.timestamp(min(time.time(), now.until))}})  # fmt: skip
        self._owe("policy.decision", "success", _decision(now, "gate.close", "closed", why, by)
                  | {"caused_by": now.id or None, "health": {"passed": now.passed, "unrecorded": now.unrecorded}})  # fmt: skip
        log.warning("the gates are closed: %s; %d actions did not wait, %d of them are not on record", why, now.passed, now.unrecorded)
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def _owe(self, kind: str, outcome: str, fields: dict[str, Any]) -> None:
        if self._owed or not self._record(kind, outcome, fields):
            self._owed.append((kind, outcome, fields))

    def _record(self, kind: str, outcome: str, fields: dict[str, Any]) -> bool:
        try:
            self._recorder.record(kind, outcome, **fields)
        except ClawtrailError as e:
            log.warning("not recorded yet: %s", e)
            return False
        return True

    # -- over a restart ----------------------------------------------------------------------------------------

    def _save(self, at_once: bool = False) -> None:
        if self._now is None or self._file is None or (not at_once and time.monotonic() < self._saved + 1.0):
            return
        if self._saving is None or not self._saving.is_alive():  # beside: a disk that hangs may be why it was opened
            self._saved = time.monotonic()
            self._saving = threading.Thread(target=self._write, args=(self._now, self._file), name="clawtrail-beside", daemon=True)
            self._saving.start()

    def _write(self, now: Opening, file: Path) -> None:
        fresh = file.with_suffix(".new")
        try:
            with open(fresh, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
                json.dump(asdict(now), f)
                f.flush()
                os.fsync(f.fileno())
            fresh.replace(file)
            if self._now is not now:  # closed meanwhile
                file.unlink(missing_ok=True)
        except OSError as e:
            log.warning("the opening is not remembered over a restart: %s", e)

    def _load(self) -> None:
        if self._file is None or not self._file.exists():
            return
        try:
            self._now = Opening(**json.loads(self._file.read_text()))
            left = min(self._now.until - time.time(), self._now.until - self._now.since) if self._now.since <= time.time() else 0.0
        except (OSError, ValueError, TypeError) as e:
            log.error("%s: %s; the gates stay closed", self._file, e)
            self._now = None
            with suppress(OSError):
                self._file.unlink()
            return
        self._ends = time.monotonic() + left
        if left > 0:
            log.critical("the gates still stand open until %s: %s", event.timestamp(self._now.until), self._now.reason)


def _decision(now: Opening, rule: str, mode: str, reason: str, by: str) -> dict[str, Any]:
    until = f"open until {event.timestamp(now.until)}"
    opened = rule == "gate.open"
    return {
        "actor": {"type": "user", "id": by, "role": "operator", "surface": "console"} if by else {"type": "system", "id": "clawtrail"},
        "asserted": ["actor.id"] if by else None,  # that it was an operator is proven, which one is what he says
        "policy": {"engine": "clawtrail", "rule": rule, "verdict": "allow" if opened else "deny", "mode": mode, "reason": reason,
                   "before": "closed" if opened else until, "after": until if opened else "closed"},
    }  # fmt: skip
