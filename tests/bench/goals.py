"""The goals: what is measured for each, beside whom, and what it has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator

from .driver import Driver, Runs, median, why_not, worst
from .peers import OURS


@dataclass(frozen=True)
class Line:
    """One line of the table. `goal` is empty for a figure that is shown for information; `holds` is None where there is
    no goal or nothing was measured."""

    what: str
    ours: str
    peer: str = ""
    theirs: str = ""
    ratio: float | None = None
    goal: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Goal:
    """`key` is what `-k` finds, besides the words of the title; `bursts`: who has to take part in the bursts that all
    such goals share; `tests`: the file of tests that holds the promise."""

    key: str
    title: str
    lines: Callable[[Driver], Iterator[Line]]
    bursts: tuple[str, ...] = ()
    tests: str = ""


GOALS: list[Goal] = []
_Lines = Callable[[Driver], Iterator[Line]]


def _goal(key: str, title: str, bursts: tuple[str, ...] = ()) -> Callable[[_Lines], _Lines]:
    def add(lines: _Lines) -> _Lines:
        GOALS.append(Goal(key, title, lines, bursts))
        return lines

    return add


def _micro(value: float) -> str:
    return f"{value:,.1f} µs" if value < 1000 else f"{value / 1000:,.2f} ms"


def _rate(value: float) -> str:
    return f"{value:,.0f} /s"


def _milli(value: float) -> str:
    return f"{value:,.1f} ms" if value < 1000 else f"{value / 1000:,.1f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}"


_Write = Callable[[float], str]


def _ratio(what: str, write: _Write, mine: float | None, peer: str, theirs: float | None, bound: float | None, least: bool = False) -> Line:
    """Ours against a peer's: at most, or at least, `bound` times as much; without a bound, for information."""
    goal = "" if bound is None else f"{'>=' if least else '<='} {bound:g} x"
    shown = [write(v) if v is not None else "not measured" for v in (mine, theirs)]
    ratio = mine / theirs if mine is not None and theirs else None
    holds = None if ratio is None or bound is None else (ratio >= bound if least else ratio <= bound)
    return Line(what, shown[0], peer, shown[1], ratio, goal, holds)


def _bound(what: str, write: _Write, mine: float | None, most: float, why: str = "") -> Line:
    """Ours alone: at most so much."""
    goal = write(most) if most == 0 else f"<= {write(most)}"
    if mine is None:
        return Line(what, f"not run: {why}", goal=goal)
    return Line(what, write(mine), goal=goal, holds=mine <= most)


# -- speed -----------------------------------------------------------------------------------------------------

_HANDLERS = ("null", "stdlib SysLogHandler", "tlssysloghandler", "rfc5424", "OTel", "logstash-async", OURS, "clawtrail memory", "clawtrail disk", "clawtrail pure")


def _burst(bench: Driver) -> Runs:
    return bench.rounds_of("burst", bench.bursts, n=8000 if bench.quick else 20000)


def _compare(runs: Runs, what: str, key: str, write: _Write, bounds: dict[str, float | None], least: bool = False) -> Iterator[Line]:
    mine = median(runs, OURS, key)
    for peer, bound in bounds.items():
        yield _ratio(what, write, mine, peer, median(runs, peer, key), bound, least)


def _other_ways(runs: Runs, what: str, key: str, write: _Write) -> Iterator[Line]:
    """Where a `write` to the spool stands between no disk and a synced one, and what Python alone does of it."""
    for mode in ("memory", "disk"):
        mine = median(runs, f"clawtrail {mode}", key)
        yield _ratio(f"{what}; durability {mode}", write, mine, "durability write", median(runs, OURS, key), None)
    yield _ratio(f"{what}; built without a compiler", write, median(runs, "clawtrail pure", key), "with one", median(runs, OURS, key), None)


@_goal("emit", "emit through `logging`, burst", _HANDLERS)
def _emit(bench: Driver) -> Iterator[Line]:
    runs, what = _burst(bench), "emit p50 through logging, burst"
    bounds = {"tlssysloghandler": 0.6, "rfc5424": 0.45, "null": 1.8, "stdlib SysLogHandler": None, "OTel": None, "logstash-async": None}
    yield from _compare(runs, what, "p50", _micro, bounds)
    yield from _other_ways(runs, what, "p50", _micro)
    yield from _compare(runs, "emit p99 through logging, burst", "p99", _micro, {"tlssysloghandler": None, "rfc5424": None})


@_goal("record", "record(), the direct API", (OURS, "record()"))
def _record(bench: Driver) -> Iterator[Line]:
    runs = _burst(bench)
    yield _ratio("record() p50, burst", _micro, median(runs, "record()", "p50"), "our logging path", median(runs, OURS, "p50"), 0.35)


