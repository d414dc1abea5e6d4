"""RFC 5424 and RFC 5425 as properties: whatever goes in comes out of two parsers that share no line, in pieces of any size.

`LEGAL` is section 6 of RFC 5424 written down a third time, as one expression, straight from its grammar.
"""

from __future__ import annotations

import re
import string
import time
from datetime import datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawtrail import syslog
from clawtrail.errors import ClawtrailError, ConfigurationError
from receiver import parse_message, split_frames

PRINTUSASCII = "".join(map(chr, range(33, 127)))
SD_NAME_CHARACTERS = "".join(c for c in PRINTUSASCII if c not in '= ]"')
#: What becomes a space in a PARAM-VALUE: controls, line separators, the byte order mark, what no UTF-8 can carry.
CONTROLS = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029", "\ufeff", *map(chr, range(0xD800, 0xE000))}
NASTY = ['"', "\\", "]", "[", '\\"', '"]', "\\]", "\n", "\r\n", "\x00", "\x7f", "\x85", "\u2028", "\ufeff", "\ud83e", "\udc80", "🦞", "👩‍🚀", "ä", "\xa0",
         "\u202e", " ", "=", "<14>1 - - - - - - x", "12 ", "-"]  # fmt: skip
SIZES = [0, 1, 8191, 8192, 8193, 49151, 49152]

texts = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(NASTY), max_size=8).map("".join), st.text(st.characters(), max_size=300),
                  st.builds(lambda n, c: "x" * n + c * 100, st.integers(50, 257), st.sampled_from(NASTY)))  # fmt: skip
names = st.text(SD_NAME_CHARACTERS, min_size=1, max_size=32)
params = st.lists(st.tuples(names, texts), max_size=6, unique_by=lambda p: p[0]).map(tuple)
times = st.one_of(
    st.just("-"),
    st.builds(
        lambda moment, digits, zone: moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{moment.microsecond:06}"[: digits + 1] if digits else "") + zone,
        st.datetimes(min_value=datetime(1000, 1, 1)),
        st.integers(0, 6),
        st.sampled_from(["Z", "+00:00", "-00:00", "+05:30", "-23:59"]),
    ),
)
messages = st.one_of(st.binary(max_size=300), texts.map(lambda t: t.encode("utf-8", "surrogatepass")), st.sampled_from([b"\xef\xbb\xbfmark", b"\x00", b"\n", b" "]))
header = st.fixed_dictionaries({"host": texts, "app": texts, "procid": texts, "msgid": texts})


def field(value: str, limit: int) -> str:
    """Section 6: printable ASCII, cut, never empty; character by character, as no code of ours does it."""
    return "".join(c if c in PRINTUSASCII else "_" for c in value)[:limit] or "-"


def value(text: str) -> str:
    """No control characters, and at most 256 bytes of whole characters."""
    found, size = [], 0
    for c in (" " if c in CONTROLS else c for c in text):
        size += len(c.encode())
        if size > 256:
            break
        found.append(c)
    return "".join(found)


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def fed(*data: bytes) -> list[bytes]:
    frames = syslog.Frames()
    return [m for piece in data for m in frames.feed(piece)]


# -- one message, there and back --------------------------------------------------------------------------------------


@given(messages, header, params, times, st.integers(0, 23), st.integers(0, 7), st.integers(1, 400))
def test_a_message_comes_back_as_it_went_in_through_frame_pieces_and_both_parsers(msg, head, given_params, moment, facility, severity, size):
    raw = syslog.message(msg, severity=severity, facility=facility, time=moment, sd=syslog.structured_data(dict(given_params)), **head)
    (whole,) = fed(*pieces(syslog.frame(raw), size))
    theirs, ours = parse_message(whole), syslog.parse(whole)
    sd = {syslog.SD_ID: {k: value(v) for k, v in given_params}} if given_params else {}
    wanted = [field(head["host"], 255), field(head["app"], 48), field(head["procid"], 128), field(head["msgid"], 32)]
    assert [theirs.hostname, theirs.appname, theirs.procid, theirs.msgid] == [ours.host, ours.app, ours.procid, ours.msgid] == wanted
    assert (theirs.pri, theirs.version, theirs.timestamp, theirs.sd, theirs.msg) == (facility * 8 + severity, 1, moment, sd, msg)
    assert (ours.facility, ours.severity, ours.time, ours.sd, ours.msg) == (facility, severity, moment, sd, msg)


