"""Runs the tests of the OpenClaw plugin's own code, which are JavaScript like the plugin."""

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")


@pytest.mark.skipif(not NODE, reason="no node on this machine; the plugin is tested inside OpenClaw by tests/stack")
def test_the_plugins_lanes_keep_their_promises():
    tests = Path(__file__).with_name("openclaw_plugin.test.mjs")
    run = subprocess.run([NODE, "--test", tests], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
