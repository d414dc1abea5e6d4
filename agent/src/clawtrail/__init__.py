"""clawtrail: the flight recorder for AI agents.

`TLSSysLogHandler` ships what an agent logs, `Recorder.record` what it tells directly, `Recorder.action` what it does;
`context` sets session and run. The errors are in `errors`, counters for Prometheus in `metrics`, help for tests in
`testing`.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .action import Action
    from .handler import TLSSysLogHandler
    from .recorder import Receipt, Recorder, context

__all__ = ["Action", "Receipt", "Recorder", "TLSSysLogHandler", "__version__", "context"]

_WHERE = {"Action": "action", "TLSSysLogHandler": "handler", "Receipt": "recorder", "Recorder": "recorder", "context": "recorder"}


def __getattr__(name: str) -> object:
    """Imported when they are first asked for: `clawtrail hook` is a process per tool call, and needs none of them."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
