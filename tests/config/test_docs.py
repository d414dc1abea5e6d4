"""What the pages say is what the code knows."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from clawtrail import Recorder, schema, settings, testing
from clawtrail.event import FIELDS, KINDS, OUTCOMES

ROOT = Path(__file__).resolve().parents[2]
EVENTS = (ROOT / "docs/events.md").read_text()
HANDLER = (ROOT / "docs/handler.md").read_text()


def test_every_kind_and_outcome_is_on_the_page_of_events_and_no_other() -> None:
    kinds = dict((kind, category) for category, row in re.findall(r"^\| `(\w+)` \| ((?:`\w+\.[\w-]+`.*)+) \|$", EVENTS, re.M) for kind in re.findall(r"`(\w+\.[\w-]+)`", row))
    assert kinds == KINDS
    assert all(f"`{outcome}`" in EVENTS for outcome in OUTCOMES)


def test_the_members_on_the_page_of_events_are_those_of_the_schema_word_for_word() -> None:
    block = re.search(r"<!-- clawtrail schema --table -->\n(.*?)\n<!-- end -->", EVENTS, re.S)
    assert block and block[1] == schema.table(), "paste the output of `clawtrail schema --table` between the marks"


def test_the_example_on_the_page_of_events_is_one() -> None:
    line = re.search(r"^```json\n(.*?)\n```", EVENTS, re.M | re.S)[1]  # type: ignore[index]
    assert schema.check(json.loads(line)) == [] and schema.unknown(json.loads(line)) == []
    order = [key for key in json.loads(line) if key in FIELDS]
    assert order == sorted(order, key=FIELDS.index)


def test_the_coverage_of_cosai_is_whole_by_version_and_names_members_that_there_are() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", EVENTS, re.M)
    assert [int(number) for number, *_ in rows] == list(range(1, 55))
    assert sum("v0.4" in versions for _, _, versions, *_ in rows) == 47 and sum("v0.6" in versions for _, _, versions, *_ in rows) == 52
    known = {path for path, _ in schema.members()}
    open_groups = {path for path, one in schema.members() if "additionalProperties" in one}
    for number, field, _, ours, openclaw, python in rows:
        named = re.findall(r"`([a-z_0-9.]+)`", ours)
        assert named and all(path in known or path.rpartition(".")[0] in open_groups for path in named), f"{number} {field}: {ours}"
        assert openclaw and python
    whole = {number for number, _, _, _, openclaw, _ in rows if openclaw.startswith("not observable: ")}
    partly = {number for number, _, _, _, openclaw, _ in rows if "not observable" in openclaw} - whole
    said = EVENTS.split("With OpenClaw two of the 54")[1].split("exact only")[0].split("In part:")
    assert whole == {"14", "20"} == set(re.findall(r"\b\d\d\b", said[0])[:2])
    assert partly | {"21"} <= set(re.findall(r"\b\d\d\b", said[1]))  # 21 is as 15


def test_every_group_is_mapped_to_the_words_of_others() -> None:
    mapped = EVENTS.split("## In the words of others")[1]
    named = set(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in mapped.splitlines() if line.startswith("| `"))))
    assert named == {"id", "ts", "kind", "category", "outcome", "agent", "host", "epoch", "seq", "prev", *FIELDS}


def test_every_setting_is_on_the_page_of_the_handler_and_no_other() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \| (R?) ?\| ", HANDLER.split("## What \"arrived\"")[0], re.M)
    named = {name: (default, recorder) for names, default, recorder in rows for name in re.findall(r"`(\w+)`", names)}
    unlisted = {"socktype", "agent_type", "agent_version"}  # read and checked; of no use but for compatibility, or to clawtrail itself
    assert named.keys() == set(settings._KEYS) - unlisted
    arguments = inspect.signature(Recorder).parameters
    assert {name for name, (_, recorder) in named.items() if recorder} <= arguments.keys()
    for name, written in (("durability", "write"), ("when_full", "block"), ("proof", "window"), ("minimum_version", "TLSv1.3")):
        assert named[name][0] == f"`{written}`" and arguments[name].default == written
    for name, written in (("quota", "256 MiB"), ("full_timeout", "5 s"), ("retain", "24 h"), ("heartbeat", "30 s")):
        number, unit = written.split()
        assert named[name][0] == written
        assert arguments[name].default == float(number) * {"MiB": 1 << 20, "s": 1, "h": 3600}[unit]


def test_the_python_on_the_pages_is_python_and_imports_what_there_is() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
            compile(block, page.name, "exec")
            exec("\n".join(line for line in block.splitlines() if line.startswith(("import clawtrail", "from clawtrail"))), {})


def test_every_link_of_the_pages_leads_to_a_file() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("certs/*.md"), *ROOT.glob("agent/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_of_agents_is_what_the_commands_take() -> None:
    page = (ROOT / "docs/agents.md").read_text()
    settings_file = json.loads(re.search(r"^```json\n(.*?)\n```", page, re.M | re.S)[1])  # type: ignore[index]
    assert set(settings_file["hooks"]) >= {"PreToolUse", "PostToolUse", "UserPromptSubmit", "Stop", "SessionStart", "SessionEnd"}
    help_of = {name: command_help(name) for name in ("pipe", "hook", "nanobot", "forwarder")}
    for line in re.findall(r"clawtrail (?:pipe|hook|nanobot|forwarder)\b[^\n`|;]*", page):
        name, ours = line.split()[1], line.split(" agent")[0].split(" gateway")[0]
        for option in re.findall(r"--[a-z-]+", ours):
            assert option in help_of[name], f"{line}: {option}"


def test_the_script_on_the_page_of_agents_acts_only_on_record(tmp_path: Path) -> None:
    page = (ROOT / "docs/agents.md").read_text()
    script = next(block for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) if "coproc" in block)
    files = testing.certificates(tmp_path)
    environment = {**os.environ, "CLAWTRAIL_TLS": str(files.client), "CLAWTRAIL_SPOOL": str(tmp_path / "spool"), "PYTHONPATH": str(ROOT / "agent/src")}
    script = f'clawtrail() {{ "{sys.executable}" -m clawtrail "$@"; }}\n{script}'
    with testing.Receiver(files.certificate, files.key, files.client_ca) as receiver:
        environment["CLAWTRAIL_RECEIVER"] = f"127.0.0.1:{receiver.port}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment)
        assert (done.returncode, done.stdout) == (0, "here it acts\n"), done.stderr
        refused = subprocess.run(["bash", "-c", script.replace('"outcome":"attempt"', '"outcome":"tried"')], capture_output=True, text=True, timeout=60, env=environment)
    assert refused.returncode == 1 and "here it acts" not in refused.stdout and "not on record" in refused.stderr


def command_help(name: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "agent/src")}
    return subprocess.run([sys.executable, "-m", "clawtrail", name, "--help"], capture_output=True, text=True, timeout=60, env=environment).stdout
