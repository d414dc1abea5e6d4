"""The boards and their provisioning: what Grafana would refuse or, worse, show wrong without a word."""

import json
import os
import re
from itertools import combinations
from pathlib import Path

import pytest
import yaml

import boards

ROOM = Path(__file__).parents[2] / "grafana"
BOARDS = {path.name: json.loads(path.read_text()) for path in sorted((ROOM / "dashboards").glob("*.json"))}
PANELS = [pytest.param(board, panel, id=f"{name}: {panel['title']}")
          for name, board in BOARDS.items() for panel in board["panels"]]

DATA_SOURCE = {"type": "loki", "uid": "loki"}
# Kind of panel → kind of query. An instant query in a time panel, or the reverse, shows a wrong number.
QUERY_TYPE = {"stat": "instant", "bargauge": "instant", "table": "instant", "timeseries": "range", "logs": "range"}
UNITS = {"short", "percentunit", "percent", "s", "ms", "bytes", "none", "string"}
BUILTIN = {"__auto", "__range", "__range_s", "__interval", "__url_time_range", "__value"}
PROVIDER_KEYS = {"name", "type", "orgId", "folder", "folderUid", "editable", "options", "disableDeletion",
                 "updateIntervalSeconds", "allowUiUpdates"}
DERIVED_FIELD_KEYS = {"name", "matcherType", "matcherRegex", "url", "urlDisplayLabel", "datasourceUid", "targetBlank"}


