"""The logging handler: every spelling of its settings, and every record that a program can throw at it."""

import logging
import logging.config
import socket
import ssl
import threading

import pytest
import yaml

from clawtrail import TLSSysLogHandler, context
from clawtrail.errors import ConfigurationError
from support import eventually, secrets


@pytest.fixture
def make_handler(receiver, pki):
    made = []

    def make(**settings):
        settings = {"address": list(receiver.address), "tls": str(pki.client), "agent": "agent-1"} | settings
        handler = TLSSysLogHandler(**{k: v for k, v in settings.items() if v is not ...})
        made.append(handler)
        return handler

    yield make
    for handler in made:
        handler.recorder.close(0.05)  # what a test wants delivered, it has waited for
        handler.close()


@pytest.fixture
def quiet(monkeypatch):
    """What `handleError` is given, in place of a traceback on standard error."""
    failed = []
    monkeypatch.setattr(TLSSysLogHandler, "handleError", lambda self, record: failed.append(record))
    return failed


@pytest.fixture
def log(make_handler):
    logger = logging.getLogger("app.audit")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handler = make_handler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


@pytest.fixture
def restore_logging():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level = before[0], before[1]


def arrived(receiver, n):
    """The first n events that are not the recorder's own."""

    def events():
        return [e for e in receiver.events() if not e["kind"].startswith("system.")]

    eventually(lambda: len(events()) >= n, state=events)
    return events()


# -- settings ----------------------------------------------------------------------------------------------------

FORUM = """
version: 1
disable_existing_loggers: false
filters:
  agent:
    (): test_handler.AgentFilter
formatters:
  audit:
    format: "%(asctime)s - %(name)s - %(levelname)s - [%(agent_id)s] - %(message)s"
handlers:
  audit:
    class: clawtrail.TLSSysLogHandler
    level: INFO
    formatter: audit
    filters: [agent]
    address: {address}
    {socktype}
    {tls}
root:
  level: INFO
  handlers: [audit]
"""


class AgentFilter(logging.Filter):
    def filter(self, record):
        record.agent_id = "agent-8"
        return True


@pytest.mark.parametrize("socktype", ["", "socktype: socket.SOCK_STREAM", "socktype: ext://socket.SOCK_STREAM", "socktype: SOCK_STREAM", "socktype: 1", "socktype: tcp"])
@pytest.mark.parametrize("address", ["[{host}, {port}]", '"{host}:{port}"', "[{host}, '{port}']", "[cfg://where.host, {port}]"], ids=["list", "string", "text port", "reference"])
def test_a_logging_configuration_in_yaml_loads_in_every_spelling(address, socktype, receiver, pki, restore_logging):
    where = address.format(host=receiver.host, port=receiver.port)
    text = FORUM.format(address=where, socktype=socktype, tls=f"ssl: true\n    cafile: {pki.client}/ca.crt")
    logging.config.dictConfig(yaml.safe_load(text) | {"where": {"host": receiver.host}})
    logging.getLogger("app").info("hello")
    (event,) = arrived(receiver, 1)
    assert event["kind"] == "log.record" and event["content"]["excerpt"].endswith(" - app - INFO - [agent-8] - hello")
    assert receiver.messages[-1].params["agent"] == "agent-8"


@pytest.mark.parametrize(
    "tls",
    [
        "ssl: true\n    cafile: $CLIENT/ca.crt",
        'ssl: "true"\n    cafile: $CLIENT/ca.crt',
        "ssl: yes\n    cafile: ${CLIENT}/ca.crt\n    certfile: ${CLIENT}/client.crt\n    keyfile: ${CLIENT}/client.key",
        "ssl: {cafile: $CLIENT/ca.crt, certfile: $CLIENT/client.crt, keyfile: $CLIENT/client.key}",
        "ssl: {cafile: $CLIENT/ca.crt, server_hostname: localhost}",
        "ssl: {}\n    cafile: $CLIENT/ca.crt",
        "ssl: {cafile: cfg://where.ca}",
        "tls: $CLIENT",
        "certfile: $CLIENT/both.pem\n    cafile: $CLIENT/ca.crt",
    ],
)
def test_tls_settings_load_in_every_spelling_and_from_environment_variables(tls, receiver, pki, restore_logging, monkeypatch):
    monkeypatch.setenv("CLIENT", str(pki.client))
    (pki.client / "both.pem").write_bytes((pki.client / "client.crt").read_bytes() + (pki.client / "client.key").read_bytes())
    logging.config.dictConfig(yaml.safe_load(FORUM.format(address=[receiver.host, receiver.port], socktype="", tls=tls)) | {"where": {"ca": "$CLIENT/ca.crt"}})
    logging.getLogger("app").info("hello")
    assert arrived(receiver, 1) and receiver.subjects == ["agent-1"]


def test_the_ca_may_come_from_the_environment(make_handler, pki, receiver, monkeypatch):
    monkeypatch.setenv("CLAWTRAIL_CA_FILE", str(pki.client / "ca.crt"))
    make_handler(tls=...).handle(logging.makeLogRecord({"msg": "hello"}))
    assert arrived(receiver, 1)


@pytest.mark.parametrize("address", [("127.0.0.1", 6514), ["127.0.0.1", 6514], "127.0.0.1:6514", ["127.0.0.1", "6514"]])
def test_an_address_may_be_a_list_a_tuple_or_text(address, make_handler):
    assert make_handler(address=address).recorder.address == ("127.0.0.1", 6514)


def test_an_ipv6_address_may_stand_in_brackets(make_handler):
    assert make_handler(address="[::1]:6514").recorder.address == ("::1", 6514)


