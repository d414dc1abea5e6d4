"""The logging handler: every record that a program can throw at it."""

import asyncio
import gc
import hashlib
import logging
import logging.config
import logging.handlers
import pickle
import queue
import re
import signal
import socket
import ssl
import sys
import threading
import time

import loguru
import pytest
import structlog

from clawtrail import TLSSysLogHandler, context, handler
from clawtrail.errors import QueueFull
from support import arrived, eventually, secrets


def test_a_plain_line_becomes_a_log_record(log, receiver):
    log.warning("disk %d%% full", 93)
    (e,) = arrived(receiver, 1)
    assert (e["kind"], e["category"], e["outcome"]) == ("log.record", "log", "unknown")
    assert e["content"]["excerpt"] == "disk 93% full" and e["content"]["size"] == 13
    assert e["log"] == {"logger": "app.audit", "level": "WARNING", "severity": 4}
    assert receiver.messages[-1].pri == 13 * 8 + 4


@pytest.mark.parametrize(("level", "severity"), [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2), (60, 2), (1, 7)])
def test_a_level_becomes_the_severity_of_rfc_5424(level, severity, log, receiver):
    log.setLevel(1)
    log.log(level, "x")
    arrived(receiver, 1)
    assert receiver.messages[-1].pri % 8 == severity


def test_extra_makes_the_record_that_event(log, receiver):
    log.info("ran", extra={"kind": "tool.call", "outcome": "attempt", "tool": "exec", "session": "s1", "run": "r1", "params": {"command": "id"}})
    log.info("read", extra={"kind": "credential.access", "credential": {"name": "aws"}, "tool": {"name": "read", "type": "builtin"}})
    call, access = arrived(receiver, 2)
    assert (call["kind"], call["outcome"], call["session"], call["run"], call["tool"], call["params"]) == ("tool.call", "attempt", "s1", "r1", {"name": "exec"}, {"command": "id"})
    assert (access["kind"], access["outcome"], access["tool"]["type"]) == ("credential.access", "success", "builtin")
    assert receiver.messages[-1].params["credential"] == "aws"


def test_context_reaches_log_lines(log, receiver):
    with context(session="s9"):
        log.info("x")
    assert arrived(receiver, 1)[0]["session"] == "s9"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"kind": "tool.cal"}, "event kind 'tool.cal' is unknown"),
        ({"kind": ["tool.call"]}, "event kind"),
        ({"kind": "tool.call", "outcome": {}}, "outcome {} is unknown"),
        ({"session": 12}, "session is int; expected a string"),
        ({"credential": {"name": "aws", "value": "x"}}, "credential.value would store the secret itself"),
    ],
)
def test_an_event_that_was_meant_wrongly_is_on_record_as_the_line_it_was(extra, words, log, receiver, quiet):
    log.info("what was said", extra=extra)
    (e,) = arrived(receiver, 1)
    assert (e["kind"], e["outcome"]) == ("log.record", "unknown") and e["content"]["excerpt"] == "what was said"
    assert e["error"]["type"] == "EventError" and words in e["error"]["message"] and len(quiet) == 1


@pytest.mark.parametrize("extra", [{"content": "mine"}, {"error": "boom"}, {"log": 5}, {"tool": 7}, {"model": object()}, {"params": {1: {2: 3}}}], ids=str)
def test_a_program_that_uses_our_field_names_for_its_own_ends_loses_no_record(extra, log, receiver, quiet):
    log.info("said", extra=extra)
    assert arrived(receiver, 1)[0]["content"]["excerpt"] == "said" and not quiet


class Evil(dict):
    def items(self):
        raise RuntimeError("no")

    keys = __iter__ = items


class Unprintable:
    def __str__(self):
        raise RuntimeError("cannot be printed")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("format", "message", "args", "kept"),
    [
        ("[%(agent_id)s] %(message)s", "said", (), "said"),
        ("%(message)s", "%d files", ("many",), "%d files ('many',)"),
        ("%(message)s", "%s", (Unprintable(),), "%s"),
        ("%(message)s", Unprintable(), (), "Unprintable"),
    ],
    ids=["no agent_id", "bad arguments", "unprintable argument", "unprintable message"],
)
def test_a_record_that_its_formatter_cannot_write_is_an_event_all_the_same(format, message, args, kept, log, receiver, quiet):
    log.handlers[0].setFormatter(logging.Formatter(format))
    log.handlers[0].handle(log.makeRecord("app", 20, "app.py", 1, message, args, None))  # pytest's own handler would raise
    (e,) = arrived(receiver, 1)
    assert kept in e["content"]["excerpt"] and e["error"]["message"].startswith("the formatter failed") and not quiet


