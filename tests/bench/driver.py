"""Runs measurements, each in a process of its own, peer after peer, round after round."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Iterable

from .peers import PEERS
from .stage import TESTS

Result = dict[str, Any]
Runs = dict[str, list[Result]]
_NAMESPACE = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@dataclass
class Driver:
    """`done` holds every result of this run, by measurement and peer: goals share them, and the JSON shows them.

    `bursts`: the peers of the goals that were chosen, which take turns in one set of rounds; `tests`: the files of unit
    tests that hold the promises among them.
    """

    rounds: int
    quick: bool
    work: Path
    bursts: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    done: dict[str, Runs] = field(default_factory=dict)

    def rounds_of(self, measurement: str, peers: Iterable[str], rounds: int | None = None, **given: Any) -> Runs:
        """One process at a time; the order of the peers turns around with every round, against a drift of the machine."""
        runs = self.done.setdefault(_key(measurement, given), {})
        missing = [p for p in peers if p not in runs]
        for number in range(rounds or self.rounds):
            for peer in missing if number % 2 == 0 else reversed(missing):
                runs.setdefault(peer, []).append(self._run(measurement, peer, given))
        return runs

    def together(self, measurement: str, peers: Iterable[str], *, namespace: bool = False, **given: Any) -> Runs:
        """All at once, one round: for what is lost, where a slower clock changes nothing."""
        runs = self.done.setdefault(_key(measurement, given), {})
        missing = [p for p in peers if p not in runs]
        with ThreadPoolExecutor(max_workers=max(1, len(missing))) as pool:
            for peer, result in zip(missing, pool.map(lambda p: self._run(measurement, p, given, namespace), missing)):
                runs[peer] = [result]
        return runs

    def _run(self, measurement: str, peer: str, given: dict[str, Any], namespace: bool = False) -> Result:
        bound = 100 + sum(v for k, v in given.items() if k in ("before", "away", "after"))
        say(f"{measurement.replace('_', ' ')}: {peer}")
        command = [sys.executable, "-m", "bench.measure", measurement, peer, json.dumps(given)]
        output = run([*_NAMESPACE, *command] if namespace else command, TESTS, bound, BENCH_WORK=str(self.work), **dict(PEERS[peer].environment))
        try:
            result = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError):
            why = output.strip().rsplit("\n", 1)[-1]
            say(f"{measurement.replace('_', ' ')}: {peer}: {why}", failed=True)
            return {"failed": why}
        assert isinstance(result, dict)
        return result

    @cached_property
    def no_namespace(self) -> str:
        """Why packets cannot be dropped here in a network namespace of our own; empty when they can."""
        output = run([*_NAMESPACE, "iptables", "-w", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"], TESTS, 20)
        return output.strip().replace("\n", " ")

    @cached_property
    def tested(self) -> dict[str, tuple[int, int, str]]:
        """File of tests → (passed, all, why not). Several at once: nothing in them is timed."""
        with ThreadPoolExecutor(max_workers=5 if self.quick else 2) as pool:
            return dict(zip(self.tests, pool.map(self._test, self.tests)))

    def _test(self, name: str) -> tuple[int, int, str]:
        path = TESTS / "unit" / name
        if not path.is_file():
            return 0, 0, f"tests/unit/{name} is not there"
        say(f"pytest tests/unit/{name}")
        report, bound = self.work / f"{name}.xml", 45 if self.quick else 240
        output = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(path)], TESTS, bound)
        if not report.is_file():
            return 0, 0, output.strip().rsplit("\n", 1)[-1]
        suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
        counts = {k: sum(int(s.get(k, "0")) for s in suites) for k in ("tests", "failures", "errors", "skipped")}
        self.done.setdefault("tests", {})[name] = [dict(counts)]
        return counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"], counts["tests"], ""


def run(command: list[str], folder: Path, bound: float, **environment: str) -> str:
    """What the command printed, and its errors when it failed. It and all that it started end after `bound` seconds."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=bound)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"not finished within {bound:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return output if process.returncode == 0 else output + errors


def median(runs: Runs, peer: str, key: str) -> float | None:
    """Of the rounds that were run to their end."""
    values = [r[key] for r in runs.get(peer, []) if r.get(key) is not None]
    return statistics.median(values) if values else None


def worst(runs: Runs, peer: str, key: str) -> float | None:
    values = [r[key] for r in runs.get(peer, []) if r.get(key) is not None]
    return max(values) if values else None


def why_not(runs: Runs, peer: str) -> str:
    """What kept the peer's measurement from its end."""
    return next((r["failed"] for r in runs.get(peer, []) if "failed" in r), "no figure")


def say(what: str, failed: bool = False) -> None:
    print(f"[{'x' if failed else '+'}] {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def _key(measurement: str, given: dict[str, Any]) -> str:
    return " ".join([measurement, *(f"{k}={v}" for k, v in given.items())])
