"""One stack for all tests here: its own project name, ports and folders. pytest-docker starts and ends it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Iterator

import docker
import pytest
from harness import ROOT, Stack, free_ports
from pytest_docker.plugin import DockerComposeExecutor, Services, get_docker_services

RECEIVER_NAMES = "your.syslog.server.fqdn"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stops(service): the test stops this service; it is healthy again afterwards")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What judges by all that was recorded comes last."""
    items.sort(key=lambda item: item.path.name == "test_fields.py")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """The stack's description; `docker_services` has started it when a test gets `running`."""
    folder = tmp_path_factory.mktemp("stack")
    folder.chmod(0o755)
    for parent in list(folder.parents)[:2]:  # pytest makes them private; the containers' users must pass through
        parent.chmod(0o755)
    base = Path(os.environ.get("ENV_FILE") or ROOT / ".test.env")
    if not base.exists():
        base = ROOT / (".env" if (ROOT / ".env").exists() else ".env.example")
    env = dict(line.split("=", 1) for line in base.read_text().splitlines() if "=" in line and not line.startswith("#"))
    project = f"clawtrail-test-{os.getpid()}"
    receiver, lines, grafana = free_ports(3)
    env |= {
        "COMPOSE_PROJECT_NAME": project,
        "BIND": "127.0.0.1",
        "RECEIVER_PORT": str(receiver),
        "LINES_PORT": str(lines),
        "GRAFANA_PORT": str(grafana),
        "RECEIVER_NAMES": RECEIVER_NAMES,
        "CLIENT_NAMES": "openclaw operator nano-claw",
        "OWNER_UID": str(os.getuid()),
        "CERTS_DIR": str(folder / "certs"),
        "SECRETS_DIR": str(folder / "secrets"),
        "MODEL_BASE_URL": "http://demo-model:8080/v1",
        "RULES_DIR": "./tests/stack/coverage/rules",
        "ALERTMANAGER_URL": f"http://{project}-alertmanager:9093",  # test_alerts.py starts one
    }
    for key in env:  # compose lets the shell's variables win over its env file
        os.environ.pop(key, None)
    (folder / "certs").mkdir()
    (folder / "secrets").mkdir()
    (folder / "copy").mkdir()
    (folder / "env").write_text("".join(f"{k}={v}\n" for k, v in env.items()))
    return Stack(project, folder, env, docker.from_env())


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(ROOT / "docker-compose.yml")


@pytest.fixture(scope="session")
def docker_compose_project_name(stack: Stack) -> str:
    return stack.project


@pytest.fixture(scope="session")
def docker_compose_command(stack: Stack) -> str:
    return f"docker compose --env-file {shlex.quote(str(stack.env_file))}"


@pytest.fixture(scope="session")
def docker_setup(stack: Stack) -> list[str]:
    copy = shlex.quote(f"{stack.folder}/copy:/copy")
    own = f"clawtrail setup && cp -r /certs/. /copy/ && chown -R {os.getuid()} /copy"  # the CA keys, for certificates of the tests' own
    return [f"run --rm -T -v {copy} setup sh -c {shlex.quote(own)}", "up --detach --wait --wait-timeout 240"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["--profile demo --profile grafana --profile setup --profile tools --profile nano down --volumes --remove-orphans --timeout 5"]


@pytest.fixture(scope="session")
def docker_services(
    docker_compose_command: str,
    docker_compose_file: Any,
    docker_compose_project_name: str,
    docker_setup: list[str],
    docker_cleanup: list[str],
    stack: Stack,
) -> Iterator[Services]:
    """As pytest-docker's, and a stack that failed to start shows its logs and is taken down as well."""
    arguments = (docker_compose_command, docker_compose_file, docker_compose_project_name)
    started = False
    try:
        with get_docker_services(*arguments, docker_setup, docker_cleanup) as services:
            started = True
            yield services
    finally:
        if not started:
            for name, text in stack.logs():
                print(f"--- {name}\n{text}")
            for command in docker_cleanup:
                DockerComposeExecutor(*arguments).execute(command)
        _remove_foreign_files(stack)


def _remove_foreign_files(stack: Stack) -> None:
    """The generated keys belong to other users: removed by root in a container that sees this folder alone."""
    image = f"clawtrail/agent:{stack.env['CLAWTRAIL_VERSION']}"
    stack.docker.containers.run(
        image, ["rm", "-rf", "/f/certs", "/f/secrets"], user="0:0", network_mode="none", remove=True, volumes={str(stack.folder): {"bind": "/f"}}
    )


@pytest.fixture(scope="session")
def running(stack: Stack, docker_services: Services) -> Iterator[Stack]:
    yield stack
    wrong = stack.events_that_are_none()
    if wrong:
        pytest.fail("\n".join(["events that are not of the schema:", *wrong[:20], f"{len(wrong)} in all"]))


@pytest.fixture(autouse=True)
def restore(request: pytest.FixtureRequest) -> Iterator[None]:
    """A service that a test stopped runs again, and so does all that depends on it, before the next test."""
    yield
    marker = request.node.get_closest_marker("stops")
    if marker:
        stack: Stack = request.getfixturevalue("stack")
        for service in marker.args:
            container = stack.container(service)
            if container.status != "running":
                container.start()
        for service in ("loki", "syslog-ng", "forwarder", "openclaw"):
            stack.wait_healthy(service)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows what each container said last."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    stack = getattr(item, "funcargs", {}).get("running")
    if report.failed and stack is not None:
        for name, text in stack.logs(25):
            report.sections.append((f"docker logs {name}", text))
