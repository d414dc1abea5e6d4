"""RFC 5424 messages and RFC 5425 frames, both directions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from typing import Iterable, Iterator, TypeAlias

from .errors import ClawtrailError, ConfigurationError


FACILITY = 13  #: log audit, RFC 5424 section 6.2.1
SD_ID = "audit@32473"  #: 32473 is the enterprise number reserved for documentation, RFC 5612
FRAME_MAX = 48 * 1024  #: bytes; a receiver closes the connection on a frame over its own limit
VALUE_MAX = 256  #: bytes of one PARAM-VALUE; the receiver stores no more of an id, and would cut inside of a character
_NOT_PRINTUSASCII = re.compile(r"[^\x21-\x7e]")
_SD_NAME = re.compile(r"""[!#-<>-\\^-~]{1,32}""")
_OWN_SD_ID = re.compile(r"""(?=.{3,32}\Z)[!#-<>-?A-\\^-~]+@\d+(?:\.\d+)*""", re.ASCII)
_SD_ESCAPE = str.maketrans({'"': r"\"", "\\": r"\\", "]": r"\]"})
_UNWANTED = "\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff"
_CONTROL = re.compile(f"[{_UNWANTED}]")
_NOT_AS_IS = re.compile(rf"""[{_UNWANTED}"\\\]]""")
_HEADER = re.compile(rb"<(\d{1,3})>1 ([!-~]{1,32}) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) ")
_TIME = re.compile(  # section 6.2.3: upper case, no leap second, at most microseconds
    r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_SD_ID = re.compile(rb"\[([!#-<>-\\^-~]{1,32})")
_PARAM = re.compile(rb' ([!#-<>-\\^-~]{1,32})="((?:[^"\\\]]|\\.)*+)"', re.DOTALL)
_ESCAPED = re.compile(rb'\\(["\\\]])')
_MSG_LEN = re.compile(rb"([1-9]\d{0,9})(?: |\Z)")


def header_field(value: str, limit: int) -> str:
    """A header field (PRINTUSASCII, section 6): other characters become `_`, an empty one the NILVALUE `-`."""
    return _NOT_PRINTUSASCII.sub("_", value)[:limit] or "-"


def structured_data(params: dict[str, str], sd_id: str = SD_ID) -> str:
    """One SD-ELEMENT (section 6.3); `"`, `\\` and `]` are escaped, control characters become spaces.

    A value ends after VALUE_MAX bytes at the latest, between two characters.

    Raises ConfigurationError for an SD-ID or a PARAM-NAME that is none.
    """
    return f"[{_own_sd_id(sd_id)}{_written(params.items())}]" if params else "-"


def _written(params: Iterable[tuple[str, str]]) -> str:
    return "".join(f' {_param_name(k)}="{_param_value(v)}"' for k, v in params)


def _param_value(value: str) -> str:
    if _NOT_AS_IS.search(value):
        value = _CONTROL.sub(" ", value)
        return _cut(value).translate(_SD_ESCAPE)
    return _cut(value)


def _cut(value: str) -> str:
    return value if len(value) * 4 <= VALUE_MAX else value.encode()[:VALUE_MAX].decode("utf-8", "ignore")


def _param_name(name: str) -> str:
    if not _SD_NAME.fullmatch(name):
        raise ConfigurationError(f"PARAM-NAME {name!r}; expected 1 to 32 printable ASCII characters without '=', ']', '\"' and space")
    return name


def _own_sd_id(sd_id: str) -> str:
    """A name without a number is reserved to IANA (section 6.3.2)."""
    if not isinstance(sd_id, str) or not _OWN_SD_ID.fullmatch(sd_id):
        raise ConfigurationError(
            f"sd_id {sd_id!r}; expected name@number of at most 32 printable ASCII characters without '=', ']', '\"' and space, "
            f"the number your private enterprise number, for example {SD_ID}"
        )
    return sd_id


def _pri(facility: int, severity: int) -> str:
    if not isinstance(facility, int) or not 0 <= facility <= 23:
        raise ConfigurationError(f"facility {facility!r}; expected 0 to 23, for example {FACILITY} (log audit)")
    if not 0 <= severity <= 7:
        raise ConfigurationError(f"severity {severity!r}; expected 0 (emergency) to 7 (debug)")
    return f"<{facility * 8 + severity}>1 "


def message(
    msg: bytes, *, severity: int, time: str, host: str, app: str, procid: str, msgid: str, sd: str, facility: int = FACILITY
) -> bytes:
    """One RFC 5424 SYSLOG-MSG. `msg` is MSG-ANY: UTF-8 without a byte order mark, so that it is stored as it was hashed."""
    head = (
        f"{_pri(facility, severity)}{time} {header_field(host, 255)} {header_field(app, 48)} "
        f"{header_field(procid, 128)} {header_field(msgid, 32)} {sd} "
    )
    return head.encode() + msg


def frame(message: bytes) -> bytes:
    """One RFC 5425 SYSLOG-FRAME: the length in bytes, a space, the message (section 4.3), which is never empty."""
    if not message:
        raise ClawtrailError("a frame of 0 bytes; expected a message")
    return b"%d %b" % (len(message), message)


Parts: TypeAlias = tuple[str, str, str]


class Header:
    """What does not change between two events of one claim, written out once; `frame()` adds the rest.

    Args:
        app: the claimed name: APP-NAME, and the structured data's `agent` (its first 255 characters).
        facility: 0 to 23, RFC 5424 section 6.2.1.
        sd_id: the SD-ID, `name@private enterprise number`, section 6.3.2.

    Raises ConfigurationError for a facility or an sd_id that is none.
    """

    __slots__ = ("_fixed", "_pri", "_sd")

    def __init__(self, host: str, app: str, procid: str, epoch: str, facility: int = FACILITY, sd_id: str = SD_ID) -> None:
        self._pri = tuple(_pri(facility, severity) for severity in range(8))
        self._fixed = f" {header_field(host, 255)} {header_field(app, 48)} {header_field(procid, 128)} "
        sd = structured_data({"agent": app[:255], "epoch": epoch, "seq": ""}, sd_id)
        self._sd = sd.removesuffix('"]')

    def frame(self, line: bytes, seq: int, severity: int, time: str, kind: str, params: tuple[tuple[str, str], ...]) -> bytes:
        """The SYSLOG-FRAME of one event: the bytes of `frame(message(…))`.

        Args:
            severity: 0 to 7, section 6.2.1.
            time: RFC 3339 with at most microseconds, section 6.2.3.
            kind: the MSGID.
            params: the structured data's parameters after `agent`, `epoch` and `seq`.
        """
        return assemble(self.parts(severity, kind, params), line, seq, time)

    def parts(self, severity: int, kind: str, params: tuple[tuple[str, str], ...]) -> Parts:
        """For `assemble`: a frame's text before its time, between time and number, and behind the number."""
        return self._pri[severity], f"{self._fixed}{header_field(kind, 32)} {self._sd}", f'"{_written(params)}] '


def assemble(parts: Parts, line: bytes, seq: int, time: str) -> bytes:
    """The SYSLOG-FRAME of an event, from what `Header.parts` gave for all events like it."""
    before, between, behind = parts
    head = f"{before}{time}{between}{seq}{behind}".encode()
    return b"%d %b%b" % (len(head) + len(line), head, line)


class Frames:
    """Takes a byte stream apart into RFC 5425 frames."""

    def __init__(self, limit: int = FRAME_MAX) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete now. Raises ClawtrailError on a frame header that is none."""
        buffer = self._buffer
        buffer += data
        while buffer:
            header = _MSG_LEN.match(buffer)
            if not header:
                raise ClawtrailError(f"frame header {bytes(buffer[:16])!r}; expected a length, a space, a message")
            start, length = header.end(), int(header[1])
            if length > self._limit:
                raise ClawtrailError(f"frame of {length} bytes; expected at most {self._limit}")
            if len(buffer) < start + length:
                return  # its bytes, or still its digits, go on
            found = bytes(buffer[start : start + length])
            del buffer[: start + length]  # moves the start, not the bytes
            yield found


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
    """Takes an RFC 5424 message apart, as strictly as section 6 is written. Raises ClawtrailError naming what was found.

    `msg` is what came, a byte order mark included; a value in `sd` that is no UTF-8 has U+FFFD in those places.
    """
    header = _HEADER.match(raw)
    if not header or int(header[1]) > 191:
        raise ClawtrailError(f"message begins {raw[:40]!r}; expected an RFC 5424 header")
    time, host, app, procid, msgid = (header[i].decode("ascii") for i in range(2, 7))
    if time != "-" and not _is_time(time):
        raise ClawtrailError(f"time {time!r}; expected RFC 3339 with at most microseconds, or '-'")
    at, sd = header.end(), {}
    if raw[at : at + 1] == b"-":
        at += 1
    else:
        while True:
            element = _SD_ID.match(raw, at)
            if not element:
                raise ClawtrailError(f"structured data begins {raw[at : at + 40]!r}; expected '-' or '[' and an SD-ID")
            name, at, params = element[1].decode("ascii"), element.end(), {}
            while param := _PARAM.match(raw, at):
                params[param[1].decode("ascii")] = _ESCAPED.sub(rb"\1", param[2]).decode("utf-8", "replace")
                at = param.end()
            if raw[at : at + 1] != b"]":
                raise ClawtrailError(f"structured data ends {raw[at : at + 20]!r}; expected ']'")
            if name in sd:
                raise ClawtrailError(f"structured data {name!r} twice; expected each SD-ID once")
            sd[name] = params
            at += 1
            if raw[at : at + 1] != b"[":
                break
    if raw[at : at + 1] not in (b"", b" "):
        raise ClawtrailError(f"after the structured data {raw[at : at + 20]!r}; expected a space and the message")
    return Parsed(int(header[1]) // 8, int(header[1]) % 8, time, host, app, procid, msgid, raw[at + 1 :], sd)


def _is_time(text: str) -> bool:
    if not _TIME.fullmatch(text):
        return False
    try:
        date(int(text[:4]), int(text[5:7]), int(text[8:10]))
    except ValueError:
        return False
    return True
