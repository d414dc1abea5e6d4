"""What Prometheus reads, read by Prometheus' own parser."""

import math
import os
import stat
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clawtrail import metrics

STATS = {
    "agent": "agent-1", "epoch": "0198-epoch", "accepted": 12, "proven": 7, "spooled": 3, "unsent": 1,
    "dropped": {"quota": 2}, "refused": {"disk-full": 4, "strange": 1}, "adopted": 5, "damaged": 0, "resent": 6,
    "connects": 3, "reconnects": 2, "connected": True, "endpoint": "logs.example:6514", "last_error": "", "proof_error": "",
    "oldest_unproven_seconds": 1.25, "spool_bytes": 4096, "accepted_bytes": 9000, "sent_bytes": 12000,
    "proof": "window", "durability": "write",
}  # fmt: skip
LABELS = {"agent": "agent-1", "proof": "window", "durability": "write"}


def samples(text):
    assert text.endswith("\n")
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


def value(text, name, **labels):
    (found,) = [s.value for s in samples(text) if s.name == name and s.labels == LABELS | labels]
    return found


def test_every_counter_is_read_back_with_its_value_and_labels():
    text = metrics.text(STATS)
    assert {s.name: s.value for s in samples(text) if s.labels == LABELS} == {
        "clawtrail_events_accepted_total": 12, "clawtrail_events_proven_total": 7, "clawtrail_events_spooled": 3,
        "clawtrail_events_unsent": 1, "clawtrail_events_adopted_total": 5, "clawtrail_spool_damages_total": 0,
        "clawtrail_events_resent_total": 6, "clawtrail_connects_total": 3, "clawtrail_reconnects_total": 2,
        "clawtrail_connected": 1, "clawtrail_oldest_unproven_seconds": 1.25, "clawtrail_spool_bytes": 4096,
        "clawtrail_accepted_bytes_total": 9000, "clawtrail_sent_bytes_total": 12000,
    }  # fmt: skip
    assert value(text, "clawtrail_events_dropped_total", reason="quota") == 2
    assert value(text, "clawtrail_events_refused_total", reason="disk-full") == 4
    assert value(text, "clawtrail_events_refused_total", reason="strange") == 1
    assert value(text, "clawtrail_last_error", error="") == value(text, "clawtrail_proof_error", error="") == 0


REFUSED = {"quota", "disk-full", "spool-error", "closed"}


@pytest.mark.parametrize(
    ("family", "reasons"),
    [("clawtrail_events_dropped_total", REFUSED | {"spool-damage", "recursion", "unrecordable"}), ("clawtrail_events_refused_total", REFUSED)],
)
def test_a_loss_is_a_zero_before_it_happens_so_that_a_rate_sees_the_first(family, reasons):
    text = metrics.text(STATS | {"dropped": {}, "refused": {}})
    assert {s.labels["reason"]: s.value for s in samples(text) if s.name == family} == dict.fromkeys(reasons, 0)


def test_every_family_says_what_it_is_once_whatever_the_number_of_recorders():
    lines = metrics.text(STATS, STATS | {"agent": "agent-2"}).splitlines()
    for word in ("# HELP", "# TYPE"):
        named = [line.split()[2] for line in lines if line.startswith(word)]
        assert len(named) == len(set(named)) == 18
    families = list(text_string_to_metric_families("\n".join(lines) + "\n"))
    assert {f.type for f in families} == {"counter", "gauge"} and all(f.documentation.endswith(".") for f in families)
    assert all(s.name.endswith("_total") == (f.type == "counter") for f in families for s in f.samples)


def test_labels_are_the_same_after_a_restart_and_with_another_receiver():
    again = STATS | {"epoch": "0199-other", "endpoint": "logs2.example:6514"}
    assert metrics.text(STATS) == metrics.text(again)


def test_recorders_with_the_same_labels_are_one_series_because_prometheus_refuses_a_second():
    text = metrics.text(STATS, STATS | {"connected": False, "oldest_unproven_seconds": 9, "dropped": {"quota": 1, "age": 1}})
    seen = [(s.name, tuple(sorted(s.labels.items()))) for s in samples(text)]
    assert len(seen) == len(set(seen))
    assert value(text, "clawtrail_events_accepted_total") == 24 and value(text, "clawtrail_events_dropped_total", reason="quota") == 3
    assert value(text, "clawtrail_connected") == 0  # one of them is not, and that is what an alarm asks for
    assert value(text, "clawtrail_oldest_unproven_seconds") == 9


@pytest.mark.parametrize("hostile", ['a"b', "a\\b", "a\nclawtrail_connected 0", 'a\\"\n', "ä€😀", "a} 1", "a,b=c", "\\n"])
def test_a_label_is_read_back_as_it_was_whatever_it_is(hostile):
    text = metrics.text(STATS | {"agent": hostile, "last_error": hostile, "dropped": {hostile: 1}})
    assert {s.labels["agent"] for s in samples(text)} == {hostile}
    assert {s.labels["reason"] for s in samples(text) if s.name == "clawtrail_events_dropped_total"} > {hostile}
    assert [(s.labels["error"], s.value) for s in samples(text) if s.name == "clawtrail_last_error"] == [(hostile, 1)]


def test_an_error_that_tells_a_story_is_cut():
    (error,) = [s.labels["error"] for s in samples(metrics.text(STATS | {"last_error": "x" * 5000})) if s.name == "clawtrail_last_error"]
    assert len(error) == 200


@pytest.mark.parametrize("number", [0, 1, 2**53, 0.1, 1e-9, 1e300, math.inf, -math.inf])
def test_a_number_is_read_back_as_it_was(number):
    assert value(metrics.text(STATS | {"oldest_unproven_seconds": number}), "clawtrail_oldest_unproven_seconds") == number


def test_a_value_that_is_not_there_is_no_metric():
    text = metrics.text({k: v for k, v in STATS.items() if k != "spooled"})
    assert "clawtrail_events_spooled" not in text and "clawtrail_events_unsent" in text
    assert metrics.text() == ""


def test_what_a_recorder_really_says_can_be_read(receiver, recorder):
    recorder.record("tool.call", tool={"name": "exec"})
    stats = recorder.stats()
    families = {f.name for f in text_string_to_metric_families(metrics.text(stats))}
    assert len(families) == 18 and value(metrics.text(stats), "clawtrail_events_accepted_total") == stats["accepted"] == 2


def test_a_file_is_whole_at_every_moment_and_can_be_read_by_the_collector(tmp_path):
    path, stop, torn = tmp_path / "agent-1.prom", threading.Event(), []
    metrics.write(path, STATS)
    whole = {metrics.text(STATS), metrics.text(*[STATS | {"agent": str(n)} for n in range(50)])}

    def read():
        while not stop.is_set():
            if path.read_text() not in whole:
                torn.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(100):
            metrics.write(path, *[STATS | {"agent": str(n)} for n in range(50)])
            metrics.write(path, STATS)
    finally:
        stop.set()
        reader.join()
    assert not torn and path.read_text() == metrics.text(STATS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 and os.listdir(tmp_path) == ["agent-1.prom"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_other(tmp_path):
    (tmp_path / "a.prom").mkdir()  # the new file is made, and cannot take the name
    with pytest.raises(OSError):
        metrics.write(tmp_path / "a.prom", STATS)
    assert os.listdir(tmp_path) == ["a.prom"]
    with pytest.raises(FileNotFoundError):
        metrics.write(tmp_path / "absent" / "a.prom", STATS)
