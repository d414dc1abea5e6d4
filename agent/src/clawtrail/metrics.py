"""The counters of recorders as Prometheus metrics: text for an HTTP answer, or a file for node_exporter.

    metrics.write("/var/lib/node_exporter/textfile/agent-1.prom", recorder.stats())

Labels are what does not change during a process' life and is the same in the next one: agent, proof, durability. No
epoch: each start of a process would begin a new series.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

import math
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("agent", "proof", "durability")
#: Why events are lost, as far as it is known here: a counter that begins with its first loss hides that loss from rate().
_REFUSED = ("quota", "disk-full", "spool-error", "closed")
_REASONS = {"refused": _REFUSED, "dropped": (*_REFUSED, "spool-damage", "recursion", "unrecordable")}
_ERROR_MAX = 200  #: characters; a label is no place for a story


class _Family(NamedTuple):
    name: str
    kind: str
    key: str
    help: str
    combine: Callable[[Iterable[Any]], Any] = sum  #: of recorders that share their labels; a series may be there but once
    by: str = ""  #: the label of a value that is a mapping


_FAMILIES = (
    _Family("clawtrail_events_accepted_total", "counter", "accepted", "Events that record() took on."),
    _Family("clawtrail_events_proven_total", "counter", "proven", "Accepted events that the proof holds for."),
    _Family("clawtrail_events_spooled", "gauge", "spooled", "Accepted events that are not proven yet."),
    _Family("clawtrail_events_unsent", "gauge", "unsent", "Accepted events that no connection has taken yet."),
    _Family("clawtrail_events_dropped_total", "counter", "dropped", "Accepted events that were discarded, by reason.", by="reason"),
    _Family("clawtrail_events_refused_total", "counter", "refused", "Events that were not accepted, by reason.", by="reason"),
    _Family("clawtrail_events_adopted_total", "counter", "adopted", "Events taken over from the spools of dead processes."),
    _Family("clawtrail_spool_damages_total", "counter", "damaged", "Ranges of a spool that were found damaged."),
    _Family("clawtrail_events_resent_total", "counter", "resent", "Events that were sent once more after a break."),
    _Family("clawtrail_connects_total", "counter", "connects", "Connections that came up."),
    _Family("clawtrail_reconnects_total", "counter", "reconnects", "Connections that came up after one had been lost."),
    _Family("clawtrail_connected", "gauge", "connected", "1 while there is a verified connection to a receiver.", min),
    _Family("clawtrail_oldest_unproven_seconds", "gauge", "oldest_unproven_seconds", "Age of the oldest event that is not proven.", max),
    _Family("clawtrail_spool_bytes", "gauge", "spool_bytes", "Bytes of the spool, proven events that are kept included."),
    _Family("clawtrail_accepted_bytes_total", "counter", "accepted_bytes", "Bytes of the frames of accepted events."),
    _Family("clawtrail_sent_bytes_total", "counter", "sent_bytes", "Bytes of frames that connections took, repetitions included."),
    _Family("clawtrail_last_error", "gauge", "last_error", "1 while the label says what is wrong with the connection.", max, by="error"),
    _Family("clawtrail_proof_error", "gauge", "proof_error", "1 while the label says why nothing can be proven.", max, by="error"),
)


def text(*stats: Mapping[str, Any]) -> str:
    """What `Recorder.stats()` of any number of recorders says. Recorders with the same labels are one series."""
    return "".join(part for family in _FAMILIES for part in _family(family, stats))


def write(path: str | PathLike[str], *stats: Mapping[str, Any]) -> None:
    """Writes `text()` to a file that node_exporter's textfile collector reads; one file per process, named *.prom.

    A reader sees the old text or the new one, never half of it. Raises OSError.
    """
    target = Path(path)
    descriptor, unfinished = tempfile.mkstemp(".new", f".{target.name}.", target.parent)
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(text(*stats).encode("utf-8", "replace"))
            os.fchmod(descriptor, 0o644)  # the collector is another user
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def _family(family: _Family, stats: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    series: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    found = False
    for one in stats:
        if family.key not in one:
            continue
        found = True
        labels = tuple((name, str(one.get(name, ""))) for name in _LABELS)
        for more, value in _values(family, one[family.key]):
            series.setdefault((*labels, *more), []).append(value)
    if found:
        yield f"# HELP {family.name} {_escape(family.help)}\n# TYPE {family.name} {family.kind}\n"
    for names, values in series.items():
        shown = ",".join(f'{name}="{_escape(value, quote=True)}"' for name, value in names)
        yield f"{family.name}{{{shown}}} {_number(family.combine(values))}\n"


def _values(family: _Family, value: Any) -> Iterable[tuple[tuple[tuple[str, str], ...], Any]]:
    if not family.by:
        return [((), value)]
    if isinstance(value, Mapping):
        return [(((family.by, str(key)),), n) for key, n in {**dict.fromkeys(_REASONS[family.key], 0), **value}.items()]
    return [(((family.by, str(value or "")[:_ERROR_MAX]),), bool(value))]


def _escape(value: str, quote: bool = False) -> str:
    value = value.replace("\\", r"\\").replace("\n", r"\n")
    return value.replace('"', r"\"") if quote else value


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))