def fail():
    raise ValueError("the reason")


def test_an_exception_is_in_the_event_with_type_message_and_stack(log, receiver):
    for log.handlers[0].formatter in (None, logging.Formatter("%(levelname)s %(message)s")):
        try:
            fail()
        except ValueError:
            log.exception("it failed", stack_info=True)
    plain, formatted = arrived(receiver, 2)
    for e in plain, formatted:
        assert (e["error"]["type"], e["error"]["message"]) == ("ValueError", "the reason")
        assert e["error"]["stack"].startswith("Traceback") and "in fail" in e["error"]["stack"] and e["error"]["stack"].endswith("ValueError: the reason")
        assert "log.exception" in e["log"]["stack"]
    assert plain["content"]["excerpt"] == "it failed" and formatted["content"]["excerpt"].startswith("ERROR it failed\nTraceback")


def test_a_deep_stack_is_cut_to_its_innermost_frames_and_a_secret_in_it_is_out(log, receiver):
    secret = secrets()["github"]

    def deep(n):
        return other(n - 1) if n else fail_with(secret)

    def other(n):  # two take turns: Python itself leaves out the repetitions of one
        return deep(n - 1)

    def fail_with(text):
        raise RuntimeError(f"cannot log in with {text}")

    try:
        deep(300)
    except RuntimeError:
        log.exception("x")
    (e,) = arrived(receiver, 1)
    assert e["error"]["stack"].count("line ") <= 2 * handler.FRAMES and "in fail_with" in e["error"]["stack"]
    assert secret.encode() not in b"".join(receiver.raw) and "[redacted:github:" in e["error"]["message"]


@pytest.mark.parametrize("way", ["queue handler", "pickle"])
def test_a_record_that_comes_over_a_queue_or_a_socket_keeps_its_exception(way, log, receiver):
    away = queue.Queue()
    sender = logging.handlers.QueueHandler(away) if way == "queue handler" else logging.handlers.SocketHandler("127.0.0.1", 1)
    try:
        fail()
    except ValueError:
        record = log.makeRecord("app", 40, "app.py", 1, "it failed", (), sys.exc_info(), extra={"tenant": "t1"})
    if way == "queue handler":
        sender.emit(record)
        record = away.get()
    else:
        record = logging.makeLogRecord(pickle.loads(sender.makePickle(record)[4:]))
    log.handlers[0].handle(record)
    (e,) = arrived(receiver, 1)
    assert "ValueError: the reason" in e["content"]["excerpt"] + e.get("error", {}).get("stack", "") and e["log"]["fields"] == {"tenant": "t1"}
    assert way == "queue handler" or (e["error"]["type"], e["error"]["message"]) == ("ValueError", "the reason")


def test_members_of_extra_that_are_no_field_of_ours_are_kept(log, receiver):
    log.info("x", extra={"tenant": "t1", "count": 3, "ratio": 0.5, "session": "s1", "log": "theirs", "password": "correct horse"})
    (e,) = arrived(receiver, 1)
    kept = e["log"]["fields"]
    assert (kept["tenant"], kept["count"], kept["ratio"], kept["log"], e["session"]) == ("t1", 3, "0.5", "theirs", "s1")
    assert kept["password"].startswith("[redacted:key:") and set(kept) == {"tenant", "count", "ratio", "log", "password"}


class EarlyRecord(logging.LogRecord):
    """A program's own kind, which has attributes before those of logging."""

    def __init__(self, *args, **more):
        self.host_name = "h1"
        super().__init__(*args, **more)


@pytest.mark.parametrize("order", ["early", "late"])
def test_a_record_factory_may_add_what_it_likes(order, log, receiver):
    before = logging.getLogRecordFactory()

    def late(*args, **more):
        record = before(*args, **more)
        record.host_name = "h1"
        return record

    try:
        logging.setLogRecordFactory(EarlyRecord if order == "early" else late)
        log.info("x", extra={"tenant": "t1", "session": "s1"})
    finally:
        logging.setLogRecordFactory(before)
    (e,) = arrived(receiver, 1)
    assert e["log"]["fields"] == {"host_name": "h1", "tenant": "t1"} and e["session"] == "s1"


async def in_a_task(log):
    log.info("x")


