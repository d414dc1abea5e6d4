"""Events: what is accepted, what is refused and how it says so, and what every line looks like."""

import json
import os
import string
import sys
import threading
from datetime import UTC, datetime
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawtrail import event
from clawtrail.errors import EventError

_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates too
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT | st.binary(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_TEXT | st.integers(), inner, max_size=5),
    max_leaves=30,
)
#: Values that are small to describe and huge to write: what a hostile tool result is made of.
_HUGE = st.one_of(
    st.builds(lambda c, n: c * n, st.sampled_from(["a", "ä", "€", "😀", "\0", "\x1b", "\udc80", '"', "\\", "\u2028"]), st.integers(0, 200_000)),
    st.builds(lambda v, n: [v] * n, st.integers() | st.text(max_size=20) | st.booleans(), st.integers(0, 20_000)),
    st.builds(lambda n: {str(i): i for i in range(n)}, st.integers(0, 6_000)),
    st.builds(lambda n: {"k" * n: 1}, st.integers(0, 100_000)),
)


def line(kind="tool.call", outcome="attempt", **fields):
    return event.fit(event.body(kind, outcome, fields))


@pytest.mark.parametrize("kind", event.KINDS)
def test_every_kind_has_its_category(kind):
    categories = {"tool", "credential", "model", "message", "session", "policy", "config", "system", "log"}
    assert event.body(kind, "success", {})["category"] in categories


@pytest.mark.parametrize("kind", ["tool.cal", "", "TOOL.CALL", None, 7, ["tool.call"], {"a": 1}])
def test_an_unknown_kind_is_refused_with_what_was_found_and_what_was_expected(kind):
    with pytest.raises(EventError) as error:
        event.body(kind, "success", {})
    assert repr(kind) in str(error.value) and all(k in str(error.value) for k in event.KINDS)


@pytest.mark.parametrize("outcome", ["ok", "", None, 0, ["success"]])
def test_an_unknown_outcome_is_refused_with_what_was_found_and_what_was_expected(outcome):
    with pytest.raises(EventError) as error:
        event.body("tool.call", outcome, {})
    assert repr(outcome) in str(error.value) and all(o in str(error.value) for o in event.OUTCOMES)


@pytest.mark.parametrize("name", ["v", "id", "ts", "agent", "host", "epoch", "seq", "prev", "category", "kind ", "sesion"])
def test_a_field_outside_of_the_schema_is_refused_so_that_nobody_forges_the_head_of_an_event(name):
    with pytest.raises(EventError, match=f"(?s){name!r}.*expected"):
        event.body("tool.call", "success", {name: "forged"})


@pytest.mark.parametrize("member", ["value", "secret", "token", "password"])
def test_a_credential_event_with_the_credential_in_it_is_refused(member):
    with pytest.raises(EventError, match=f"credential.{member} .*name it, never give its value"):
        event.body("credential.access", "success", {"credential": {"name": "aws", member: "x"}})


@pytest.mark.parametrize("field", ["session", "run"])
def test_session_and_run_are_strings_or_absent(field):
    with pytest.raises(EventError, match=f"{field} is int; expected a string"):
        event.body("tool.call", "attempt", {field: 7})
    assert event.body("tool.call", "attempt", {field: ""})[field] is None


def test_a_number_that_other_readers_would_round_is_written_as_text():
    params = {"f": 1.5, "nan": float("nan"), "inf": float("-inf"), "big": 2**53, "neg": -(2**53), "fits": 2**53 - 1, "yes": True}
    found = json.loads(line(params=params), parse_float=pytest.fail, parse_constant=pytest.fail)["params"]
    assert found == {"f": "1.5", "nan": "nan", "inf": "-inf", "big": str(2**53), "neg": str(-(2**53)), "fits": 2**53 - 1, "yes": True}


def test_an_integer_too_long_for_python_to_print_is_an_event_all_the_same():
    assert 10**5000 > sys.get_int_max_str_digits()
    assert json.loads(line(params={"n": 10**5000}))["params"]["n"].startswith("0x")


def test_bytes_and_lone_surrogates_are_written_out():
    found = json.loads(line(params={"b": b"a\xff", "s": "a\udc80", "\udcff": bytearray(b"z")}))["params"]
    assert found == {"b": "a\\xff", "s": "a\\udc80", "\\udcff": "z"}


def test_a_value_that_cannot_even_be_printed_does_not_cost_the_event():
    class Broken:
        def __str__(self):
            raise RuntimeError("no")

    assert "Broken" in json.loads(line(params={"x": Broken(), "y": 1}))["params"]["x"]
    loop = []
    loop.append(loop)
    assert json.loads(line(params={"loop": loop}))


def test_depth_is_bounded():
    deep = "bottom"
    for _ in range(3000):
        deep = [deep]

    def depth(value):
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    assert depth(json.loads(line(params=deep))["params"]) <= event.DEPTH_MAX


def test_fields_stand_in_one_order_whatever_order_they_were_given_in():
    names = list(event.FIELDS)
    one = line(**{n: "x" for n in names})
    assert one == line(**{n: "x" for n in reversed(names)})
    assert list(json.loads(one)) == ["kind", "category", "outcome", *names]


