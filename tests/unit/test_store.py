"""Reading the trail back: pages, errors, the table and the commands, against an HTTP server that really answers."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from clawtrail import cli, store
from clawtrail.errors import ClawtrailError, ConfigurationError, StoreError
from clawtrail.prove import prove
from clawtrail.store import Entry, Loki
from clawtrail.trail import sessions, table
from support import eventually


class FakeLoki:
    """The part of Loki's query_range that matters here: [start, end), forward, at most `limit` entries over all streams."""

    def __init__(self):
        self.entries: list[tuple[int, str, dict[str, str]]] = []
        self.requests: list[dict[str, str]] = []
        self.answer = None  # (status, body) in place of the entries; a body longer than said is cut off
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                url = urlsplit(self.path)
                asked = {k: v[0] for k, v in parse_qs(url.query).items()} | {"path": url.path}
                outer.requests.append(asked)
                status, body = outer.answer or (200, outer.select(asked))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) + (1000 if b"CUT" in body else 0)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def select(self, asked):
        start, end, limit = (int(asked[k]) for k in ("start", "end", "limit"))
        found = sorted((e for e in self.entries if start <= e[0] < end), key=lambda e: e[0])[:limit]
        streams = {}
        for at, line, labels in found:
            streams.setdefault(json.dumps(labels, sort_keys=True), (labels, []))[1].append([str(at), line])
        result = [{"stream": labels, "values": values} for labels, values in streams.values()]
        return json.dumps({"status": "success", "data": {"resultType": "streams", "result": result}}).encode()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def loki():
    server = FakeLoki()
    yield server
    server.close()


NOW = time.time_ns()


@pytest.fixture(autouse=True)
def now():
    """Anew for each test: a look back has an end, and the suite is longer."""
    global NOW
    NOW = time.time_ns()


def fill(loki, n, step=1000, **labels):
    loki.entries += [(NOW - 10**10 + i * step, f"line {i}", {"job": "audit", "epoch": "e", "seq": str(i)} | labels) for i in range(n)]


def test_every_page_is_read_and_no_entry_comes_twice(loki):
    fill(loki, store.PAGE * 2 + 500)
    found = [e.line for e in Loki(loki.url).query("{}")]
    assert found == [f"line {i}" for i in range(store.PAGE * 2 + 500)] and len(loki.requests) == 3
    assert {r["direction"] for r in loki.requests} == {"forward"} and loki.requests[0]["path"] == "/loki/api/v1/query_range"


@pytest.mark.parametrize("same", [2, 7, 100])
def test_entries_of_one_moment_at_the_border_of_a_page_come_once(loki, same):
    fill(loki, store.PAGE + 300, step=0)
    loki.entries = [(at + i // same * 1000, line, labels) for i, (at, line, labels) in enumerate(loki.entries)]
    assert [e.line for e in Loki(loki.url).query("{}")] == [f"line {i}" for i in range(store.PAGE + 300)]


def test_equal_lines_of_different_streams_are_different_entries(loki):
    loki.entries = [(NOW - 10**9, "same", {"job": "audit", "agent": a}) for a in "abc"]
    assert sorted(e.labels["agent"] for e in Loki(loki.url).query("{}")) == ["a", "b", "c"]


def test_a_page_that_ends_exactly_at_the_last_entry_ends_the_query(loki):
    fill(loki, store.PAGE)
    assert len(list(Loki(loki.url).query("{}"))) == store.PAGE and len(loki.requests) <= 2


def test_more_entries_of_one_moment_than_a_page_holds_are_an_error_and_not_cut(loki):
    fill(loki, store.PAGE + 1, step=0)
    loki.entries = [(loki.entries[0][0], line, labels) for _, line, labels in loki.entries]
    with pytest.raises(StoreError, match="narrow the query"):
        list(Loki(loki.url).query("{}"))


def test_events_of_one_moment_come_in_the_order_of_their_numbers(loki):
    loki.entries = [(NOW - 10**9, f"l{n}", {"epoch": "e", "seq": str(n)}) for n in (10, 9, 100, 1)]
    assert [e.line for e in Loki(loki.url).query("{}")] == ["l1", "l9", "l10", "l100"]


def test_a_query_asks_for_its_time_and_a_little_more(loki):
    list(Loki(loki.url).query("{a=`b`}", since=600, end=NOW / 1e9))
    asked = loki.requests[0]
    assert asked["query"] == "{a=`b`}" and int(asked["end"]) - int(asked["start"]) == 660 * 10**9


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_lokis_own_words_are_the_error(status, loki):
    loki.answer = (status, b"parse error at line 1, col 5: syntax error\n")
    with pytest.raises(StoreError) as error:
        list(Loki(loki.url).query("{"))
    assert str(error.value) == "parse error at line 1, col 5: syntax error" and error.value.status == status


@pytest.mark.parametrize("body", [b"no json", b"", b'{"status": "CUT', b"5", b"[1]", b"\xff"])
def test_an_answer_that_is_none_is_an_error_and_no_traceback(body, loki):
    loki.answer = (200, body)
    with pytest.raises(StoreError):
        list(Loki(loki.url).query("{}"))


def test_a_query_that_yields_numbers_is_refused_with_what_was_expected(loki):
    loki.answer = (200, json.dumps({"data": {"resultType": "matrix", "result": []}}).encode())
    with pytest.raises(StoreError, match="the query yields numbers; expected a log query"):
        list(Loki(loki.url).query("rate({}[1m])"))


def test_a_store_that_is_away_is_said(loki):
    loki.close()
    with pytest.raises(StoreError, match="no answer from http://127.0.0.1") as error:
        list(Loki(loki.url).query("{}"))
    assert error.value.status == 0


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604800), (" 2w ", 1209600)])
def test_durations(text, seconds):
    assert store.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1y", "1h30m"])