def every(value, key):
    """All values under `key`, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from every(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from every(inner, key)


def names(text):
    return {match[0] or match[1] for match in re.findall(r"\$\{(\w+)[^}]*\}|\$(\w+)", text)} - BUILTIN


def links(value):
    return [url for url in every(value, "url") if isinstance(url, str)]


def check_link(url):
    board_uid, _, query = url.removeprefix("/d/").partition("?")
    target = {board["uid"]: board for board in BOARDS.values()}.get(board_uid)
    assert target, f"{url}: no such board"
    passed = set(re.findall(r"(?:^|&)var-(\w+)=", query))
    assert passed <= {variable["name"] for variable in target["templating"]["list"]}, f"{url}: no such variable"
    assert "${__value.raw}" not in url, f"{url}: the value is not encoded"


def expanded(value, environment=None):
    """What Grafana makes of a provisioning value: `$$` is `$`, `$X` and `${X}` are the environment."""
    environment = environment or {}
    return "$".join(re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda m: environment.get(m[1] or m[2], ""), part)
                    for part in value.split("$$"))


@pytest.mark.parametrize("name, board", BOARDS.items())
def test_a_board_can_be_read_from_a_file(name, board):
    assert board["schemaVersion"] == 42 and "panels" in board, "file provisioning takes the classic format only"
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", board["uid"]) and board["title"]
    assert "id" not in board and "__inputs" not in board and "${DS_" not in json.dumps(board)


def test_no_two_boards_share_a_uid_or_a_title():
    for key in ("uid", "title"):
        values = [board[key] for board in BOARDS.values()]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("name, board", BOARDS.items())
def test_panel_ids_are_unique_and_panels_do_not_overlap(name, board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
    for one, other in combinations(board["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        assert (a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or
                a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]), f"{one['title']} lies on {other['title']}"


@pytest.mark.parametrize("name, board", BOARDS.items())
def test_a_board_ends_with_the_raw_lines(name, board):
    assert max(board["panels"], key=lambda panel: panel["gridPos"]["y"])["type"] == "logs"


@pytest.mark.parametrize("board, panel", PANELS)
def test_a_panel_says_what_it_answers_and_asks_the_provisioned_data_source(board, panel):
    assert panel["title"] and panel["description"]
    assert len(list(every(panel, "datasource"))) == 1 + len(panel["targets"])
    assert all(source == DATA_SOURCE for source in every(board, "datasource"))


@pytest.mark.parametrize("board, panel", PANELS)
def test_the_kind_of_query_fits_the_kind_of_panel(board, panel):
    for target in panel["targets"]:
        assert target["queryType"] == QUERY_TYPE[panel["type"]]
        assert target["editorMode"] == "code" and target["refId"]
        window = re.findall(r"\[(\$\w+|\d+[smhd])\]", target["expr"])
        if panel["type"] == "logs":
            assert not window and 0 < target["maxLines"] <= 1000
        elif target["queryType"] == "range":
            assert set(window) == {"$__auto"}, "any other window leaves gaps or counts twice"
        else:
            assert "$__range" in window
            assert re.search(r"\b(sum|count|min|max|topk)\b", target["expr"]), "each metadata value would be a series"
    if panel["type"] == "stat":
        assert panel["targets"][0]["expr"].endswith(" or vector(0)"), "nothing found is an answer: 0"


@pytest.mark.parametrize("board, panel", PANELS)
def test_units_and_thresholds_are_ones_grafana_knows(board, panel):
    assert set(every(panel, "unit")) <= UNITS
    for steps in every(panel, "steps"):
        values = [step["value"] for step in steps]
        assert values[0] is None and values[1:] == sorted(values[1:])


@pytest.mark.parametrize("name, board", BOARDS.items())
def test_every_variable_that_is_used_is_defined_and_every_link_leads_somewhere(name, board):
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = set().union(*(names(query.expr) for query in boards.queries(board)))
    assert used <= defined and defined <= used
    for url in links(board):
        check_link(url)


@pytest.mark.parametrize("name, board", BOARDS.items())
def test_a_variable_opens_with_a_value_and_asks_for_a_stream_label(name, board):
    for variable in board["templating"]["list"]:
        assert {"text", "value"} <= set(variable["current"])
        if variable["type"] == "query":
            assert variable["datasource"] == DATA_SOURCE and variable["query"]["type"] == 1
            assert variable["query"]["label"] in {"agent", "category", "outcome"}, "metadata has no list of values"
        else:
            assert variable["type"] == "textbox" and variable["query"] == variable["current"]["value"]


@pytest.mark.parametrize("name, board", BOARDS.items())
def test_text_from_an_agent_is_never_markup(name, board):
    written = json.dumps(board)
    assert not {panel["type"] for panel in board["panels"]} & {"text", "html", "news", "dynamictext"}
    for word in ("markdown", "html", "image", "json-view"):
        assert f'"{word}"' not in written
    for panel in board["panels"]:
        assert not list(every(panel, "cellOptions"))
        if panel["type"] == "logs":
            assert panel["options"]["prettifyLogMessage"] is False
    for note in board["annotations"]["list"]:  # annotations render HTML, so only names that we certified
        shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", note["titleFormat"] + note["textFormat"]))
        assert shown | set(note["tagKeys"].split(",")) <= {"agent", "category", "outcome"}


def test_the_data_source_has_the_uid_that_the_boards_use():
    [source] = yaml.safe_load((ROOM / "provisioning/datasources/loki.yaml").read_text())["datasources"]
    assert {"type": source["type"], "uid": source["uid"]} == DATA_SOURCE
    assert source["access"] == "proxy" and source["editable"] is False
    assert isinstance(source["jsonData"]["maxLines"], str), "Grafana wants a string there"


def test_derived_fields_survive_the_expansion_of_provisioning_files():
    [source] = yaml.safe_load((ROOM / "provisioning/datasources/loki.yaml").read_text())["datasources"]
    for field in source["jsonData"]["derivedFields"]:
        assert set(field) <= DERIVED_FIELD_KEYS
        assert expanded(field["matcherRegex"]) == "^session$"
        assert "${__value.raw:percentencode}" in expanded(field["url"])
        check_link(expanded(field["url"]))


def test_the_provider_reads_the_mounted_folder_and_owns_its_boards():
    [provider] = yaml.safe_load((ROOM / "provisioning/dashboards/clawtrail.yaml").read_text())["providers"]
    assert set(provider) <= PROVIDER_KEYS
    assert provider["options"] == {"path": "/etc/grafana/dashboards", "foldersFromFilesStructure": False}
    assert provider["allowUiUpdates"] is False and provider["folderUid"] != "general"


def test_grafana_opens_with_a_board_that_exists_and_knows_nobody_without_a_password():
    settings = dict(line.split("=", 1) for line in (ROOM / "grafana.env").read_text().splitlines()
                    if "=" in line and not line.startswith("#"))
    home = Path(settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == "/etc/grafana/dashboards" and home.name in BOARDS
    assert settings["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert settings["GF_SECURITY_ADMIN_PASSWORD__FILE"].startswith("/run/secrets/")
    assert settings["GF_PLUGINS_PREINSTALL_DISABLED"] == "true", "the installer would delete the Loki plugin"


def test_provisioning_files_can_be_read_by_grafana():
    for path in (ROOM / "provisioning").rglob("*.yaml"):
        assert os.stat(path).st_mode & 0o004, f"{path} is read by another user in the container"
