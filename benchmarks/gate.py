#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The performance gate: instructions per packet against baseline.json, and ratios to DPDK's C ring.

    benchmarks/gate.py            fails when a path costs over 3 % more than its baseline, or a ratio is broken
    benchmarks/gate.py --update   writes what is counted now as this interpreter's baseline: commit it with the reason

Counts come from valgrind's callgrind and do not depend on how busy the machine is, only on the interpreter and the
C library; so a baseline belongs to one build of an interpreter.  What cannot be measured is skipped, with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import dpdk  # noqa: E402
import gate_paths  # noqa: E402

BASELINE = HERE / "baseline.json"
DPDK = "DPDK's pair, in C"
ALLOWED = 1.03
# ratio to DPDK's pair of 64 bytes, best of the rounds: what PERF's targets ask for, plus a fifth for noise
RATIOS = {
    "send + recv_into": 1.25 * 1.2,
    "send + recv to a Packet": 1.9 * 1.2,
    "send_batch + recv_batch of 64": 0.6,
}


def interpreter() -> str:
    """The key of a baseline: machine, version and build."""
    build = " ".join(platform.python_build())
    return f"{platform.machine()} {platform.python_implementation()} {platform.python_version()} ({build})"


def peer() -> Path | None:
    """DPDK's ring as a library, or None, having said why."""
    try:
        return dpdk.built()
    except dpdk.Unavailable as why:
        print(f"DPDK's ring: skipped, {why}")
        return None


def count(library: Path | None = None) -> dict[str, float]:
    """Instructions per packet of each path, net of the empty loop; of DPDK's pair, too, when there is its library."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        tool = ["valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={out}"]
        done = subprocess.run(
            [
                *tool,
                sys.executable,
                "-S",
                "-E",
                str(HERE / "gate_paths.py"),
                str(HERE.parent),
                str(library or ""),
            ],
            env={"PYTHONHASHSEED": "0", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"callgrind failed: {done.stderr[-800:]}")
        names = [*gate_paths.paths(), *([DPDK] if library else [])]
        totals = [total(Path(f"{out}.{2 * n + 2}")) / gate_paths.COUNT for n in range(len(names))]
    counted = zip(names[1:], totals[1:], strict=True)
    return {name: round(each - (0 if name == DPDK else totals[0]), 1) for name, each in counted}


def total(part: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", part.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def check_counts(library: Path | None, update: bool) -> bool:
    """True: nothing got worse."""
    if shutil.which("valgrind") is None:
        print("instructions: skipped, valgrind is not installed")
        return True
    baselines = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    counted = count(library)
    if library:
        print(f"{DPDK:34} {counted.pop(DPDK):7.1f} instructions")
    if update:
        baselines[interpreter()] = counted
        BASELINE.write_text(json.dumps(baselines, indent=1, sort_keys=True) + "\n")
    if interpreter() not in baselines:
        print(f"instructions: skipped, no baseline for {interpreter()}; --update makes one")
        return True
    good = True
    for name, now in counted.items():
        was = baselines[interpreter()].get(name)
        verdict = "new" if was is None else "WORSE" if now > was * ALLOWED else "good"
        good &= verdict != "WORSE"
        print(f"{name:34} {now:7.1f} instructions, baseline {was or '-':>7}: {verdict}")
    return good


def best(run: Callable[[int], None]) -> float:
    start = time.perf_counter_ns()
    run(gate_paths.COUNT)
    return (time.perf_counter_ns() - start) / gate_paths.COUNT


def check_ratios() -> bool:
    """True: no ratio to the C peer is broken."""
    ring = dpdk.Ring(dpdk.library())
    runs = {name: run for name, run in gate_paths.paths().items() if name in RATIOS}
    fastest = dict.fromkeys(["DPDK", *runs], float("inf"))
    for _ in repeat(None, 300):
        fastest["DPDK"] = min(fastest["DPDK"], ring.pairs(gate_paths.SIZE, gate_paths.COUNT))
        for name, run in runs.items():
            fastest[name] = min(fastest[name], best(run))
    good = True
    for name in runs:
        ratio = fastest[name] / fastest["DPDK"]
        verdict = "good" if ratio <= RATIOS[name] else "BROKEN"
        good &= verdict == "good"
        print(f"{name:34} {ratio:7.2f} times DPDK's pair, allowed {RATIOS[name]:.2f}: {verdict}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--update", action="store_true", help="move this interpreter's baseline to what is counted now"
    )
    update = parser.parse_args().update
    library = peer()
    good = check_counts(library, update)
    if library:
        good &= check_ratios()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
