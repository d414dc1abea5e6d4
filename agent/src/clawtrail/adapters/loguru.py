"""loguru → events: a sink that hands each record over whole, as `bind()`, `opt()` and `exception()` made it.

    logger.add(sink(handler), level="INFO", catch=False)

What is bound counts as `extra` of `logging`: known fields go to their places, the rest into `log.fields`. Unlike the
handler itself as loguru's sink, the text has no traceback glued to it: the exception is the event's `error`.
"""

from __future__ import annotations

import logging
from typing import Any, Callable


def sink(handler: logging.Handler) -> Callable[[Any], None]:
    """A sink for `loguru.logger.add`. `catch=False` there lets a refusal (`when_full="fail"`) reach who logs."""

    def write(message: Any) -> None:
        told = message.record
        level, exception, file = told["level"], told["exception"], told["file"]
        exc_info = (exception.type, exception.value, exception.traceback) if exception and exception.value else None
        record = logging.LogRecord(told["name"] or "loguru", level.no, file.path, told["line"], told["message"], (), exc_info, told["function"])
        record.levelname, record.created = level.name, told["time"].timestamp()
        record.extra = dict(told["extra"])
        handler.handle(record)

    return write