def test_what_python_itself_puts_on_a_record_is_no_field(log, receiver):
    log.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    asyncio.run(in_a_task(log))
    log.info("x")
    assert not any("fields" in e["log"] for e in arrived(receiver, 2))


@pytest.mark.odd_events("fields and records made of anything")
@pytest.mark.parametrize("value", [Unprintable(), float("nan"), b"\xff\0", 10**5000, {1, 2}, Evil(a=1), object, 1j, "\ud800", [[[[[[[[[[[1]]]]]]]]]]], ssl], ids=lambda v: type(v).__name__)
def test_no_value_loses_the_event(value, log, receiver, quiet):
    loop = {"self": None}
    loop["self"] = loop
    for name in ("mine", "params", "extra", "error", "content", "tool", "session", "kind", "outcome", "agent_id"):
        log.info("said", extra={name: value, "loop": loop})
    events = arrived(receiver, 10)
    assert len(events) == 10 and {e["content"]["excerpt"] for e in events} <= {"said", "\\ud800"} and log.handlers[0].stats()["dropped"] == {}


@pytest.mark.odd_events("fields and records made of anything")
@pytest.mark.parametrize("foreign", [{"created": "today"}, {"created": float("nan")}, {"levelno": "high"}, {"name": None}, {"levelname": 7}, {"exc_info": True}, {"exc_info": ValueError("x")}, {"exc_info": 5}, {"exc_text": 5}, {"stack_info": 5}, {"args": 5}], ids=str)
def test_a_record_made_of_foreign_data_is_an_event_all_the_same(foreign, log, receiver, quiet):
    log.handlers[0].handle(logging.makeLogRecord({"msg": "said"} | foreign))
    assert arrived(receiver, 1)[0]["content"]["excerpt"].startswith("said")


# -- structlog and loguru ------------------------------------------------------------------------------------------


@pytest.fixture
def structured(log):
    def make(*processors):
        chosen = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, *processors]
        structlog.configure(chosen, logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger)
        return structlog.get_logger(log.name)

    yield make
    structlog.reset_defaults()


@pytest.mark.parametrize("last", [structlog.stdlib.ProcessorFormatter.wrap_for_formatter, structlog.stdlib.render_to_log_kwargs], ids=lambda p: p.__name__)
def test_what_structlog_binds_are_the_events_fields(last, structured, receiver):
    bound = structured(last).bind(session="s1", tenant="t1")
    bound.info("ran it", kind="tool.call", outcome="attempt", tool="exec", params={"command": "id"})
    (e,) = arrived(receiver, 1)
    assert (e["kind"], e["outcome"], e["session"], e["tool"], e["params"]) == ("tool.call", "attempt", "s1", {"name": "exec"}, {"command": "id"})
    assert e["content"]["excerpt"] == "ran it" and e["log"]["fields"] == {"tenant": "t1", "level": "info"}


@pytest.mark.parametrize("last", [structlog.stdlib.ProcessorFormatter.wrap_for_formatter, structlog.stdlib.render_to_log_kwargs], ids=lambda p: p.__name__)
def test_structlogs_exceptions_are_in_the_event(last, structured, receiver):
    for processors in ([last], [structlog.processors.format_exc_info, last]):
        try:
            fail()
        except ValueError:
            structured(*processors).exception("it failed")
    for e in arrived(receiver, 2):
        found = e["error"] if "error" in e else {"type": "ValueError", "message": "the reason", "stack": e["log"]["fields"]["exception"]}
        assert (found["type"], found["message"]) == ("ValueError", "the reason") and "in fail" in found["stack"]


def test_a_formatter_of_structlogs_writes_the_text(structured, log, receiver):
    log.handlers[0].setFormatter(structlog.stdlib.ProcessorFormatter(structlog.processors.KeyValueRenderer(key_order=["event"])))
    structured(structlog.stdlib.ProcessorFormatter.wrap_for_formatter).info("ran it", session="s1", n=1)
    (e,) = arrived(receiver, 1)
    assert e["content"]["excerpt"].startswith("event='ran it'") and e["session"] == "s1" and e["log"]["fields"]["n"] == 1


