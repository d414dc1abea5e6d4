"""How a process lives and ends with a recorder in it: signals, threads, event loops, heartbeats, every kind of exit."""

import asyncio
import gc
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from apart import judge, whole
from clawtrail import Recorder, TLSSysLogHandler, recorder as recorder_module, shipper
from clawtrail.errors import QueueFull
from support import eventually


def payloads(receiver, who="main"):
    return [e["params"]["i"] for e in receiver.events("tool.call") if e["params"]["who"] == who]


def record(recorder, i, who="main", **fields):
    return recorder.record("tool.call", "attempt", params={"who": who, "i": i}, **fields)


def settled(recorder, receiver):
    """Everything that was accepted has come, in one chain."""
    eventually(lambda: len(receiver.events()) >= recorder.stats()["accepted"], state=recorder.stats)
    (events,) = judge(receiver.messages).values()
    stats = recorder.stats()
    assert len(events) == stats["accepted"] and whole(stats) and stats["dropped"] == stats["refused"] == {}
    return events


# -- signals -------------------------------------------------------------------------------------------------------


class Storm:
    """SIGALRM again and again while the block runs, at moments that nobody chose; `handler` gets the count."""

    def __init__(self, handler, every=0.0005):
        self._handler, self._every, self.count = handler, every, 0

    def __enter__(self):
        self._old = signal.signal(signal.SIGALRM, self._signal)
        self._hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # it may strike in somebody's finalizer too
        self._next()
        return self

    def __exit__(self, *_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._old)
        sys.unraisablehook = self._hook

    def _next(self):
        signal.setitimer(signal.ITIMER_REAL, random.uniform(self._every / 10, self._every))

    def _signal(self, *_):
        self.count += 1
        try:
            self._handler(self.count)
        finally:
            self._next()


@pytest.mark.parametrize("durability", ["write", "disk", "memory"])
def test_a_signal_handler_that_records_in_the_middle_of_record_loses_and_garbles_nothing(durability, receiver, make_recorder):
    recorder = make_recorder(receiver.address, durability=durability)
    n = 200 if durability == "disk" else 4000
    with Storm(lambda i: record(recorder, i, "signal"), every=0.002 if durability == "disk" else 0.0005) as storm:
        for i in range(n):
            record(recorder, i)
    settled(recorder, receiver)
    assert payloads(receiver) == list(range(n)) and storm.count > 20
    assert sorted(payloads(receiver, "signal")) == list(range(1, storm.count + 1))


def test_the_first_event_may_come_from_a_signal_handler_that_interrupts_the_first_event(receiver, make_recorder):
    for _ in range(40):
        recorder = make_recorder(receiver.address)
        with Storm(lambda i: record(recorder, i, "signal"), every=0.0003):
            record(recorder, 0)
            time.sleep(0.002)
        assert recorder.close(10), recorder
        assert whole(recorder.stats()) and recorder.stats()["connects"] == 1
    assert len(judge(receiver.messages)) == 40 and payloads(receiver) == [0] * 40


class Interrupted(BaseException):
    """As KeyboardInterrupt is."""


def test_an_exception_that_a_signal_raises_inside_record_breaks_neither_the_recorder_nor_the_chain(receiver, recorder):
    def interrupt(i):
        nonlocal broke
        if inside:
            record(recorder, i, "signal")
            broke += 1
            raise Interrupted

    inside, broke, receipts = False, 0, {}
    with Storm(interrupt, every=0.0004) as storm:
        for i in range(6000):
            try:
                inside = True
                receipts[i] = record(recorder, i)
            except Interrupted:
                pass
            finally:
                inside = False
    record(recorder, "after")
    settled(recorder, receiver)
    came = payloads(receiver)
    assert broke > 100 and len(came) == len(set(came)) and set(receipts) <= set(came)
    signals = payloads(receiver, "signal")
    assert len(signals) == len(set(signals)) == broke, (len(signals), broke, storm.count)


def test_an_interrupt_at_any_moment_of_the_first_event_leaves_a_recorder_that_works(receiver, make_recorder):
    def interrupt(_):
        if inside:
            raise Interrupted

    broke = 0
    for n in range(60):
        recorder, inside = make_recorder(receiver.address), False
        with Storm(interrupt, every=0.0001 + n * 0.00005):
            try:
                inside = True
                record(recorder, n)
            except Interrupted:
                broke += 1
            finally:
                inside = False
        record(recorder, n, "after")
        record(recorder, n, "after")
        assert recorder.close(10), recorder
        assert whole(recorder.stats()) and recorder.stats()["connects"] == 1
    judge(receiver.messages)
    assert broke > 5 and payloads(receiver, "after") == [n for n in range(60) for _ in range(2)]


@pytest.mark.parametrize("then", ["and goes on", "and raises SystemExit"])
def test_a_signal_handler_that_closes_the_recorder_in_the_middle_of_record(then, receiver, make_recorder):
    ended = 0
    for n in range(30):
        recorder = make_recorder(receiver.address)
        record(recorder, "first")

        def close(_):
            recorder.close(2)
            if then == "and raises SystemExit":
                raise SystemExit

        accepted = []
        with Storm(close, every=0.001 + 0.00005 * n):
            try:
                for i in itertools.count():
                    accepted.append(record(recorder, i).id)
            except (QueueFull, SystemExit):
                ended += 1
        recorder.close(5)
        assert whole(recorder.stats())
        assert set(accepted) <= {e["id"] for e in receiver.events()}
    assert ended == 30
    judge(receiver.messages)


class Talkative:
    def __init__(self, recorder, where):
        self._recorder, self._where = recorder, where

    def __str__(self):
        record(self._recorder, self._where, "value")
        return "written"

    __repr__ = __str__


class Finalized:
    """Garbage that only the collector finds, which comes at moments that nobody chose."""

    def __init__(self, recorder, i):
        self._me, self._recorder, self._i = self, recorder, i

    def __del__(self):
        record(self._recorder, self._i, "finalizer")


def test_values_and_finalizers_that_record_while_they_are_recorded_are_on_record_too(receiver, recorder):
    before = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for i in range(500):
            Finalized(recorder, i)
            record(recorder, i, error=Talkative(recorder, i))
    finally:
        gc.set_threshold(*before)
    gc.collect()
    settled(recorder, receiver)
    assert payloads(receiver) == list(range(500)) and sorted(payloads(receiver, "finalizer")) == list(range(500))
    assert set(payloads(receiver, "value")) == set(range(500))
