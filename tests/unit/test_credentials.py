"""Credential rules: each with a command that it has to see and one that it must not."""

import time

import pytest

from clawtrail.credentials import RULES, matches


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.id)
def test_a_rule_sees_its_own_hit_and_not_its_own_miss(rule):
    assert rule.id in {r.id for r in matches(rule.hit)}
    assert not matches(rule.miss)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.id)
def test_a_rule_sees_its_hit_among_other_commands_and_in_capitals(rule):
    assert rule in matches(f"cd /tmp; {rule.hit}") or rule in matches(f"cd /tmp\n{rule.hit}")
    assert rule in matches(rule.hit.upper()) or rule.id == "cred.env-dump"


@pytest.mark.parametrize(
    "parameters",
    ["ls -la /home/node", "git commit -m 'environment variables documented'", "python -m pytest", "cat README.md", "npm run build", "env FOO=1 make", "grep -r environment src"],
)
def test_everyday_commands_hit_no_rule(parameters):
    assert matches(parameters) == []


def test_the_worst_hit_comes_first():
    found = [r.severity for r in matches("cat app/.env /etc/shadow ~/.npmrc")]
    assert found == ["critical", "high", "medium"]


def test_ids_are_unique_and_names_are_few_and_plain():
    assert len({r.id for r in RULES}) == len(RULES)
    assert all(r.name.replace("-", "").isalpha() and r.technique.startswith(("T1", "AML.")) for r in RULES)


@pytest.mark.parametrize("atom", ["/etc/ssl/", "/etc/ssl/a", "env ", ";env", ".env", "/", "a", " ", "openclaw ", ".ssh/id_", "/proc/1/", "printenv "])
def test_a_hostile_parameter_is_judged_in_bounded_time(atom):
    began = time.thread_time()
    matches((atom * 48 * 1024)[: 48 * 1024])
    assert time.thread_time() - began < 2.0