def test_what_loguru_binds_are_the_events_fields(make_handler, receiver):
    ours = loguru.logger.add(make_handler(), format="{message}", level="INFO")
    try:
        bound = loguru.logger.bind(session="s1", tool={"name": "exec"}, kind="tool.call", outcome="attempt", tenant="t1")
        bound.info("ran it")
        try:
            fail()
        except ValueError:
            bound.exception("it failed")
    finally:
        loguru.logger.remove(ours)
    ran, failed = arrived(receiver, 2)
    assert (ran["kind"], ran["session"], ran["tool"], ran["log"]["fields"]) == ("tool.call", "s1", {"name": "exec"}, {"tenant": "t1"})
    assert ran["content"]["excerpt"].strip() == "ran it" and failed["error"]["type"] == "ValueError" and "in fail" in failed["error"]["stack"]


def test_a_message_that_is_a_dict_without_an_event_is_its_text(log, receiver):
    log.info({"a": 1})
    (e,) = arrived(receiver, 1)
    assert e["content"]["excerpt"] == "{'a': 1}" and e["log"]["fields"] == {"a": 1}


# -- records inside of records -------------------------------------------------------------------------------------


class Talkative:
    """Logs when it is written."""

    def __init__(self, log):
        self.log = log

    def __str__(self):
        self.log.info("written, says %s and %d", self.log.name, 1)
        return "talkative"


class TalkativeFilter(Talkative):
    def filter(self, record):
        return bool(str(self))


class TalkativeFormatter(Talkative, logging.Formatter):
    def format(self, record):
        return f"formatted {self}"


@pytest.mark.parametrize("where", ["message", "argument", "extra", "filter", "formatter", "exception", "context"])
def test_what_is_logged_while_a_record_is_handled_follows_it_and_ends(where, log, receiver):
    talkative, ours = Talkative(log), log.handlers[0]
    if where == "filter":
        ours.addFilter(TalkativeFilter(log))
    if where == "formatter":
        ours.setFormatter(TalkativeFormatter(log))
    ambient = {"actor": {"id": talkative}} if where == "context" else {}
    with context(**ambient):
        log.info(
            talkative if where == "message" else "said %s",
            *[talkative] if where == "argument" else ["it"] if where != "message" else [],
            extra={"id": talkative} if where == "extra" else None,
            exc_info=ValueError(talkative) if where == "exception" else None,
        )
    before = 1 if where == "context" else 0  # it is written once when the context is entered
    events = arrived(receiver, before + 2)[before:]
    said = [e["content"]["excerpt"] for e in events]
    assert said[0] in ("said it", "said talkative", "talkative", "formatted talkative") and set(said[1:]) == {"written, says app.audit and 1"}
    assert len(said) <= handler.NESTED_MAX + 1
    dropped = ours.stats()["dropped"]
    assert dropped == ({} if where != "context" else {"recursion": dropped.get("recursion", 0)})


def test_a_finalizer_or_a_signal_handler_that_logs_inside_the_recorder_does_not_block(log, receiver):
    class Left:
        def __del__(self):
            log.warning("unclosed session")

    def leave():
        me = Left()
        me.me = me

    before = signal.signal(signal.SIGALRM, lambda *_: log.warning("stopping"))
    threshold = gc.get_threshold()
    try:
        gc.set_threshold(1)  # a collection at about every allocation, also of those under the recorder's lock
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for i in range(300):
            leave()
            log.info("%d", i)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.set_threshold(*threshold)
    log.info("end")
    events = eventually(lambda: (found := [e["content"]["excerpt"] for e in receiver.events("log.record")])[-1:] == ["end"] and found)
    assert [t for t in events if t.isdigit()] == [str(i) for i in range(300)] and events.count("unclosed session") > 200


def test_threads_do_not_wait_for_each_other(log, receiver):
    held, going = threading.Event(), threading.Event()

    class Slow:
        def __str__(self):
            going.set()
            assert held.wait(10)
            return "slow"

    waiting = threading.Thread(target=log.info, args=("%s", Slow()))
    waiting.start()
    assert going.wait(10)
    log.info("quick")
    assert [e["content"]["excerpt"] for e in arrived(receiver, 1)] == ["quick"] and log.handlers[0].lock is None
    held.set()
    waiting.join(10)
    assert [e["content"]["excerpt"] for e in arrived(receiver, 2)] == ["quick", "slow"]