@pytest.mark.parametrize("facility", range(24))
def test_every_priority_is_its_facility_times_eight_plus_its_severity(facility):
    for severity in range(8):
        raw = syslog.message(b"m", severity=severity, facility=facility, time="-", host="h", app="a", procid="1", msgid="k", sd="-")
        assert raw.startswith(b"<%d>1 " % (facility * 8 + severity))
        assert (syslog.parse(raw).facility, syslog.parse(raw).severity) == (facility, severity)


@pytest.mark.parametrize("facility", [-1, 24, "13", 1.5, None])
def test_a_facility_that_is_none_is_refused_with_what_was_found(facility):
    with pytest.raises(ConfigurationError, match=f"facility {facility!r}; expected 0 to 23"):
        syslog.Header("h", "a", "1", "e", facility=facility)
    with pytest.raises(ConfigurationError, match="facility"):
        syslog.message(b"m", severity=6, facility=facility, time="-", host="h", app="a", procid="1", msgid="k", sd="-")


@pytest.mark.parametrize("severity", [-1, 8])
def test_a_severity_that_is_none_is_refused_with_what_was_found(severity):
    with pytest.raises(ConfigurationError, match=f"severity {severity}; expected 0"):
        syslog.message(b"m", severity=severity, time="-", host="h", app="a", procid="1", msgid="k", sd="-")


@pytest.mark.parametrize("size", SIZES)
def test_a_message_of_any_size_up_to_the_limit_is_framed_and_taken_apart(size):
    """RFC 5425 section 4.3.1 wants 2048 and recommends 8192 bytes at least; ours ends at 48 KiB."""
    head = len(syslog.message(b"", severity=6, time="-", host="h", app="a", procid="1", msgid="k", sd="-"))
    for length in {size, max(0, size - head)}:
        raw = syslog.message(b"]" * length, severity=6, time="-", host="h", app="a", procid="1", msgid="k", sd="-")
        if len(raw) > syslog.FRAME_MAX:
            with pytest.raises(ClawtrailError, match=f"frame of {len(raw)} bytes; expected at most {syslog.FRAME_MAX}"):
                fed(syslog.frame(raw))
        else:
            assert fed(syslog.frame(raw)) == [raw] and syslog.parse(raw).msg == parse_message(raw).msg == b"]" * length


def test_the_message_begins_without_a_byte_order_mark_and_a_foreign_one_is_kept():
    made = syslog.Header("h", "a", "1", "e").frame("ä".encode(), 1, 6, "-", "k", ())
    assert made.endswith(b'seq="1"] ' + "ä".encode())
    assert syslog.parse(b"<14>1 - - - - - - \xef\xbb\xbfx").msg == b"\xef\xbb\xbfx"


# -- structured data --------------------------------------------------------------------------------------------------


@given(texts)
@example("".join(sorted(CONTROLS)))
def test_a_value_is_escaped_in_three_places_and_loses_only_control_characters_and_what_is_past_256_bytes(text):
    written = "".join("\\" + c if c in '"\\]' else c for c in value(text))
    made = syslog.structured_data({"k": text})
    assert made == f'[audit@32473 k="{written}"]'
    assert parse_message(f"<14>1 - - - - - {made}".encode()).sd == {syslog.SD_ID: {"k": value(text)}}


def owned(sd_id: str) -> bool:
    """Sections 6.3.2 and 7.2.2: name@<private enterprise number>, the number perhaps with parts of its own."""
    name, at, number = sd_id.partition("@")
    return bool(at and name and set(name) <= set(SD_NAME_CHARACTERS) and len(sd_id) <= 32) and all(
        part and set(part) <= set(string.digits) for part in number.split(".")
    )