@given(_JSON, _TEXT)
def test_every_event_is_one_line_of_utf8_without_control_characters(value, session):
    out = line(params=value, content={"excerpt": session}, session=session)
    assert json.loads(out)["kind"] == "tool.call"
    out.encode()
    assert not [c for c in out if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029\ufeff"]


@given(st.dictionaries(st.sampled_from(event.FIELDS), _JSON | _HUGE, max_size=29))
def test_no_event_is_longer_than_the_limit(fields):
    fields = {k: (str(v)[:9000] or "x") if k in ("session", "run") else v for k, v in fields.items()}
    assert len(line(**fields).encode()) <= event.LINE_MAX


def test_every_group_at_its_worst_together_stays_below_the_limit():
    # each group is just small enough to be kept for itself: lists of numbers, in which nothing can be cut
    worst = {n: list(range(530)) for n in event.FIELDS if n not in ("session", "run")}
    out = line(**worst, session="s" * 512, run="€" * 512)
    assert len(out.encode()) <= event.LINE_MAX
    assert json.loads(out)["category"] == "tool"
    keys = {n: {"k" * 30_000 + n: 1} for n in event.FIELDS if n not in ("session", "run")}
    assert len(line(**keys).encode()) <= event.LINE_MAX


def test_a_string_that_is_cut_says_how_much_is_missing():
    found = json.loads(line(params={"text": "a" * 5000}))["params"]["text"]
    assert found == "a" * event.LEAF_MAX + f"[+{5000 - event.LEAF_MAX}]"


def test_a_string_that_is_cut_more_than_once_still_says_how_much_is_missing():
    assert event.cut(event.cut(event.cut("a" * 100_000, 65_536), 2048), 512) == "a" * 512 + "[+99488]"
    assert json.loads(line(content=event.content("a" * 5000, 5000)))["content"]["excerpt"] == "a" * 2048 + "[+2952]"


def test_a_group_that_does_not_fit_leaves_its_size_and_hash():
    params = {"list": list(range(20_000))}
    found = json.loads(line(params=params, tool={"name": "exec"}, content={"excerpt": "seen"}))
    whole = json.dumps(params, separators=(",", ":")).encode()
    assert found["params"].keys() == {"size", "sha256"} and found["params"]["size"] == len(whole)
    assert found["tool"] == {"name": "exec"} and found["content"] == {"excerpt": "seen"}


def test_ids_sort_by_time_and_do_not_repeat():
    ids = [event.uuid7() for _ in range(2000)]
    assert len(set(ids)) == 2000
    assert [i[:13] for i in ids] == sorted(i[:13] for i in ids)
    assert all(i[14] == "7" and i[19] in "89ab" and set(i) <= set(string.hexdigits + "-") for i in ids)


def test_ids_of_one_millisecond_stand_in_the_order_of_their_creation():
    clock = 1_795_445_526_123
    with mock.patch.object(event.time, "time_ns", lambda: clock * 1_000_000):
        ids = [event._uuid7() for _ in range(1000)]  # the compiled one has a clock of its own: test_native.py
        clock += 1
        later = event._uuid7()
    assert ids == sorted(set(ids)) and ids[0][:13].replace("-", "") == f"{clock - 1:012x}"
    assert later > ids[-1] and later[14:28] != ids[0][14:28]


@pytest.mark.parametrize("uuid7", {event.uuid7, event._uuid7}, ids=lambda f: type(f).__name__)
def test_ids_are_unique_over_threads(uuid7):
    made, before = [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: made.append([uuid7() for _ in range(5000)])) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(before)
    assert len({i for ids in made for i in ids}) == 30_000


def test_ids_are_unique_over_a_fork_even_inside_of_one_millisecond():
    with mock.patch.object(event.time, "time_ns", lambda: 1_795_445_526_123_000_000):
        event.uuid7()
        reader, writer = os.pipe()
        if not (pid := os.fork()):
            os.write(writer, "".join(event.uuid7() for _ in range(50)).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with os.fdopen(reader) as f:
            text = f.read()
        theirs = {text[i : i + 36] for i in range(0, len(text), 36)}
        assert len(theirs) == 50 and not theirs & {event.uuid7() for _ in range(50)}


def by_datetime(seconds):
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


_MOMENTS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-62_135_596_800, 253_402_300_800),
    st.floats(1.7e9, 1.9e9),
    st.integers(-(10**13), 10**13),
    st.builds(lambda n, d: n + d, st.integers(-(10**10), 10**10), st.sampled_from([0.999999, 0.9999995, 0.9999994, 0.9999999, 5e-7, 4e-7, 0.5, 1.5e-6, 2.5e-6])),
)


@given(st.lists(_MOMENTS, min_size=1, max_size=3))
def test_a_timestamp_is_what_datetime_makes_of_it(moments):
    for seconds in [*moments, *moments]:
        try:
            expected = by_datetime(seconds)
        except (ValueError, OverflowError, OSError):
            with pytest.raises((ValueError, OverflowError, OSError)):
                event.timestamp(seconds)
        else:
            assert event.timestamp(seconds) == expected


@pytest.mark.parametrize("seconds", ["yesterday", [1], {}, object()], ids=repr)
def test_what_is_no_number_is_no_moment(seconds):
    with pytest.raises(TypeError):
        event.timestamp(seconds)


def test_now_is_now():
    before = datetime.now(UTC)
    shown = datetime.fromisoformat(event.timestamp())
    assert before <= shown <= datetime.now(UTC)


def test_a_timestamp_is_rfc_3339_in_utc_with_microseconds():
    assert event.timestamp(0.000001) == "1970-01-01T00:00:00.000001Z"
