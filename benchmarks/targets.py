# SPDX-License-Identifier: Apache-2.0
"""The targets, and whether a run met them: a row each, with what this machine allows beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

# Time per packet (or round trip) in units of DPDK's: used where a peer cannot run here.  Taken once, on an AMD Zen 3
# with 2 virtual processors, gcc 12 -O2.  OpenVMM's ring is Rust and no package: it is always taken from here.
REFERENCE = {
    ("linux_hv", "64"): 26.8 / 44.3,
    ("linux_hv", "4096"): 186.0 / 193.8,
    ("linux_hv", "4072"): 186.0 / 193.8,
    ("linux_hv", "two processes"): 7.5 / 7.8,
    ("linux_hv", "round trip"): 280 / 310,
    ("openvmm_b", "two processes"): 7.5 / 18.8,
}


class Run:
    """What one run measured: samples of each benchmark by name, and the facts of the machine."""

    def __init__(self, tests: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any], date: str = ""):
        self.tests, self.machine, self.date = tests, machine, date

    @classmethod
    def load(cls, path: Path) -> Run:
        """From pytest's --benchmark-json."""
        found = json.loads(path.read_text())
        tests = {each["name"]: each["extra_info"] for each in found["benchmarks"]}
        return cls(
            {name: info for name, info in tests.items() if "samples" in info},
            found["machine_info"].get("hvring", {}),
            found["datetime"],
        )

    def samples(self, test: str, candidate: str) -> list[float]:
        """KeyError when that was not measured."""
        found: list[float] = self.tests[test]["samples"][candidate]
        return found

    def middle(self, test: str, candidate: str) -> float:
        return median(self.samples(test, candidate))


@dataclass(frozen=True)
class Measured:
    """A median with four fifths of the rounds; `limit`: what the machine allows; `note`: how it came about."""

    value: float
    low: float
    high: float
    limit: float | None = None
    note: str = ""


def middle_of(values: Sequence[float], limit: float | None = None, note: str = "") -> Measured:
    tenths = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return Measured(median(values), tenths[0], tenths[-1], limit, note)


