"""`clawtrail hook`: one hook of Claude Code, or of an agent built on its SDK, given as JSON on standard input.

Each hook is a process of its own, and the agent waits for it. So it does no more than hand the record to a recorder on
this host, over a unix socket, and read the answer; it starts that recorder when none is there. A recorder that does
not come up is done without: then this process puts the event into a spool of its own, and the next recorder takes
it over. The network is never waited for, unless a gate says so.

Exit code 0: on record, the agent may go on. 2: the agent must not go on, and standard error says why: a call or a prompt
that is not on record, or that a rule forbids. 1: not on record, but it was over anyway.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import stat
import sys
import time
from typing import Any, Sequence

INPUT_MAX = 64 << 20  #: bytes of standard input
RECORD_MAX = 1_000_000  #: bytes of what is handed over
STARTING = 5.0  #: seconds that a recorder may take to come up
IDLE = 900  #: seconds without a hook after which it goes
LOG_MAX = 1 << 20
#: What has not happened yet, and does not happen when the exit code is 2. Of the others Claude Code would take 2 for "go on".
GATED = frozenset({"PreToolUse", "UserPromptSubmit", "PermissionRequest"})
_CUTS = (64 * 1024, 8192, 1024, 64)


class Unreachable(Exception):
    """There is no recorder at the socket."""


def main(arguments: Sequence[str]) -> int:
    """Reads standard input, records, and returns the exit code."""
    o = _parser().parse_args(arguments)
    at, gated = time.time(), True
    try:
        told = _read()
        gated = told["hook_event_name"] in GATED
        answer = _hand_over(o, _record(told, at), told)
    except ValueError as e:
        answer = _bad(o, str(e), at)
    except OSError as e:
        answer = {"ok": False, "error": f"not on record: {e}"}
    if answer.get("ok", True):
        return 0
    if answer.get("approve") and gated:
        reason = {"hookEventName": "PreToolUse", "permissionDecision": "ask", "permissionDecisionReason": answer["error"]}
        print(json.dumps({"hookSpecificOutput": reason}))
        return 0
    print(f"clawtrail: {answer.get('error') or 'not on record'}", file=sys.stderr)
    return 2 if gated else 1


def _parser() -> argparse.ArgumentParser:
    environment = os.environ.get
    parser = argparse.ArgumentParser(prog="clawtrail hook", description="Record one hook of Claude Code, given as JSON on standard input.")
    parser.add_argument("--receiver", default=environment("CLAWTRAIL_RECEIVER", "localhost:6514"), metavar="HOST:PORT")
    parser.add_argument("--tls", default=environment("CLAWTRAIL_TLS", "/etc/clawtrail/tls"), metavar="FOLDER", help="ca.crt, client.crt, client.key")
    parser.add_argument("--agent", default=environment("CLAWTRAIL_AGENT", "claude-code"), help="name in the client certificate")
    parser.add_argument("--durability", default=environment("CLAWTRAIL_DURABILITY", "write"), choices=("disk", "write"))
    parser.add_argument("--spool", default=environment("CLAWTRAIL_SPOOL", ""), metavar="FOLDER")
    parser.add_argument("--quota", default="256 MiB", metavar="SIZE")
    parser.add_argument("--gate", default="spooled", metavar="LEVELS", help="how far an event comes before its action runs")
    parser.add_argument("--gate-deadline", default="3", metavar="SECONDS")
    parser.add_argument("--rules", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--socket", default=environment("CLAWTRAIL_SOCKET", ""), metavar="PATH",
                        help="of a `clawtrail forwarder --hooks FOLDER` that somebody else runs; then none is started here")  # fmt: skip
    return parser


# -- the record ------------------------------------------------------------------------------------------------------


def _read() -> dict[str, Any]:
    raw = sys.stdin.buffer.read(INPUT_MAX + 1)
    if len(raw) > INPUT_MAX:
        raise ValueError(f"the hook's input has more than {INPUT_MAX} bytes; expected fewer")
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the hook's input is not JSON ({e}); expected one object") from None
    if not isinstance(told, dict) or not isinstance(told.get("hook_event_name"), str):
        raise ValueError("the hook's input names no hook_event_name; expected an object as Claude Code gives it")
    return told


def _record(told: dict[str, Any], at: float) -> bytes:
    """One line of at most RECORD_MAX bytes: what is longer has its strings cut, as an event's would be."""
    record: dict[str, Any] = {"n": 1, "gate": told["hook_event_name"] in GATED, "at": at, "claude": told}
    parts = os.environ.get("TRACEPARENT", "").strip().lower().split("-")
    if len(parts) >= 4 and len(parts[1]) == 32 and len(parts[2]) == 16:
        record["trace"] = {"id": parts[1], "parent": parts[2]}
    if raw := shortened(record, "claude"):
        return raw
    small = {k: v for k, v in told.items() if isinstance(v, str)}
    size = {"size": len(json.dumps(told))}
    return json.dumps({**record, "claude": {**_cut(small, 1024), "tool_input": size, "tool_response": size}}).encode() + b"\n"


def shortened(record: dict[str, Any], member: str) -> bytes | None:
    """The record as a line of at most RECORD_MAX bytes, with the strings of one member cut when that is needed; None when it is not enough."""
    raw = json.dumps(record, default=str).encode()
    for limit in _CUTS:
        if len(raw) <= RECORD_MAX:
            break
        raw = json.dumps({**record, member: _cut(record[member], limit)}, default=str).encode()
    return raw + b"\n" if len(raw) <= RECORD_MAX else None


