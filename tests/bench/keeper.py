"""Starts, stops and kills the sink for a measurement, from a process of its own.

A fork holds the interpreter lock of the process that makes it for milliseconds: that would be measured as the
handler's. When the measurement ends, however it does, its end of the pipe closes, and the sink goes too.

    python -m bench.keeper SINK-OPTION…      one command a line on standard input, one answer a line
"""

from __future__ import annotations

import signal
import subprocess
import sys


class Keeper:
    def __init__(self, options: list[str]) -> None:
        self._options = options
        self._port = "0"
        self._sink: subprocess.Popen[str] | None = None

    def start(self) -> str:
        command = [sys.executable, "-m", "bench.sink", *self._options, "--port", self._port]
        self._sink = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._sink.stdout is not None
        self._port = self._sink.stdout.readline().strip()
        return f"{self._port} {self._sink.pid}"

    def kill(self) -> str:
        if self._sink is not None:
            self._sink.kill()
            self._sink.wait()
        return "killed"

    def stop(self) -> str:
        return self._signal(signal.SIGSTOP)

    def go_on(self) -> str:
        return self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> str:
        assert self._sink is not None
        self._sink.send_signal(number)
        return "done"

    def part(self) -> str:
        """From here on no packet to or from the sink arrives."""
        return self._firewall("-A")

    def join(self) -> str:
        return self._firewall("-D")

    def _firewall(self, action: str) -> str:
        for side in ("--dport", "--sport"):
            subprocess.run(["iptables", "-w", action, "INPUT", "-p", "tcp", side, self._port, "-j", "DROP"], check=True)
        return "done"


def main() -> None:
    keeper = Keeper(sys.argv[1:])
    commands = {f.__name__: f for f in (keeper.start, keeper.kill, keeper.stop, keeper.go_on, keeper.part, keeper.join)}
    try:
        for line in sys.stdin:
            print(commands[line.strip()](), flush=True)
    finally:
        keeper.kill()


if __name__ == "__main__":
    main()
