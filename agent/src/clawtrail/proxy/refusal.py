"""Why an exchange does not go on: we refuse it, or the recorder does not take its event."""

from __future__ import annotations


class Unrecorded(Exception):
    """The recorder did not take an event.

    Attributes:
        accepted: it did, and only could not say that the event is where it has to be.
        hopeless: it never will take this one.
    """

    def __init__(self, why: str, accepted: bool = False, hopeless: bool = False) -> None:
        super().__init__(why)
        self.accepted, self.hopeless = accepted, hopeless


class Refused(Exception):
    """An answer of our own. `severity`: it is flagged; `recorded`: it leaves an event."""

    def __init__(self, status: int, rule: str, message: str, severity: str = "", recorded: bool = True) -> None:
        super().__init__(message)
        self.status, self.rule, self.severity, self.recorded = status, rule, severity, recorded
