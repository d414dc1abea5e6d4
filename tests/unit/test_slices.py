"""Short slices: what the kernel itself says of the threads of a running forwarder, and of nobody else's."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clawtrail import slices
from sidecar import Client, call, folder  # noqa: F401
from support import eventually

RELEASE = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
given = pytest.mark.skipif(
    RELEASE < (6, 12) or not Path("/proc/self/sched").exists(), reason=f"Linux {platform.release()} gives no slices, or shows none; expected 6.12"
)

#: Runs the command behind it where the kernel refuses sched_setattr and sched_getattr, as a container's profile may.
FORBIDDEN = """
import ctypes, errno, os, struct, sys
from clawtrail import slices
first, second = slices._NUMBERS[os.uname().machine]
code = [(0x20, 0, 0, 0), (0x15, 2, 0, first), (0x15, 1, 0, second), (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x00050000 | errno.EPERM)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, struct.pack("HP", len(code), ctypes.addressof(program)), 0, 0) == 0  # PR_SET_SECCOMP
os.execv(sys.argv[1], sys.argv[1:])
"""


def threads(pid):
    """Name → slice in nanoseconds, as the kernel shows them."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        found[(task / "comm").read_text().strip(), task.name] = int(re.search(r"se\.slice\s*:\s*(\d+)", (task / "sched").read_text())[1])
    return found


@pytest.fixture
def serve(receiver, pki, folder):  # noqa: F811
    made = []

    def run(*prefix):
        command = [sys.executable, "-m", "clawtrail.cli", "forwarder", "--socket", folder / "audit.sock", "--any-process", "--durability", "disk",
                   "--receiver", f"127.0.0.1:{receiver.port}", "--tls", pki.client, "--agent", "agent-1", "--spool", folder / "spool"]  # fmt: skip
        made.append(subprocess.Popen([*prefix, *command], stderr=(folder / "log").open("ab")))
        eventually((folder / "audit.sock").is_socket, state=lambda: (folder / "log").read_text())
        return made[-1].pid, Client(folder / "audit.sock")

    yield run
    for process in made:
        process.terminate()
        process.wait(20)


def outside(program):
    """What a program of its own prints."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60).stdout.split()


@given
def test_every_thread_of_the_forwarder_has_a_short_slice(serve, folder):  # noqa: F811
    pid, client = serve()
    assert client.ask({**call(1), "gate": True}) == {"ack": 1}
    found = threads(pid)
    assert len(found) >= 3, f"the loop, the disk and the shipper; found {found}"
    assert set(found.values()) == {slices.SHORTEST}, found
    assert "slices 100 µs" in (folder / "log").read_text()


@given
def test_a_recorder_inside_an_agent_leaves_its_slices_alone(receiver, pki, tmp_path):
    printed = outside(f"""
import os, re
from pathlib import Path
from clawtrail import Recorder
def all(): return {{re.search("se.slice *: *(.*)", (task / "sched").read_text())[1] for task in Path("/proc/self/task").iterdir()}}
before = all()
with Recorder(("127.0.0.1", {receiver.port}), {str(pki.client)!r}, agent="agent-1", spool={str(tmp_path)!r}, durability="disk") as recorder:
    with recorder.action("exec"): pass
    print(len(os.listdir("/proc/self/task")) > 1, all() == before)
""")
    assert printed == ["True", "True"]


@given
def test_a_short_slice_leaves_priority_and_policy_as_they_are():
    printed = outside("""
import os
from clawtrail import slices
os.nice(3)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
print(slices.shorten(), slices.current(), os.nice(0), os.sched_getscheduler(0) == os.SCHED_BATCH, slices.shorten(2 * slices.SHORTEST))
""")
    short = str(slices.SHORTEST)
    assert printed == [short, short, "3", "True", short], "and one that is shorter already stays"


@pytest.mark.skipif(platform.machine() not in slices._NUMBERS, reason=f"the system calls of {platform.machine()} are not known")
def test_a_kernel_that_refuses_is_no_error_and_the_forwarder_serves(serve, folder):  # noqa: F811
    _, client = serve(sys.executable, "-c", FORBIDDEN)
    assert client.ask({**call(1), "gate": True}) == {"ack": 1}
    assert "slices as the kernel has them" in (folder / "log").read_text()


def test_a_machine_without_these_calls_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    assert slices.shorten() is None and slices.current() is None


def test_a_thread_that_is_gone_has_no_slice():
    assert slices.current(os.getpid() + (1 << 22)) is None
