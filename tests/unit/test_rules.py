"""The rules do what they say: each one is tried on its own examples, and no text makes one take long."""

from __future__ import annotations

import base64
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawtrail.cli import main
from clawtrail.errors import ConfigurationError
from clawtrail.rules import Rule, Rules, expressions, flag, plain, trial, wants
from clawtrail.watch import COMPANIONS

PACKAGED = Rules.load()
ATTEMPTS = 3  # of a timing, of which the best counts: others share the machine


def ids(tool: str, params: dict[str, Any], **context: Any) -> set[str]:
    return {hit.rule.id for hit in PACKAGED.hits(tool, params, **context)}


@pytest.mark.parametrize("rule", list(PACKAGED), ids=lambda r: r.id)
def test_every_rule_hits_what_it_says_and_misses_what_it_says(rule: Rule) -> None:
    assert rule.hit and rule.miss and rule.why and rule.fp
    assert trial.faults(rule) == []


@pytest.mark.parametrize("rule", list(PACKAGED), ids=lambda r: r.id)
def test_no_rule_is_passed_over_where_it_would_match(rule: Rule) -> None:
    """Before its expression is tried, a text has to hold some of what every match holds."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(rule.match))
    def check(text: str) -> None:
        assert rule.near(text.lower())

    check()
    assert all(rule.near(text.lower()) for other in PACKAGED for text in (*other.hit, *other.miss) if rule.match.search(text))


LITERALS = ["ab", "abc", "bc", ".env", "$'\\x", "](http", "/etc/", "zz"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*LITERALS, "a", "b", "é", "\ud800", "\n", "x" * 50])).map("".join), st.lists(st.sampled_from(LITERALS), unique=True))
def test_both_finders_find_what_stands_there(text: str, literals: list[str]) -> None:
    expected = {literal for literal in literals if literal in text}
    with pytest.MonkeyPatch.context() as patch:
        for native in (expressions.native, None):
            patch.setattr(expressions, "native", native)
            finder = expressions.Finder(literals, [text])
            found = finder.within(text)
            assert {finder.literals[i] for i in found} == expected and len(found) == len(expected)


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \t\n\r"), min_size=9))
def test_a_text_in_base64_is_read(text: str) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        run = encode(text.encode()).decode()
        assert text in plain.plain(f"echo {run} | x") or run.count("/") > 3


@pytest.mark.parametrize("rule", list(PACKAGED), ids=lambda r: r.id)
def test_no_rule_takes_long_on_hostile_text(rule: Rule) -> None:
    assert min(trial.slowest(rule) for _ in range(ATTEMPTS if trial.slowest(rule) > trial.SLOWEST else 1)) < trial.SLOWEST


def test_every_credential_of_the_catalogue_has_a_rule() -> None:
    wanted = (
        "ssh-key ssh-dir dotenv dotenv-sweep aws-file gcp-file azure-file kubeconfig k8s-token docker-secret pkg-token git db-pass infra-state shadow "
        "keytab tls-key gpg history clipboard browser browser-api keychain pw-manager cloud-secrets token-print wallet messenger env-dump env-name "
        "proc-env cloud-metadata local-api ssh-agent sudo openclaw-config openclaw-state openclaw-token secrets-tool agent-cli"
    )
    assert {f"cred.{name}" for name in wanted.split()} | {"trail.tamper", "trail.bypass"} <= {rule.id for rule in PACKAGED}


def test_every_technique_is_an_identifier_of_attack_or_atlas() -> None:
    for rule in PACKAGED:
        assert rule.technique and all(re.fullmatch(r"T\d{4}(\.\d{3})?|AML\.T\d{4}(\.\d{3})?", t) for t in rule.technique.split()), rule.id


@pytest.mark.parametrize(
    ("tool", "params", "wanted"),
    [
        ("read", {"path": "/home/node/.aws/credentials"}, "cred.aws-file"),
        ("exec", {"command": ["cat", "/root/.ssh/id_rsa"]}, "cred.ssh-key"),
        ("exec", {"argv": ["openclaw", "agent", "exec", "x"]}, "trail.bypass"),
        ("exec", {"command": "cat /etc/./sh''ad\\ow"}, "cred.shadow"),
        ("exec", {"command": "cat \"$HOME\"/.ssh/id_ed25519"}, "cred.ssh-key"),
        ("exec", {"command": "cat /etc/x/../shadow"}, "cred.shadow"),
        ("exec", {"command": "cat${IFS}/etc/shadow"}, "cred.shadow"),
        ("exec", {"command": "echo Y2F0IC9ldGMvc2hhZG93 | base64 -d | sh"}, "cred.shadow"),
        ("exec", {"command": "echo Y2F0IC9ldGMvc2hhZG93 | base64 -d | sh"}, "exec.opaque"),
        ("web_fetch", {"url": "http://169.254.169.254%2Flatest%2Fmeta-data"}, "cred.cloud-metadata"),
        ("write", {"path": "a.sh", "content": "#!/bin/sh\nprintenv OPENAI_API_KEY"}, "cred.env-dump"),
        ("edit", {"edits": [{"file": {"path": "~/.npmrc"}}]}, "cred.pkg-token"),
        ("secrets", {"action": "list"}, "cred.secrets-tool"),
        ("exec", {"command": "ls", "elevated": True}, "exec.unsandboxed"),
        ("exec", {"command": "cat ~/.ssh/id_rsa ~/.ssh/id_rsa.pub"}, "cred.ssh-key"),
    ],
)
def test_a_call_is_read_as_the_shell_would(tool: str, params: dict[str, Any], wanted: str) -> None:
    assert wanted in ids(tool, params)


def test_a_path_that_the_host_derived_counts() -> None:
    assert "cred.dotenv" in ids("apply_patch", {"patch": "x"}, paths=["/srv/app/.env"])


@pytest.mark.parametrize(
    ("tool", "params"),
    [
        ("exec", {"command": "git status && ls -la src"}),
        ("exec", {"command": "npm test -- --grep tokenizer"}),
        ("read", {"path": "docs/security.md"}),
        ("write", {"path": "notes.md", "content": "The .env file and ~/.ssh/id_rsa stay private; rm -rf / is a bad idea."}),
        ("web_fetch", {"url": "https://example.org/docs/oauth?lang=en"}),
        ("message", {"text": "the token was refused, please log in again"}),
    ],
)
def test_everyday_work_hits_nothing(tool: str, params: dict[str, Any]) -> None:
    assert ids(tool, params) == set()


def test_the_worst_hit_is_the_flag_and_the_others_are_named() -> None:
    hits = PACKAGED.hits("exec", {"command": "cat .env /etc/shadow"})
    assert [h.severity for h in hits] == ["critical", "medium"]
    assert flag(hits) == {"rule": "cred.shadow", "severity": "critical", "technique": "T1003.008 AML.T0090", "also": "cred.dotenv"}
    assert flag([]) is None


@pytest.mark.parametrize("context", [{"tainted": True}, {"owner": False}])
def test_a_tainted_session_and_a_stranger_raise_the_severity(context: dict[str, Any]) -> None:
    assert [h.severity for h in PACKAGED.hits("read", {"path": ".env"}, **context)] == ["high"]
    assert [h.severity for h in PACKAGED.hits("read", {"path": ".env"}, owner=True)] == ["medium"]


@pytest.mark.parametrize("odd", [{}, {"command": None}, {"command": {"a": [[[1, 2.5, True, None, b"x"]]]}}, {"path": "\ud800"}, {"x": "\0" * 100}])
def test_odd_parameters_are_no_error(odd: dict[str, Any]) -> None:
    assert PACKAGED.hits("exec", odd) == []


def test_a_huge_and_a_deep_call_take_a_bounded_time() -> None:
    deep: Any = "cat .env"
    for _ in range(500):
        deep = {"command": deep}
    start = time.perf_counter()
    PACKAGED.hits("exec", {"command": "find / " * 200_000, "many": [{"path": "a"}] * 100_000, "deep": deep})
    assert time.perf_counter() - start < 3.0


# -- files of one's own ----------------------------------------------------------------------------------------------

GOOD = """
version: 1
rules:
- id: cred.my-vault
  name: my-vault
  on: [command]
  match: '\\bmyvault\\s{1,4}get\\b'
  severity: high
  technique: [T1555]
  why: our own vault
  hit: ['myvault get x']
  miss: ['myvault list']
