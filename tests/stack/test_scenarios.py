"""Documented attacks, replayed through the real stack; each is answered by one query, with exactly its rows."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import Stack, eventually

from clawtrail import event as ev
from clawtrail import schema
from clawtrail.store import Loki, as_json

FOLDER = Path(__file__).with_name("scenarios")
ATTACKS = [one for name in ("targeted", "incidents", "chaos") for one in yaml.safe_load((FOLDER / f"{name}.yaml").read_text())]
QUIET = yaml.safe_load((FOLDER / "quiet.yaml").read_text())[0]
BY_ID = {one["id"]: one for one in [*ATTACKS, QUIET]}


def fields_of(scenario: dict[str, Any], number: int, ids: list[str]) -> tuple[str, str, dict[str, Any]]:
    """The event as `record()` takes it; `content` has the hash and size of its excerpt, as an adapter would give them."""
    kind, outcome, given = scenario["events"][number - 1]
    fields = {"session": f"{scenario['id']}-s", "run": "r1", **given}
    if (after := fields.pop("after", None)) is not None:
        fields["caused_by"] = ids[after - 1]
    said = fields.get("content", {})
    if "excerpt" in said:
        fields["content"] = ev.content(said["excerpt"], len(said["excerpt"].encode())) | said
    return kind, outcome, fields


@pytest.fixture(scope="session")
def replayed(running: Stack) -> dict[str, list[str]]:
    """The ids of every scenario's events, all of them in the store. Each scenario is an agent with a certificate of its own."""
    made: dict[str, list[str]] = {}
    for scenario in [*ATTACKS, QUIET]:
        ids = made[scenario["id"]] = []
        with running.recorder(scenario["id"], heartbeat=0, when_full="fail") as recorder:
            for number in range(1, len(scenario["events"]) + 1):
                kind, outcome, fields = fields_of(scenario, number, ids)
                receipt = recorder.record(kind, outcome, **fields)
                event = json.loads(receipt.line)
                assert schema.check(event) + schema.unknown(event) == [], receipt.line
                ids.append(receipt.id)
    for name, ids in made.items():
        eventually(lambda: {e["id"] for e in events(running, f'{{job="audit", agent="{name}"}}')} >= set(ids), 30, f"all events of {name} in the store")
    return made


def events(running: Stack, logql: str) -> list[dict[str, Any]]:
    return [e for e in (as_json(entry.line) for entry in running.query(logql)) if isinstance(e, dict)]


def rows(running: Stack, query: str) -> list[tuple[str, int]]:
    """(epoch, seq) of what a log query finds: a query may rewrite its line, never these."""
    return sorted((e.labels["epoch"], int(e.labels["seq"])) for e in running.query(query))


def series(running: Stack, query: str) -> list[dict[str, Any]]:
    answer = Loki(running.loki_url).get("/loki/api/v1/query", query=query, time=time.time_ns())
    return [{**one["metric"], "value": int(float(one["value"][1]))} for one in answer["data"]["result"]]


def test_the_thirty_four_are_all_here_each_told_in_full() -> None:
    assert [one["id"] for one in ATTACKS] == [
        *(f"ta-{n:02}" for n in range(1, 14)), *(f"ir-{n:02}" for n in range(1, 6)), *(f"aoc-{n:02}" for n in range(1, 17))]  # fmt: skip
    for one in ATTACKS:
        assert {*one} in ({"id", "title", "source", "told", "events", "question", "query", found} for found in ("rows", "series")), one["id"]
        assert one["question"].endswith("?") and f'agent="{one["id"]}"' in one["query"]


@pytest.mark.parametrize("name", [one["id"] for one in ATTACKS])
def test_one_query_answers_the_question_with_exactly_its_rows(name: str, running: Stack, replayed: dict[str, list[str]]) -> None:
    scenario = BY_ID[name]
    if "series" in scenario:
        assert series(running, scenario["query"]) == scenario["series"], scenario["question"]
        return
    place = {e["id"]: (e["epoch"], e["seq"]) for e in events(running, f'{{job="audit", agent="{name}"}}')}
    assert rows(running, scenario["query"]) == sorted(place[replayed[name][n - 1]] for n in scenario["rows"]), scenario["question"]


@pytest.mark.parametrize("name", [one["id"] for one in ATTACKS])
def test_on_an_ordinary_day_the_query_finds_nothing(name: str, running: Stack, replayed: dict[str, list[str]]) -> None:
    scenario = BY_ID[name]
    query, n = re.subn(rf'agent="{name}"', 'agent="quiet"', scenario["query"])
    assert n == 1 and (series(running, query) if "series" in scenario else rows(running, query)) == []
