"""Who may speak to the forwarder: decided by what the kernel says of the process, never by what it says of itself.

What the agent starts runs under the gateway's uid and could write to the socket itself. Only what the engine starts in
a container, its main process above all, has no parent in the shared process namespace, and nothing that an agent starts
can get rid of its own.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """Who connected, as the kernel tells (SO_PEERCRED). pid 0: the process is outside of our process namespace."""

    pid: int
    uid: int

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return cls(pid, uid)

    @property
    def parent(self) -> int | None:
        """The parent's pid, 0 for a container's main process, None when the process is gone."""
        stat = self._stat
        return int(stat[1]) if stat else None

    @property
    def started(self) -> float | None:
        """When it was started, in monotonic seconds, at most a hundredth too early; None when the process is gone."""
        stat = self._stat
        if not stat:
            return None
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK"))

    @property
    def _stat(self) -> list[str]:
        """What /proc tells, from the state on."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return []

    @property
    def command(self) -> str:
        """What it was started as, cut after 500 characters; empty when that cannot be read."""
        try:
            raw = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return raw.replace(b"\0", b" ").decode("utf-8", "backslashreplace").strip()[:500]


@dataclass(frozen=True)
class Admission:
    """The rules of one socket.

    Args:
        gateway_uid: uid of the gateway process; None: any uid (for a host where only the socket's mode decides).
        main_process: accept only a container's main process.
    """

    gateway_uid: int | None
    main_process: bool = True

    def operator(self, peer: Peer) -> bool:
        """A process of the forwarder's own uid that the engine started: its health check, or a person at the console."""
        return peer.uid == os.getuid() and peer.pid != 0 and peer.parent == 0

    def refusal(self, peer: Peer) -> str | None:
        """Why this peer is not the gateway; None when it is."""
        if peer.pid == 0:
            return "the process is not visible; expected a peer in the same process namespace"
        if self.gateway_uid is not None and peer.uid != self.gateway_uid:
            return f"uid {peer.uid}; expected the gateway's uid {self.gateway_uid}"
        if self.main_process and (parent := peer.parent) != 0:
            return f"process {peer.pid} was started by process {parent}; expected the gateway itself"
        return None