def test_a_filter_that_fails_has_rejected_nothing(log, receiver, quiet):
    log.handlers[0].addFilter(lambda record: 1 // 0)
    log.info("said")
    assert arrived(receiver, 1)[0]["content"]["excerpt"] == "said" and len(quiet) == 1


def test_a_filter_may_reject_a_record_and_replace_it(log, receiver):
    log.handlers[0].addFilter(lambda record: record.getMessage() != "no" and logging.makeLogRecord(vars(record) | {"msg": "replaced"}))
    log.info("no")
    log.info("yes")
    assert [e["content"]["excerpt"] for e in arrived(receiver, 1)] == ["replaced" if sys.version_info >= (3, 12) else "yes"]


# -- errors ----------------------------------------------------------------------------------------------------------


def test_after_close_a_record_is_counted_as_dropped_and_raises_nothing(make_handler, receiver, quiet):
    ours = make_handler()
    ours.handle(logging.makeLogRecord({"msg": "1"}))
    ours.close()
    ours.handle(logging.makeLogRecord({"msg": "2"}))
    assert len(quiet) == 1 and ours.stats()["dropped"] == {"closed": 1}


def test_with_fail_a_refusal_reaches_the_caller(make_handler, receiver, tmp_path):
    receiver.kill()
    logger = logging.Logger("app")
    logger.addHandler(made := make_handler(when_full="fail", spool=tmp_path, quota="1 MiB"))
    with pytest.raises(QueueFull):
        for _ in range(5000):
            logger.info("x" * 2000)
    assert sum(made.stats()["refused"].values()) == 1 and made.stats()["dropped"] == {}


def test_errors_are_told_once_a_second_and_without_a_traceback(make_handler, capfd, monkeypatch):
    ours = make_handler()
    ours.close()
    for i in range(50):
        ours.handle(logging.makeLogRecord({"msg": "x", "name": f"app{i}"}))
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1 and re.fullmatch(r"clawtrail: a record of 'app0' failed: QueueFull: .*closed.*", told[0])
    ours._next_word = 0.0
    ours.handle(logging.makeLogRecord({"msg": "x"}))
    assert capfd.readouterr().err.endswith("(49 more before)\n")
    monkeypatch.setattr(logging, "raiseExceptions", False)
    ours._next_word = 0.0
    ours.handle(logging.makeLogRecord({"msg": "x"}))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stderr", ["logs", "closed", "fails", "missing"])
def test_a_standard_error_that_logs_or_fails_does_no_harm(stderr, log, receiver, monkeypatch, tmp_path):
    class Stream:
        def write(self, text):
            if stderr == "fails":
                raise OSError("gone")
            log.error("stderr: %s", text)

        flush = close = lambda self: None

    stream = open(tmp_path / "err", "w")
    stream.close()
    monkeypatch.setattr(sys, "stderr", {"missing": None, "closed": stream}.get(stderr, Stream()))
    log.info("said", extra={"kind": "tool.cal"})
    log.info("next")
    assert "next" in [e["content"]["excerpt"] for e in arrived(receiver, 2)]


# -- life ------------------------------------------------------------------------------------------------------------


def test_a_second_configuration_with_the_same_spool_takes_over_and_nothing_is_lost(receiver, pki, restore_logging, tmp_path):
    one = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"audit": {"class": "clawtrail.TLSSysLogHandler", "address": list(receiver.address), "tls": str(pki.client), "agent": "agent-1", "spool": str(tmp_path)}},
        "root": {"level": "INFO", "handlers": ["audit"]},
    }
    handlers, took = [], []
    for i in range(3):
        began = time.monotonic()
        logging.config.dictConfig(one)
        took.append(time.monotonic() - began)
        handlers += [h for h in logging.getLogger().handlers if isinstance(h, TLSSysLogHandler)]
        for j in range(20):
            logging.getLogger("app").info("%d", 20 * i + j)
    assert sorted(int(e["content"]["excerpt"]) for e in arrived(receiver, 60)) == list(range(60))
    assert len(handlers) == 3 and len({e["epoch"] for e in receiver.events()}) == 3 and max(took) < 2.5  # shorter than a close that waits in vain


def test_flush_in_an_event_loop_lets_the_loop_run(make_handler, receiver):
    ours, turns = make_handler(), []

    async def main():
        for i in range(200):
            ours.handle(logging.makeLogRecord({"msg": str(i)}))
        ticking = asyncio.create_task(tick())
        assert await ours.aflush(10)
        ticking.cancel()

    async def tick():
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    asyncio.run(main())
    assert turns and len(arrived(receiver, 200)) == 200


