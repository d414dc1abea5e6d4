"""The store's configuration, as far as it can be judged without starting it."""

import re
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[2] / "loki" / "loki.yaml"
CONFIG = yaml.safe_load(FILE.read_text())
LIMITS = CONFIG["limits_config"]


def test_nothing_but_retention_removes_an_event():
    assert LIMITS["deletion_mode"] == "disabled"
    assert CONFIG["compactor"]["retention_enabled"] is True


def test_the_variables_have_a_default():
    used = [line for line in FILE.read_text().splitlines() if "${" in line and not line.strip().startswith("#")]
    assert [line.strip() for line in used] == ["retention_period: ${RETENTION:-744h}", "alertmanager_url: ${ALERTMANAGER_URL:-}"]


def test_a_resend_of_an_event_stays_one_entry():
    assert LIMITS["increment_duplicate_timestamp"] is False, "it would give the resend a time of its own"
    assert LIMITS["shard_streams"] == {"enabled": False}, "it would put the resend into another stream"
    assert LIMITS["max_line_size_truncate"] is False
    assert LIMITS["discover_service_name"] == [] and LIMITS["discover_log_levels"] is False


def test_a_replayed_event_is_visible_before_its_chunk_is_written():
    assert "query_store_max_look_back_period" not in CONFIG["ingester"], "the default follows max_chunk_age"


def test_old_events_are_accepted_as_long_as_their_stream_may_be_behind():
    hours = {key: int(value.removesuffix("h")) for key, value in (
        ("age", LIMITS["reject_old_samples_max_age"]), ("chunk", CONFIG["ingester"]["max_chunk_age"]))}
    assert hours["chunk"] >= 2 * hours["age"], "Loki accepts up to half of max_chunk_age behind the newest entry"


def test_nothing_is_reported_to_anyone():
    assert CONFIG["analytics"]["reporting_enabled"] is False


@pytest.mark.parametrize("section", ["ingester", "limits_config", "frontend", "compactor"])
def test_a_section_says_why(section):
    block = re.search(rf"^{section}:\n(?:(?:  .*|)\n)+", FILE.read_text(), re.M)
    assert block and "#" in block[0]


def test_no_alert_can_be_silenced_by_values_that_an_attacker_chooses():
    [path] = (FILE.parent / "rules/fake").glob("*.yaml")
    rules = {rule["alert"]: rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]}
    assert "Watchdog" in rules and len(rules) >= 7
    for name, rule in rules.items():
        if name != "Watchdog":
            assert re.findall(r"by \(([^)]*)\)", rule["expr"]) == ["agent"], "too many series, and the rule fails in place of firing"
            assert "{{ $labels.agent }}" in rule["annotations"]["summary"] and rule["labels"]["severity"] in ("critical", "high")
