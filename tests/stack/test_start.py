"""The tests' own stack: what its images were built with; one that cannot start shows why and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from harness import ROOT, Stack


def test_the_image_of_the_package_was_built_with_a_compiler_and_has_none(running: Stack) -> None:
    code, said = running.run_inside("forwarder", "python3", "-c", "import shutil; from clawtrail.patterns import COMPILED; print(COMPILED, shutil.which('cc'))")
    assert (code, said.split()) == (0, ["True", "None"]), said


def test_a_stack_that_cannot_start_shows_its_logs_and_is_taken_down(stack: Stack, tmp_path: Path) -> None:
    broken = stack.env | {"LOKI_IMAGE": f"clawtrail/agent:{stack.env['CLAWTRAIL_VERSION']}"}  # an image without Loki in it
    env_file = tmp_path / "env"
    env_file.write_text("".join(f"{k}={v}\n" for k, v in broken.items()))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(ROOT / "tests/stack/test_identity.py"), "-x", "-q", "-p", "no:cacheprovider"],
        env={**os.environ, "ENV_FILE": str(env_file)}, cwd=ROOT, capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 1
    project = re.search(r"clawtrail-test-\d+", done.stdout)
    assert project and f"--- {project[0]}-loki-1" in done.stdout, done.stdout[-3000:]
    left = stack.docker.containers.list(all=True, filters={"label": f"com.docker.compose.project={project[0]}"})
    volumes = stack.docker.volumes.list(filters={"label": f"com.docker.compose.project={project[0]}"})
    networks = stack.docker.networks.list(filters={"label": f"com.docker.compose.project={project[0]}"})
    assert not left and not volumes and not networks