def test_a_wrong_duration_is_refused(text):
    with pytest.raises(ConfigurationError, match="duration .*expected a number and s, m, h, d or w"):
        store.duration(text)


# -- the table ---------------------------------------------------------------------------------------------------


def entry(event="tool.call", line=None, at=0, **labels):
    return Entry(at, json.dumps(line or {}), {"event": event, "outcome": "attempt", "session": "s"} | labels)


def test_the_table_shows_time_kind_tool_outcome_session_and_the_telling_detail():
    text = table([entry(line={"params": {"command": "id"}}, at=1_500_000_000, tool="exec"), entry("credential.access", {"credential": {"name": "aws"}, "params": 1})])
    head, first, second = text.splitlines()
    assert head.split() == ["time", "kind", "tool", "outcome", "session", "what"]
    assert first.split(maxsplit=5) == ["00:00:01.500", "tool.call", "exec", "attempt", "s", '{"command": "id"}'] and second.endswith("aws")


@pytest.mark.parametrize("evil", ["\x1b[2J\x1b]0;owned\x07", "a\nforged row", "\r", "\x9b31m", "\u202egnp.exe", "\0", "\u2028", "\udc80"])
def test_nothing_in_the_table_reaches_the_terminal_as_a_control_character(evil):
    text = table([entry(evil, {"content": {"excerpt": evil}}, tool=evil, session=evil, outcome=evil), Entry(0, evil, {}), Entry(0, "[" * 50_000, {})])
    assert all(c.isprintable() or c == "\n" for c in text) and len(text.splitlines()) == 4


def test_a_session_is_shown_with_the_subagents_that_it_started(loki):
    child = {"event": "subagent.start", "seq": "1"}
    loki.entries = [(NOW - 10**9, json.dumps({"peer": {"session": 'child "1"'}}), child), (NOW - 2 * 10**9, "{}", {"event": "tool.call", "seq": "2"})]
    list(sessions(Loki(loki.url), 'parent "x"', 3600))
    assert [r["query"] for r in loki.requests] == ['{job="audit"} | session="parent \\"x\\""', '{job="audit"} | session="child \\"1\\""']


@pytest.mark.parametrize("line", ["not json", '{"peer": 1}', '{"peer": {"session": ["x"]}}', '{"peer": ', "[" * 50_000])
def test_a_strangers_line_that_calls_itself_a_subagents_start_breaks_nothing(line, loki):
    loki.entries = [(NOW - 10**9, line, {"event": "subagent.start", "seq": "²"})]
    assert [e.line for e in sessions(Loki(loki.url), "s", 3600)] == [line] and len(loki.requests) == 1


# -- the commands ------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_query_prints_one_json_object_per_line(loki, capsys):
    loki.entries = [(NOW - 10**9, '{"a": 1}', {"job": "audit"}), (NOW - 10**8, 'plain "line"', {"job": "audit", "agent": "x"})]
    code, out, _ = run(capsys, "query", "{}", "--loki", loki.url)
    first, second = out.splitlines()
    assert code == 0 and first == '{"a": 1}' and json.loads(second) == {"time": NOW - 10**8, "job": "audit", "agent": "x", "line": 'plain "line"'}


