"""A session as it came about: links before clocks, over hosts that do not agree about the time; shown as text."""

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawtrail import cli
from clawtrail.store import Entry
from clawtrail.timeline import LINKS, ROUNDS, Timeline, as_jsonl, as_lines, causal, timeline, told

NOW = 1_790_000_000
HASH = "ab" * 32


def entry(number, at, epoch="e1", agent="openclaw", session="parent", **event):
    """The event `number` of an epoch, `at` seconds; its id is its epoch and number."""
    line = {"id": f"{epoch}-{number}", "kind": "tool.call", "session": session, "seq": number, **event}
    labels = {"agent": agent, "session": session, "event": line["kind"], "outcome": event.get("outcome", "success"), "epoch": epoch, "seq": str(number)}
    return Entry((NOW + at) * 10**9, json.dumps(line), labels)


def names(entries):
    return [row.event["id"] for row in causal(entries)]


#: A gateway, a subagent in the same gateway, the proxy's request, and a Python agent whose clock is two minutes behind.
STORY = [
    entry(1, 0, kind="message.in", actor={"id": "telegram:1", "owner": True, "auth": "verified"}, content={"excerpt": "do it"}),
    entry(2, 1, kind="run.start", caused_by="e1-1", run="r1", trace={"id": "t1", "span": "a"}),
    entry(3, 2, kind="model.request", caused_by="e1-2", model={"requested": "m", "via": "proxy"}),
    entry(4, 3, kind="model.decision", caused_by="e1-3", decision={"stop": "tool", "calls": [{"id": "c1", "tool": "sessions_spawn"}]}),
    entry(5, 4, kind="subagent.start", peer={"session": "child", "run": "r2"}),
    entry(6, 5, session="child", run="r2", kind="run.start"),
    entry(7, 6, session="child", run="r2", kind="tool.call", tool={"name": "read"}, params={"path": "/etc/passwd"}, caused_by="e1-6"),
    entry(8, 7, session="child", run="r2", kind="tool.result", tool={"name": "read"}, caused_by="e1-7", content={"excerpt": "root:x"}),
    entry(9, 8, kind="subagent.end", caused_by="e1-5", peer={"session": "child"}),
    entry(1, -115, "e2", "nano", "worker", kind="run.start", trace={"id": "t1", "span": "b", "parent": "a"}),
    entry(2, -114, "e2", "nano", "worker", kind="tool.call", tool={"name": "fetch"}),
    entry(3, -113, "e2", "nano", "worker", kind="tool.result", tool={"name": "fetch"}, caused_by="e2-2"),
    entry(10, 9, kind="message.out", target={"type": "channel", "id": "telegram:1"}),
]  # fmt: skip


def test_links_come_before_clocks():
    told_in_order = names(STORY)
    place = {name: n for n, name in enumerate(told_in_order)}
    assert place["e1-2"] < place["e2-1"] < place["e2-2"] < place["e2-3"]  # the clock says the opposite
    assert [n for n in told_in_order if n.startswith("e1")] == [f"e1-{n}" for n in range(1, 11)]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_does_not_depend_on_how_the_store_answers(seed):
    shuffled = STORY[:]
    random.Random(seed).shuffle(shuffled)
    assert names(shuffled) == names(STORY)


def test_an_effect_that_was_reported_before_its_cause_stands_behind_it():
    late = [entry(2, 1, kind="tool.call", caused_by="e1-3"), entry(3, 2, kind="model.decision"), entry(4, 1.5, kind="tool.result", caused_by="e1-2")]
    assert names(late) == ["e1-3", "e1-2", "e1-4"]


def test_events_of_one_moment_stand_in_the_order_of_their_numbers():
    assert names([entry(n, 0) for n in (10, 9, 2, 1)]) == ["e1-1", "e1-2", "e1-9", "e1-10"]


