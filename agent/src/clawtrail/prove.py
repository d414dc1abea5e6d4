"""One event over mutual TLS, found again in the store, byte for byte: the proof that `make up` ends with."""

from __future__ import annotations

import time

from .errors import ClawtrailError, StoreError
from .recorder import Recorder
from .store import Loki


def prove(recorder: Recorder, loki: Loki, within: float = 20.0) -> float:
    """Seconds from `record()` to the stored line. Raises ClawtrailError, naming how far the event got."""
    began = time.monotonic()
    receipt = recorder.record("log.record", "success", log={"logger": "clawtrail.prove"}, content={"excerpt": "proof"})
    query = f'{{job="audit", agent="{recorder.agent}"}} | epoch="{receipt.epoch}" | seq="{receipt.seq}"'
    answer = "no answer yet"
    while time.monotonic() - began < within:
        try:
            found = list(loki.query(query, since=600))
            if found:
                return _judge(found[0].line, receipt.line, time.monotonic() - began)
            answer = "Loki answers, the event is not there"
        except StoreError as e:
            answer = f"Loki: {e}"
        time.sleep(0.05)
    state = recorder.stats()
    sent = state["last_error"] or ("sent" if state["connected"] and not state["unsent"] else "not sent")
    raise ClawtrailError(f"the event was not found within {within:.0f} s; transport: {sent}; store: {answer}; expected one entry for {query}")


def _judge(stored: str, sent: bytes, seconds: float) -> float:
    if stored.encode() != sent:
        raise ClawtrailError(f"the stored line differs from the one sent; found {stored[:200]!r}, expected {sent[:200]!r}")
    return seconds
