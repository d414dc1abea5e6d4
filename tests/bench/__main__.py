"""`python -m bench` from tests/: runs the measurements, prints the table, writes JSON. See `--help`."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from . import table
from .driver import Driver, say
from .goals import GOALS, Line
from .stage import TESTS, certify

ROOT = TESTS.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description="Our handler beside its peers; only the ratios travel.")
    parser.add_argument("-k", metavar="WORD", default="", help=f"only goals with this word: {' '.join(g.key for g in GOALS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, fewer events, shorter faults: to see that it runs")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench.json", help="where the figures go (default: build/bench.json)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="spools are made in it: a folder on a real disk")
    parser.add_argument("--write-docs", action="store_true", help="write docs/benchmarks.md too; not with -k or --quick")
    options = parser.parse_args()
    if options.write_docs and (options.k or options.quick):
        parser.error("--write-docs is for a whole run: without -k and --quick")
    chosen = [g for g in GOALS if options.k.lower() in f"{g.key} {g.title}".lower()]
    if not chosen:
        parser.error(f"-k {options.k}: no such goal; there are {' '.join(g.key for g in GOALS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder)).resolve()
    began = time.monotonic()
    try:
        certify(work / "certificates")
        machine = table.machine(work)
        bursts = tuple(dict.fromkeys(peer for g in chosen for peer in g.bursts))
        bench = Driver(1 if options.quick else options.rounds, options.quick, work, bursts, tuple(g.tests for g in chosen if g.tests))
        lines: list[Line] = [line for goal in chosen for line in goal.lines(bench)]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report = table.report(lines, bench.rounds, options.quick, machine, bench.done)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table.text(lines))
    print(f"\n{table.summary(lines)}{'; --quick: smaller than what the goals ask for' if options.quick else ''}")
    if machine["load"] > 1:
        say(f"the machine was busy when the run began (load {machine['load']}): ratios are less sure than they look")
    say(f"{time.monotonic() - began:.0f} s; {options.json}")
    if options.write_docs:
        (ROOT / "docs/benchmarks.md").write_text(table.markdown(lines, report))
        say("docs/benchmarks.md")


if __name__ == "__main__":
    main()
