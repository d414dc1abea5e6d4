"""Certificates: one CA for the receiver, another for the clients, ECDSA P-256, with every extension that Python's
strict verification (VERIFY_X509_STRICT, on since 3.13) wants: RFC 5280 sections 4.2.1.1, 4.2.1.2, 4.2.1.3, 4.2.1.9."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import ConfigurationError

CA_DAYS, LEAF_DAYS = 3650, 397
ORGANIZATION, UNIT = "clawtrail", "agents"  #: the receiver admits only clients with this O and OU
_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # the receiver cuts a name of 64 characters


class Authority:
    """A CA: its certificate and its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate, self._key = certificate, key

    @classmethod
    def create(cls, common_name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name)
        certificate = (
            _builder(name, name, key.public_key(), CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ConfigurationError(f"{key} is no EC key")
        return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)

    def server(self, names: list[str], days: float = LEAF_DAYS) -> tuple[bytes, bytes]:
        """Certificate and key (PEM) of a receiver that is dialled under these DNS names and addresses."""
        if not names:
            raise ConfigurationError("a receiver's certificate needs at least one name")
        alternative = x509.SubjectAlternativeName([_general_name(n) for n in names])
        return self._leaf(_name(names[0][:63]), ExtendedKeyUsageOID.SERVER_AUTH, days, alternative)

    def client(self, name: str, days: float = LEAF_DAYS) -> tuple[bytes, bytes]:
        """Certificate and key (PEM) of a client; its common name is the agent's name in the store."""
        if not _CLIENT.fullmatch(name):
            raise ConfigurationError(f"client name {name!r}; expected up to 63 letters, digits, '.', '_' or '-'")
        return self._leaf(_name(name, UNIT), ExtendedKeyUsageOID.CLIENT_AUTH, days, None)

    def _leaf(self, subject: x509.Name, use: x509.ObjectIdentifier, days: float, names: x509.SubjectAlternativeName | None) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(subject, self.certificate.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        return pem(builder.sign(self._key, hashes.SHA256())), key_pem(key)

    @property
    def key(self) -> bytes:
        return key_pem(self._key)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def same_name(name: str) -> str:
    """The name as `names_of` writes it: an IPv6 address has many spellings."""
    return str(_general_name(name).value)


def names_of(certificate: Path) -> set[str]:
    """The DNS names and addresses that a certificate was issued for."""
    alternative = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return {str(n.value) for n in alternative.value}


def write(path: Path, data: bytes, mode: int, uid: int) -> None:
    """Writes a new file that nobody but `uid` could ever read while it is a key; never overwrites.

    The name appears when all of it is on the disk: an interrupted run leaves no half of a key under it.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, "a certificate, key or secret is never overwritten", str(path))
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as f:
        f.write(data)
        f.flush()
        os.fchmod(descriptor, mode)
        if uid != os.geteuid():
            os.fchown(descriptor, uid, -1)
        os.fsync(descriptor)
    unfinished.rename(path)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    start = min(now - timedelta(minutes=5), end - timedelta(minutes=1))  # a sender's clock may be a little behind
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _name(common_name: str, unit: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION)]
    if unit:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConfigurationError(f"receiver name {name!r}; expected an address or a name in ASCII (an internationalised one as xn--…)") from None


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