def _cut(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= limit else f"{value[:limit]}[+{len(value) - limit}]"
    if isinstance(value, dict):
        return {k: _cut(v, limit) for k, v in value.items()}
    return [_cut(v, limit) for v in value] if isinstance(value, list) else value


# -- to whom ---------------------------------------------------------------------------------------------------------


def _hand_over(o: argparse.Namespace, record: bytes, told: dict[str, Any] | None) -> dict[str, Any]:
    patience = 10.0 + float(o.gate_deadline)
    if o.socket:
        try:
            return _ask(o.socket, record, patience)
        except Unreachable as e:
            return {"ok": False, "error": f"not on record: no recorder answers at {o.socket} ({e})"}
    folder = _folder(o)
    path = _socket(folder)
    for _ in range(2):  # one that was just going is met once
        try:
            return _ask(path, record, patience)
        except Unreachable:
            if not _started(o, folder, path):
                break
    return _alone(o, folder, record)


def _ask(path: str, record: bytes, patience: float) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patience)
        try:
            sock.connect(path)
        except OSError as e:
            raise Unreachable(str(e)) from None
        try:
            sock.sendall(record)
            line = sock.makefile("rb").readline()
        except TimeoutError:
            return {"ok": False, "error": f"not on record: the recorder did not answer within {patience:g} s"}
        except ConnectionError as e:
            raise Unreachable(str(e)) from None
    if not line:
        raise Unreachable("it ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _folder(o: argparse.Namespace) -> str:
    """Ours, beside the agent's spools, and closed to everybody else: whoever owned the socket could swallow events."""
    from re import sub

    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    root = os.path.abspath(os.path.expanduser(o.spool or f"{state}/clawtrail/spool"))
    folder = os.path.join(root, ".hook-" + sub(r"[^A-Za-z0-9._-]", "_", o.agent)[:64])
    os.makedirs(folder, 0o700, exist_ok=True)
    _mine(folder)
    return folder


def _mine(folder: str) -> None:
    found = os.stat(folder)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{folder} belongs to uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}; expected it to be ours alone")


def _socket(folder: str) -> str:
    path = os.path.join(folder, "socket")
    if len(os.fsencode(path)) < 100:  # sun_path has 108
        return path
    from zlib import crc32

    short = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/clawtrail-{os.geteuid()}"
    os.makedirs(short, 0o700, exist_ok=True)
    _mine(short)
    return os.path.join(short, f"hook-{crc32(os.fsencode(folder)):08x}.sock")


def _started(o: argparse.Namespace, folder: str, path: str) -> bool:
    """Whether a recorder answers now: one that this process started, or another hook meanwhile."""
    import fcntl
    import subprocess

    deadline = time.monotonic() + STARTING
    lock = os.open(os.path.join(folder, "starting"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
        if _answers(path):
            return True
        log = os.path.join(folder, "log")
        mode = "wb" if os.path.exists(log) and os.path.getsize(log) > LOG_MAX else "ab"
        command = [
            sys.executable, "-m", "clawtrail", "forwarder", f"--socket={path}", f"--hooks={folder}/kept", f"--idle={IDLE}", "--any-process",
            f"--gateway-uid={os.geteuid()}", "--agent-type=claude-code", f"--agent={o.agent}", f"--receiver={o.receiver}", f"--tls={o.tls}",
            f"--spool={os.path.dirname(folder)}", f"--durability={o.durability}", f"--quota={o.quota}", f"--gates={o.gate}",
            f"--gate-deadline={o.gate_deadline}", *(f"--rules={r}" for r in o.rules),
        ]  # fmt: skip
        with open(log, mode) as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True)
        while time.monotonic() < deadline and process.poll() is None:
            if _answers(path):
                return True
            time.sleep(0.01)
        return False
    finally:
        os.close(lock)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError:
            return False
        return True


def _alone(o: argparse.Namespace, folder: str, record: bytes) -> dict[str, Any]:
    """Into a spool of this process' own; the next recorder of this agent takes it over."""
    from pathlib import Path

    from .adapters.claude import ClaudeCode
    from .cli import _address
    from .errors import ClawtrailError, Denied
    from .recorder import Recorder
    from .rules import Rules
    from .settings import size
    from .transport import TLSFiles

    if o.gate != "spooled":
        return {"ok": False, "error": f"not on record: the recorder does not come up, and the gate {o.gate} cannot be waited for; see {folder}/log"}
    try:
        recorder = Recorder(
            _address(o.receiver), TLSFiles.bundle(o.tls), agent=o.agent, agent_type="claude-code", spool=os.path.dirname(folder),
            durability=o.durability, quota=size("quota", o.quota), when_full="fail", heartbeat=0,
        )  # fmt: skip
        try:
            told = json.loads(record)
            adapter = ClaudeCode(recorder, Rules.load([Path(r) for r in o.rules]), None, Path(folder) / "kept")
            adapter.take(told) if "claude" in told else recorder.record(told["kind"], told["outcome"], dropped=told["dropped"], error=told["error"])
        finally:
            recorder.close(0)
    except Denied as e:
        return {"ok": False, "error": str(e), "approve": e.approve}
    except ClawtrailError as e:
        return {"ok": False, "error": f"not on record: {e}"}
    return {"ok": True}


def _bad(o: argparse.Namespace, why: str, at: float) -> dict[str, Any]:
    """What cannot be read is on record as that; the agent does not go on, as nobody knows with what."""
    record = {"n": 1, "kind": "system.drop", "outcome": "failure", "dropped": {"n": 1, "reason": "rejected"}, "error": {"type": "rejected", "message": why}}
    try:
        _hand_over(o, json.dumps(record).encode() + b"\n", None)
    except OSError as e:
        why = f"{why}; and that is not on record: {e}"
    return {"ok": False, "error": why}
