"""`clawtrail health`: does the forwarder, or whatever answers at an address, work? And how to ask a forwarder anything.

A container runs it every few seconds for as long as it lives, so it imports no part of the recorder.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from typing import Any, Sequence
from urllib.parse import urlsplit

SOCKET = "/run/clawtrail/audit.sock"
TIMEOUT = 3.0  #: seconds for an answer


def main(arguments: Sequence[str]) -> int:
    """The command on its own."""
    parser = argparse.ArgumentParser(prog="clawtrail health", description="Ask the forwarder, or an address, whether it works.")
    return check(options(parser).parse_args(arguments))


def options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the command's options."""
    parser.add_argument("--socket", default=SOCKET, metavar="PATH", help="of the forwarder (default: %(default)s)")
    parser.add_argument("--url", help="http://HOST:PORT/PATH instead")
    return parser


def check(o: argparse.Namespace) -> int:
    """Asks, prints the answer, and returns the exit code. 0: it works; 1: it does not, and standard error says why."""
    try:
        print(f"{o.url}: {_get(o.url)}" if o.url else json.dumps(_connected(o.socket)))
    except (OSError, ValueError) as e:
        print(f"[x] {e}", file=sys.stderr)
        return 1
    return 0


def ask(path: str, question: dict[str, Any], timeout: float = TIMEOUT) -> dict[str, Any]:
    """What the forwarder answers a process of its own uid. Raises OSError when it does not answer, or says no."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        sock.connect(path)
        sock.sendall(json.dumps({"n": 1, **question}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(sock.makefile("rb").readline() or b"{}")
    if answer.get("ok") is False or answer.get("ack") != 1:
        raise OSError(f"the forwarder answered {answer.get('error') or answer}")
    return answer


def status(path: str, timeout: float = TIMEOUT) -> dict[str, Any]:
    """The forwarder's counters. Raises OSError as `ask` does."""
    answer = ask(path, {"status": True}, timeout)
    if "accepted" not in answer:
        raise OSError(f"the forwarder answered {answer}")
    return answer


def _connected(path: str) -> dict[str, Any]:
    state = status(path)
    if not state["connected"]:
        raise OSError(f"no connection to the receiver: {state['last_error'] or 'not tried yet'}")
    return state


def _get(url: str) -> int:
    """The HTTP status of a GET. Raises OSError for one of 400 and above, and when there is none; ValueError for no address."""
    from http.client import HTTPConnection, HTTPException

    at = urlsplit(url)
    if at.scheme != "http" or not at.hostname:
        raise ValueError(f"{url!r} is no address; expected http://HOST:PORT/PATH")
    connection = HTTPConnection(at.hostname, at.port, timeout=TIMEOUT)
    try:
        connection.request("GET", f"{at.path or '/'}{'?' + at.query if at.query else ''}")
        answer = connection.getresponse()
    except HTTPException as e:
        raise OSError(f"{url}: {type(e).__name__}: {e}") from None
    finally:
        connection.close()
    if answer.status >= 400:
        raise OSError(f"{url}: HTTP {answer.status} {answer.reason}")
    return answer.status
