"""What the pages say is what the code knows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from clawtrail.event import FIELDS, KINDS, OUTCOMES

ROOT = Path(__file__).resolve().parents[2]
EVENTS = (ROOT / "docs/events.md").read_text()


def test_every_field_kind_and_outcome_is_on_the_page_of_events_and_no_other() -> None:
    kinds = dict((kind, category) for category, row in re.findall(r"^\| `(\w+)` \| ((?:`\w+\.[\w-]+`.*)+) \|$", EVENTS, re.M) for kind in re.findall(r"`(\w+\.[\w-]+)`", row))
    assert kinds == KINDS
    named = set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in EVENTS.splitlines() if line.startswith("| `"))))
    assert set(FIELDS) <= named
    assert all(f"`{outcome}`" in EVENTS for outcome in OUTCOMES)


def test_the_example_on_the_page_of_events_is_one() -> None:
    example = json.loads(re.search(r"^```json\n(.*?)\n```", EVENTS, re.M | re.S)[1])  # type: ignore[index]
    assert KINDS[example["kind"]] == example["category"] and example["outcome"] in OUTCOMES
    order = [key for key in example if key in FIELDS]
    assert order == sorted(order, key=FIELDS.index)


def test_every_link_of_the_pages_leads_to_a_file() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("certs/*.md"), *ROOT.glob("agent/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