@given(st.one_of(texts, names, st.builds("{}@{}".format, st.text(SD_NAME_CHARACTERS, max_size=28), st.from_regex(r"[0-9.]{0,8}"))))
@example("audit@32473")
@example("a@1.2.3")
@example("x" * 30 + "@1")
@example("x" * 31 + "@1")
@example("audit")
@example("audit@")
@example("@32473")
@example("a@b@1")
@example("a@1\n")
@example("a@²")
def test_an_sd_id_is_used_as_it_is_or_refused_with_what_was_found(sd_id):
    if owned(sd_id):
        assert syslog.structured_data({"k": "v"}, sd_id) == f'[{sd_id} k="v"]'
        assert list(parse_message(fed(syslog.Header("h", "a", "1", "e", sd_id=sd_id).frame(b"m", 1, 6, "-", "k", ()))[0]).sd) == [sd_id]
        return
    for refused in (lambda: syslog.structured_data({"k": "v"}, sd_id), lambda: syslog.Header("h", "a", "1", "e", sd_id=sd_id)):
        with pytest.raises(ConfigurationError) as failed:
            refused()
        assert repr(sd_id) in str(failed.value) and "expected name@number" in str(failed.value)


@pytest.mark.parametrize("sd_id", [None, 32473, b"audit@32473"])
def test_an_sd_id_that_is_no_text_is_a_configuration_error_too(sd_id):
    with pytest.raises(ConfigurationError, match="sd_id"):
        syslog.Header("h", "a", "1", "e", sd_id=sd_id)


@given(st.one_of(texts, names))
@example("")
@example("x" * 32)
@example("x" * 33)
@example('a"')
@example("a=")
@example("a]")
@example("a b")
@example("ä")
def test_a_parameter_name_is_used_as_it_is_or_refused_with_what_was_found(name):
    if 1 <= len(name) <= 32 and set(name) <= set(SD_NAME_CHARACTERS):
        assert parse_message(f"<14>1 - - - - - {syslog.structured_data({name: 'v'})}".encode()).sd == {syslog.SD_ID: {name: "v"}}
        return
    for refused in (lambda: syslog.structured_data({name: "v"}), lambda: syslog.Header("h", "a", "1", "e").frame(b"m", 1, 6, "-", "k", ((name, "v"),))):
        with pytest.raises(ConfigurationError) as failed:
            refused()
        assert repr(name) in str(failed.value)


# -- the prepared header ----------------------------------------------------------------------------------------------


def by_hand(line, seq, severity, moment, kind, given_params, *, host, app, procid, epoch, **options):
    sd = syslog.structured_data({"agent": app[:255], "epoch": epoch, "seq": str(seq), **dict(given_params)}, options.get("sd_id", syslog.SD_ID))
    facility = options.get("facility", syslog.FACILITY)
    return syslog.frame(syslog.message(line, severity=severity, time=moment, host=host, app=app, procid=procid, msgid=kind, sd=sd, facility=facility))


events = st.tuples(messages, st.integers(1, 2**53), st.integers(0, 7), times, texts, params)
identities = st.fixed_dictionaries(
    {"host": texts, "app": st.one_of(texts, texts.map(lambda t: t * 20)), "procid": texts, "epoch": texts},
    optional={"facility": st.integers(0, 23), "sd_id": st.sampled_from(["audit@32473", "clawtrail@1.2"])},
)


@given(identities, st.lists(events, min_size=1, max_size=5))
def test_a_prepared_header_writes_the_very_bytes_of_message_and_frame(identity, many):
    prepared = syslog.Header(**identity)
    many = [e for e in many if not {"agent", "epoch", "seq"} & {k for k, _ in e[5]}]
    for event in [*many, *reversed(many)]:  # the second time from what it keeps
        assert prepared.frame(*event) == by_hand(*event, **identity)


# -- frames -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=60), texts.filter(bool).map(lambda t: t.encode("utf-8", "surrogatepass"))), max_size=8))
def test_frames_cut_at_every_byte_and_in_pieces_of_every_size_come_out_whole(many):
    stream = b"".join(map(syslog.frame, many))
    assert split_frames(stream) == (many, b"") and fed(stream) == many
    for at in range(len(stream)):
        assert fed(stream[:at], stream[at:]) == many
    for size in range(1, min(len(stream), 80) + 1):
        assert fed(*pieces(stream, size)) == many


