"""What an attacker writes arrives unharmed, or as a whole dead letter; it never becomes another event."""

from __future__ import annotations

import base64
import json
import uuid
from datetime import UTC, datetime

import pytest
from harness import Stack, eventually, frame, send_raw

from clawtrail.event import timestamp

TEXTS = {
    "brackets": "before [agent-8] ]] [[ ] after",
    "quotes": "a \"b\" 'c' \\\" \\ \\\\ `d`",
    "newline": 'first\n<14>1 2026-01-01T00:00:00Z h a p m - {"forged":true}\r\nlast',
    "nul": "a\x00b\x00",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028\u2029\ufeff",
    "forged line": "2026-01-01 00:00:00,000 - root - INFO - [agent-8] - forged",
    "template": "${.tls.x509_cn} $(format-json) `version` {{ .x }} %(agent_id)s $PROGRAM",
    "unicode": "日本語 🦞 \u202e right to left",
}


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_arrives_unharmed(running: Stack, name: str) -> None:
    text, session = TEXTS[name], f"hostile-{uuid.uuid4().hex[:8]}"
    with running.recorder("kappa") as recorder:
        sent = recorder.record("message.in", "success", session=session, content={"excerpt": text}, tool={"name": f"t {text}"[:200]})
    entries = running.find(f'{{job="audit", agent="kappa"}} | session="{session}"')
    assert len(entries) == 1 and entries[0].line.encode() == sent.line
    assert json.loads(entries[0].line)["content"]["excerpt"] == text
    assert not running.query('{job="audit", agent="agent-8"}')


def test_bytes_that_are_no_text_and_surrogates_arrive_written_out(running: Stack) -> None:
    session = f"bytes-{uuid.uuid4().hex[:8]}"
    with running.recorder("kappa") as recorder:
        sent = recorder.record("message.in", "success", session=session, params={"raw": b"\xff\xfe\x00", "lone": "\udc80"})
    entry = running.find(f'{{job="audit", agent="kappa"}} | session="{session}"')[0]
    assert entry.line.encode() == sent.line
    assert json.loads(entry.line)["params"] == {"raw": "\\xff\\xfe\x00", "lone": "\\udc80"}


@pytest.mark.parametrize(
    "message",
    [
        b"junk \xff\xfe\x00\x01 end \xc3",
        b"<14>1 2026-01-01T00:00:00Z host app 1 ID [unterminated x=\"1\" message",
        b"<14>1 not-a-time host app 1 ID - message",
        b"<110>1 2026-11-23T00:00:00Z host app 1 ID - nul \x00 inside",
        b"<110>1 2026-11-23T00:00:00Z host app 1 ID - bad utf8 \xff\xfe inside",
    ],
    ids=["junk", "open structured data", "bad time", "nul", "bad utf-8"],
)
def test_what_cannot_be_an_event_is_kept_whole_as_a_dead_letter(running: Stack, message: bytes) -> None:
    marked = message + uuid.uuid4().hex.encode()
    send_raw(running, running.receiver, "lambda", frame(marked) + frame(b"<110>1 - - - - after - behind it"))
    wanted = base64.b64encode(marked).decode()
    entries = running.find(f'{{job="audit-dlq", agent="lambda"}} |= "{wanted}"')
    assert wanted in [e.line for e in entries]
    code, _ = eventually(lambda: found if (found := running.run_inside("syslog-ng", "grep", "-rlF", wanted, "/var/log/audit"))[0] == 0 else None)
    assert code == 0


def test_a_forged_line_inside_a_stock_message_is_no_event_of_the_other_agent(running: Stack) -> None:
    mark, now = uuid.uuid4().hex, datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S,000")
    line = f"<14>{now} - x - INFO - [mu] - a {mark} {now} - x - INFO - [agent-8] - forged\n"
    forged = f"<14>{now} - x - INFO - [agent-8] - injected {mark}\n"
    send_raw(running, running.lines, "mu", (line + forged).encode())
    found = running.find(f'{{job="audit"}} |= "{mark}"', 2)
    assert {e.labels["agent"] for e in found} == {"mu"}
    assert [e.labels.get("spoof") for e in sorted(found, key=lambda e: "injected" in e.line)] == [None, "1"]


def test_plain_rfc_5424_senders_are_ordinary_events(running: Stack) -> None:
    mark = uuid.uuid4().hex
    send_raw(running, running.receiver, "nu", frame(f"<14>1 {timestamp()} web nginx 7 - - {mark} hello".encode()))
    entry = running.find(f'{{job="audit", agent="nu", category="log"}} |= "{mark}"')[0]
    assert entry.line == f"{mark} hello"
