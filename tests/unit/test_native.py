"""What is compiled writes what Python writes, byte for byte, and does without in the same words where it is not built."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawtrail import context, event, patterns, segment, syslog
from clawtrail.handler import TLSSysLogHandler
from clawtrail.native import native
from clawtrail.redact import Found, Redactor
from clawtrail.segment import HEAD, SIZE, records
from support import eventually
from test_encode import _CONTEXTS, KEY, TEXT, VALUE, in_context

pytestmark = pytest.mark.skipif(native is None, reason="the package was built without a C compiler, or CLAWTRAIL_NATIVE=0 is set")
ADDRESS = ("127.0.0.1", 1)  # nobody listens there: what is recorded stays in the spool
_PARTS = re.compile(rb'\{"v":1,"id":"([0-9a-f-]{36})","ts":"([^"]{27})",.*?"seq":(\d+),"prev":"([0-9a-f]{64})",(.*)\Z', re.DOTALL)


# -- what everything else stands on ----------------------------------------------------------------------------------


def test_the_compiled_judge_knows_every_format_and_this_context():
    """After a change of `patterns.CONTEXT`, clean.c has to look for the same, and JUDGED in native.h to name it."""
    assert patterns.COMPILED


def test_its_limits_are_those_of_python():
    assert native.LIMITS == (event.LEAF_MAX, event.DEPTH_MAX, event.LINE_MAX, SIZE, segment.RESERVE, syslog.VALUE_MAX)
    assert (segment.RECORD.size, segment.MARK) == (SIZE, b"\xc1\xa7ct")


@pytest.mark.parametrize("size", [*range(0, 200), 255, 256, 1000, 4095, 48 * 1024, 1 << 20])
def test_digests_are_those_of_the_standard_library(size):
    data = os.urandom(size)
    assert native.sha256(data) == hashlib.sha256(data).hexdigest()
    for before in (0, 1, 0xFFFFFFFF, size):
        assert native.crc32(data, before) == zlib.crc32(data, before)


def test_digests_are_the_same_on_a_processor_without_instructions_for_them(tmp_path):
    """The way that is not taken here, compiled alone."""
    source = os.path.join(os.path.dirname(event.__file__), "..", "native", "digest.c")
    if not os.path.exists(source):
        pytest.skip("the sources are not beside the package")
    main = tmp_path / "main.c"
    main.write_text(
        f'#define PORTABLE\n#include "{os.path.abspath(source)}"\n'
        "int main(void) { static byte data[70000], sum[32]; digest_init(); size_t n = fread(data, 1, sizeof data, stdin); char text[65] = {0};\n"
        ' sha256(data, n, sum); hex(sum, 32, text); printf("%s %u\\n", text, crc32(7, data, n)); return 0; }\n'
    )
    include = subprocess.run([sys.executable, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["cc", "-std=c11", "-D_GNU_SOURCE", "-I", include, str(main), "-o", str(tmp_path / "main")], check=True)
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 777, 65536):
        data = os.urandom(size)
        said = subprocess.run([tmp_path / "main"], input=data, capture_output=True, check=True).stdout.decode().split()
        assert said == [hashlib.sha256(data).hexdigest(), str(zlib.crc32(data, 7))]


def test_ids_are_uuids_of_version_7_in_the_order_of_their_making():
    ids = [event.uuid7() for _ in range(20_000)]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", i) for i in ids)


def test_a_forked_child_makes_other_ids():
    event.uuid7()
    r, w = os.pipe()
    if not (pid := os.fork()):
        os.write(w, "".join(event.uuid7() for _ in range(500)).encode())
        os._exit(0)
    mine = [event.uuid7() for _ in range(500)]
    os.waitpid(pid, 0)
    os.close(w)
    with os.fdopen(r) as f:
        told = f.read()
    assert len({*mine, *(told[i : i + 36] for i in range(0, len(told), 36))}) == 1000


# -- the judge -------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_expressions(monkeypatch):
    monkeypatch.setattr(patterns, "_clean", lambda s: False)


@pytest.mark.parametrize("context", [*_CONTEXTS, "anything"])
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_is_called_clean_is_changed_by_nothing(by_expressions, context, data):
    text = data.draw(in_context(_CONTEXTS[context]) if context in _CONTEXTS else TEXT)
    if native.clean(text):
        found = Found()
        assert Redactor(KEY).string(text, found) == text and not found.count and patterns.nothing_in(text)
        written = event.dumps(text)
        assert len(written) == len(text) + 2 or set(text) & {'"', *map(chr, range(32))}


@pytest.mark.parametrize(
    "text",
    [
        "agent called shell.exec on orders/2026/04/012345", "3f8d2c1e-77aa-4b0e-9a51-2c9be0a1d401", "0af7651916cd43dd8448eb211c80319c", "svc-billing@prod",
        "asked for by the user in this session", "risk-based, task_list, disk-usage", "https://example.org/a/b?page=2", "/home/node/project/src/main.py",
        "Das Ergebnis ist größer als erwartet.", "12 tokens, the key of the matter", "line one\nline two\t\"quoted\"", "call_1: done", "",
    ],
)  # fmt: skip
def test_ordinary_texts_are_called_clean(text):
    assert native.clean(text)


@pytest.mark.parametrize("context", [*_CONTEXTS, "anything"])
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_json_is_written_as_python_does_or_not_at_all(by_expressions, context, data):
    leaf = st.one_of(in_context(_CONTEXTS[context]) if context in _CONTEXTS else TEXT, VALUE)
    value = data.draw(st.dictionaries(st.sampled_from(["command", "path", "a-key", "password"]) | TEXT, leaf | st.lists(leaf, max_size=3), max_size=3))
    redactor = Redactor(KEY)
    redactor.make_plain({"value": value})  # learns the keys
    written = redactor.written(value)
    if written is not None:
        expected = event.dumps(event.clean(value))
        assert written == expected and Redactor(KEY).string(expected, found := Found()) == expected and not found.count
        assert event.dumps(Redactor(KEY).value(event.clean(value), found)) == expected and not found.count


def test_ordinary_parameters_are_written_at_once(by_expressions):
    redactor, params = Redactor(KEY), {"command": "npm run build --silent 2>&1 | tail -5", "workdir": "/state/workspace", "n": 3, "deep": {"a": ["x", None, True]}}
    redactor.make_plain({"params": params})
    assert redactor.written(params) == event.dumps(params)
    assert redactor.written({"command": "export TOKEN=" + KEY.hex()}) is None and redactor.written({"odd": object()}) is None
    redactor.learn("vault", "a-secret-of-this-host")
    redactor.make_plain({"params": params})
    assert redactor.written(params) is None, "what was learned is looked for in Python"


# -- the lane --------------------------------------------------------------------------------------------------------


class Counted:
    """A lane, and how many events went it."""

    def __init__(self, lane):
        self.lane, self.quick, self.asked = lane, 0, 0
        self.open, self.shut = lane.open, lane.shut

    def put(self, *args):
        receipt = self.lane.put(*args)
        self.asked, self.quick = self.asked + 1, self.quick + (receipt is not None)
        return receipt

    def log(self, *args):
        done = self.lane.log(*args)
        self.asked, self.quick = self.asked + 1, self.quick + done
        return done


@pytest.fixture
def offline(make_recorder):
    recorder = make_recorder(ADDRESS)
    recorder.record("tool.call", "attempt", session="s", tool={"name": "warm"}, params={"command": "x"})
    recorder.lane = Counted(recorder.lane)
    return recorder


def stored(recorder):
    """The frames in the spool, without their lengths."""
    segment = recorder._outbox.own.active
    data = bytes(segment.map[: segment.end])
    return [data[start + SIZE : stop].split(b" ", 1)[1] for start, stop, _ in records(data)]


def assert_as_the_long_way(recorder, line, frame, kind, outcome, fields, claim="agent-1"):
    """The line and its frame, made once more by Python from the same id, moment, number and link."""
    ident, moment, seq, prev, tail = _PARTS.match(line).groups()
    _, _, expected, parts = recorder._drafts.make(kind, outcome, fields, moment.decode(), claim)
    assert tail.decode() == expected
    chain = recorder._chain
    whole = f'{{"v":1,"id":"{ident.decode()}","ts":"{moment.decode()}",{chain._same}{seq.decode()},"prev":"{prev.decode()}",{expected}'.encode()
    assert line == whole
    assert frame == syslog.assemble(parts, line, int(seq), moment.decode()).split(b" ", 1)[1]


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "session": st.sampled_from(["s-1", "agent:main:demo", "ü" * 40, 'a"b', "x" * 128, "x" * 129, ""]) | TEXT,
        "run": st.none() | TEXT,
        "step": st.integers(),
        "tool": st.fixed_dictionaries({}, optional={"name": st.sampled_from(["exec", "fs.read", "a]b", "x" * 300]) | VALUE, "id": VALUE}),
        "params": st.dictionaries(st.sampled_from(["command", "path", "args", "n", "é", 'q"', "password", "x"]), VALUE, max_size=5),
        "credential": st.fixed_dictionaries({}, optional={"class": TEXT, "name": TEXT, "value": TEXT}),
        "content": st.fixed_dictionaries({"excerpt": TEXT}),
        "log": st.fixed_dictionaries({}, optional={"severity": st.integers(-1, 9)}),
        "target": VALUE,
        "taint": TEXT,
        "duration_us": st.integers(0, 2**55),
        "error": st.dictionaries(st.sampled_from(["type", "message"]), VALUE),
    },
)


@pytest.mark.odd_events("a value of any shape stands where the schema wants one of its own")
@settings(max_examples=600, deadline=None)
@given(kind=st.sampled_from(sorted(k for k in event.KINDS if not k.startswith("system."))), outcome=st.sampled_from(sorted(event.OUTCOMES)), fields=FIELDS)
@example(kind="tool.call", outcome="attempt", fields={"session": 's"\\]', "params": {"a": 1.5, "b": float("nan"), "c": -0.0, "d": [True, None, ()]}})
@example(kind="tool.call", outcome="attempt", fields={"params": {"x": "\x01\x1f\n\r\t\b\f\"/é\u00a0😀"}})
def test_an_event_that_went_the_quick_way_is_the_one_that_the_long_way_makes(offline, by_expressions, kind, outcome, fields):
    before = offline.lane.quick
    try:
        receipt = offline.record(kind, outcome, **fields)
    except event.EventError:
        return
    if offline.lane.quick > before:
        assert_as_the_long_way(offline, receipt.line, stored(offline)[-1], kind, outcome, fields)
        assert receipt.seq == offline._chain.seq and hashlib.sha256(receipt.line).hexdigest() != _PARTS.match(receipt.line)[4].decode()


EXTRA = st.dictionaries(
    st.sampled_from(["session", "run", "tool", "params", "kind", "outcome", "agent_id", "tenant", "policy", "content", "extra", "log", "step", "message", "x y", "api_key"])
    | st.text(min_size=1, max_size=4),
    st.sampled_from(["tool.call", "success", "attempt", "agent-9", "exec", ""]) | VALUE,
    max_size=6,
)
ARGS = st.lists(st.sampled_from(["x", 3, 2.5, None, True, b"y", {"a": 1}]) | TEXT, max_size=2)


@pytest.mark.odd_events("a value of any shape stands where the schema wants one of its own")
@settings(max_examples=600, deadline=None)
@given(level=st.sampled_from([10, 20, 30, 40, 50, 25]), text=st.sampled_from(["called %s on %s", "plain", "100 %", "%d"]) | TEXT, args=ARGS, extra=EXTRA, formatted=st.booleans())
def test_a_log_record_that_went_the_quick_way_is_the_one_that_the_long_way_makes(offline, by_expressions, level, text, args, extra, formatted):
    handler = TLSSysLogHandler.__new__(TLSSysLogHandler)
    logging.Handler.__init__(handler)
    handler._agent, handler._fail, handler._syncs, handler._own_emit, handler.recorder = None, False, False, True, offline
    handler._next_word, handler._unsaid, handler.handleError = 0.0, 0, lambda record: None
    if formatted:
        handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    record = logging.LogRecord("app.audit", level, "p", 1, text, tuple(args), None)
    record.__dict__.update({k: v for k, v in extra.items() if k not in record.__dict__})
    before = offline.lane.quick
    assert handler.handle(record)
    if offline.lane.quick > before:
        fields = {}
        kind, outcome, claim = handler._event(record, fields)
        frame = stored(offline)[-1]
        line = frame[frame.index(b'{"v":1') :]
        assert_as_the_long_way(offline, line, frame, kind, outcome, fields, claim or "agent-1")
        assert json.loads(line)["ts"] == event.timestamp(record.created)


def test_ordinary_events_go_the_quick_way(offline):
    log = logging.getLogger("native.test")
    handler = TLSSysLogHandler.__new__(TLSSysLogHandler)
    logging.Handler.__init__(handler)
    handler._agent, handler._fail, handler._syncs, handler._own_emit, handler.recorder = None, False, False, True, offline
    log.addHandler(handler)
    log.propagate = False
    try:
        for i in range(1000):
            offline.record("tool.call", "attempt", session="s", tool={"name": "exec"}, params={"command": f"cat notes-{i}.txt", "n": i})
            log.warning("call %d of %s", i, "fs.read", extra={"session": "s", "tool": "fs.read", "agent_id": "agent-7", "tags": ["a", "b"], "seconds": 0.5})
    finally:
        log.removeHandler(handler)
    assert offline.lane.quick > 0.98 * offline.lane.asked  # the rest: what was not known yet, and a sample ten times a second
    assert offline.accepted == 2002 == offline.stats()["spooled"] and offline.stats()["accepted_bytes"] == sum(len(f) + len(str(len(f))) + 1 for f in stored(offline))


@pytest.mark.parametrize("moment", [0.0, 1.5, 1_795_445_526.1234565, 1_795_445_526.9999996, 253_402_300_798.5, 1e-7, time.time()])
def test_a_moment_of_its_own_is_the_events_and_no_field_of_it(offline, moment):
    quick = offline.lane.quick
    receipt = offline.record("tool.call", "attempt", tool={"name": "exec"}, time=moment)
    told = json.loads(receipt.line)
    assert offline.lane.quick == quick + 1 and told["ts"] == event.timestamp(moment) and "time" not in told


def test_no_moment_is_now(offline):
    before = event.timestamp()
    assert before <= json.loads(offline.record("tool.call", "attempt", tool={"name": "exec"}, time=None).line)["ts"] <= event.timestamp()


class Braces(logging.LogRecord):
    def getMessage(self):
        return str(self.msg).format(*self.args)


class Marking(TLSSysLogHandler):
    def emit(self, record):
        record.mark = "seen"
        super().emit(record)


def test_a_program_that_has_its_own_record_or_its_own_emit_keeps_them(receiver, pki):
    log, factory = logging.Logger("own"), logging.getLogRecordFactory()
    handler = Marking(address=list(receiver.address), tls=str(pki.client), agent="agent-1")
    log.addHandler(handler)
    logging.setLogRecordFactory(Braces)
    try:
        for i in range(3):
            log.warning("{} of {}", i, "three")
    finally:
        logging.setLogRecordFactory(factory)
    log.warning("as usual")
    handler.close()
    told = [e for e in receiver.events() if e["kind"] == "log.record"]
    assert [e["content"]["excerpt"] for e in told] == ["0 of three", "1 of three", "2 of three", "as usual"]
    assert {e["log"]["fields"]["mark"] for e in told} == {"seen"}


def test_what_the_context_carries_is_in_the_quick_event_too(offline):
    with context(session="outer", run="r-1", actor={"id": "cron"}):
        receipts = [offline.record("tool.call", "attempt", session="inner", tool={"name": "exec"}) for _ in range(20)]
    assert offline.lane.quick >= 17  # the first has names that were not known yet, and a sample may be due
    for receipt in receipts:
        told = json.loads(receipt.line)
        assert (told["session"], told["run"], told["actor"]) == ("inner", "r-1", {"id": "cron"})


def test_what_was_learned_is_a_secret_for_the_quick_way_too(offline):
    offline.record("tool.call", "attempt", tool={"name": "exec"}, params={"command": "say the word hunter2-swordfish"})
    offline.redactor.learn("vault-db", "swordfish")
    for _ in range(5):  # the first has to learn its keys anew
        receipt = offline.record("tool.call", "attempt", tool={"name": "exec"}, params={"command": "say the word swordfish again"})
        assert b"swordfish" not in receipt.line and b"[redacted:vault-db:" in receipt.line


def test_the_quick_way_leaves_the_reserve_of_each_segment(make_recorder):
    recorder = make_recorder(ADDRESS, quota=1 << 20)
    for i in range(600):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, step=i, params={"note": "x y " * 50})
    recorder.stats()  # counts are true when it is asked for them
    segments = list(recorder._outbox.own.segments)
    assert len(segments) > 3 and all(s.end <= s.size - segment.RESERVE for s in segments)
    assert sum(s.count for s in segments) == segments[-1].last == 601


def test_threads_that_go_both_ways_share_one_chain(receiver, make_recorder):
    recorder = make_recorder(receiver.address)
    start = threading.Barrier(6)

    def work(k):
        start.wait()
        for i in range(800):
            secret = {"note": f"password={k}{i}abcdef"} if i % 5 == k % 5 else {"note": "nothing"}
            recorder.record("tool.call", "attempt", session=f"s{k}", step=i, tool={"name": "exec"}, params=secret)
            if i % 100 == 0:
                stats = recorder.stats()
                assert stats["accepted"] == stats["proven"] + stats["spooled"]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: recorder.stats()["unsent"] == 0, state=recorder.stats)
    assert recorder.close(10)
    lines = [m.msg for m in receiver.messages]
    told = [json.loads(line) for line in lines]
    assert [e["seq"] for e in told] == list(range(1, len(told) + 1)) and len(told) == recorder.accepted
    assert all(e["prev"] == hashlib.sha256(before).hexdigest() for e, before in zip(told[1:], lines))
    for k in range(6):
        assert [e["step"] for e in told if e.get("session") == f"s{k}"] == list(range(800))


def test_a_quick_record_in_the_spool_is_what_a_reader_of_it_expects(offline):
    offline.record("tool.call", "attempt", tool={"name": "exec"}, params={"command": "one"})
    segment = offline._outbox.own.active
    data = bytes(segment.map[: segment.end])
    found = list(records(data))
    assert found[0][0] == HEAD and found[-1][1] == segment.end and [seq for *_, seq in found] == list(range(1, segment.last + 1))
    mark, length, _, seq = struct.unpack_from("<4sIIQ", data, found[-1][0])
    assert (mark, length, seq) == (b"\xc1\xa7ct", found[-1][1] - found[-1][0] - SIZE, segment.last)


def test_without_it_python_does_the_same(tmp_path):
    """A suite of its own, in a process that has no compiled module."""
    files = [f"{os.path.dirname(__file__)}/{name}.py" for name in ("test_chain", "test_encode", "test_event", "test_recorder", "test_handler", "test_spool")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/pytest", *files],
        env={**os.environ, "CLAWTRAIL_NATIVE": "0"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]