@pytest.mark.parametrize("size", [n for n in SIZES if n])
def test_frames_of_every_size_come_out_whole_several_in_one_read(size):
    many = [b"a" * size, b"1 ", b"b" * size, b"9"]
    stream = b"".join(map(syslog.frame, many))
    assert fed(stream) == many
    for piece in (1, 7, 1024, 16384, size, size + 1):
        assert fed(*pieces(stream, piece)) == many


def test_the_largest_frame_passes_and_one_byte_more_is_refused():
    assert fed(syslog.frame(b"x" * 49152)) == [b"x" * 49152]
    with pytest.raises(ClawtrailError, match="frame of 49153 bytes; expected at most 49152"):
        fed(b"49153 ")


@pytest.mark.parametrize(
    "garbage", [b"<", b"0", b"0 ", b"00", b"01 x", b"-1 x", b"+1 x", b" 1 x", b"\n1 x", b"\x001 x", b"1\tx", b"1\nx", b"12345678901", b"12345678901 x", b"99x", "1² x".encode(), b"\xef\xbb\xbf1 x", b"a"]
)  # fmt: skip
def test_garbage_is_refused_with_what_was_found_after_the_frames_before_it(garbage):
    for before in ([], [b"one", b"two"]):
        frames, found = syslog.Frames(), []
        with pytest.raises(ClawtrailError, match="frame header .*; expected a length, a space, a message") as failed:
            for message in frames.feed(b"".join(map(syslog.frame, before)) + garbage):
                found.append(message)
        assert found == before and repr(garbage[:16]) in str(failed.value)
        with pytest.raises(ClawtrailError):  # and it stays refused: nobody knows where the next frame would begin
            list(frames.feed(b"1 x"))


@given(st.binary(max_size=60), st.integers(1, 60))
def test_any_bytes_are_frames_or_an_error_and_the_same_in_one_piece_or_many(data, size):
    def result(*parts):
        frames, found = syslog.Frames(), []
        try:
            for part in parts:
                found += frames.feed(part)
        except ClawtrailError as e:
            return [*found, str(e)[:12]]
        return found

    whole, cut = result(data), result(*pieces(data, size))
    assert whole[: len(cut)] == cut or whole == cut
    try:
        theirs = split_frames(data)[0]
    except AssertionError:
        return
    assert [m for m in whole if isinstance(m, bytes)] == theirs


def test_a_frame_without_a_message_is_never_written():
    with pytest.raises(ClawtrailError, match="frame of 0 bytes"):
        syslog.frame(b"")


def test_a_large_read_is_taken_apart_in_one_pass():
    """64 MiB of frames in one read; one copy of the rest per frame would be 20 TiB."""
    stream = syslog.frame(b"x" * 97) * (640 << 10)
    started = time.monotonic()
    assert sum(len(m) for m in syslog.Frames().feed(stream)) == 97 * (640 << 10)
    assert time.monotonic() - started < 30


def test_a_large_frame_in_small_reads_is_put_together_in_one_pass():
    """Of 8 MiB in reads of 16 bytes, as a limit of that size allows; putting all together at each read would be 2 TiB."""
    message = b"y" * (8 << 20)
    frames, started = syslog.Frames(limit=8 << 20), time.monotonic()
    assert [m for piece in pieces(syslog.frame(message), 16) for m in frames.feed(piece)] == [message]
    assert time.monotonic() - started < 30


# -- the parser -------------------------------------------------------------------------------------------------------

_NAME = rb"[!\x23-\x3c\x3e-\x5c\x5e-\x7e]{1,32}"
_VALUE = rb'(?:[^"\\\]]|\\["\\\]]|\\(?!["\\\]]))*+'  # a backslash before anything else is an ordinary character, 6.3.3
_ELEMENT = rb"\[" + _NAME + rb"(?: " + _NAME + rb'="' + _VALUE + rb'")*+\]'
LEGAL = re.compile(
    rb"<(?:\d|\d\d|0\d\d|1[0-8]\d|19[01])>1 "
    rb"(?:-|\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3])(?::[0-5]\d){2}(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)) "
    rb"[!-~]{1,255} [!-~]{1,48} [!-~]{1,128} [!-~]{1,32} "
    rb"(?:-|(?:" + _ELEMENT + rb")+)(?: .*)?",
    re.DOTALL,
)

