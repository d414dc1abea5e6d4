"""loguru and structlog as they are, through our sink and our processor, to a receiver that really listens."""

import json
from datetime import UTC

import loguru
import pytest
import structlog

from clawtrail import TLSSysLogHandler, context
from clawtrail.adapters.loguru import sink
from clawtrail.adapters.structlog import ship
from clawtrail.errors import QueueFull
from support import eventually


@pytest.fixture
def handler(receiver, pki):
    made = TLSSysLogHandler(address=list(receiver.address), tls=str(pki.client), agent="agent-1")
    yield made
    made.close()


@pytest.fixture
def full(pki):
    """Nobody listens, and there is no room: what is refused is raised."""
    made = TLSSysLogHandler(address=["127.0.0.1", 9], tls=str(pki.client), agent="agent-1", when_full="fail", quota="1 MiB")
    yield made
    made.close()


@pytest.fixture
def logger():
    ours = []
    yield lambda handler, **options: ours.append(loguru.logger.add(sink(handler), **{"catch": False, **options}))
    for one in ours:
        loguru.logger.remove(one)


@pytest.fixture
def configure():
    yield lambda handler, *before: structlog.configure([structlog.contextvars.merge_contextvars, *before, ship(handler), structlog.processors.KeyValueRenderer()])
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def logged(receiver, count=1):
    def found():
        return [e for m in receiver.messages if (e := json.loads(m.msg))["category"] != "system"]

    eventually(lambda: len(found()) >= count, state=found)
    return found()


def test_what_loguru_binds_formats_and_levels_is_the_event(handler, logger, receiver):
    logger(handler)
    bound = loguru.logger.bind(kind="tool.call", outcome="attempt", session="s-1", tool={"name": "exec"}, tenant="t-1")
    with loguru.logger.contextualize(run="r-1"):
        bound.log("SUCCESS", "ran {} of {n}", 1, n=2)
    event = logged(receiver)[0]
    assert (event["kind"], event["outcome"], event["session"], event["run"], event["tool"]["name"]) == ("tool.call", "attempt", "s-1", "r-1", "exec")
    assert event["content"]["excerpt"] == "ran 1 of 2"
    assert event["log"] == {"logger": __name__, "level": "SUCCESS", "severity": 6, "fields": {"tenant": "t-1", "n": 2}}


def test_loguru_levels_are_severities(handler, logger, receiver):
    logger(handler, level="TRACE")
    for level in ("trace", "debug", "info", "success", "warning", "error", "critical"):
        getattr(loguru.logger, level)(level)
    assert [e["log"]["severity"] for e in logged(receiver, 7)] == [7, 7, 6, 6, 4, 3, 2]


def test_an_exception_of_loguru_is_the_events_error_and_its_text_stays_the_message(handler, logger, receiver):
    logger(handler)
    try:
        raise ValueError("no such thing")
    except ValueError:
        loguru.logger.opt(exception=True).error("it failed")
    event = logged(receiver)[0]
    assert event["content"]["excerpt"] == "it failed"
    assert (event["error"]["type"], event["error"]["message"]) == ("ValueError", "no such thing")
    assert "test_an_exception_of_loguru" in event["error"]["stack"]


def test_the_moment_is_when_loguru_was_told(handler, logger, receiver):
    logger(handler, enqueue=False)
    moments = []
    other = loguru.logger.add(lambda message: moments.append(message.record["time"]))
    loguru.logger.info("now")
    loguru.logger.remove(other)
    assert logged(receiver)[0]["ts"] == moments[0].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_what_structlog_binds_and_its_context_is_the_event(handler, configure, receiver, capsys):
    configure(handler, structlog.processors.add_log_level, structlog.processors.TimeStamper())
    structlog.contextvars.bind_contextvars(session="s-1")
    log = structlog.get_logger().bind(kind="tool.call", outcome="attempt", tool={"name": "exec"}, tenant="t-1")
    with context(run="r-1"):
        log.warning("ran it", n=2)
    event = logged(receiver)[0]
    assert (event["kind"], event["outcome"], event["session"], event["run"], event["tool"]["name"]) == ("tool.call", "attempt", "s-1", "r-1", "exec")
    assert event["content"]["excerpt"] == "ran it"
    assert event["log"] == {"logger": "structlog", "level": "WARNING", "severity": 4, "fields": {"tenant": "t-1", "n": 2}}
    assert "event='ran it'" in capsys.readouterr().out, "what comes behind it sees the event as it was"


@pytest.mark.parametrize("before", [(), (structlog.processors.format_exc_info,)], ids=["as it is", "written already"])
def test_an_exception_of_structlog_is_the_events_error(before, handler, configure, receiver):
    configure(handler, *before)
    try:
        raise ValueError("no such thing")
    except ValueError:
        structlog.get_logger().exception("it failed")
    event = logged(receiver)[0]
    assert event["log"]["severity"] == 3 and event["content"]["excerpt"] == "it failed"
    assert (event["error"]["type"], event["error"]["message"]) == ("ValueError", "no such thing")


def test_structlogs_own_name_of_a_logger_is_kept(handler, configure, receiver):
    configure(handler)
    structlog.get_logger().bind(logger="billing").debug("x")
    assert logged(receiver)[0]["log"] == {"logger": "billing", "level": "DEBUG", "severity": 7}


def test_what_is_refused_reaches_who_logs(full, logger, configure):
    logger(full)
    configure(full)
    log = structlog.get_logger()
    for tell in (loguru.logger.info, log.info):
        with pytest.raises(QueueFull):
            for _ in range(5000):
                tell("x" * 2000)


def test_secrets_are_taken_out_of_both(handler, logger, configure, receiver):
    logger(handler)
    configure(handler)
    secret = "gh" + "p_" + "a1B2" * 9
    loguru.logger.bind(token=secret).info("the token is {}", secret)
    structlog.get_logger().info("the token is " + secret, token=secret)
    assert secret not in json.dumps(logged(receiver, 2))
