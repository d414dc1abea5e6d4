"""clawtrail: the flight recorder for AI agents.

`TLSSysLogHandler` ships what an agent logs, `Recorder.record` what it tells directly; `context` sets session and run.
"""

__version__ = "0.1.0"

from .handler import TLSSysLogHandler
from .recorder import Receipt, Recorder, context

__all__ = ["Receipt", "Recorder", "TLSSysLogHandler", "__version__", "context"]