bytes_of_value = st.one_of(
    texts.map(lambda t: value(t).replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]").encode()), st.sampled_from([b"c:\\dir", b"\\n", b"\\\xc3\xa4", b"\x00\n"])
)
elements = st.builds(
    lambda name, many: b"[" + name.encode() + b"".join(b" %b=\"%b\"" % (k.encode(), v) for k, v in many) + b"]",
    names,
    st.lists(st.tuples(names, bytes_of_value), max_size=3, unique_by=lambda p: p[0]),
)
words = st.text(PRINTUSASCII, min_size=1, max_size=32)
legal = st.builds(
    lambda pri, moment, fields, sd, msg: f"<{pri}>1 {moment} {' '.join(fields)} ".encode() + (b"".join(sd) or b"-") + (b"" if msg is None else b" " + msg),
    st.integers(0, 191), times, st.lists(words, min_size=4, max_size=4), st.lists(elements, max_size=3, unique_by=lambda e: re.split(rb"[ \]]", e)[0]),
    st.one_of(st.none(), messages),
)  # fmt: skip


def assert_both_agree(raw: bytes) -> None:
    theirs, ours = parse_message(raw), syslog.parse(raw)
    assert (ours.facility * 8 + ours.severity, ours.time, ours.host, ours.app, ours.procid, ours.msgid, ours.sd, ours.msg) == (
        theirs.pri, theirs.timestamp, theirs.hostname, theirs.appname, theirs.procid, theirs.msgid, theirs.sd, theirs.msg)  # fmt: skip


@given(legal)
@example(b"<14>1 - - - - - -")
@example(b"<14>1 - - - - - - ")
@example(b"<14>1 - - - - - [a][b] ")
@example(b'<14>1 - - - - - [a x="\\\\"][b y="\\]"] [c]')
def test_every_legal_message_is_read_alike_by_both_parsers(raw):
    assert LEGAL.fullmatch(raw)
    assert_both_agree(raw)


@settings(max_examples=400)
@given(legal, st.lists(st.tuples(st.integers(0), st.integers(0, 2), st.sampled_from([b"", *(bytes([c]) for c in b'<>1 -[]"\\=\x00\xff0T:Z')])), min_size=1, max_size=3))
@example(b"<14>1 - - - - - m", [])
@example(b"<14>1 - - - - - -m", [])
@example(b"<14>1 - - - - - [a]m", [])
@example(b"<14>1 - - - - - [] m", [])
@example(b"<192>1 - - - - - - m", [])
@example(b"<14>2 - - - - - - m", [])
@example(b"<14>1 - h\x00 - - - - m", [])
@example(b"<14>1 - h - - -  - m", [])
@example(b"<14>1 2026-02-30T00:00:00Z - - - - - m", [])
@example(b"<14>1 2026-01-01T00:00:60Z - - - - - m", [])
@example(b"<14>1 2026-01-01t00:00:00z - - - - - m", [])
@example(b"<14>1 - - - - - [a][a] m", [])
def test_what_is_not_legal_is_refused_and_what_is_accepted_is_read_alike(raw, changes):
    for place, length, insert in changes:
        at = place % (len(raw) + 1)
        raw = raw[:at] + insert + raw[at + length :]
    try:
        syslog.parse(raw)
    except ClawtrailError as e:
        assert "expected" in str(e)
        assert not LEGAL.fullmatch(raw) or "time" in str(e) or "twice" in str(e), str(e)
        return
    found = LEGAL.fullmatch(raw)
    assert found
    try:
        theirs = parse_message(raw)
    except (UnicodeDecodeError, AssertionError) as e:  # a value that is no UTF-8; a parameter given twice, which the RFC allows
        assert isinstance(e, UnicodeDecodeError) or "twice" in str(e)
        return
    assert theirs.msg == syslog.parse(raw).msg
    assert_both_agree(raw)


def test_a_value_that_is_no_utf_8_shows_where():
    assert syslog.parse(b'<14>1 - - - - - [a x="\xff\xc3"] m').sd == {"a": {"x": "��"}}