@pytest.mark.parametrize("line", ["{broken}", '{"a":\n1}', "{" * 50_000 + "}", '["a"]'])
def test_query_prints_what_is_no_event_on_one_line_inside_an_object(line, loki, capsys):
    loki.entries = [(NOW - 10**9, line, {"job": "audit"})]
    _, out, _ = run(capsys, "query", "{}", "--loki", loki.url)
    assert [json.loads(text)["line"] for text in out.splitlines()] == [line]


def test_a_bad_query_ends_with_2_and_lokis_words(loki, capsys):
    loki.answer = (400, b"parse error at line 1\n")
    assert run(capsys, "query", "{", "--loki", loki.url) == (2, "", "[x] parse error at line 1\n")


@pytest.mark.parametrize("arguments", [("--since", "soon"), ("--since", "1")])
def test_a_bad_duration_ends_with_2(arguments, loki, capsys):
    assert run(capsys, "query", "{}", "--loki", loki.url, *arguments)[0] == 2


def test_a_store_that_is_away_or_broken_ends_with_1(loki, capsys):
    loki.answer = (500, b"out of memory")
    assert run(capsys, "query", "{}", "--loki", loki.url)[:2] == (1, "")
    loki.close()
    code, _, err = run(capsys, "query", "{}", "--loki", loki.url)
    assert code == 1 and err.startswith("[x] no answer from")


