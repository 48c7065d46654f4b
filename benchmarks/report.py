#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks, or reads a run, and writes what it says: a table of ratios to the targets, and pictures.

    benchmarks/report.py                    run all, keep the run in benchmarks/results/run.json, report beside it
    benchmarks/report.py RUN.json           report on an earlier run (pytest --benchmark-json)
    benchmarks/report.py --out DIRECTORY    write report.md and the pictures there

DPDK's ring runs in the same turns as hvring.  The rings of Linux's tools/hv and of OpenVMM cannot be built here; a
ratio to them is the measured ratio to DPDK, divided by theirs to DPDK in REFERENCE, which was taken once, on another
machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent

# time per packet (or round trip) in units of DPDK's in the same run: AMD Zen 3, 2 virtual processors, gcc 12 -O2
REFERENCE = {
    "linux_hv, 64 bytes": 26.8 / 44.3,
    "linux_hv, 4096 bytes": 186.0 / 193.8,
    "linux_hv, two processes": 7.5 / 7.8,
    "openvmm_b, two processes": 7.5 / 18.8,
    "linux_hv, round trip": 280 / 310,
}


class Run:
    """One results file: the samples of each benchmark by name."""

    def __init__(self, path: Path) -> None:
        found = json.loads(path.read_text())
        self.machine: dict[str, Any] = found["machine_info"].get("hvring", {})
        self.date: str = found["datetime"]
        self.tests: dict[str, dict[str, Any]] = {
            each["name"]: each["extra_info"] for each in found["benchmarks"]
        }

    def samples(self, test: str, candidate: str) -> list[float]:
        found: list[float] = self.tests[test]["samples"][candidate]
        return found

    def middle(self, test: str, candidate: str = "hvring") -> float:
        return median(self.samples(test, candidate))

    def ratio(self, test: str, candidate: str = "hvring", peer: str = "DPDK") -> float:
        """Median of the ratios within each round."""
        pairs = zip(self.samples(test, candidate), self.samples(test, peer), strict=True)
        return median(ours / theirs for ours, theirs in pairs)


@dataclass
class Row:
    """A target: `value` is better when lower, or when higher if `faster`."""

    what: str
    value: Callable[[Run], float]
    target: float
    moonshot: float | None = None
    unit: str = "x"
    faster: bool = False

    def markdown(self, run: Run) -> str:
        try:
            value = self.value(run)
        except KeyError:
            return (
                f"| {self.what} | not measured | {self.shown(self.target)} | {self.shown(self.moonshot)} | |"
            )
        verdict = "**miss**"
        if self.met(value, self.target):
            verdict = "pass"
        if self.moonshot is not None and self.met(value, self.moonshot):
            verdict = "moonshot"
        number = f"{value:.2f}" if self.unit == "x" else f"{value:.0f}"
        cells = (
            self.what,
            f"{number} {self.unit}",
            self.shown(self.target),
            self.shown(self.moonshot),
            verdict,
        )
        return "| " + " | ".join(cells) + " |"

    def met(self, value: float, bound: float) -> bool:
        return value >= bound if self.faster else value <= bound

    def shown(self, bound: float | None) -> str:
        return "" if bound is None else f"{'>=' if self.faster else '<='} {bound:g} {self.unit}"


ONE, BATCH, CIMPORT = "test_one_packet[{}]", "test_over_the_batch[{}]", "test_a_pair_without_the_gil[{}]"
ALIGNED, CLIFF = "test_from_a_page_aligned_buffer[{}]", "test_at_the_cliff[{}]"
WAY = "test_one_way[64]"
LOOKING = "test_looking_before_sleeping[0]"

