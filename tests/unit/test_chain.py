"""The chain: recomputed here from the lines alone, over what a recorder really sent."""

import copy
import hashlib
import json

import pytest

from clawtrail.chain import FIRST, Chain
from support import eventually


def broken_at(lines):
    """The position of the first line whose number or link does not follow from the line before; None: the chain holds."""
    prev, seq = FIRST, 0
    for i, line in enumerate(lines):
        event = json.loads(line)
        if event["seq"] != seq + 1 or event["prev"] != prev:
            return i
        prev, seq = hashlib.sha256(line).hexdigest(), event["seq"]
    return None


@pytest.fixture
def lines(receiver, recorder):
    for i in range(20):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i, "text": "ä€😀\x7f\n"})
    eventually(lambda: len(receiver.raw), 21, state=recorder.stats)
    return [m.msg for m in receiver.messages]


def test_the_lines_that_arrive_form_one_chain_from_the_first_number_on(lines):
    assert broken_at(lines) is None
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 22))
    assert len({json.loads(line)["epoch"] for line in lines}) == 1


def test_an_edited_line_breaks_the_chain_at_the_next_one(lines):
    for i in range(len(lines) - 1):
        edited = copy.copy(lines)
        edited[i] = lines[i].replace(b'"v":1', b'"v":2')
        assert broken_at(edited) == i + 1
    unescaped = copy.copy(lines)
    unescaped[3] = json.dumps(json.loads(lines[3])).encode()  # the same event, written differently
    assert broken_at(unescaped) == 4


def test_a_deleted_line_breaks_the_chain(lines):
    for i in range(len(lines) - 1):
        assert broken_at(lines[:i] + lines[i + 1 :]) == i


def test_an_inserted_line_breaks_the_chain(lines):
    forged = json.dumps(json.loads(lines[5]) | {"params": {"i": "forged"}}, separators=(",", ":")).encode()
    for i in range(len(lines)):
        assert broken_at(lines[:i] + [forged] + lines[i:]) in (i, i + 1)


def test_two_swapped_lines_break_the_chain(lines):
    for i in range(len(lines) - 1):
        assert broken_at([*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]) == i


def test_two_epochs_do_not_share_a_name():
    assert len({Chain().epoch for _ in range(1000)}) == 1000