@pytest.mark.parametrize("address", ["/dev/log", "host", None, ["host"], ["host", "syslog"], ["host", 1, 2], 6514, ["host", None], ["host", 0], ["", 1], "host:99999"])
def test_a_wrong_address_is_refused_with_what_was_found_and_an_example(address, make_handler):
    with pytest.raises(ConfigurationError, match="(?s)address.*expected.*6514"):
        make_handler(address=address)


@pytest.mark.parametrize("socktype", [socket.SOCK_STREAM, 1, "socket.SOCK_STREAM", "ext://socket.SOCK_STREAM", "sock_stream", "tcp", "STREAM", None])
def test_a_stream_socket_is_accepted_in_every_spelling(socktype, make_handler):
    assert make_handler(socktype=socktype)


@pytest.mark.parametrize("socktype", [socket.SOCK_DGRAM, 2, "socket.SOCK_DGRAM", "ext://socket.SOCK_DGRAM", "udp", "SOCK_DGRAM"])
def test_a_datagram_socket_is_refused_because_it_carries_no_tls(socktype, make_handler):
    with pytest.raises(ConfigurationError, match="TLS needs a stream: set socktype: socket.SOCK_STREAM"):
        make_handler(socktype=socktype)


@pytest.mark.parametrize("socktype", ["sock", 17, [], "socket.SOCK_RAW"])
def test_another_socktype_is_refused(socktype, make_handler):
    with pytest.raises(ConfigurationError, match="socktype: .*; expected socket.SOCK_STREAM"):
        make_handler(socktype=socktype)


@pytest.mark.parametrize("value", [False, "false", "no", "off", 0, "", None, "None"])
def test_sending_in_clear_cannot_be_asked_for(value, make_handler):
    with pytest.raises(ConfigurationError, match="an audit trail is never sent in clear: set ssl: true and cafile"):
        make_handler(ssl=value)


@pytest.mark.parametrize("value", ["maybe", 2, [], object, ssl.create_default_context()], ids=str)
def test_an_ssl_setting_that_means_nothing_is_refused(value, make_handler):
    with pytest.raises(ConfigurationError, match="ssl: .*expected true"):
        make_handler(ssl=value)


@pytest.mark.parametrize(
    ("name", "near"), [("adress", "address"), ("socktyp", "socktype"), ("ca_file", "cafile"), ("server_host_name", "server_hostname"), ("Facility", "facility")]
)
def test_an_unknown_setting_names_the_nearest_one(name, near, make_handler):
    with pytest.raises(TypeError, match=f"unknown setting {name!r}; did you mean {near!r}"):
        make_handler(**{name: "x"})


def test_an_unknown_setting_like_none_of_ours_names_them_all(make_handler):
    with pytest.raises(TypeError, match="unknown setting 'zzz'; known: address, facility"):
        make_handler(zzz=1)


def test_an_unknown_tls_setting_inside_ssl_names_the_nearest_one(make_handler):
    with pytest.raises(ConfigurationError, match="ssl: unknown setting 'ca_file'.*cafile"):
        make_handler(ssl={"ca_file": "x"})


def test_a_missing_ca_is_refused(make_handler, monkeypatch):
    monkeypatch.delenv("CLAWTRAIL_CA_FILE", raising=False)
    with pytest.raises(ConfigurationError, match="cafile is missing; expected the PEM file of the CA"):
        make_handler(tls=...)
    with pytest.raises(ConfigurationError, match="CA certificate /no/such/ca.crt: No such file"):
        make_handler(tls=..., cafile="/no/such/ca.crt")


@pytest.mark.parametrize(("facility", "number"), [(None, 13), (16, 16), ("local0", 16), ("LOCAL7", 23), ("13", 13), ("user", 1), (0, 0)])
def test_a_facility_may_be_a_number_or_a_name(facility, number, make_handler, receiver):
    make_handler(facility=facility).handle(logging.makeLogRecord({"msg": "x", "levelno": 20}))
    arrived(receiver, 1)
    assert receiver.messages[-1].pri // 8 == number


@pytest.mark.parametrize("facility", ["local9", 24, -1, 1.5, []])
def test_a_wrong_facility_is_refused(facility, make_handler):
    with pytest.raises(ConfigurationError, match="facility: .*expected a number from 0 to 23"):
        make_handler(facility=facility)


def test_nothing_connects_and_no_thread_starts_before_the_first_record(receiver, make_handler):
    threads = set(threading.enumerate())
    handler = make_handler()
    assert set(threading.enumerate()) == threads
    handler.flush()
    with socket.create_connection(receiver.address):  # connections are accepted in order: one made before is seen before
        pass
    eventually(lambda: len(receiver.handshakes_failed), 1)
    assert receiver.connections == 0
    handler.handle(logging.makeLogRecord({"msg": "x"}))
    arrived(receiver, 1)
    assert receiver.connections == 1


# -- records -----------------------------------------------------------------------------------------------------


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


def test_an_exceptions_traceback_is_part_of_the_text(log, receiver):
    try:
        raise ValueError("the reason")
    except ValueError:
        log.exception("it failed")
    (e,) = arrived(receiver, 1)
    assert e["content"]["excerpt"].startswith("it failed\nTraceback") and "ValueError: the reason" in e["content"]["excerpt"]


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
    assert not quiet and log.handlers[0].stats()["queued"] == 101
    receiver.start()
    assert [e["content"]["excerpt"] for e in arrived(receiver, 100)] == [f"line {i}" for i in range(100)]


def test_a_full_queue_is_counted_and_handed_to_handle_error(make_handler, receiver, quiet):
    receiver.kill()
    handler = make_handler(queue_bytes=5000, full_timeout=0.01)
    for i in range(10):
        handler.handle(logging.makeLogRecord({"msg": "x"}))
    assert len(quiet) == handler.stats()["dropped"]["queue-full"] > 0


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
