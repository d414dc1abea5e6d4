"""No configuration ends unverified or in clear: each either raises, or delivers to the right receiver and to nobody else."""

import logging
import logging.config
import re
import ssl
from types import SimpleNamespace

import pytest

from clawtrail import TLSSysLogHandler
from clawtrail.errors import ConfigurationError
from support import eventually

MARK = "a-secret-plan-of-the-agent"


def live(pki, protocol=ssl.PROTOCOL_TLS_CLIENT, ciphers=None, **attributes):
    """A program's own context with our client certificate in it."""
    context = ssl.SSLContext(protocol)
    if protocol != ssl.PROTOCOL_TLS_SERVER:
        context.load_verify_locations(pki.ca)
    context.load_cert_chain(pki.client / "client.crt", pki.client / "client.key")
    if ciphers:
        context.set_ciphers(ciphers)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


def default(pki):
    context = ssl.create_default_context(cafile=pki.ca)
    context.load_cert_chain(pki.client / "client.crt", pki.client / "client.key")
    return context


def unverified(pki):
    context = ssl._create_unverified_context()
    context.load_cert_chain(pki.client / "client.crt", pki.client / "client.key")
    return context


def cafile(pki):
    return {"cafile": pki.client / "ca.crt"}


#: Never a handler. Values that need the certificates are functions of them.
REFUSED = {
    # asked to send in clear, or not to verify, in the words of anybody
    "ssl false": {"ssl": False},
    "ssl 'false'": {"ssl": "false"},
    "ssl no": {"ssl": "no"},
    "ssl off": {"ssl": "Off"},
    "ssl 0": {"ssl": 0},
    "ssl '0'": {"ssl": "0"},
    "ssl empty": {"ssl": ""},
    "ssl null": {"ssl": None},
    "ssl 'None'": {"ssl": "None"},
    "ssl 'noverify'": {"ssl": "noverify"},
    "ssl 'disabled'": {"ssl": "disabled"},
    "ssl 2": {"ssl": 2},
    "ssl 1.5": {"ssl": 1.5},
    "ssl a list": {"ssl": []},
    "ssl a list of settings": {"ssl": [{"cafile": "x"}]},
    "ssl CERT_NONE": {"ssl": ssl.CERT_NONE},
    "ssl 'CERT_NONE'": {"ssl": "ssl.CERT_NONE"},
    "ssl 'CERT_REQUIRED'": {"ssl": "ssl.CERT_REQUIRED"},
    "ssl the class": {"ssl": ssl.SSLContext},
    "ssl the module": {"ssl": ssl},
    "ssl a path": lambda pki: {"ssl": str(pki.ca)},
    "ssl verify false": lambda pki: {"ssl": {**cafile(pki), "verify": False}},
    "ssl check_hostname false": lambda pki: {"ssl": {**cafile(pki), "check_hostname": False}},
    "ssl cert_reqs none": lambda pki: {"ssl": {**cafile(pki), "cert_reqs": "CERT_NONE"}},
    "ssl ciphers null": lambda pki: {"ssl": {**cafile(pki), "ciphers": "NULL"}},
    "ssl without a ca": {"ssl": {}},
    "ssl with a null ca": {"ssl": {"cafile": None}},
    "no ca at all": {},
    "ssl true, no ca": {"ssl": True},
    "secure of tlssysloghandler": lambda pki: {**cafile(pki), "secure": True},
    "secure 'noverify'": lambda pki: {**cafile(pki), "secure": "noverify"},
    "tls_enable of rfc5424-logging-handler": lambda pki: {"tls_enable": True, "tls_ca_bundle": str(pki.ca)},
    "tls_verify false": lambda pki: {**cafile(pki), "tls_verify": False},
    "ssl_enable of logstash-async": lambda pki: {"ssl_enable": False, "ca_certs": str(pki.ca)},
    "ssl_verify false": lambda pki: {**cafile(pki), "ssl_verify": False},
    "use_tls false": lambda pki: {**cafile(pki), "use_tls": False},
    "insecure": lambda pki: {**cafile(pki), "insecure": True},
    "tls false": {"tls": False},
    "tls true": {"tls": True},
    "udp": lambda pki: {**cafile(pki), "socktype": "udp"},
    "SOCK_DGRAM": lambda pki: {**cafile(pki), "socktype": "ext://socket.SOCK_DGRAM"},
    "transport udp": lambda pki: {**cafile(pki), "transport": "udp"},
    "a socket's path": lambda pki: {**cafile(pki), "address": "/dev/log"},
    "a URL in clear": lambda pki: {**cafile(pki), "address": "tcp://127.0.0.1:6514"},
    # old or no cryptography
    "SSLv3": lambda pki: {**cafile(pki), "minimum_version": "SSLv3"},
    "TLSv1": lambda pki: {**cafile(pki), "minimum_version": "TLSv1"},
    "TLSv1.1": lambda pki: {**cafile(pki), "minimum_version": ssl.TLSVersion.TLSv1_1},
    "the oldest there is": lambda pki: {**cafile(pki), "minimum_version": ssl.TLSVersion.MINIMUM_SUPPORTED},
    "1.0": lambda pki: {"ssl": {**cafile(pki), "minimum_version": 1.0}},
    # names and files that could match anything
    "server_hostname empty": lambda pki: {**cafile(pki), "server_hostname": ""},
    "server_hostname false": lambda pki: {**cafile(pki), "server_hostname": False},
    "server_hostname *": lambda pki: {**cafile(pki), "server_hostname": "*"},
    "ca a folder": lambda pki: {"cafile": pki.base},
    "ca a missing file": {"cafile": "/no/such/ca.crt"},
    "ca an empty file": {"cafile": "/dev/null"},
    "ca a key": lambda pki: {"cafile": pki.client / "client.key"},
    "ca true": {"cafile": True},
    "ca empty": {"cafile": ""},
    "ca of an unset variable": {"cafile": "$NO_SUCH_VARIABLE"},
    "certificate without its key": lambda pki: {**cafile(pki), "certfile": pki.client / "client.crt"},
    "key of another": lambda pki: {**cafile(pki), "certfile": pki.client / "client.crt", "keyfile": pki.stranger / "client.key"},
    # a context of the program's own
    "context unverified": lambda pki: {"ssl": unverified(pki)},
    "context without check_hostname": lambda pki: {"ssl": live(pki, check_hostname=False)},
    "context CERT_OPTIONAL": lambda pki: {"ssl": live(pki, check_hostname=False, verify_mode=ssl.CERT_OPTIONAL)},
    "context CERT_NONE": lambda pki: {"ssl": live(pki, check_hostname=False, verify_mode=ssl.CERT_NONE)},
    "context of TLS 1.0": lambda pki: {"ssl": live(pki, minimum_version=ssl.TLSVersion.TLSv1)},
    "context of any age": lambda pki: {"ssl": live(pki, minimum_version=ssl.TLSVersion.MINIMUM_SUPPORTED)},
    "context of a server": lambda pki: {"ssl": live(pki, ssl.PROTOCOL_TLS_SERVER)},
    "context that encrypts nothing": lambda pki: {"ssl": live(pki, ciphers="NULL-SHA256:@SECLEVEL=0")},
    "context that knows nobody": lambda pki: {"ssl": live(pki, ciphers="ADH-AES128-GCM-SHA256:@SECLEVEL=0")},
    "context and a ca beside it": lambda pki: {"ssl": default(pki), **cafile(pki)},
}  # fmt: skip

