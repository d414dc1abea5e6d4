"""RFC 5424 and RFC 5425: what we write is read by a parser that shares no line with ours, and the other way round."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawtrail import syslog
from clawtrail.errors import ClawtrailError
from receiver import parse_message, split_frames

_PRINTABLE = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=64)
_HEADER = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=32)
_NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=32)


def message(msg=b"m", sd="-", **header):
    fields = {"severity": 6, "time": "2026-11-23T12:00:00.000001Z", "host": "h", "app": "a", "procid": "1", "msgid": "tool.call"} | header
    return syslog.message(msg, sd=sd, **fields)


@given(
    msg=st.binary(max_size=300),
    severity=st.integers(0, 7),
    facility=st.integers(0, 23),
    host=_HEADER,
    app=_HEADER,
    params=st.dictionaries(_NAMES, _PRINTABLE, min_size=1, max_size=6),
)
def test_both_parsers_read_back_what_was_written(msg, severity, facility, host, app, params):
    raw = message(msg, syslog.structured_data(params), severity=severity, facility=facility, host=host, app=app)
    theirs, ours = parse_message(raw), syslog.parse(raw)
    assert (theirs.pri, theirs.version, theirs.hostname, theirs.appname, theirs.msgid) == (facility * 8 + severity, 1, host, app, "tool.call")
    assert theirs.sd == {syslog.SD_ID: params} and theirs.msg == msg
    assert (ours.facility, ours.severity, ours.host, ours.app, ours.sd, ours.msg) == (facility, severity, host, app, theirs.sd, msg)


@given(st.text(max_size=100), st.text(max_size=100))
def test_no_value_breaks_out_of_the_header_or_the_structured_data(header, value):
    raw = message(b"the end", syslog.structured_data({"k": value}), host=header, app=header, procid=header, msgid=header)
    found = parse_message(raw)
    assert found.msg == b"the end" and list(found.sd) == [syslog.SD_ID] and list(found.sd[syslog.SD_ID]) == ["k"]


def test_the_three_characters_of_structured_data_are_escaped():
    assert syslog.structured_data({"k": 'a"b\\c]d'}) == r'[audit@32473 k="a\"b\\c\]d"]'
    assert syslog.structured_data({"k": "a\nb\x00c\x1bd"}) == '[audit@32473 k="a b c d"]'
    assert syslog.structured_data({}) == "-"


def test_an_empty_header_field_is_the_nilvalue_and_a_long_one_is_cut():
    found = parse_message(message(host="", app="ä b" + "x" * 100))
    assert found.hostname == "-" and found.appname == "__b" + "x" * 45


def test_the_message_follows_without_a_byte_order_mark():
    assert parse_message(message("ä".encode())).msg == "ä".encode()


def test_a_parser_keeps_a_backslash_that_escapes_nothing():
    raw = b'<110>1 - - - - - [a x="c:\\dir\\"" y=""][b] m'
    assert syslog.parse(raw).sd == parse_message(raw).sd == {"a": {"x": 'c:\\dir"', "y": ""}, "b": {}}


@pytest.mark.parametrize("raw", [b"", b"no header", b"<110>2 - - - - - - m", b"<110>1 - - - - - [a", b'<110>1 - - - - - [a x="1', b"<110>1 - - - - - [] m", b'<110>1 - - - - - [a \xff="1"', b"<110>1 - - - - - [a][b][a] m", b"<110>1 - - - - - -m", b"<110>1 - - - - - m"])
def test_what_is_no_message_is_refused_with_what_was_found(raw):
    with pytest.raises(ClawtrailError, match="expected"):
        syslog.parse(raw)


@given(st.binary(max_size=200))
def test_the_parser_answers_any_bytes_with_a_message_or_its_own_error(raw):
    for whole in (raw, b"<110>1 - - - - - [" + raw, b'<110>1 - - - - - [a b="' + raw + b'"] m', b"<13>1 - - - - - [a " + raw + b'="1"]'):
        try:
            syslog.parse(whole)
        except ClawtrailError:
            pass


def test_frames_split_at_every_byte_come_out_whole():
    messages = [b"<110>1 - - - - - - one", b"x", b"12 34 " * 40, "ä€".encode(), b"last\n"]
    stream = b"".join(map(syslog.frame, messages))
    assert split_frames(stream) == (messages, b"")
    for at in range(len(stream) + 1):
        frames = syslog.Frames()
        assert [*frames.feed(stream[:at]), *frames.feed(stream[at:])] == messages
    frames = syslog.Frames()
    assert [m for i in range(len(stream)) for m in frames.feed(stream[i : i + 1])] == messages


@given(st.lists(st.binary(min_size=1, max_size=100)), st.lists(st.integers(0, 3000), max_size=10))
def test_frames_cut_anywhere_come_out_whole(messages, cuts):
    stream = b"".join(map(syslog.frame, messages))
    places = sorted({0, len(stream), *(c % (len(stream) + 1) for c in cuts)})
    frames = syslog.Frames()
    assert [m for a, b in zip(places, places[1:]) for m in frames.feed(stream[a:b])] == messages


@pytest.mark.parametrize("data", [b"<110>1 ", b" 1 x", b"01 x", b"0 x", b"-1 x", b"12345678901", b"a", b"1a x", b"\n"])
def test_a_stream_that_is_no_frame_is_refused_with_what_was_found(data):
    with pytest.raises(ClawtrailError, match="expected a length, a space, a message"):
        list(syslog.Frames().feed(data))


def test_a_frame_over_the_limit_is_refused_before_it_is_read():
    with pytest.raises(ClawtrailError, match="frame of 50000 bytes; expected at most 49152"):
        list(syslog.Frames().feed(b"50000 "))
