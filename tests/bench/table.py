"""The lines as text, as Markdown, as JSON."""

from __future__ import annotations

import importlib.util
import os
import platform
import ssl
import textwrap
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from .goals import Line
from .peers import PEERS

COLUMNS = ("", "ours", "beside", "theirs", "ratio", "goal", "holds")


def cells(line: Line) -> tuple[str, ...]:
    ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
    holds = "not run" if line.goal and line.holds is None else {True: "yes", False: "NO", None: ""}[line.holds]
    return line.what, line.ours, line.peer, line.theirs, ratio, line.goal, holds


def rows(lines: list[Line]) -> list[tuple[str, ...]]:
    """The header and the lines; what a line shares with the one above it is said once."""
    found: list[tuple[str, ...]] = [COLUMNS]
    above = ("", "")
    for line in lines:
        row = cells(line)
        found.append(("", "", *row[2:]) if row[:2] == above else row)
        above = (row[0], row[1])
    return found


def text(lines: list[Line]) -> str:
    shown = rows(lines)
    widths = [max(len(row[i]) for row in shown) for i in range(len(COLUMNS))]
    widths[1] = min(widths[1], 24)
    out = []
    for row in shown:
        fitted = [c if len(c) <= w else textwrap.shorten(c, w, placeholder="…") for c, w in zip(row, widths)]
        out.append("  ".join(c.ljust(w) for c, w in zip(fitted, widths)).rstrip())
        if row is COLUMNS:
            out.append("  ".join("-" * w for w in widths))
    whole = [f"{line.what}: {line.ours}" for line in lines if len(line.ours) > widths[1]]
    return "\n".join([*out, *whole])


def summary(lines: list[Line]) -> str:
    goals = [line for line in lines if line.goal]
    held, missed = (sum(line.holds is value for line in goals) for value in (True, False))
    return f"{len(goals)} goals: {held} hold, {missed} do not, {len(goals) - held - missed} not run"


def markdown(lines: list[Line], report: dict[str, Any]) -> str:
    machine = report["machine"]
    head, *body = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows(lines)]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return f"""# Benchmarks

Our handler beside the handlers that people use, in one run on one machine. Written by `make bench ARGS=--write-docs`;
`make bench` measures again and prints this table, `make bench ARGS='-k emit'` a part of it.

Only the ratios travel: the machine had {machine["cpus"]} cores and a load of {machine["load"]} when the run began.
Python {machine["python"]}, {machine["openssl"]}, Linux {machine["kernel"]}, the spool on {machine["filesystem"]};
{versions}.

Every peer gets the same event, one logging call with 16 fields; its values change from event to event as an agent's do.
Peers that need a formatter have the same JSON formatter. Ours has everything on: redaction, numbers, hash chain, RFC 5424
structured data, a spool on disk with durability `write`, proof `window`; it was built with{"" if machine["compiled"] else "out"} a C compiler. The peers run bare. Each measurement is a process
of its own; the peers take turns, {report["rounds"]} rounds, medians (of losses, the worst round). The receiver is a process
too: TLS 1.3 with session tickets and client certificates (HTTP for OTel, TCP in clear for the standard library's handler),
and it notes each event that it has read before anything can kill it. Goals that say no number of a peer are promises that
tests hold; the bench runs those tests.

Time from idle includes loopback and the receiver's own reading. Memory is anonymous memory; pages of mapped files, which
the kernel takes back as it likes, stand beside it. The longest emit includes what the machine's scheduler took.

{summary(lines)}.

| {head} |
|{" --- |" * len(COLUMNS)}
""" + "".join(f"| {row} |\n" for row in body)


def report(lines: list[Line], rounds: int, quick: bool, machine: dict[str, Any], measurements: dict[str, Any]) -> dict[str, Any]:
    return {"machine": machine, "rounds": rounds, "quick": quick, "table": [asdict(line) for line in lines], "measurements": measurements}


def machine(work: Path) -> dict[str, Any]:
    packages = {p.package: _version(p.package) for p in PEERS.values() if p.package}
    return {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "kernel": platform.release().split("-")[0],
        "filesystem": _filesystem(work),
        "packages": packages | {"orjson": _version("orjson")},
        "compiled": importlib.util.find_spec("clawtrail._native") is not None,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _filesystem(folder: Path) -> str:
    """The type of the file system that holds the folder."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return max((m for m in mounts if folder.is_relative_to(m[1])), key=lambda m: len(m[1]))[2]
