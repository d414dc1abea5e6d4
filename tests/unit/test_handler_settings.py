"""The logging handler's settings: every spelling that occurs, and what is refused with the nearest right one."""

import logging
import logging.config
import socket
import ssl
import sys
import threading

import pytest
import yaml

from clawtrail import settings
from clawtrail.errors import ConfigurationError
from support import arrived, eventually


FORUM = """
version: 1
disable_existing_loggers: false
filters:
  agent:
    (): test_handler_settings.AgentFilter
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


CA = LIVE = None  # what a configuration may name as ext://


def live(pki):
    made = ssl.create_default_context(cafile=pki.client / "ca.crt")
    made.load_cert_chain(pki.client / "client.crt", pki.client / "client.key")
    return made


@pytest.mark.parametrize(
    "tls",
    [
        "ssl: true\n    cafile: $CLIENT/ca.crt",
        "ssl: {cafile: ext://test_handler_settings.CA}",
        "ssl: ext://test_handler_settings.LIVE",
        "cafile: $CLIENT/ca.crt\n    minimum_version: 1.2",
        "cafile: $CLIENT/ca.crt\n    minimum_version: ext://ssl.TLSVersion.TLSv1_3",
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
    monkeypatch.setattr(sys.modules[__name__], "CA", pki.client / "ca.crt")
    monkeypatch.setattr(sys.modules[__name__], "LIVE", live(pki))
    (pki.client / "both.pem").write_bytes((pki.client / "client.crt").read_bytes() + (pki.client / "client.key").read_bytes())
    logging.config.dictConfig(yaml.safe_load(FORUM.format(address=[receiver.host, receiver.port], socktype="", tls=tls)) | {"where": {"ca": "$CLIENT/ca.crt"}})
    logging.getLogger("app").info("hello")
    assert arrived(receiver, 1) and receiver.subjects == ["agent-1"]


def test_the_ca_may_come_from_the_environment(make_handler, pki, receiver, monkeypatch):
    monkeypatch.setenv("CLAWTRAIL_CA_FILE", str(pki.client / "ca.crt"))
    make_handler(tls=...).handle(logging.makeLogRecord({"msg": "hello"}))
    assert arrived(receiver, 1)


@pytest.mark.parametrize("address", [("h", 6514), ["h", 6514], "h:6514", ["h", "6514"], {"host": "h", "port": 6514}, "$WHERE", ["$HOST", "$PORT"], "${HOST}:$PORT", [("h", 6514)]])
def test_an_address_may_be_a_list_a_tuple_a_mapping_or_text(address, monkeypatch):
    for name, value in {"WHERE": "h:6514", "HOST": "h", "PORT": "6514"}.items():
        monkeypatch.setenv(name, value)
    assert settings.addresses(settings.plain(address)) == [("h", 6514)]


@pytest.mark.parametrize("address", ["[2001:db8::1]:6514", ["2001:db8::1", 6514], ["[2001:db8::1]", 6514], ["[2001:db8::1]:6514"]])
def test_an_ipv6_address_may_stand_in_brackets(address):
    assert settings.addresses(address) == [("2001:db8::1", 6514)]


@pytest.mark.parametrize("address", [["a:1", "b:2"], [("a", 1), ["b", "2"]], [{"host": "a", "port": 1}, "b:2"], ["a:1", ["b", 2]]], ids=str)
def test_several_addresses_keep_their_order(address):
    assert settings.addresses(settings.plain(address)) == [("a", 1), ("b", 2)]


def test_the_second_address_takes_over_when_the_first_is_away(receiver, make_handler, plain_listener):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        away = taken.getsockname()[:2]
    make_handler(address=[list(away), list(receiver.address)]).handle(logging.makeLogRecord({"msg": "hello"}))
    assert arrived(receiver, 1)


@pytest.mark.parametrize("address", ["/dev/log", "host", None, ["host"], ["host", "syslog"], ["host", 1, 2], 6514, ["host", None], ["host", 0], ["", 1], "host:99999", "2001:db8::1:6514", "tls://host:6514", ["host", True], [["host", 1], "host"], [], ["a b", 1], {"host": "h"}])
def test_a_wrong_address_is_refused_with_what_was_found_and_an_example(address, make_handler):
    with pytest.raises(ConfigurationError, match="(?s)address.*expected.*6514"):
        make_handler(address=address)


@pytest.mark.parametrize("socktype", [socket.SOCK_STREAM, 1, "1", "socket.SOCK_STREAM", "ext://socket.SOCK_STREAM", "sock_stream", "tcp", "STREAM", None])
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


@pytest.mark.parametrize("value", ["maybe", 2, [], object, ssl.SSLContext, "ssl.CERT_REQUIRED"], ids=str)
def test_an_ssl_setting_that_means_nothing_is_refused(value, make_handler):
    with pytest.raises(ConfigurationError, match="ssl: .*expected true"):
        make_handler(ssl=value)


@pytest.mark.parametrize(
    ("name", "near"), [("adress", "address"), ("socktyp", "socktype"), ("ca_file", "cafile"), ("server_host_name", "server_hostname"), ("Facility", "facility")]
)
def test_an_unknown_setting_names_the_nearest_one(name, near, make_handler):
    with pytest.raises(TypeError, match=f"unknown setting {name!r}; did you mean {near!r}"):
        make_handler(**{name: "x"})


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("secure", True, "ssl"), ("secure", "noverify", "ssl"), ("tls_enable", True, "ssl"), ("ssl_enable", True, "ssl"), ("use_tls", True, "ssl"),
        ("ca_certs", "ca.crt", "cafile"), ("tls_ca_bundle", "ca.crt", "cafile"), ("capath", "/etc", "cafile"),
        ("tls_client_cert", "c.crt", "certfile"), ("tls_client_key", "c.key", "keyfile"), ("tls_key_password", "x", "keyfile_password"),
        ("host", "h", "address"), ("port", 6514, "address"), ("transport", "tcp", "socktype"), ("appname", "a", "agent"),
        ("enterprise_id", 32473, "sd_id"), ("database_path", "x.db", "spool"), ("queue_bytes", 5, "quota"), ("ssl_version", "1.3", "minimum_version"),
    ],
)  # fmt: skip
def test_a_setting_of_another_handler_names_ours(name, value, ours, make_handler):
    with pytest.raises(TypeError, match=f"unknown setting {name!r}; did you mean {ours!r}"):
        make_handler(**{name: value})


@pytest.mark.parametrize("name", ["tls_verify", "ssl_verify", "verify", "cert_reqs", "check_hostname", "insecure"])
def test_verification_is_no_setting(name, make_handler):
    for value in (True, False):
        with pytest.raises(TypeError, match=f"unknown setting {name!r}; leave it out: .* always verified"):
            make_handler(**{name: value})


def test_an_unknown_setting_like_none_of_ours_names_them_all(make_handler):
    with pytest.raises(TypeError, match="unknown setting 'zzz'; known: address, facility"):
        make_handler(zzz=1)


def test_a_configuration_that_is_refused_leaves_no_handler_behind(make_handler):
    before = len(logging._handlerList)
    with pytest.raises(ConfigurationError):
        make_handler(ssl=False)
    assert len(logging._handlerList) == before


@pytest.mark.parametrize("setting", ["cafile: $NOWHERE/ca.crt", "tls: ${NOWHERE}", "cafile: ca.crt\nkeyfile_password: $NOWHERE", "tls: x\naddress: $NOWHERE", "tls: x\nagent: $NOWHERE"])
def test_a_variable_that_is_not_set_is_named(setting, make_handler, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigurationError, match=r"\$\{?NOWHERE.*the environment variable NOWHERE is not set"):
        make_handler(**{"tls": ...} | yaml.safe_load(setting))


@pytest.mark.parametrize(("given", "meant"), [("$WORD", "pass$word"), ("${WORD}", "pass$word"), ("pass$WORD", "pass$WORD"), ("pass$word", "pass$word")])
def test_only_a_password_that_is_wholly_a_variable_is_one(given, meant, make_handler, receiver, pki, tmp_path, monkeypatch):
    from cryptography.hazmat.primitives import serialization as form

    monkeypatch.setenv("WORD", "pass$word")
    key = form.load_pem_private_key((pki.client / "client.key").read_bytes(), None)
    locked = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(meant.encode()))
    for name in ("ca.crt", "client.crt"):
        (tmp_path / name).write_bytes((pki.client / name).read_bytes())
    (tmp_path / "client.key").write_bytes(locked)
    files = {"certfile": tmp_path / "client.crt", "keyfile": tmp_path / "client.key"}
    for more in ({"cafile": tmp_path / "ca.crt"} | files, {"cafile": tmp_path / "ca.crt"}, {"tls": tmp_path}):
        make_handler(**{"tls": ...} | more, keyfile_password=given)
        with pytest.raises(ConfigurationError, match="client certificate"):
            make_handler(**{"tls": ...} | more, keyfile_password="wrong")


def test_files_are_named_once(make_handler, pki):
    with pytest.raises(ConfigurationError, match="tls names a folder with all of the files; leave out cafile"):
        make_handler(cafile=pki.ca)
    with pytest.raises(ConfigurationError, match="cafile: given twice, beside ssl and in it"):
        make_handler(tls=..., cafile=pki.ca, ssl={"cafile": pki.foreign_ca})
    with pytest.raises(ConfigurationError, match="cafile: given beside an SSLContext"):
        make_handler(tls=..., cafile=pki.ca, ssl=live(pki))


@pytest.mark.parametrize(
    ("given", "n"),
    [(268435456, 268435456), ("256 MiB", 256 << 20), ("64MB", 64_000_000), ("1.5 gib", 3 << 29), ("10kb", 10_000), ("512", 512), ("512 B", 512), ("1KiB", 1024), ("$SIZE", 2048)],
)
def test_a_size_is_bytes_or_has_a_unit(given, n, monkeypatch):
    monkeypatch.setenv("SIZE", "2 KiB")
    assert settings.size("quota", given) == n


@pytest.mark.parametrize(("given", "n"), [(3, 3.0), (0.5, 0.5), ("3", 3.0), ("3s", 3.0), ("500 ms", 0.5), ("5 min", 300.0), ("24h", 86400.0), ("2d", 172800.0)])
def test_a_duration_is_seconds_or_has_a_unit(given, n):
    assert settings.duration("retain", given) == n


@pytest.mark.parametrize("value", [True, -1, "-1", float("nan"), float("inf"), "", "MiB", "64 x", "64 MiB/s", "1e9", [], "\u0663"], ids=str)
def test_another_size_or_duration_is_refused_with_an_example(value, make_handler):
    with pytest.raises(ConfigurationError, match='quota: .*; expected bytes, such as 268435456 or "256 MiB"'):
        make_handler(quota=value)
    with pytest.raises(ConfigurationError, match='retain: .*; expected seconds, such as 3, "3s" or "24h"'):
        make_handler(retain=value)


def test_the_recorders_settings_are_passed_on(make_handler, tmp_path):
    more = {"durability": "disk", "quota": "8 MiB", "when_full": "fail", "full_timeout": "1s", "retain": "1h", "window": "1 MiB", "heartbeat": "10s", "timeout": 3}
    made = make_handler(spool=tmp_path / "spool", proof="window", **more)
    made.handle(logging.makeLogRecord({"msg": "x"}))
    stats = made.stats()
    assert (stats["durability"], stats["proof"]) == ("disk", "window") and (tmp_path / "spool/agent-1" / stats["epoch"]).is_dir()


@pytest.mark.parametrize(("name", "value"), [("durability", "ram"), ("when_full", "explode"), ("proof", "none"), ("minimum_version", "TLSv1.1"), ("minimum_version", 1.0), ("spool", 5), ("quota", 0)])
def test_a_wrong_value_of_the_recorder_is_refused_at_once(name, value, make_handler):
    with pytest.raises(ConfigurationError, match=name):
        make_handler(**{name: value})


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