#: Odd, and verified.
VERIFIED = {
    "ca alone": cafile,
    "ssl true": lambda pki: {"ssl": True, **cafile(pki)},
    "ssl 'true'": lambda pki: {"ssl": " True ", **cafile(pki)},
    "ssl yes": lambda pki: {"ssl": "YES", **cafile(pki)},
    "ssl 1": lambda pki: {"ssl": 1, **cafile(pki)},
    "ssl '1'": lambda pki: {"ssl": "1", **cafile(pki)},
    "ssl a mapping": lambda pki: {"ssl": cafile(pki)},
    "ssl an empty mapping": lambda pki: {"ssl": {}, **cafile(pki)},
    "ssl a mapping and the same beside it": lambda pki: {"ssl": cafile(pki), **cafile(pki)},
    "a client's folder": lambda pki: {"tls": pki.client},
    "a client's folder as text": lambda pki: {"tls": f"{pki.client}/", "ssl": "on"},
    "a name": lambda pki: {**cafile(pki), "server_hostname": "localhost"},
    "an address for a name": lambda pki: {**cafile(pki), "server_hostname": "127.0.0.1"},
    "nulls": lambda pki: {**cafile(pki), "certfile": None, "keyfile": None, "server_hostname": None, "minimum_version": None, "socktype": None},
    "TLS 1.2": lambda pki: {**cafile(pki), "minimum_version": 1.2},
    "TLS 1.3": lambda pki: {**cafile(pki), "minimum_version": "ext://ssl.TLSVersion.TLSv1_3"},
    "socktype tcp": lambda pki: {**cafile(pki), "socktype": "tcp"},
    "a context": lambda pki: {"ssl": default(pki)},
    "a context and a name": lambda pki: {"ssl": default(pki), "server_hostname": "localhost"},
    "a context of its own": lambda pki: {"ssl": live(pki)},
}  # fmt: skip


