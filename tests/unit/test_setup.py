"""Certificates and secrets: strict enough for every verifier, made once, repaired after an interruption, readable by one."""

import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from clawtrail import pki, setup
from clawtrail.errors import ConfigurationError

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
NAMES = ["localhost", "127.0.0.1", "::1", "syslog-ng"]


@pytest.fixture(autouse=True)
def own_uids(monkeypatch):
    """Whoever is not root keeps what it makes."""
    if os.geteuid() != 0:
        monkeypatch.setattr(setup, "UIDS", dict.fromkeys(setup.UIDS, os.geteuid()))


def make(folder, names=NAMES, clients=("openclaw", "operator"), **more):
    return setup.make_certificates(folder, list(names), list(clients), **more)


def files(folder):
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}


def contents(folder):
    return {name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_mode, p.stat().st_uid) for name, p in files(folder).items()}


def load(path):
    return x509.load_pem_x509_certificate(Path(path).read_bytes())


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


# -- certificates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "syslog-ng", "logs.example"])
def test_both_sides_accept_each_other_under_strict_verification(name, tmp_path):
    make(tmp_path, [*NAMES, "logs.example"])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(tmp_path / "clients/openclaw/ca.crt")
    client.load_cert_chain(tmp_path / "clients/openclaw/client.crt", tmp_path / "clients/openclaw/client.key")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(tmp_path / "server/client-ca.crt")
    server.load_cert_chain(tmp_path / "server/server.crt", tmp_path / "server/server.key")
    for context in (client, server):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    a, b = socket.socketpair()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(server.wrap_socket(b, server_side=True).getpeercert()))
    thread.start()
    with client.wrap_socket(a, server_hostname=name):
        thread.join(10)
    subject = dict(pair[0] for pair in seen[0]["subject"])
    assert subject == {"organizationName": "clawtrail", "organizationalUnitName": "agents", "commonName": "openclaw"}


def test_every_certificate_has_the_extensions_of_its_purpose(tmp_path):
    make(tmp_path)
    found = {name: load(p) for name, p in files(tmp_path).items() if name.endswith(".crt")}
    for name, c in found.items():
        authority = name.startswith("ca/") or Path(name).name in ("ca.crt", "client-ca.crt")
        basic, usage = extension(c, x509.BasicConstraints), extension(c, x509.KeyUsage)
        assert basic.critical and usage.critical and basic.value.ca is authority
        assert (usage.value.key_cert_sign, usage.value.digital_signature) == (authority, not authority)
        assert extension(c, x509.SubjectKeyIdentifier).value == x509.SubjectKeyIdentifier.from_public_key(c.public_key())
        assert c.public_key().curve.name == "secp256r1" and c.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=4)
        if not authority:
            issuer = found["ca/server-ca.crt" if name.startswith("server") else "ca/client-ca.crt"]
            use = ExtendedKeyUsageOID.SERVER_AUTH if name.startswith("server") else ExtendedKeyUsageOID.CLIENT_AUTH
            assert list(extension(c, x509.ExtendedKeyUsage).value) == [use] and c.not_valid_after_utc - datetime.now(UTC) < timedelta(days=398)
            identifier = extension(c, x509.AuthorityKeyIdentifier).value.key_identifier
            assert identifier == extension(issuer, x509.SubjectKeyIdentifier).value.digest
            c.verify_directly_issued_by(issuer)
    assert len({c.serial_number for c in found.values()}) == 5
    assert found["ca/server-ca.crt"].subject != found["ca/client-ca.crt"].subject


def test_the_receivers_certificate_is_for_every_name_that_was_asked_for(tmp_path):
    make(tmp_path, setup.receiver_names("Logs.Example, 10.0.0.7 fe80:0:0::1"), host_names=["this-host"])
    assert pki.names_of(tmp_path / "server/server.crt") == {*NAMES, "logs.example", "10.0.0.7", "fe80::1", "this-host"}
    assert make(tmp_path, setup.receiver_names("10.0.0.7 FE80::0:1"))[0] is False


