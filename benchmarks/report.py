#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks, or reads a run, and writes what it says: a table of ratios to the targets, and pictures.

benchmarks/report.py                    run all, keep the run in benchmarks/results/run.json, report beside it
benchmarks/report.py RUN.json           report on an earlier run (pytest --benchmark-json)
benchmarks/report.py --out DIRECTORY    write report.md and the pictures there
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import targets  # noqa: E402


def report(run: targets.Run, pictures: list[Path]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in run.machine.items())
    parts = [
        "# Against the targets",
        f"{run.date[:10]}; {facts}.",
        targets.markdown(run),
        targets.NOTES,
        *(["# Pictures"] if pictures else []),
        *(f"![{path.stem}]({path.name})" for path in pictures),
        "# All medians",
    ]
    for name, test in run.tests.items():
        medians = (f"- {candidate}: {median(found):.1f}" for candidate, found in test["samples"].items())
        parts += [f"**{name}** ({test.get('unit', '')})", "\n".join(medians)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", type=Path, help="results of an earlier run")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the report goes")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.run
    if path is None:
        path = asked.out / "run.json"
        pytest = [sys.executable, "-m", "pytest", "-q", str(HERE), f"--benchmark-json={path.resolve()}"]
        subprocess.run(pytest, cwd=HERE.parent, check=True)
    run = targets.Run.load(path)
    pictures: list[Path] = []
    try:
        from pictures import draw
    except ImportError as why:
        print(f"no pictures: {why} (pip install 'hvring[bench]')")
    else:
        pictures = draw(run, asked.out)
    (asked.out / "report.md").write_text(report(run, pictures))
    if asked.run:
        print(targets.text(run))
    print(f"{asked.out / 'report.md'}, {len(pictures)} pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
