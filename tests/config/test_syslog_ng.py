"""The receiver's configuration, as far as it can be judged without starting it."""

import os
import re
from pathlib import Path

import pytest
import yaml

from clawtrail.event import KINDS, LINE_MAX, OUTCOMES

ROOM = Path(__file__).parents[2] / "syslog-ng"
LOKI = yaml.safe_load((ROOM.parent / "loki" / "loki.yaml").read_text())
FILES = sorted((ROOM / "conf.d").glob("*"))

# Every status code that has a meaning (IANA), and 499, which Loki uses for a cancelled request.
STATUS_CODES = {*range(100, 104), *range(300, 309), *range(400, 419), *range(421, 427), 428, 429, 431, 451, 499,
                *range(500, 509), 510, 511}
# The same batch would be refused for ever; everything else may be stored later.
DROPPED = {400, 413}


def code(path: Path) -> str:
    """The file without its comments."""
    return re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.M)


def text(number: int) -> str:
    return next(code(path) for path in FILES if path.name.startswith(f"{number}-"))


def main() -> str:
    return code(ROOM / "syslog-ng.conf")


def option(name: str, source: str) -> int:
    found = re.search(rf"\b{name}\((\d+)\)", source)
    assert found, f"{name}() is not set"
    return int(found[1])


def sources() -> list[tuple[str, str]]:
    return [(path.name, code(path)) for path in FILES if "-source-" in path.name]


def test_every_file_has_a_number_of_its_own_and_is_listed_at_the_top():
    numbers = [re.fullmatch(r"(\d\d)-[a-z-]+\.conf", path.name) for path in FILES]
    assert all(numbers), [path.name for path in FILES]
    found = [number[1] for number in numbers if number]
    assert len(set(found)) == len(found)
    listed = re.findall(r"\b(\d\d) ", re.search(r"#   10.*\n#.*\n#.*\n", (ROOM / "syslog-ng.conf").read_text())[0])
    assert sorted(listed) == sorted(found)


def test_what_happens_is_decided_for_every_answer_of_loki():
    actions = {int(status): action for status, action in re.findall(r"(\d{3}) => (\w+)", text(51))}
    assert set(actions) == STATUS_CODES
    assert {status for status, action in actions.items() if action == "drop"} == DROPPED
    assert set(actions.values()) == {"drop", "disconnect"}, "`retry` gives up after a while"


@pytest.mark.parametrize("name, source", sources())
def test_a_port_takes_nothing_but_mutual_tls_from_an_agent_with_a_name(name, source):
    assert re.findall(r'transport\("(\w+)"\)', source) == ["tls"]
    assert "peer-verify(required-trusted)" in source
    assert 'trusted-dn("CN=?*, OU=agents, O=clawtrail")' in source
    assert 'ca-file("/etc/syslog-ng/tls/client-ca.crt")' in source, "a certificate of another CA could be a client's"


@pytest.mark.parametrize("name, source", sources())
def test_a_port_speaks_tls_1_2_or_newer_with_aead_suites_only(name, source):
    assert set(re.search(r"ssl-options\(([^)]*)\)", source)[1].split(", ")) >= {
        "no-sslv2", "no-sslv3", "no-tlsv1", "no-tlsv11"}
    old = re.search(r'tls12-and-older\("([^"]*)"\)', source)[1]
    assert set(old.split(":")) == {"ECDHE+AESGCM", "ECDHE+CHACHA20"}
    assert "tls13(" in source


@pytest.mark.parametrize("name, source", sources())
def test_a_message_that_does_not_parse_keeps_its_bytes(name, source):
    assert "flags(no-parse)" in source, "a parsing source replaces such a message by its own words"


@pytest.mark.parametrize("name, source", sources())
def test_a_full_queue_can_hold_what_a_port_has_already_read(name, source):
    assert option("log-iw-size", source) <= option("log-fifo-size", main())
    window = option("flow-control-window-bytes", text(51))
    assert window / (len(sources()) * option("log-iw-size", source)) >= 2048, "bytes per event, well above the mean"
    assert "flags(flow-control)" in text(90)