def test_a_name_that_the_receivers_certificate_lacks_is_an_error_that_says_what_to_do(tmp_path):
    make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigurationError, match=r"server.crt is not for logs\.example; to issue it anew for .*logs\.example, remove the folder .*server and run make up again"):
        make(tmp_path, [*NAMES, "logs.example"])
    assert contents(tmp_path) == before
    make(tmp_path, host_names=["renamed-host"])  # the host's own names may change


@pytest.mark.parametrize("name", ["münchen.example", "über"])
def test_a_receiver_name_that_no_certificate_can_carry_is_refused(name, tmp_path):
    with pytest.raises(ConfigurationError, match="receiver name .*expected an address or a name in ASCII"):
        make(tmp_path, [*NAMES, name])


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "ä", "a" * 64, "..", "a,b"])
def test_a_client_name_that_would_not_survive_the_receiver_is_refused(name):
    with pytest.raises(ConfigurationError, match="client name .*expected up to 63"):
        pki.Authority.create("x").client(name)


# -- what is made, for whom, and how often -----------------------------------------------------------------------


def test_a_second_run_changes_nothing(tmp_path):
    assert setup.make_secrets(tmp_path / "secrets") is True and make(tmp_path / "certs")[0] is True
    before = contents(tmp_path)
    assert setup.make_secrets(tmp_path / "secrets") is False and make(tmp_path / "certs")[0] is False
    assert contents(tmp_path) == before


def test_a_client_that_is_added_later_gets_its_folder_and_nothing_else_changes(tmp_path):
    make(tmp_path)
    before = contents(tmp_path)
    assert make(tmp_path, clients=("openclaw", "operator", "new-agent"))[0] is True
    after = contents(tmp_path)
    assert {k: after[k] for k in before} == before
    assert after.keys() - before.keys() == {f"clients/new-agent/{f}" for f in ("ca.crt", "client.crt", "client.key")}
    load(tmp_path / "clients/new-agent/client.crt").verify_directly_issued_by(load(tmp_path / "ca/client-ca.crt"))


def test_no_key_and_no_secret_is_readable_by_anyone_but_its_owner(tmp_path):
    setup.make_secrets(tmp_path / "secrets")
    make(tmp_path / "certs")
    for name, p in files(tmp_path).items():
        mode = stat.S_IMODE(p.stat().st_mode)
        assert mode == (0o400 if name.startswith("secrets") else 0o644 if name.endswith(".crt") else 0o600), name


@root
def test_every_key_and_secret_belongs_to_the_user_that_reads_it(tmp_path):
    setup.make_secrets(tmp_path / "secrets")
    make(tmp_path / "certs", clients=("openclaw", "operator", "mine"), owner=1234)
    owners = {name: p.stat().st_uid for name, p in files(tmp_path).items() if not name.endswith(".crt")}
    assert owners == {
        "certs/ca/server-ca.key": 0, "certs/ca/client-ca.key": 0, "certs/server/server.key": 5140,
        "certs/clients/openclaw/client.key": 6514, "certs/clients/operator/client.key": 6514, "certs/clients/mine/client.key": 1234,
        "secrets/grafana-password": 472, "secrets/grafana-secret-key": 472, "secrets/gateway-token": 1000, "secrets/model-key": 6514, "secrets/nano-model-key": 6514,
        "secrets/fingerprint-key": 6514, "secrets/agent-token": 6514, "secrets/nano-agent-token": 6515, "secrets/nano-agent-token-proxy": 6514,
    }  # fmt: skip


@root
def test_a_models_key_that_a_person_put_there_and_a_token_of_before_are_the_forwarders(tmp_path):
    for name in ("model-key", "agent-token"):
        (tmp_path / name).write_text("mine")
        os.chown(tmp_path / name, 1000, 1000)
    setup.make_secrets(tmp_path)
    for name in ("model-key", "agent-token"):
        assert (tmp_path / name).stat().st_uid == 6514 and (tmp_path / name).read_text() == "mine"


def test_secrets_are_long_and_never_the_same_twice(tmp_path):
    for n in "ab":
        setup.make_secrets(tmp_path / n)
    for name in ("grafana-password", "grafana-secret-key", "gateway-token", "agent-token", "fingerprint-key"):
        a, b = ((tmp_path / n / name).read_text() for n in "ab")
        assert a != b and len(a) >= 24
    assert len(bytes.fromhex((tmp_path / "a/fingerprint-key").read_text())) == 32


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        pki.write(tmp_path / "x", b"theirs", 0o600, os.geteuid())
    assert (tmp_path / "x").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