@_goal("cpu", "process CPU per event, everything on; the peers bare", _HANDLERS)
def _cpu(bench: Driver) -> Iterator[Line]:
    runs, what = _burst(bench), "process CPU per event, everything on"
    bounds = {"tlssysloghandler": 0.85, "rfc5424": 0.6, "OTel": 0.3, "stdlib SysLogHandler": None, "logstash-async": None}
    yield from _compare(runs, what, "process_cpu", _micro, bounds)
    yield from _other_ways(runs, what, "process_cpu", _micro)


@_goal("delivered", "delivered per second, everything on; the peers bare", _HANDLERS)
def _delivered(bench: Driver) -> Iterator[Line]:
    runs, what = _burst(bench), "delivered per second, everything on"
    bounds = {"tlssysloghandler": 1.2, "rfc5424": 1.7, "stdlib SysLogHandler": None, "OTel": None, "logstash-async": None}
    yield from _compare(runs, what, "delivered", _rate, bounds, least=True)
    yield from _other_ways(runs, what, "delivered", _rate)
    for record in (900, 16384):
        sink = bench.rounds_of("ceiling", ["sync TLS write"], 1, n=30000, record=record)
        of = "one event" if record == 900 else "16 KiB"
        yield Line(f"the sink's own ceiling, TLS records of {of}", "", "", _rate(median(sink, "sync TLS write", "events_per_second") or 0))


@_goal("threads", "8 threads, emit p99")
def _threads(bench: Driver) -> Iterator[Line]:
    runs = bench.rounds_of("threads", ("tlssysloghandler", "rfc5424", "OTel", OURS), n=8000 if bench.quick else 20000, count=8)
    yield from _compare(runs, "8 threads, emit p99", "p99", _micro, {"tlssysloghandler": 0.1, "rfc5424": None, "OTel": None})


@_goal("idle", "idle to first byte at the receiver")
def _idle(bench: Driver) -> Iterator[Line]:
    runs = bench.rounds_of("idle", ("sync TLS write", "tlssysloghandler", OURS), n=50 if bench.quick else 150)
    what = "idle, call to read by the sink, median"
    yield _bound(what, _micro, median(runs, OURS, "p50"), 1000, why_not(runs, OURS))
    yield from _compare(runs, what, "p50", _micro, {"sync TLS write": None, "tlssysloghandler": None})
    yield from _compare(runs, "idle, call to read by the sink, p99", "p99", _micro, {"sync TLS write": None})


@_goal("paced", "paced 2,000/s, process CPU above the null handler")
def _paced(bench: Driver) -> Iterator[Line]:
    runs = bench.rounds_of("paced", ("null", "sync TLS write", "tlssysloghandler", OURS), n=3000 if bench.quick else 6000, rate=2000)
    floor = median(runs, "null", "process_cpu")

    def above(peer: str) -> float | None:
        value = median(runs, peer, "process_cpu")
        return None if value is None or floor is None else value - floor

    what = "paced 2,000/s, CPU per event above null"
    yield _ratio(what, _micro, above(OURS), "sync TLS write", above("sync TLS write"), 0.7)
    yield _ratio(what, _micro, above(OURS), "tlssysloghandler", above("tlssysloghandler"), None)
    yield _ratio("paced 2,000/s, emit p50", _micro, median(runs, OURS, "p50"), "sync TLS write", median(runs, "sync TLS write", "p50"), None)


# -- loss ------------------------------------------------------------------------------------------------------

_LOSERS = ("stdlib SysLogHandler", "tlssysloghandler", "rfc5424", "OTel", "logstash-async")
_LOSERS_QUICK = ("tlssysloghandler", "rfc5424")


def _losers(bench: Driver) -> tuple[str, ...]:
    return _LOSERS_QUICK if bench.quick else _LOSERS


def _loss(runs: Runs, what: str, peers: tuple[str, ...]) -> Iterator[Line]:
    """Ours: the worst of the rounds."""
    mine = worst(runs, OURS, "lost")
    yield _bound(f"{what}: lost", _number, mine, 0, why_not(runs, OURS))
    for peer in peers:
        lost, sent = worst(runs, peer, "lost"), worst(runs, peer, "sent")
        theirs = f"{lost:,.0f} of {sent:,.0f}" if lost is not None and sent is not None else f"not run: {why_not(runs, peer)}"
        yield Line(f"{what}: lost, or not there 40 s later", _number(mine) if mine is not None else "", peer, theirs)


def _blocked(runs: Runs, what: str, peers: tuple[str, ...]) -> Iterator[Line]:
    mine = median(runs, OURS, "longest_ms")
    yield _bound(f"{what}: longest emit", _milli, mine, 10, why_not(runs, OURS))
    for peer in peers:
        theirs = median(runs, peer, "longest_ms")
        yield Line(f"{what}: longest emit", _milli(mine) if mine is not None else "", peer, _milli(theirs) if theirs is not None else "not run")
    if (waited := median(runs, OURS, "longest_waited_for_cpu_ms")) is not None:
        yield Line(f"{what}: of it waiting for a processor", _milli(waited))