def test_what_a_subagent_does_follows_its_start_also_on_another_host_with_a_wrong_clock():
    child = entry(1, -500, "e9", "other", "child", kind="run.start", run="r2")
    rows = causal([*STORY[:5], child])
    assert [row.event["id"] for row in rows][-1] == "e9-1" and rows[-1].by == 5 and rows[-1].depth == 1


def test_a_message_from_one_agent_to_another_is_its_cause():
    sent = entry(1, 50, "e1", kind="message.out", session="a", peer={"session": "b"}, content={"sha256": HASH})
    got = entry(1, 10, "e2", "nano", "b", kind="message.in", content={"sha256": HASH})
    rows = causal([got, sent])
    assert [row.event["id"] for row in rows] == ["e1-1", "e2-1"] and rows[1].by == 1


def test_each_row_names_the_number_of_its_cause_and_how_deep_it_is():
    rows = {row.event["id"]: row for row in causal(STORY)}
    assert rows["e1-1"].by is None and rows["e1-2"].by == rows["e1-1"].number
    assert rows["e1-7"].by == rows["e1-6"].number and rows["e1-6"].by == rows["e1-5"].number
    assert [rows[name].depth for name in ("e1-1", "e1-6", "e1-8", "e1-9", "e2-1", "e2-3")] == [0, 1, 1, 0, 1, 1]


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5), st.sampled_from(["e1", "e2"]), st.integers(1, 12), st.sampled_from(["e1", "e2"])), max_size=14))
def test_links_of_any_kind_also_in_circles_lose_no_event_and_show_none_twice(made):
    entries = list({(e, n): entry(n, at, e, caused_by=f"{e2}-{n2}") for n, at, e, n2, e2 in made}.values())
    assert sorted(names(entries)) == sorted(json.loads(e.line)["id"] for e in entries)


def test_it_says_who_asked_what_was_decided_what_ran_what_came_back_and_what_was_touched():
    out = "\n".join(as_lines(Timeline(causal(STORY))))
    for said in ('by telegram:1 (owner,verified); "do it"', "decides sessions_spawn c1", 'read {"path":"/etc/passwd"}', '"root:x"', "to channel telegram:1", "via proxy"):
        assert said in out
    assert out.splitlines()[0].split() == ["#", "by", "time", "in", "agent", "outcome", "event", "what"]
    assert "child  openclaw, 3 events" in out and "worker  nano, 3 events" in out and "s1  parent  openclaw, 7 events" in out


def test_a_warning_is_never_cut_off():
    row = causal([entry(1, 0, params={"x": "y" * 5000}, tool={"name": "exec"}, taint="web:evil.example",
                        flag={"rule": "egress.after-untrusted", "severity": "critical", "technique": "AML.T0086"})])[0]  # fmt: skip
    assert told(row).startswith("[! egress.after-untrusted critical AML.T0086] [taint web:evil.example] exec {") and len(told(row)) < 300


EVIL = ["\x1b[2J\x1b]0;owned\x07", "a\nforged row", "\r", "\x9b31m", "\u202egnp.exe", "\0", "\u2028", "\udc80"]


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_in_it_reaches_the_terminal_as_a_control_character(evil):
    one = Entry(0, json.dumps({"kind": evil, "session": evil, "actor": {"id": evil}, "content": {"excerpt": evil}, "params": {evil: evil}, "taint": evil,
                               "tool": {"name": evil}, "decision": {"calls": [evil]}, "flag": {"rule": evil}}),
                {"event": evil, "agent": evil, "session": evil, "outcome": evil})  # fmt: skip
    made = Timeline(causal([one, Entry(1, evil, {"event": evil, "epoch": evil}), Entry(2, "[" * 50_000, {})]))
    lines = list(as_lines(made))
    assert all(c.isprintable() for line in lines for c in line) and len(lines) == 1 + 3 + 1 + 2
    assert all(line.isascii() and line.isprintable() and isinstance(json.loads(line)["n"], int) for line in as_jsonl(made))


# -- what belongs to a session ----------------------------------------------------------------------------------------