def test_a_wrong_command_ends_with_2(capsys):
    for arguments in ([], ["no-such-command"], ["query"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2


def test_a_reader_that_has_seen_enough_causes_no_traceback(loki):
    fill(loki, 4000)
    command = f"{sys.executable} -m clawtrail.cli query '{{}}' --loki {loki.url} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout)["line"] == "line 0" and done.stderr == ""


def test_trail_says_when_a_session_left_nothing(loki, capsys):
    code, out, err = run(capsys, "trail", "no-session", "--loki", loki.url)
    assert code == 1 and out == "" and err == "[x] no event of the session 'no-session' in the last 15m\n"


def test_trail_waits_for_the_event_that_it_is_told_to_wait_for(loki, capsys):
    loki.entries = [(NOW - 10**9, "{}", {"event": "run.start"})]
    timer = threading.Timer(0.5, lambda: loki.entries.append((NOW - 10**8, "{}", {"event": "run.end"})))
    timer.start()
    code, out, _ = run(capsys, "trail", "s", "--loki", loki.url, "--until", "run.end", "--wait", "15")
    assert code == 0 and "run.end" in out
    code, out, _ = run(capsys, "trail", "s", "--loki", loki.url, "--until", "never", "--wait", "0.3")
    assert code == 0 and "run.start" in out


@pytest.mark.odd_events("a shell may say less than it should")
def test_record_ships_lines_and_names_the_ones_it_could_not(receiver, pki):
    lines = ['{"kind": "tool.call", "outcome": "attempt", "session": "s"}', "garbage", '{"kind": "nope"}', "[]", "{}", '{"kind": "tool.result", "seq": 1}', '{"kind": "tool.result"}']
    command = [sys.executable, "-m", "clawtrail.cli", "record", "--receiver", f"127.0.0.1:{receiver.port}", "--tls", pki.client, "--agent", "agent-1"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and [f"line {n} not recorded" in done.stderr for n in range(1, 8)] == [False, True, True, True, True, True, False]
    eventually(lambda: len(receiver.raw), 4)
    assert [e["kind"] for e in receiver.events()] == ["system.start", "tool.call", "tool.result", "system.stop"]
    done = subprocess.run(command, input=lines[0], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("receiver", ["host", "host:", ":port", "host:6514x"])
def test_a_wrong_receiver_ends_with_2(receiver, pki, capsys):
    code, _, err = run(capsys, "record", "--receiver", receiver, "--tls", pki.client)
    assert code == 2 and "expected host:port" in err


def test_certificates_that_are_not_there_end_with_2(tmp_path, capsys):
    code, _, err = run(capsys, "record", "--receiver", "127.0.0.1:6514", "--tls", tmp_path)
    assert code == 2 and "CA certificate" in err and "No such file" in err


def test_health_of_an_address_and_of_a_socket_that_are_away_ends_with_1(loki, tmp_path, capsys):
    loki.answer = (200, b"ready")
    assert run(capsys, "health", "--url", loki.url)[0] == 0
    loki.answer = (503, b"not ready")
    assert run(capsys, "health", "--url", loki.url)[0] == 1
    assert run(capsys, "health", "--socket", tmp_path / "absent")[0] == 1


def test_setup_and_password_work_from_the_command_line(tmp_path, capsys, monkeypatch):
    import os

    from clawtrail import setup

    if os.geteuid() != 0:
        monkeypatch.setattr(setup, "UIDS", dict.fromkeys(setup.UIDS, os.geteuid()))
    folders = ("--certs", tmp_path / "certs", "--secrets", tmp_path / "secrets", "--volumes", tmp_path / "volumes")
    code, first, _ = run(capsys, "setup", *folders)
    assert code == 0 and [line.split()[-1] for line in first.splitlines()] == ["created", "created"]
    code, second, _ = run(capsys, "setup", *folders)
    assert code == 0 and [line.split()[-1] for line in second.splitlines()] == ["unchanged", "unchanged"]
    code, out, _ = run(capsys, "password", "--secrets", tmp_path / "secrets")
    assert code == 0 and out.strip() == (tmp_path / "secrets/grafana-password").read_text() and out.strip() not in first
    monkeypatch.setenv("RECEIVER_NAMES", "new.example")
    code, _, err = run(capsys, "setup", *folders)
    assert code == 2 and "is not for new.example" in err


# -- the proof ---------------------------------------------------------------------------------------------------


def test_the_proof_finds_the_very_line_that_was_sent(receiver, recorder, loki):
    done = threading.Event()

    def store_what_arrives():
        eventually(lambda: len(receiver.raw), 2)
        m = receiver.messages[1]
        loki.entries.append((NOW, m.msg.decode(), m.params))
        done.set()

    threading.Thread(target=store_what_arrives).start()
    assert 0 < prove(recorder, Loki(loki.url)) < 15 and done.is_set()
    assert f'epoch="{recorder.stats()["epoch"]}" | seq="2"' in loki.requests[-1]["query"]


def test_a_stored_line_that_differs_by_one_character_is_no_proof(recorder, loki):
    loki.entries.append((NOW, "another line", {}))
    with pytest.raises(ClawtrailError, match="the stored line differs from the one sent"):
        prove(recorder, Loki(loki.url))


@pytest.mark.parametrize("fault", ["not stored", "store away", "receiver away"])
def test_a_proof_that_fails_says_how_far_the_event_got(fault, receiver, recorder, loki):
    words = {"not stored": "transport: sent; store: Loki answers, the event is not there", "store away": "transport: sent; store: Loki: no answer from"}
    if fault == "store away":
        loki.close()
    if fault == "receiver away":
        receiver.kill()
    with pytest.raises(ClawtrailError, match=words.get(fault, "transport: .*Connection refused")):
        prove(recorder, Loki(loki.url), within=0.5)


def test_the_alerts_that_fire_are_shown_the_worst_first_and_without_their_watchdog_nothing_is_quiet(loki, capsys):
    def says(*alerts):
        told = [{"labels": {"alertname": name, "severity": severity, **more}, "annotations": {"summary": f"about {name}"}, "state": state,
                 "activeAt": "2026-12-01T01:04:12.238983647Z", "value": "1e+00"} for name, severity, state, more in alerts]  # fmt: skip
        loki.answer = (200, json.dumps({"status": "success", "data": {"alerts": told}}).encode())
        return run(capsys, "alerts", "--loki", loki.url)

    dog = ("Watchdog", "none", "firing", {})
    assert says(dog)[:2] == (0, "no alert\n")
    code, out, _ = says(("Bypass", "high", "firing", {"agent": "a"}), dog, ("GateOpen", "critical", "firing", {"agent": "b"}), ("Late", "high", "pending", {}))
    assert code == 0 and [line.split()[:3] for line in out.splitlines()] == [
        ["SEVERITY", "ALERT", "SINCE"], ["critical", "GateOpen", "2026-12-01T01:04:12Z"], ["high", "Bypass", "2026-12-01T01:04:12Z"]]  # fmt: skip
    assert out.splitlines()[2].endswith("about Bypass") and loki.requests[-1]["path"] == "/prometheus/api/v1/alerts"
    code, out, err = says(("Bypass", "high", "firing", {"agent": "a"}))
    assert code == 1 and "Watchdog is missing" in err
