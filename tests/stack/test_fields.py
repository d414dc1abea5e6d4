"""What docs/events.md says a real OpenClaw fills has been filled by one, and each rule has had its case. Runs after all other tests of a session."""

from __future__ import annotations

import json
import re
from typing import Any, Iterator

import pytest
from harness import ROOT, Stack

from clawtrail.watch import COMPANIONS

PAGE = (ROOT / "docs/events.md").read_text()
#: The tests that drive the real gateway through everything; without them the store has too little to judge by.
DRIVERS = {"test_coverage.py", "test_played.py"}


#: Whose flags are set by rules; those of test_scenarios are its own.
JUDGED = "openclaw|house-bot"


def rows() -> Iterator[tuple[str, str, list[str], str]]:
    """Number, field, our members, and what the page says of OpenClaw, for each row of the CoSAI table."""
    for number, field, _, ours, openclaw, _ in re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.M):
        yield number, field, re.findall(r"`([a-z_0-9.]+)`", ours), openclaw


def members(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, member in value.items():
            if member is not None:
                yield path + name
            yield from members(member, f"{path}{name}.")


def test_what_the_page_says_openclaw_fills_was_filled_by_a_real_one(running: Stack, request: pytest.FixtureRequest) -> None:
    if not DRIVERS <= {item.path.name for item in request.session.items}:
        pytest.skip(f"runs together with {' and '.join(sorted(DRIVERS))}")
    assert len(list(rows())) == 54
    seen: set[str] = set()
    for entry in running.query('{job="audit", agent="openclaw"}', 86400):
        event = json.loads(entry.line)
        seen |= set(members(event))
    unfilled = [f"{number} {field}: no {' '.join(sorted(set(ours) - seen))}" for number, field, ours, openclaw in rows()
                if not openclaw.startswith(("not observable: ", "unproven: ")) and not set(ours) <= seen]  # fmt: skip
    assert not unfilled, "\n".join(unfilled)


def test_every_rule_that_needs_a_history_was_seen_on_a_running_stack(running: Stack, request: pytest.FixtureRequest) -> None:
    """Its flag is in the store, and a rule has set it."""
    if not {*DRIVERS, "test_bypass.py", "test_rules_live.py"} <= {item.path.name for item in request.session.items}:
        pytest.skip("runs together with all that gives the rules occasion")
    seen: set[str] = set()
    for entry in running.query(f'{{job="audit", agent=~"{JUDGED}"}} | json | flag_rule!=""', 86400):
        flag = json.loads(entry.line)["flag"]
        seen |= {flag["rule"], *flag.get("also", "").split()}
    assert sorted(set(COMPANIONS) - seen) == []
