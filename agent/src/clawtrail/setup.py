"""The one-shot `setup` container: makes the passwords, keys and certificates that are missing, overwrites nothing."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import ConfigurationError
from .pki import Authority, names_of, pem, same_name, write

#: uid of the user that reads a file; each service of the compose file runs under its own.
UIDS = {"root": 0, "openclaw": 1000, "syslog-ng": 5140, "clawtrail": 6514, "nano": 6515, "grafana": 472}
OWN_CLIENTS = ("openclaw", "operator", "nano-claw")  #: of services of the stack, read by the clawtrail image's user


def step(name: str, detail: str, state: bool | str) -> str:
    """One line of the log grammar; `state` True: created, False: unchanged, or its own words."""
    words = state if isinstance(state, str) else "created" if state else "unchanged"
    return f"[+] {name:<14} {detail:<64} {words}"


def make_secrets(folder: Path) -> bool:
    """The passwords and keys below. True: something was made.

    A provider's key, which a person puts there, and OpenClaw's token belong to the forwarder alone, whoever owned them
    before: OpenClaw gets the token by asking for it. nano's lies there twice, for nano and for its forwarder.
    """
    wanted = {
        "grafana-password": (secrets.token_urlsafe(18), "grafana"),
        "grafana-secret-key": (secrets.token_urlsafe(32), "grafana"),
        "gateway-token": (secrets.token_hex(24), "openclaw"),
        "model-key": ("the-demo-model-takes-any-key", "clawtrail"),
        "nano-model-key": ("the-demo-model-takes-any-key", "clawtrail"),
        "agent-token": (secrets.token_hex(24), "clawtrail"),
        "nano-agent-token": (secrets.token_hex(24), "nano"),
        "fingerprint-key": (secrets.token_hex(32), "clawtrail"),
    }
    made = [name for name in wanted if not (folder / name).exists()]
    for name in made:
        text, owner = wanted[name]
        write(folder / name, text.encode(), 0o400, UIDS[owner])
    copy = folder / "nano-agent-token-proxy"
    if not copy.exists():
        write(copy, (folder / "nano-agent-token").read_bytes(), 0o400, UIDS["clawtrail"])
        made.append(copy.name)
    if os.geteuid() == 0:
        for name in ("model-key", "nano-model-key", "agent-token"):
            os.chown(folder / name, UIDS["clawtrail"], -1)
    return bool(made)


def make_certificates(
    folder: Path, names: list[str], clients: list[str], host_names: list[str] | None = None, owner: int = UIDS["root"]
) -> tuple[bool, str]:
    """Both CAs, the receiver's certificate and one folder per client. Returns (something was made, what there is).

    Args:
        names: what senders dial. Raises ConfigurationError when the receiver's certificate, already there, lacks one:
            a certificate in use is never replaced behind the back of its senders.
        host_names: the host's own names, put in when the certificate is made; they may change later.
        owner: uid that reads the keys of clients which are not services of the stack.
    """
    server_ca, made_server_ca = _authority(folder / "ca", "server-ca", "clawtrail receiver CA")
    client_ca, made_client_ca = _authority(folder / "ca", "client-ca", "clawtrail client CA")
    made = made_server_ca or made_client_ca
    server = folder / "server"
    _forget_half(server / "server.crt", server / "server.key", server / "client-ca.crt")
    if not (server / "server.crt").exists():
        certificate, key = server_ca.server(list(dict.fromkeys([*names, *(host_names or [])])))
        write(server / "server.key", key, 0o600, UIDS["syslog-ng"])
        write(server / "client-ca.crt", pem(client_ca.certificate), 0o644, UIDS["root"])
        write(server / "server.crt", certificate, 0o644, UIDS["root"])
        made = True
    elif missing := sorted({same_name(n) for n in names} - names_of(server / "server.crt")):
        raise ConfigurationError(
            f"the receiver's certificate {server / 'server.crt'} is not for {', '.join(missing)}; to issue it anew for "
            f"{', '.join(names)}, remove the folder {server} and run make up again"
        )
    for name in clients:
        base = folder / "clients" / name
        _forget_half(base / "client.crt", base / "client.key", base / "ca.crt")
        if not (base / "client.crt").exists():
            certificate, key = client_ca.client(name)
            write(base / "client.key", key, 0o600, UIDS["clawtrail"] if name in OWN_CLIENTS else owner)
            write(base / "ca.crt", pem(server_ca.certificate), 0o644, UIDS["root"])
            write(base / "client.crt", certificate, 0o644, UIDS["root"])
            made = True
    known = ",".join(sorted(names_of(server / "server.crt") - {"127.0.0.1", "::1", "syslog-ng"}))
    noun = "client" if len(clients) == 1 else "clients"
    return made, f"CAs · receiver for {known} · {noun} {', '.join(clients)}"


def _authority(folder: Path, name: str, common_name: str) -> tuple[Authority, bool]:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if certificate.exists() and key.exists():
        return Authority.load(certificate, key), False
    issued = [*folder.parent.glob("server/*.crt"), *folder.parent.glob("clients/*/*.crt")]
    if key.exists() and not certificate.exists() and not issued:
        key.unlink()  # an interrupted first run: no certificate of this CA was ever given away
    if certificate.exists() != key.exists():
        found, lost = (certificate, key) if certificate.exists() else (key, certificate)
        raise ConfigurationError(f"{found} is there and {lost} is not; expected both or none: restore the missing file")
    authority = Authority.create(common_name)
    write(key, authority.key, 0o600, UIDS["root"])
    write(certificate, pem(authority.certificate), 0o644, UIDS["root"])
    return authority, True


def _forget_half(certificate: Path, *others: Path) -> None:
    """The certificate is written last: without it the rest is what an interrupted run left, and nobody uses it."""
    if not certificate.exists():
        for path in others:
            path.unlink(missing_ok=True)


def receiver_names(given: str) -> list[str]:
    """What senders may dial: localhost and the service's name, then every given word once, in lower case."""
    return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", "syslog-ng", *words(given)]))


def words(text: str) -> list[str]:
    return text.replace(",", " ").lower().split()


def own_volumes(folder: Path) -> None:
    """The receiver's volumes belong to its user, whichever image made them."""
    for path in (folder / "syslog-ng", folder / "archive"):
        if path.is_dir() and path.stat().st_uid != UIDS["syslog-ng"]:
            os.chown(path, UIDS["syslog-ng"], UIDS["syslog-ng"])
