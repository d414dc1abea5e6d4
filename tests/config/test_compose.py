"""The map of the project, read as a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_versions_are_pinned_in_the_env_file_alone() -> None:
    for name, service in SERVICES.items():
        assert "${" in service["image"], f"{name}: {service['image']}"
    for dockerfile in ROOT.glob("*/Dockerfile"):
        for line in dockerfile.read_text().splitlines():
            if line.startswith("FROM "):
                assert ":" not in line, f"{dockerfile.name}: {line}"
    pinned = re.findall(r"^(\w+_(?:IMAGE|VERSION))=(\S+)$", (ROOT / ".env.example").read_text(), re.M)
    assert len(pinned) >= 6 and all("latest" not in value for _, value in pinned)


def test_every_variable_of_the_compose_file_is_explained_in_the_env_file() -> None:
    used = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    known = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.M))
    assert used - known == {"HOST_NAMES", "OWNER_UID"}  # what `make up` finds out about the host


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert service["mem_limit"] and service["pids_limit"]
    assert not service.get("privileged") and not service.get("devices")
    assert "cap_add" not in service or name == "setup"


def test_ports_are_published_on_the_configured_address_and_nothing_else_is() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"syslog-ng", "grafana"}
    assert all(port.startswith("${BIND}:") for ports in published.values() for port in ports)
    assert re.search(r"^BIND=127\.0\.0\.1$", (ROOT / ".env.example").read_text(), re.M)


def test_the_store_has_no_way_out_and_the_agent_no_way_in() -> None:
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert SERVICES["openclaw"]["networks"] == ["agents"]
    assert COMPOSE["networks"]["agents"] == {"internal": "${AGENTS_INTERNAL:-true}"}
    assert {name for name, s in SERVICES.items() if "agents" in (s.get("networks") or [])} == {"openclaw", "forwarder"}
    assert SERVICES["nano"]["networks"] == ["nano"] and COMPOSE["networks"]["nano"] == COMPOSE["networks"]["agents"]
    assert {name for name, s in SERVICES.items() if "nano" in (s.get("networks") or [])} == {"nano", "nano-forwarder"}
    assert SERVICES["openclaw"]["secrets"] == ["gateway-token"] and SERVICES["nano"]["secrets"] == ["nano-agent-token"]
    for key, readers in {"model-key": {"forwarder"}, "nano-model-key": {"nano-forwarder"}, "fingerprint-key": {"forwarder", "nano-forwarder"}}.items():
        assert {name for name, s in SERVICES.items() if key in (s.get("secrets") or [])} == readers
    assert {name for name, s in SERVICES.items() if "store" in (s.get("networks") or [])} == {"syslog-ng", "loki", "grafana", "operator"}


def test_no_secret_literal_stands_in_any_file() -> None:
    for path in [ROOT / "docker-compose.yml", ROOT / ".env.example", ROOT / "grafana/grafana.env", ROOT / "agent/openclaw/openclaw.json"]:
        for line in path.read_text().splitlines():
            if re.search(r"(password|secret|token|key)[\"']?\s*[:=]", line, re.I) and not line.lstrip().startswith("#"):
                assert re.search(r"/run/secrets/|SECRETS_DIR|\{|\[|true|false|: *$", line), f"{path.name}: {line}"