KILLED = """
import os, sys
from pathlib import Path
from clawtrail import setup
from clawtrail import pki
if os.geteuid() != 0:
    setup.UIDS = dict.fromkeys(setup.UIDS, os.geteuid())
left = int(sys.argv[2])
def dies(name):
    original = getattr(os, name)
    def call(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return original(*args, **kwargs)
    setattr(os, name, call)
for name in ("open", "fdopen", "fchmod", "fsync", "rename", "mkdir"):
    dies(name)
setup.make_secrets(Path(sys.argv[1]) / "secrets")
setup.make_certificates(Path(sys.argv[1]) / "certs", ["localhost"], ["openclaw"])
"""


@pytest.mark.parametrize("calls", range(4, 84, 7))
def test_a_run_that_is_killed_anywhere_is_completed_by_the_next(calls, tmp_path):
    """Dies in the system call of this number; the next run finds what is there, keeps what is whole, makes the rest."""
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(calls)], timeout=30).returncode in (0, 9)
    whole = {name: data for name, (data, *_) in contents(tmp_path).items() if not Path(name).name.startswith(".")}
    assert all(whole.values()), "a file is there and empty"
    setup.make_secrets(tmp_path / "secrets")
    make(tmp_path / "certs", ["localhost"], ["openclaw"])
    assert len([n for n in files(tmp_path) if not Path(n).name.startswith(".")]) == 7 + 4 + 3 + 5
    load(tmp_path / "certs/server/server.crt").verify_directly_issued_by(load(tmp_path / "certs/clients/openclaw/ca.crt"))
    load(tmp_path / "certs/clients/openclaw/client.crt").verify_directly_issued_by(load(tmp_path / "certs/server/client-ca.crt"))
    pki.Authority.load(tmp_path / "certs/ca/server-ca.crt", tmp_path / "certs/ca/server-ca.key")
    assert {n: (tmp_path / n).read_bytes() for n in whole if n.startswith("secrets")} == {n: d for n, d in whole.items() if n.startswith("secrets")}


def test_a_ca_of_ones_own_that_is_there_before_the_first_run_issues_everything(tmp_path):
    own = {name: pki.Authority.create(f"our own {name}") for name in ("server-ca", "client-ca")}
    for name, authority in own.items():
        pki.write(tmp_path / "ca" / f"{name}.crt", pki.pem(authority.certificate), 0o644, os.geteuid())
        pki.write(tmp_path / "ca" / f"{name}.key", authority.key, 0o600, os.geteuid())
    setup.make_certificates(tmp_path, ["localhost"], ["a"])
    for path, name in (("server/server.crt", "server-ca"), ("clients/a/client.crt", "client-ca")):
        issued = x509.load_pem_x509_certificate((tmp_path / path).read_bytes())
        issued.verify_directly_issued_by(own[name].certificate)


@pytest.mark.parametrize("lost", ["server-ca.key", "server-ca.crt", "client-ca.key", "client-ca.crt"])
def test_half_of_a_ca_that_has_issued_certificates_is_an_error_and_never_a_new_ca(lost, tmp_path):
    make(tmp_path)
    (tmp_path / "ca" / lost).unlink()
    before = contents(tmp_path)
    with pytest.raises(ConfigurationError, match=f"{lost} is not; expected both or none: restore the missing file"):
        make(tmp_path)
    assert contents(tmp_path) == before


@root
def test_the_receivers_volumes_are_given_to_its_user(tmp_path):
    (tmp_path / "syslog-ng").mkdir()
    setup.own_volumes(tmp_path)
    assert (tmp_path / "syslog-ng").stat().st_uid == 5140 and not (tmp_path / "archive").exists()


def test_a_step_is_one_line_of_the_log_grammar():
    assert setup.step("Secrets", "x", True).startswith("[+] Secrets        x ") and setup.step("a", "b", False).endswith(" unchanged")