"""


def folder(tmp_path: Path, **files: str) -> Path:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_a_file_adds_replaces_and_disables(tmp_path: Path) -> None:
    replaced = GOOD.replace("cred.my-vault", "cred.dotenv").replace("severity: high", "severity: low\n  action: deny")
    own = Rules.load([folder(tmp_path, a=GOOD, b=replaced + "disable: [cred.clipboard]\n")])
    by_id = {rule.id: rule for rule in own}
    assert len(own) == len(PACKAGED) and "cred.clipboard" not in by_id
    assert by_id["cred.my-vault"].name == "my-vault" and by_id["cred.dotenv"].severity == "low"
    hits = own.hits("exec", {"command": "cat .env; myvault get x"})
    assert {h.rule.id for h in hits} == {"cred.my-vault", "cred.dotenv"}
    denied = wants(hits, "deny")
    assert denied and denied.rule.id == "cred.dotenv" and wants(hits, "approve") is None


def test_a_rule_can_be_for_some_tools_alone(tmp_path: Path) -> None:
    own = Rules.load([folder(tmp_path, a=GOOD.replace("severity:", "only: {tool: [shell], surface: [telegram]}\n  severity:"))])
    call = {"command": "myvault get x"}
    assert [h.rule.id for h in own.hits("shell", call, surface="telegram")] == ["cred.my-vault"]
    assert own.hits("shell", call) == [] and own.hits("exec", call, surface="telegram") == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("severity: high", "severity: huge"), "rule cred.my-vault: severity is 'huge'; expected one of low, medium, high, critical"),
        (("why: our own vault", "reason: x"), "rule cred.my-vault: found the key 'reason'; expected"),
        (("  why: our own vault\n", ""), "rule cred.my-vault: why is missing; expected a value"),
        (("on: [command]", "on: [commands]"), "rule cred.my-vault: on is ['commands']; expected a list of path, command, url, params, tool"),
        (("get\\b'", "(?=x)get'"), "no look-around"),
        (("{1,4}get", "+get"), "no `*` and no `+`"),
        (("\\bmyvault", "(a{1,100}b){1,100}"), "at most 1024 repetitions"),
        (("get\\b'", "(get'"), "a regular expression"),
        (("'myvault get x'", "'other'"), "does not hit 'other'"),
        (("'myvault list'", "'myvault get'"), "hits 'myvault get'"),
        (("version: 1", "version: 2"), "version is 2; expected 1"),
        (("- id: cred.my-vault", "- id: My Vault"), "id is 'My Vault'; expected"),
        (("rules:", "disable: [cred.nothing]\nrules:"), "disable names 'cred.nothing', which is no rule"),
        (("rules:", "watch: {run.over-budget: {steps: none}}\nrules:"), "watch: run.over-budget: steps: 'none'; expected"),
        (("rules:", "rules: ["), "no YAML"),
        (("  name: my-vault", "  name: my-vault\n  name: b"), "'name' stands there twice"),
    ],
)
def test_a_wrong_file_is_refused_with_the_file_the_rule_what_was_found_and_what_was_expected(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(ConfigurationError) as raised:
        Rules.load([folder(tmp_path, own=text)])
    assert words in str(raised.value) and str(tmp_path / "own.yaml") in str(raised.value)


def test_a_rule_whose_time_explodes_is_found_by_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = GOOD.replace("\\bmyvault\\s{1,4}get\\b", "a{0,300}a{0,300}a{0,300}!|myvault get")
    assert main(["rules", "check", str(folder(tmp_path, own=slow))]) == 1
    said = capsys.readouterr()
    assert "rule cred.my-vault: takes" in said.err and "1 faults" in said.out


def test_the_command_checks_the_packaged_rules_and_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "list", str(folder(tmp_path, own=GOOD))]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(PACKAGED) + 1 and any("cred.my-vault" in line and "our own vault" in line for line in listed)
    assert main(["rules", "check", str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_no_rule_stands_in_two_places() -> None:
    assert not {rule.id for rule in PACKAGED} & set(COMPANIONS), "one switch, one severity, one place to look it up"


def test_a_rule_may_be_tried_on_answers_and_only_those_are() -> None:
    link = "see https://x.example/p?d=" + "QUJD" * 30
    assert [hit.rule.id for hit in PACKAGED.said(link)] == ["link.data-in-query"]
    assert [hit.severity for hit in PACKAGED.said(link, tainted=True)] == ["high"]
    assert PACKAGED.said("I have read /etc/shadow for you, see https://x.example/p?page=2") == []
