"""Whether a rule does what it says, and in time: its own examples, and texts made to take it long."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

from .plain import TEXT_MAX, plain
from .reading import Rule

SLOWEST = 0.25  #: seconds that one expression may take on TEXT_MAX hostile characters


def faults(rule: Rule, timed: bool = False) -> list[str]:
    """What is wrong with a rule: its own examples that behave otherwise; with `timed`, also texts that take it too long."""
    wrong = [f"does not hit {text!r}, which stands under its hit" for text in rule.hit if not _tried(rule, text)]
    wrong += [f"hits {text!r}, which stands under its miss" for text in rule.miss if _tried(rule, text)]
    if timed and (slow := slowest(rule)) > SLOWEST:
        wrong.append(f"takes {slow * 1000:.0f} ms on {TEXT_MAX} hostile characters; expected at most {SLOWEST * 1000:.0f} ms")
    return wrong


def _tried(rule: Rule, text: str) -> bool:
    texts = {**dict.fromkeys(rule.on, plain(text)), "tool": text}
    low = "\n".join(texts.values()).lower()
    return rule.near(low) and any(rule.matches(texts[name]) for name in rule.on)


def slowest(rule: Rule) -> float:
    """Seconds that the rule takes on the worst of the hostile texts made from its own words; main thread only, ends at ten times SLOWEST."""
    worst = 0.0

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for text in _hostile(rule):
            start = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, SLOWEST * 10)
            try:
                rule.matches(text)
            except TimeoutError:
                return SLOWEST * 10
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            worst = max(worst, time.perf_counter() - start)
    finally:
        signal.signal(signal.SIGALRM, before)
    return worst


def _hostile(rule: Rule) -> Iterator[str]:
    seeds = {" ".join(h.split()[:2]) for h in rule.hit} | set(rule.hints[:3])
    for seed in sorted(seeds)[:6]:
        for filler in ("", " ", "a", "a "):
            yield ((seed + filler) * (TEXT_MAX // (len(seed) + len(filler)) + 1))[:TEXT_MAX]
        yield seed + "a" * (TEXT_MAX - len(seed))
    for filler in ("a", "-", "/", " ", "a "):
        yield (filler * TEXT_MAX)[:TEXT_MAX]