def test_the_queue_before_loki_survives_a_kill():
    assert "reliable(yes)" in text(51) and 'dir("/var/lib/syslog-ng")' in text(51)


def test_nothing_that_differs_between_two_sends_of_an_event_reaches_loki():
    body = re.search(r'name\("audit"\) body\(\'(.*)\'\)', text(51))[1]
    assert not re.findall(r"\$\{?(?:R_|C_|HOST_FROM|SOURCEIP|PEER|RCPTID|UNIQID|SEQNUM)\w*", body)
    assert not re.search(r"\$\{?(?:ISODATE|UNIXTIME|DATE|STAMP)\b", body)


def test_structured_metadata_is_always_a_string():
    fields = re.findall(r" (\w+)=([^ ]*)", "".join(re.findall(r"body\('(.*)'\)", text(51))))
    assert len(fields) > 15
    assert [name for name, value in fields if not value.startswith("string(")] == [], "a number: Loki refuses the push"


def test_the_identity_label_is_the_certificate_and_never_the_claim():
    assert 'set("${.tls.x509_cn}" value(".audit.agent"))' in text(40)
    assert len(re.findall(r'value\("\.audit\.agent"\)', "".join(map(code, FILES)))) == 2  # the second is "(none)"
    assert "agent=string(${.audit.agent})" in text(51)
    assert 'worker-partition-key("${.audit.agent}")' in text(51)


def test_labels_taken_from_a_message_come_from_the_lists_of_the_event_schema():
    categories, outcomes = (set(found.split("|")) for found in re.findall(r"\\A\(\?:([a-z|]+)\)\\z", text(40)))
    assert categories == {*KINDS.values(), "log"}
    assert outcomes == OUTCOMES


def test_a_sender_within_its_limit_is_within_the_limits_of_receiver_and_store():
    receiver = option("log-msg-size", main())
    largest_dead_letter = -(-receiver // 3) * 4  # base64
    assert LINE_MAX < 48 * 1024 < receiver
    assert largest_dead_letter <= int(LOKI["limits_config"]["max_line_size"].removesuffix("KB")) * 1024
    assert re.search(r'"\$\(length [^)]*\)" < "(\d+)"', text(31))[1] == str(receiver)


def test_a_clock_that_loki_would_refuse_is_caught_before():
    behind, ahead = (int(found) for found in re.findall(r'> "(\d+)"', text(41)))
    limits = LOKI["limits_config"]
    oldest = int(limits["reject_old_samples_max_age"].removesuffix("h")) * 3600
    newest = int(limits["creation_grace_period"].removesuffix("m")) * 60
    reach = int(LOKI["ingester"]["max_chunk_age"].removesuffix("h")) * 3600 // 2
    assert behind < oldest and ahead < newest
    assert behind + ahead <= reach, "the oldest event must not be too far behind the newest of its stream"


def test_the_archive_keeps_every_field_that_goes_to_loki():
    def fields(body):
        return set(re.findall(r"(\w+)=string\(", body))

    pushed = fields(re.search(r'name\("audit"\) body\(\'(.*)\'\)', text(51))[1]) - {"job", "l"}
    archived = fields(re.search(r"destination d_archive \{.*?\n\};", text(50), re.S)[0])
    assert pushed <= archived and {"line", "ns", "received"} <= archived


def test_no_secret_stands_in_the_configuration():
    for path in [ROOM / "syslog-ng.conf", ROOM / "healthcheck", *FILES]:
        assert not re.search(r"PRIVATE KEY|passw|token|secret", path.read_text(), re.I), path.name


def test_the_healthcheck_can_be_run_and_can_fail():
    script = ROOM / "healthcheck"
    assert os.access(script, os.X_OK)
    assert script.read_text().count("|| fail") >= 3
    ports = {int(port) for _, source in sources() for port in re.findall(r"port\((\d+)\)", source)}
    assert {int(port) for port in re.search(r"for port in ([\d ]+);", script.read_text())[1].split()} == ports
