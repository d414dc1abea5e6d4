"""Every error this package raises. A message says what failed, what was found and what was expected."""

from typing import Any


class ClawtrailError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(ClawtrailError, ValueError):
    """A setting is wrong. Raised at once, before anything connects."""


class EventError(ClawtrailError, ValueError):
    """An event does not fit the schema; nothing was recorded."""


class Denied(ClawtrailError):
    """A rule forbids the action, or wants a person to be asked before. The attempt and this decision are on record.

    Attributes:
        rule: the rule's id.
        approve: true: it may run once a person said yes.
        action: what that person is shown of it, without its secrets.
        severity: of the rule's hit.
        recorded: what was recorded of the action, the first event first.
    """

    def __init__(self, rule: str, why: str, approve: bool = False, action: str = "", severity: str = "high", asks: bool = True) -> None:
        nobody = "" if asks or not approve else ". Nobody can be asked for approval here, so it was not carried out"
        super().__init__(f"{'needs approval' if approve else 'forbidden'} by the rule {rule}: {why}{nobody}")
        self.rule, self.approve, self.action, self.severity = rule, approve, action, severity
        self.recorded: list[Any] = []


class QueueFull(ClawtrailError):
    """There was no room for the configured time; the event was not accepted.

    Attributes:
        reason: `quota`, `disk-full` or `closed`.
    """

    def __init__(self, text: str, reason: str = "quota") -> None:
        super().__init__(text)
        self.reason = reason


class SpoolError(ClawtrailError):
    """The spool cannot be used: an input/output error, a folder that cannot be made. The message names the file.

    Attributes:
        accepted: the event has its number and will be sent; only that it is on the disk cannot be said.
    """

    accepted = False


class SpoolFull(SpoolError):
    """There is no room in the spool.

    Attributes:
        reason: `quota` or `disk-full`.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class SpoolLocked(SpoolError):
    """A living process holds this spool."""


class GateClosed(ClawtrailError):
    """An action was not carried out: its event had not come far enough at the gate's deadline. The text is for its user."""


class TransportError(ClawtrailError):
    """The receiver could not be reached, refused us, or went away."""


class StoreError(ClawtrailError):
    """The store answered with an error.

    Attributes:
        status: HTTP status, 0 when there was no answer at all.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