@_goal("outage", "the receiver is away for 10 s at 1,000/s")
def _outage(bench: Driver) -> Iterator[Line]:
    given: dict[str, Any] = dict(rate=1000, before=1, away=4, after=2) if bench.quick else dict(rate=1000, before=2, away=10, after=4)
    what, peers = f"outage {given['away']} s, 1,000/s", _losers(bench)
    runs = bench.rounds_of("outage", [OURS], min(bench.rounds, 3), **given)
    bench.together("outage", peers, **given)
    yield from _loss(runs, what, peers)
    yield _bound(f"{what}: reordered", _number, worst(runs, OURS, "reordered"), 0, why_not(runs, OURS))
    yield _bound(f"{what}: duplicates after dedup", _number, worst(runs, OURS, "repeated"), 0, why_not(runs, OURS))
    yield _bound(f"{what}: resends that differ", _number, worst(runs, OURS, "different"), 0, why_not(runs, OURS))
    yield from _blocked(runs, what, peers)
    memory, mapped, payload = (median(runs, OURS, k) for k in ("anonymous", "mapped", "payload"))
    yield _ratio(f"{what}: memory (anonymous)", _mega, memory, "payload", payload, 1.3)
    yield _ratio(f"{what}: mapped pages of files", _mega, mapped, "payload", payload, None)


def _mega(value: float) -> str:
    return f"{value / 1e6:,.1f} MB"


@_goal("hang", "the receiver hangs for 12 s (SIGSTOP) at 3,000/s")
def _hang(bench: Driver) -> Iterator[Line]:
    given: dict[str, Any] = dict(rate=3000, before=1, away=5, after=2) if bench.quick else dict(rate=3000, before=1, away=12, after=2)
    what, peers = f"receiver hung {given['away']} s, 3,000/s", _losers(bench)
    runs = bench.rounds_of("hang", [OURS], min(bench.rounds, 2), **given)
    for pair in (peers[i : i + 2] for i in range(0, len(peers), 2)):
        bench.together("hang", pair, **given)
    yield from _loss(runs, what, peers)
    yield from _blocked(runs, what, peers)


@_goal("hang-kill", "the receiver hangs for 3 s, then dies (SIGKILL)")
def _hang_kill(bench: Driver) -> Iterator[Line]:
    given: dict[str, Any] = dict(rate=1000, before=1, away=3, after=2)
    peers = _losers(bench)
    runs = bench.together("hang_kill", [OURS, *peers], **given)
    yield from _loss(runs, "hung 3 s, then SIGKILL", peers)


@_goal("partition", "packets vanish for 8 s, and the receiver dies meanwhile")
def _partition(bench: Driver) -> Iterator[Line]:
    given: dict[str, Any] = dict(rate=1000, before=1, away=8, after=3)
    peers, what = _losers(bench), "partition 8 s, receiver dies in it"
    if bench.no_namespace:
        yield Line(f"{what}: lost", f"not run: {bench.no_namespace}", goal="0")
        return
    runs = bench.together("partition", [OURS, *peers], namespace=True, **given)
    yield from _loss(runs, what, peers)
    yield _bound(f"{what}: detected after", _milli, _thousandfold(median(runs, OURS, "detected_s")), 5000, "not detected")