ROWS = [
    Row(
        "Python `send` + `recv_into`, 64 B, time to DPDK's C pair",
        lambda r: r.ratio(ONE.format(64)),
        1.25,
        1.0,
    ),
    Row("the same, instructions", lambda r: counted("send + recv_into"), 650, 517, ""),
    Row(
        "Python `send` + `recv()` to a Packet, 64 B, time to DPDK's C pair",
        lambda r: r.ratio(ONE.format(64), "hvring, to a Packet"),
        1.9,
        1.5,
    ),
    Row("batches of 64 between arrays, per packet, to DPDK", lambda r: r.ratio(BATCH.format(64)), 0.3, 0.25),
    Row(
        "batches of 64, list to array, per packet, to DPDK",
        lambda r: r.ratio(BATCH.format(64), "hvring, list to array"),
        0.3,
        0.25,
    ),
    Row(
        "batches of 64, list to array, to linux_hv",
        lambda r: r.ratio(BATCH.format(64), "hvring, list to array") / REFERENCE["linux_hv, 64 bytes"],
        0.5,
        0.42,
    ),
    Row("batches of 64, instructions", lambda r: counted("send_batch + recv_batch of 64"), 190, None, ""),
    Row(
        "`cimport`, no GIL, per packet, to linux_hv",
        lambda r: r.ratio(CIMPORT.format(64)) / REFERENCE["linux_hv, 64 bytes"],
        0.55,
        0.5,
    ),
    Row(
        "two processes, Python batches, rate to linux_hv",
        lambda r: REFERENCE["linux_hv, two processes"] / r.ratio(WAY),
        4,
        6,
        faster=True,
    ),
    Row(
        "two processes, Python batches, rate to openvmm_b",
        lambda r: REFERENCE["openvmm_b, two processes"] / r.ratio(WAY),
        1.6,
        2.5,
        faster=True,
    ),
    Row(
        "two processes, one Python call per packet, rate to linux_hv",
        lambda r: REFERENCE["linux_hv, two processes"] / r.ratio(WAY, "hvring, one call per packet"),
        0.5,
        1,
        faster=True,
    ),
    Row(
        "4 KiB pair, time to linux_hv",
        lambda r: r.ratio(ONE.format(4096)) / REFERENCE["linux_hv, 4096 bytes"],
        0.7,
        0.65,
    ),
    Row(
        "4 KiB, batches of 4 seen in place, time to linux_hv",
        lambda r: (
            r.ratio(ALIGNED.format(4096), "hvring, batches of 4, seen in place")
            / REFERENCE["linux_hv, 4096 bytes"]
        ),
        0.7,
        0.65,
    ),
    Row("4072 B pair, page-aligned buffer, time to DPDK", lambda r: r.ratio(ALIGNED.format(4072)), 0.1),
    Row(
        "4072 B pair where glibc's copy is at its worst, time to DPDK",
        lambda r: r.ratio(CLIFF.format(4072)),
        0.1,
    ),
    Row(
        "round trip, spinning, 64 B, median to linux_hv",
        lambda r: r.ratio("test_spinning") / REFERENCE["linux_hv, round trip"],
        1.3,
        1.0,
    ),
    Row(
        "round trip, sleeping, 64 B, median to C with eventfd",
        lambda r: r.ratio("test_sleeping", peer="DPDK and eventfd"),
        1.1,
    ),
    Row(
        "the same, both sides look before they sleep, at 100 % of a processor",
        lambda r: r.ratio(LOOKING, "hvring, both look at 100 %", peer="DPDK and eventfd"),
        1.1,
        0.5,
    ),
    Row(
        "the same, both sides look, at 5 % of a processor",
        lambda r: r.ratio(LOOKING, "hvring, both look", peer="DPDK and eventfd"),
        1.1,
        0.5,
    ),
    Row(
        "the same, one side looks, at 100 % of a processor",
        lambda r: r.ratio(LOOKING, "hvring, one looks at 100 %", peer="DPDK and eventfd"),
        1.1,
        0.5,
    ),
    Row(
        "the same, one side looks, at 5 % of a processor",
        lambda r: r.ratio(LOOKING, "hvring, one looks", peer="DPDK and eventfd"),
        1.1,
        0.5,
    ),
    Row(
        "from a wake-up in asyncio to the answer, median to C with eventfd",
        lambda r: r.ratio("test_from_a_wake_up_to_the_answer", "asyncio", peer="DPDK and eventfd"),
        1.1,
    ),
    Row(
        "`import hvring`, KiB", lambda r: r.middle("test_import_and_growth", "import_kib"), 1536, None, "KiB"
    ),
    Row("a ring object, bytes", lambda r: r.middle("test_import_and_growth", "ring_bytes"), 1024, None, "B"),
    Row(
        "growth after 200,000 packets, KiB",
        lambda r: r.middle("test_import_and_growth", "grown_kib"),
        0,
        None,
        "KiB",
    ),
]


def counted(path: str) -> float:
    """This interpreter's count as gate.py took it; KeyError when there is none."""
    import gate

    found: dict[str, dict[str, float]] = json.loads(gate.BASELINE.read_text())
    return found[gate.interpreter()][path]


def table(run: Run) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in run.machine.items())
    lines = [
        "# Against the targets",
        "",
        f"{run.date[:10]}; {facts}.",
        "",
        "Ratios are medians over rounds in which all candidates took turns. linux_hv and openvmm_b are not built here:",
        "the ratio to them is the measured ratio to DPDK divided by theirs to DPDK in one run on an AMD Zen 3 (64 B:",
        "linux_hv takes 0.60 of DPDK's time; between two processes openvmm_b has 2.5 times DPDK's rate).",
        "",
        "| what | measured | target | moonshot | |",
        "|---|---|---|---|---|",
        *(row.markdown(run) for row in ROWS),
        "",
        "# All medians",
        "",
    ]
    for name, test in run.tests.items():
        lines += [f"**{name}** ({test.get('unit', '')})", ""]
        lines += [f"- {candidate}: {median(found):.1f}" for candidate, found in test["samples"].items()]
        lines += [""]
    return "\n".join(lines)


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
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            str(HERE),
            "--benchmark-enable",
            f"--benchmark-json={path}",
        ]
        subprocess.run(pytest, cwd=HERE.parent, check=True)
    run = Run(path)
    text = table(run)
    try:
        import pictures
    except ImportError as why:
        print(f"no pictures: {why} (pip install hvring[bench])")
    else:
        text += "\n# Pictures\n\n" + "\n".join(
            f"![{path.stem}]({path.name})" for path in pictures.draw(run, asked.out)
        )
    (asked.out / "report.md").write_text(text + "\n")
    print(text.split("# All medians")[0])
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    sys.exit(main())