class Store:
    """Answers the queries of a timeline from a list, as Loki would: by session, by run, by text."""

    def __init__(self, entries):
        self.entries, self.asked = entries, []

    def query(self, logql, since):
        self.asked.append(logql)
        named = re.search(r'(session|run)=~("(?:[^"\\]|\\.)*")', logql)
        for entry in self.entries:
            event = json.loads(entry.line)
            if named:
                found = re.fullmatch(json.loads(named[2]), str(event.get(named[1])))
            else:
                how, text = re.search(r'\|([~=]) ("(?:[^"\\]|\\.)*")', logql).groups()
                found = re.search(json.loads(text), entry.line) if how == "~" else json.loads(text) in entry.line
                found = found and ('event="subagent.start"' not in logql or event["kind"] == "subagent.start")
            if found:
                yield entry


NOISE = [entry(20, 3, session="other", run="r9"), entry(21, 3, session="worker-2", trace={"id": "t9"}), entry(22, 3, session="parent.", content={"excerpt": "t1"})]


def found(session, entries=(*STORY, *NOISE)):
    return [row.event["id"] for row in timeline(Store(entries), session, 3600).rows]


def test_a_session_is_shown_with_its_subagents_and_every_agent_of_its_trace_and_nothing_else():
    traced = [e for e in STORY if "e2" not in e.labels["epoch"] or "trace" in json.loads(e.line)]
    assert found("parent") == names(traced)


def test_an_agent_in_the_trace_may_carry_it_on_every_event():
    worker = [entry(n, n, "e2", "nano", "worker", trace={"id": "t1", "span": f"s{n}"}) for n in range(1, 4)]
    assert {"e2-1", "e2-2", "e2-3"} <= set(found("parent", [*STORY[:9], *worker]))


def test_a_subagent_is_shown_with_the_start_that_it_owes_itself_to():
    assert found("child") == ["e1-5", "e1-6", "e1-7", "e1-8"]


@pytest.mark.parametrize("session", ["a.b", "a|b", 'a"b', "a\\b", "a(b", "ä b", "agent:main:x-1"])
def test_a_session_of_any_name_is_found_and_only_that_one(session):
    entries = [entry(1, 0, session=session), entry(2, 0, session="axb"), entry(3, 0, session="a"), entry(4, 0, session="b")]
    assert found(session, entries) == ["e1-1"]


def test_links_without_end_are_cut_and_said_to_be():
    chain = [entry(n, n, session=f"s{n}", kind="subagent.start", peer={"session": f"s{n + 1}"}) for n in range(1, 40)]
    made = timeline(Store(chain), "s1", 3600)
    assert made.cut and len(made.rows) == ROUNDS
    wide = [entry(n, n, session="s", kind="subagent.start", peer={"session": f"c{n}"}) for n in range(1, LINKS + 50)]
    assert timeline(Store(wide), "s", 3600).cut


# -- the command -------------------------------------------------------------------------------------------------------


def run(monkeypatch, capsys, entries, *arguments):
    monkeypatch.setattr(cli, "Loki", lambda url: Store(list(entries)))
    code = cli.main(["timeline", *arguments])
    return code, *capsys.readouterr()


def test_a_session_that_is_not_there_ends_with_1_and_says_so(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, STORY, "no-such")
    assert (code, out) == (1, "") and err.startswith("[x] no event of the session 'no-such' in the last 24h; expected ")


def test_for_machines_each_event_is_an_object_with_its_place(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, STORY, "parent", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["n"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(rows[row["by"] - 1]["event"]["id"] == row["event"]["caused_by"] for row in rows if row["event"].get("caused_by"))


def test_more_than_is_followed_is_said(monkeypatch, capsys):
    chain = [entry(n, n, session=f"s{n}", kind="subagent.start", peer={"session": f"s{n + 1}"}) for n in range(1, 40)]
    code, out, err = run(monkeypatch, capsys, chain, "s1")
    assert code == 0 and out and "what is shown is not all" in err