def _thousandfold(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


@_goal("exit", "500 events and the end of the program")
def _exit(bench: Driver) -> Iterator[Line]:
    peers = _losers(bench)
    for up, most in ((True, 300.0), (False, 3000.0)):
        what = "exit, receiver up, tickets" if up else "exit, receiver down"
        runs = bench.rounds_of("leave", [OURS], up=up)
        bench.together("leave", peers, up=up)
        took = _thousandfold(median(runs, OURS, "exit_s"))
        if up:
            delivered = [r["delivered"] for r in runs[OURS] if "delivered" in r]
            yield Line(
                f"{what}: delivered at exit",
                f"{min(delivered)} of 500" if delivered else f"not run: {why_not(runs, OURS)}",
                goal="500 of 500",
                holds=min(delivered) == 500 if delivered else None,
            )
        else:
            yield _bound(f"{what}: lost after the next start", _number, worst(runs, OURS, "lost"), 0, why_not(runs, OURS))
        yield _bound(f"{what}: time", _milli, took, most, why_not(runs, OURS))
        for peer in peers:
            result = runs[peer][-1]
            if "failed" in result:
                yield Line(what, "", peer, f"not run: {result['failed']}")
                continue
            ended = "killed after " if result["killed"] else ""
            mine = f"{worst(runs, OURS, 'lost') or 0:.0f} lost, {_milli(took)}" if took is not None else ""
            yield Line(what, mine, peer, f"{result['lost']} lost, {ended}{_milli(result['exit_s'] * 1000)}")


# -- the forwarder -----------------------------------------------------------------------------------------------

_AT_LEAST = 5000  #: events per second


@_goal("gate", "what a gate costs a tool call: the forwarder's socket, durability disk")
def _gate(bench: Driver) -> Iterator[Line]:
    for busy in (2, 0):
        runs = bench.rounds_of("gate", [OURS], n=500 if bench.quick else 2000, busy=busy)
        what = f"gate of a tool call, disk, {'two programs want the processors' if busy else 'quiet'}"
        for key, most in (("p50", 2000.0), ("p99", 15000.0)):
            yield _bound(f"{what}: {key}", _micro, median(runs, OURS, key), most, why_not(runs, OURS))
        floor = median(runs, OURS, "ping99")
        yield Line(f"{what}: p99 of a ping, which records nothing", _micro(floor) if floor is not None else "not run")


@_goal("forwarder", "the forwarder: events per second from its socket, memory, size of an event")
def _forwarder(bench: Driver) -> Iterator[Line]:
    for durability in ("write", "disk"):
        runs = bench.rounds_of("throughput", [OURS], n=10000 if bench.quick else 40000, durability=durability)
        rate, what = median(runs, OURS, "per_second"), f"forwarder, durability {durability}"
        holds = None if rate is None else rate >= _AT_LEAST
        yield Line(f"{what}: from its socket", _rate(rate) if rate is not None else why_not(runs, OURS), goal=f">= {_rate(_AT_LEAST)}", holds=holds)
        yield _bound(f"{what}: memory (resident, highest)", _mega, median(runs, OURS, "resident"), 60e6, why_not(runs, OURS))
    runs = bench.rounds_of("sizes", [OURS], 1, n=2000)
    for part in ("attempt", "outcome"):
        yield _bound(f"{part} of a tool call, bytes, median", _number, median(runs, OURS, part), 1500, why_not(runs, OURS))
    both = median(runs, OURS, "both")
    yield Line("both of them together, bytes, median", _number(both) if both is not None else why_not(runs, OURS))


# -- the model proxy ---------------------------------------------------------------------------------------------


@_goal("proxy", "the model proxy beside the same requests without it, durability disk")
def _proxy(bench: Driver) -> Iterator[Line]:
    for parallel, pace, n in ((1, 0.002, 100), (100, 0.0, 600)):
        runs = bench.rounds_of("egress", [OURS], 1, n=n // 4 if bench.quick and parallel == 1 else n, parallel=parallel, pace=pace)

        def of(key: str) -> float | None:
            return median(runs, OURS, key)

        what = f"model proxy, {'one stream' if parallel == 1 else f'{parallel} streams at once'}"
        for key, name in (("first", "first byte"), ("chunk", "one chunk")):
            for part in ("p50", "p99"):
                yield Line(f"{what}: {name} {part}", _part(of(f"proxied_{key}_{part}")), "without it", _part(of(f"direct_{key}_{part}")))
        if parallel == 1:
            yield _bound(f"{what}: added to the first byte, p50", _part, of("added_first"), 5.0, why_not(runs, OURS))
            yield _bound(f"{what}: added to a chunk, p50", _part, of("added_chunk"), 0.5, why_not(runs, OURS))
            continue
        rate = of("proxied_streams_per_second")
        yield Line(f"{what}: whole streams of 50 chunks", _rate(rate) if rate else why_not(runs, OURS), "without it",
                   _rate(of("direct_streams_per_second") or 0), goal=">= 50 /s", holds=None if rate is None else rate >= 50)  # fmt: skip
        yield _bound(f"{what}: the forwarder's memory (resident, highest)", _mega, of("resident"), 120e6, why_not(runs, OURS))


def _part(milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{milliseconds:,.2f} ms"


# -- promises that tests hold -----------------------------------------------------------------------------------


def _tests(key: str, title: str, goal: str, file: str) -> None:
    def lines(bench: Driver) -> Iterator[Line]:
        passed, count, why = bench.tested[file]
        ours = f"not run: {why}" if why else f"{passed} of {count} tests pass"
        yield Line(title, ours, goal=goal, holds=None if why else passed == count > 0)

    GOALS.append(Goal(key, title, lines, tests=file))


_tests("kill", "agent SIGKILL at any instant, durability write", "0 accepted lost", "test_kill_points.py")
_tests("power", "power-loss model, durability disk", "0 accepted lost", "test_power_loss.py")
_tests("fork", "fork", "parent, children 100 %", "test_fork.py")
_tests("tls", "TLS configurations", "none unverified, in clear", "test_tls_configurations.py")
_tests("mutations", "1,000 random mutations of a spool", "intact records delivered", "test_spool_mutations.py")
