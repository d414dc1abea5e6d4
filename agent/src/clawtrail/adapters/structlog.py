"""structlog → events: a processor that ships what the chain has gathered so far, and passes it on unchanged.

    structlog.configure(processors=[merge_contextvars, add_log_level, ship(handler), ConsoleRenderer()])

It belongs before the renderer, which turns the event into text. Bound values count as `extra` of `logging`: known
fields go to their places, the rest into `log.fields`; `exc_info`, and an `exception` that was already written, become
the event's `error`.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, MutableMapping

_LEVELS = {"exception": logging.ERROR, "err": logging.ERROR, "warn": logging.WARNING, "fatal": logging.CRITICAL}
_ADDED = ("level", "logger", "timestamp")  # by structlog's own processors; the event has each of them in a place of its own

Processor = Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]


def ship(handler: logging.Handler) -> Processor:
    """A processor for `structlog.configure`. A refusal (`when_full="fail"`) reaches who logs."""

    def processor(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        level = _LEVELS.get(method) or logging.getLevelNamesMapping().get(method.upper(), logging.INFO)
        name = event.get("logger") or getattr(logger, "name", None)
        told = {k: v for k, v in event.items() if k not in _ADDED}
        record = logging.LogRecord(name if isinstance(name, str) else "structlog", level, "", 0, told, None, None)
        handler.handle(record)
        return event

    return processor