@dataclass(frozen=True)
class Row:
    """A target: lower is better, or with `faster` higher, and then the value is a rate's ratio.

    `peer`: what the candidate is measured in units of ("" for absolute numbers); `reference`: the place in REFERENCE
    for when the peer is not there; `limit`: candidates of the same test that together are what cannot be beaten, or
    (test, candidate, factor).
    """

    what: str
    test: str
    candidate: str
    target: float
    moonshot: float | None = None
    peer: str = ""
    reference: str = ""
    limit: tuple[str, ...] | tuple[str, str, float] = ()
    unit: str = "x"
    faster: bool = False

    def measured(self, run: Run) -> Measured:
        """KeyError when the run has not what it takes."""
        ours = run.samples(self.test, self.candidate)
        if not self.peer:
            return middle_of(ours, self._limit(run, [1.0] * len(ours)))
        try:
            peer, note = run.samples(self.test, self.peer), ""
        except KeyError:
            theirs = REFERENCE[self.peer, self.reference]
            peer = [each * theirs for each in run.samples(self.test, "DPDK")]
            note = f"{self.peer} by its ratio to DPDK elsewhere"
        ratios = [self._ratio(a, b) for a, b in zip(ours, peer, strict=True)]
        return middle_of(ratios, self._limit(run, peer), note)

    def _limit(self, run: Run, peer: list[float]) -> float | None:
        try:
            match self.limit:
                case ():
                    return None
                case (str(test), str(candidate), float(factor)):
                    return self._ratio(factor * run.middle(test, candidate), median(peer))
                case candidates:
                    parts = [run.samples(self.test, str(each)) for each in candidates]
                    floors = map(sum, zip(*parts, strict=True))
                    return median(self._ratio(a, b) for a, b in zip(floors, peer, strict=True))
        except KeyError:
            return None

    def _ratio(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.faster else ours / theirs

    def met(self, value: float, bound: float | None) -> bool:
        return bound is not None and (value >= bound if self.faster else value <= bound)

    def verdict(self, found: Measured) -> str:
        if self.met(found.value, self.moonshot):
            return "moonshot"
        if self.met(found.value, self.target):
            return "pass"
        limit = found.limit
        if limit is not None and not self.met(limit, self.target) and not self.met(found.value, limit):
            return "MISS (beyond the limit here)"
        return "MISS"

    def shown(self, bound: float | None) -> str:
        return "" if bound is None else f"{'>=' if self.faster else '<='} {bound:g} {self.unit}".rstrip()

    def number(self, value: float) -> str:
        digits = 2 if (value < 10 and value != int(value)) or self.unit == "x" else 0
        return f"{value:.{digits}f} {self.unit}".rstrip()

    def cells(self, run: Run) -> list[str]:
        """what, measured, its spread, limit here, target, moonshot, verdict."""
        try:
            found = self.measured(run)
        except KeyError:
            return [self.what, "not measured", "", "", self.shown(self.target), self.shown(self.moonshot), ""]
        spread = ""
        if found.high > found.low:
            spread = f"{self.number(found.low).split()[0]}..{self.number(found.high).split()[0]}"
        limit = "" if found.limit is None else self.number(found.limit)
        verdict = self.verdict(found) + (f"; {found.note}" if found.note else "")
        bounds = [self.shown(self.target), self.shown(self.moonshot)]
        return [self.what, self.number(found.value), spread, limit, *bounds, verdict]


def idle(metric: str) -> str:
    return f"test_idle[{metric}]"


ONE, BATCH, CIMPORT = "test_one_packet[{}]", "test_over_the_batch[{}]", "test_a_pair_without_the_gil[{}]"
ALIGNED, CLIFF = "test_from_a_page_aligned_buffer[{}]", "test_at_the_cliff[{}]"
WAY, COUNTED, IDLE = "test_one_way[64]", "test_instructions", "test_import_and_growth"
IN_PLACE, LISTS = "hvring, batches of 7, seen in place", "hvring, list to array"
AGENT, LOOKING = "hvring run, six services", "test_looking_before_sleeping[0]"
FLOOR = ("two empty calls", "memcpy")
LOOKS = "echo in C that looks"
RESIDENT = ("test_resident", "python and asyncio", 1.0)

ROWS = [
    Row(
        "send + recv_into, time to DPDK's pair in C", ONE.format(64), "hvring", 1.25, 1.0, "DPDK", limit=FLOOR
    ),
    Row(
        "send + recv_into, instructions",
        COUNTED,
        "send + recv_into",
        650,
        517,
        limit=("two empty calls",),
        unit="",
    ),
    Row(
        "send + recv_bytes, time to DPDK", ONE.format(64), "hvring, to bytes", 1.38, None, "DPDK", limit=FLOOR
    ),
    Row(
        "send + recv to a Packet, time to DPDK",
        ONE.format(64),
        "hvring, to a Packet",
        1.9,
        1.5,
        "DPDK",
        limit=FLOOR,
    ),
    Row(
        "batch of 64, array to array, to linux_hv",
        BATCH.format(64),
        "hvring",
        0.5,
        0.42,
        "linux_hv",
        "64",
        ("memcpy",),
    ),
    Row(
        "batch of 64, array to array, to DPDK",
        BATCH.format(64),
        "hvring",
        0.3,
        0.25,
        "DPDK",
        limit=("memcpy",),
    ),
    Row(
        "batch of 64, list to array, to linux_hv",
        BATCH.format(64),
        LISTS,
        0.5,
        0.42,
        "linux_hv",
        "64",
        ("memcpy",),
    ),
    Row("batch of 64, list to array, to DPDK", BATCH.format(64), LISTS, 0.3, 0.25, "DPDK", limit=("memcpy",)),
    Row("batch of 64, instructions", COUNTED, "send_batch + recv_batch of 64", 190, unit=""),
    Row(
        "cimport without the GIL, to linux_hv",
        CIMPORT.format(64),
        "hvring",
        0.55,
        0.5,
        "linux_hv",
        "64",
        ("memcpy",),
    ),
    Row(
        "two processes, batches, rate to linux_hv",
        WAY,
        "hvring",
        4,
        6,
        "linux_hv",
        "two processes",
        ("handed over, in batches",),
        faster=True,
    ),
    Row(
        "two processes, batches, rate to openvmm_b",
        WAY,
        "hvring",
        1.6,
        2.5,
        "openvmm_b",
        "two processes",
        ("handed over, in batches",),
        faster=True,
    ),
    Row(
        "two processes, a call per packet, rate to linux_hv",
        WAY,
        "hvring, one call per packet",
        0.5,
        1,
        "linux_hv",
        "two processes",
        ("handed over",),
        faster=True,
    ),
    Row("4 KiB pair, to linux_hv", ONE.format(4096), "hvring", 0.7, 0.65, "linux_hv", "4096", FLOOR),
    Row(
        "4 KiB in batches of 7 seen in place, to linux_hv",
        ALIGNED.format(4096),
        IN_PLACE,
        0.7,
        0.65,
        "linux_hv",
        "4096",
    ),
    Row(
        "16 KiB in batches of 7 seen in place, to linux_hv",
        ALIGNED.format(16384),
        IN_PLACE,
        0.7,
        0.65,
        "linux_hv",
    ),
    Row(
        "4072 B from a page-aligned buffer, to linux_hv",
        ALIGNED.format(4072),
        "hvring",
        0.1,
        None,
        "linux_hv",
        "4072",
        FLOOR,
    ),
    Row(
        "4072 B where glibc's copy is worst, to linux_hv",
        CLIFF.format(4072),
        "hvring",
        0.1,
        None,
        "linux_hv",
        "4072",
        FLOOR,
    ),
    Row(
        "round trip, spinning, median to linux_hv",
        "test_spinning",
        "hvring",
        1.3,
        1.0,
        "linux_hv",
        "round trip",
        ("test_a_line_there_and_back", "line", 2.0),
    ),
    Row(
        "round trip, sleeping, median to C with eventfd",
        "test_sleeping",
        "hvring",
        1.1,
        peer="DPDK and eventfd",
    ),
    *(
        Row(f"the same, {how}", LOOKING, candidate, 1.1, 0.5, "DPDK and eventfd")
        for how, candidate in (
            ("both look before they sleep, 100 % of a processor", "hvring, both look at 100 %"),
            ("both look, 5 % of a processor", "hvring, both look"),
            ("one looks, 100 % of a processor", "hvring, one looks at 100 %"),
            ("one looks, 5 % of a processor", "hvring, one looks"),
        )
    ),
    Row(
        "from a wake-up in asyncio to the answer, to C with eventfd",
        "test_from_a_wake_up_to_the_answer",
        "asyncio",
        1.1,
        peer="DPDK and eventfd",
    ),
    *(
        Row(
            f"KVP {what.upper()} in a pool of {n:,}, time to hv_kvp_daemon",
            f"test_one_request[{n}-{what}]",
            "hvring run",
            target,
            moonshot,
            "hv_kvp_daemon",
            limit=(LOOKS,),
        )
        for n, what, target, moonshot in (
            (10, "get", 0.9, 0.5),
            (10, "enumerate", 0.9, 0.5),
            (10, "set", 0.5, None),
            (1000, "get", 0.6, None),
            (1000, "enumerate", 0.6, None),
            (1000, "set", 0.06, None),
        )
    ),
    *(
        Row(
            f"file to {where}, time to {daemon}",
            f"test_copy[{kind}]",
            "hvring run",
            1.0,
            0.6,
            daemon,
            limit=(LOOKS,) if kind == "memory" else (),  # the disk has its own
        )
        for kind, where in (("disk", "the disk"), ("memory", "a tmpfs"))
        for daemon in ("hv_fcopy_daemon", "hv_fcopy_uio_daemon")
    ),
    Row(
        "heartbeat beside a copy and a KVP flood, 99th percentile",
        "test_a_beat_beside_a_copy_and_a_flood",
        "hvring run",
        2,
        limit=("echo in asyncio",),
        unit="ms",
    ),
    Row(
        "other services beside a copy, 99th percentile",
        "test_others_beside_a_copy",
        "the slowest of them",
        50,
        unit="ms",
    ),
    Row(
        "agent, six services: start to first answers",
        "test_start_up",
        AGENT,
        120,
        limit=("python and asyncio",),
        unit="ms",
    ),
    Row("agent, six services, idle: memory", idle("rss"), AGENT, 18432, 16384, limit=RESIDENT, unit="KiB"),
    Row("agent, six services, idle: processor", idle("cpu"), AGENT, 0.05, unit="%"),
    Row("agent, six services, idle: wake-ups a message", idle("wakeups-per-message"), AGENT, 1, unit=""),
    Row(
        "from hvring import serve: memory of the process",
        "test_resident",
        "from hvring import serve",
        15872,
        limit=("python",),
        unit="KiB",
    ),
    Row("import hvring, memory", IDLE, "import_kib", 1536, unit="KiB"),
    Row("a ring object", IDLE, "ring_bytes", 1024, unit="bytes"),
    Row("growth after 200,000 packets", IDLE, "grown_kib", 0, unit="KiB"),
]

HEAD = ["64 bytes unless it says more", "measured", "spread", "limit here", "target", "moonshot", ""]
NOTES = """\
Ratios are medians of the ratios within each round, in which all candidates took turns; spread: four fifths of them.
limit here: what the same run measured without a ring (two copies of the payload by glibc; for Python also two calls of
nothing; between processes the copies with an index each way, or two round trips of a cache line); for answers a guest
in C that sends requests back, and looks for the next one before it sleeps; beside a load an event loop in Python that
does that; for the agent Python with asyncio alone. openvmm_b is not built here: it stands at 2.5 times DPDK's rate,
as measured once elsewhere."""


def text(run: Run) -> str:
    """The table for a terminal, of what this run asked for."""
    asked = [row for row in ROWS if row.test in run.tests]
    rows = [HEAD, *(row.cells(run) for row in asked)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if n in (0, 6) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    left_out = [f"{len(ROWS) - len(asked)} targets more are measured by other files here."]
    return "\n".join([*lines, "", NOTES, *(left_out if len(asked) < len(ROWS) else [])])


def markdown(run: Run) -> str:
    rows = [row.cells(run) for row in ROWS]
    rows = [[*row[:-1], row[-1].replace("MISS", "**MISS**")] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [HEAD, ["---"] * len(HEAD), *rows])
