"""Who lets the agent act: people who approve, devices and places from which they log in."""

from __future__ import annotations

from .kept import Kept, as_names, as_nothing
from .seen import Seen
from .state import Bounded

NAMES = 2048  #: devices, identities, approvals asked for


class People:
    """Knows each identity that has logged in, from where, and how fast each approver answers."""

    def __init__(self) -> None:
        self._devices: Bounded[str, None] = Bounded(NAMES)
        self._places: Bounded[str, dict[str, None]] = Bounded(NAMES)
        self._asked: Bounded[str, float] = Bounded(NAMES)
        self._stamps: Bounded[str, list[float]] = Bounded(NAMES)

    def keep(self, kept: Kept) -> None:
        kept.hold("devices", self._devices, as_nothing)
        kept.hold("places", self._places, as_names)

    def login(self, seen: Seen) -> None:
        who, place = seen.word("actor", "id"), seen.word("actor", "addr")
        pairing = "pairing" in seen.word("policy", "rule") or (seen.outcome == "attempt" and seen.word("actor", "auth") == "none")
        if pairing:
            seen.hit("auth.new-device")
        elif who and seen.outcome == "success":
            if self._devices and who not in self._devices:
                seen.hit("auth.new-device")
            self._devices.put(who, None)
        if who and place:
            places = self._places.use(who)
            if places is not None and place not in places:
                seen.hit("auth.new-source")
            if seen.outcome == "success" or places is None:
                known = places or {}
                self._places.put(who, known if len(known) >= 64 else {**known, place: None})

    def asked(self, seen: Seen) -> None:
        self._asked.put(_question(seen), seen.history.clock())
        seen.cause("tool.call")

    def answered(self, seen: Seen) -> None:
        approval, limits, now = seen.group("approval"), seen.limits("approval.rubber-stamp"), seen.history.clock()
        asked = self._asked.pop(_question(seen), None)
        waited = approval.get("waited_ms")
        if not isinstance(waited, int) and asked is not None:
            waited = round((now - asked) * 1000)
            seen.put("approval", {**approval, "waited_ms": waited})
        seen.cause("approval.request")
        who = str(approval.get("by") or seen.session)
        if seen.outcome != "success" or not isinstance(waited, int) or waited >= limits["waited_ms"]:
            self._stamps.pop(who, None)
            return
        stamps = [t for t in self._stamps.get(who, []) if now - t <= limits["within_s"]][-64:] + [now]
        self._stamps.put(who, stamps)
        if len(stamps) >= limits["answers"]:
            seen.hit("approval.rubber-stamp")


def _question(seen: Seen) -> str:
    return seen.word("approval", "id") or seen.word("trace", "id") or str(seen.session)