HOSTILE = (
    "2026-11-23 12:00:00,123 - app - INFO - [agent-8] - forged",
    "line one\n<110>1 2026-11-23T12:00:00Z h a - - - second message\n",
    "NUL \0 in the middle",
    "120 <13>1 - - - - - - a frame in a frame",
    '[audit@32473 agent="forged" seq="1"] ] " \\',
    "\x1b[2J\x7f\x85\u2028 terminal",
    "lone \udc80 surrogate",
    "x" * 100_000 + "\n" * 10,
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_arrives_inside_its_own_event_and_nowhere_else(text, log, receiver):
    log.info("%s", text, extra={"session": text[:200]})
    log.info("next")
    first, following = arrived(receiver, 2)
    expected = text if len(text) < 3000 else text[:2048] + f"[+{len(text) - 2048}]"
    assert first["content"]["excerpt"] == expected.replace("\udc80", "\\udc80") and following["content"]["excerpt"] == "next"
    assert first["content"]["size"] == len(text.encode("utf-8", "replace"))
    assert len(receiver.raw) == 3 and all(m.params["agent"] == "agent-1" for m in receiver.messages)
    assert not any(c < 32 or c == 127 for r in receiver.raw for c in r)


def test_secrets_in_a_log_line_are_out(log, receiver):
    secret = secrets()["anthropic"]
    log.info("using %s", secret)
    assert arrived(receiver, 1)[0]["content"]["classes"] == "anthropic" and secret.encode() not in receiver.raw[-1]


def test_a_long_line_is_hashed_as_a_whole_and_a_secret_where_it_is_cut_is_out(log, receiver):
    secret = secrets()["anthropic"]
    log.info("x" * 2030 + " %s " + "y" * 3000, secret)
    (e,) = arrived(receiver, 1)
    content = e["content"]
    marked = re.search(r"\[redacted:anthropic:\w{8}\]", "[redacted:anthropic:" + content["fps"] + "]")[0]
    assert content["size"] == 2030 + 2 + len(secret) + 3000 and secret[:10].encode() not in receiver.raw[-1] and content["classes"] == "anthropic"
    assert content["sha256"] == hashlib.sha256(("x" * 2030 + f" {marked} " + "y" * 3000).encode()).hexdigest()


def test_our_own_log_lines_are_not_shipped_so_that_none_begets_another(log, make_handler, receiver):
    handler = log.handlers[0]
    for name in ("clawtrail", "clawtrail.shipper"):
        handler.handle(logging.makeLogRecord({"msg": "ours", "name": name}))
    handler.handle(logging.makeLogRecord({"msg": "theirs", "name": "clawtrailer"}))
    assert [e["content"]["excerpt"] for e in arrived(receiver, 1)] == ["theirs"]


def test_a_receiver_that_is_away_raises_nothing_into_the_agent(log, receiver, quiet):
    receiver.kill()
    for i in range(100):
        log.info("line %d", i)
    assert not quiet and log.handlers[0].stats()["spooled"] == 101
    receiver.start()
    assert [e["content"]["excerpt"] for e in arrived(receiver, 100)] == [f"line {i}" for i in range(100)]


def test_a_full_spool_is_counted_and_handed_to_handle_error(make_handler, receiver, quiet, tmp_path):
    receiver.kill()
    ours = make_handler(spool=tmp_path, quota="1 MiB", full_timeout=0.01)
    for i in range(700):
        ours.handle(logging.makeLogRecord({"msg": "x" * 2000}))
        if len(quiet) == 3:
            break
    assert ours.stats()["dropped"] == {"quota": 3} and ours.stats()["refused"] == {}


def test_the_agent_is_the_setting_else_the_records_agent_id_else_the_host(make_handler, receiver, monkeypatch):
    monkeypatch.delenv("CLAWTRAIL_AGENT", raising=False)
    make_handler().handle(logging.makeLogRecord({"msg": "1", "agent_id": "claimed"}))
    arrived(receiver, 1)
    unnamed = make_handler(agent=...)
    unnamed.handle(logging.makeLogRecord({"msg": "2", "agent_id": "claimed"}))
    arrived(receiver, 2)
    unnamed.handle(logging.makeLogRecord({"msg": "3"}))
    arrived(receiver, 3)
    claims = [m.params["agent"] for m in receiver.messages if m.event["kind"] == "log.record"]
    assert claims == ["agent-1", "claimed", socket.gethostname()]


def test_logging_shutdown_delivers_what_waits(make_handler, receiver):
    handler = make_handler()
    for i in range(200):
        handler.handle(logging.makeLogRecord({"msg": str(i)}))
    logging.shutdown([lambda: handler])
    assert receiver.events()[-1]["kind"] == "system.stop" and len(receiver.events()) == 202
    assert "TLSSysLogHandler" in repr(handler)