def spoil(context, **attributes):
    for name, value in attributes.items():
        setattr(context, name, value)


#: What a program does to its context after it was accepted.
LATER = {
    "check_hostname off": lambda c: spoil(c, check_hostname=False),
    "CERT_NONE": lambda c: spoil(c, check_hostname=False, verify_mode=ssl.CERT_NONE),
    "CERT_OPTIONAL": lambda c: spoil(c, check_hostname=False, verify_mode=ssl.CERT_OPTIONAL),
}


@pytest.fixture
def wrong_peers(plain_listener, make_receiver, pki):
    """One that takes everything in clear, one of somebody else's CA, one with another's name."""
    return SimpleNamespace(plain=plain_listener(b"220 ready\r\n"), foreign=make_receiver(pki.foreign_server), misnamed=make_receiver(pki.misnamed_server))


def given(config, pki):
    return config(pki) if callable(config) else config


def run(settings, address, until):
    """A handler with one record to deliver, closed when `until` is true of it."""
    handler = TLSSysLogHandler(**{"address": list(address), "agent": "agent-1", "durability": "memory"} | settings)
    try:
        handler.handle(logging.makeLogRecord({"msg": MARK, "levelno": 20, "levelname": "INFO"}))
        eventually(lambda: until(handler.stats()), state=handler.stats)
    finally:
        handler.recorder.close(0.05)
        handler.close()


def nothing_went_to(peers):
    assert not re.search(rb"a-secret-plan|agent-1|<\d{1,3}>1 ", peers.plain.received)  # whole words: a handshake's random bytes hold any short one
    for receiver in peers.foreign, peers.misnamed:
        assert receiver.raw == [] and receiver.connections == 0 and receiver.bytes_read == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated")
@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED)
def test_a_configuration_that_could_send_in_clear_or_unverified_is_refused(config, pki, monkeypatch, wrong_peers):
    monkeypatch.delenv("CLAWTRAIL_CA_FILE", raising=False)
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    with pytest.raises((ConfigurationError, TypeError)) as refused:
        TLSSysLogHandler(**{"address": list(wrong_peers.plain.address), "agent": "agent-1"} | given(config, pki))
    assert len(str(refused.value)) > 20 and wrong_peers.plain.connections == 0


@pytest.mark.parametrize("config", VERIFIED.values(), ids=VERIFIED)
def test_a_configuration_that_is_accepted_delivers_to_the_verified_receiver_and_to_nobody_else(config, pki, wrong_peers, make_receiver):
    for peer in (wrong_peers.plain, wrong_peers.foreign, wrong_peers.misnamed):
        tried = (lambda: peer.connections) if peer is wrong_peers.plain else (lambda: len(peer.handshakes_failed))
        run(given(config, pki), peer.address, lambda stats: tried() and stats["last_error"] and not stats["connected"])
    nothing_went_to(wrong_peers)
    right = make_receiver()
    run(given(config, pki), right.address, lambda _: any(MARK.encode() in raw for raw in right.raw))


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_a_context_that_is_spoiled_after_it_was_accepted_delivers_nothing(change, pki, wrong_peers, monkeypatch):
    for peer in (wrong_peers.plain, wrong_peers.foreign, wrong_peers.misnamed):
        context = default(pki)
        handler = TLSSysLogHandler(address=list(peer.address), agent="agent-1", ssl=context, durability="memory")
        change(context)
        handler.handle(logging.makeLogRecord({"msg": MARK}))
        eventually(lambda: handler.stats()["last_error"], state=handler.stats)
        handler.recorder.close(0.05)
        handler.close()
    nothing_went_to(wrong_peers)


def test_a_configuration_file_that_is_refused_configures_nothing(pki, wrong_peers):
    before = logging.getLogger("refused").handlers[:]
    config = {"version": 1, "handlers": {"h": {"class": "clawtrail.TLSSysLogHandler", "address": list(wrong_peers.plain.address), "secure": True}}}
    with pytest.raises(ValueError, match="Unable to configure handler 'h'") as refused:
        logging.config.dictConfig(config | {"disable_existing_loggers": False, "incremental": False, "loggers": {"refused": {"handlers": ["h"]}}})
    assert "did you mean 'ssl'" in str(refused.value.__cause__)
    logging.getLogger("refused").critical(MARK)
    assert logging.getLogger("refused").handlers == before and wrong_peers.plain.connections == 0


def test_the_table_is_long_enough_to_be_believed():
    assert len(REFUSED) + len(VERIFIED) + len(LATER) >= 90
