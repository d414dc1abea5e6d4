"""clawtrail: the flight recorder for AI agents.

`TLSSysLogHandler` ships what an agent logs, `Recorder.record` what it tells directly, `Recorder.action` what it does;
`context` sets session and run. The errors are in `errors`, counters for Prometheus in `metrics`, help for tests in
`testing`.
"""

__version__ = "0.1.0"

from .action import Action
from .handler import TLSSysLogHandler
from .recorder import Receipt, Recorder, context

__all__ = ["Action", "Receipt", "Recorder", "TLSSysLogHandler", "__version__", "context"]
