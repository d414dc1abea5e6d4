"""RFC 5424 messages and RFC 5425 frames, both directions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Iterator

from .errors import ClawtrailError

FACILITY = 13  #: log audit, RFC 5424 section 6.2.1
SD_ID = "audit@32473"  #: 32473 is the enterprise number reserved for documentation, RFC 5612
FRAME_MAX = 48 * 1024  #: bytes; a receiver closes the connection on a frame over its own limit
_NOT_PRINTUSASCII = re.compile(r"[^\x21-\x7e]")
_SD_ESCAPE = str.maketrans({'"': r"\"", "\\": r"\\", "]": r"\]"})
_HEADER = re.compile(rb"<(\d{1,3})>1 (\S+) (\S+) (\S+) (\S+) (\S+) ")
_PARAM = re.compile(rb' ([^ =\]"]{1,32})="((?:[^"\\\]]|\\.)*)"', re.DOTALL)


def header_field(value: str, limit: int) -> str:
    """A header field (PRINTUSASCII, section 6): other characters become `_`, an empty one the NILVALUE `-`."""
    return _NOT_PRINTUSASCII.sub("_", value)[:limit] or "-"


def structured_data(params: dict[str, str], sd_id: str = SD_ID) -> str:
    """One SD-ELEMENT (section 6.3); `"`, `\\` and `]` are escaped, control characters become spaces."""
    parts = [f'{k}="{_visible(v).translate(_SD_ESCAPE)}"' for k, v in params.items()]
    return f"[{sd_id} {' '.join(parts)}]" if parts else "-"


def _visible(value: str) -> str:
    return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)


def message(
    msg: bytes, *, severity: int, time: str, host: str, app: str, procid: str, msgid: str, sd: str, facility: int = FACILITY
) -> bytes:
    """One RFC 5424 SYSLOG-MSG. `msg` is MSG-ANY: UTF-8 without a byte order mark, so that it is stored as it was hashed."""
    head = (
        f"<{facility * 8 + severity}>1 {time} {header_field(host, 255)} {header_field(app, 48)} "
        f"{header_field(procid, 128)} {header_field(msgid, 32)} {sd} "
    )
    return head.encode() + msg


def frame(message: bytes) -> bytes:
    """One RFC 5425 SYSLOG-FRAME: the length in bytes, a space, the message (section 4.3)."""
    return b"%d %b" % (len(message), message)


class Frames:
    """Takes a byte stream apart into RFC 5425 frames."""

    def __init__(self, limit: int = FRAME_MAX) -> None:
        self._buffer = b""
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete now. Raises ClawtrailError on a frame header that is none."""
        self._buffer += data
        while self._buffer:
            digits, space, rest = self._buffer.partition(b" ")
            if not (digits.isdigit() and 1 <= len(digits) <= 10) or digits.startswith(b"0"):
                if space or len(digits) > 10 or not digits.isdigit():
                    raise ClawtrailError(f"frame header {self._buffer[:16]!r}; expected a length, a space, a message")
                return
            if not space:
                return
            length = int(digits)
            if length > self._limit:
                raise ClawtrailError(f"frame of {length} bytes; expected at most {self._limit}")
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            yield rest[:length]


@dataclass(frozen=True)
class Parsed:
    """One RFC 5424 message, taken apart. `sd` is {SD-ID: {name: value}}."""

    facility: int
    severity: int
    time: str
    host: str
    app: str
    procid: str
    msgid: str
    msg: bytes
    sd: dict[str, dict[str, str]] = field(default_factory=dict)


def parse(raw: bytes) -> Parsed:
    """Takes an RFC 5424 message apart. Raises ClawtrailError naming what was found."""
    m = _HEADER.match(raw)
    if not m:
        raise ClawtrailError(f"message begins {raw[:40]!r}; expected an RFC 5424 header")
    pri, rest = int(m[1]), raw[m.end() :]
    sd: dict[str, dict[str, str]] = {}
    if rest.startswith(b"-"):
        rest = rest[1:]
    else:
        while rest.startswith(b"["):
            name = re.match(rb"\[([^ =\]\"]{1,32})", rest)
            if not name:
                raise ClawtrailError(f"structured data begins {rest[:40]!r}; expected an SD-ID")
            at, params = name.end(), {}
            while p := _PARAM.match(rest, at):
                params[p[1].decode("utf-8", "replace")] = re.sub(rb'\\(["\\\]])', rb"\1", p[2]).decode("utf-8", "replace")
                at = p.end()
            if rest[at : at + 1] != b"]":
                raise ClawtrailError(f"structured data ends {rest[at : at + 20]!r}; expected ']'")
            sd[name[1].decode("utf-8", "replace")] = params
            rest = rest[at + 1 :]
    time, host, app, procid, msgid = (m[i].decode("ascii", "replace") for i in range(2, 7))
    return Parsed(pri // 8, pri % 8, time, host, app, procid, msgid, rest[1:], sd)
