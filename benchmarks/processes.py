# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of other processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def spent(*pids: int) -> float:
    """Processor seconds of all threads of these processes, to the nanosecond."""
    total = 0
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


@dataclass(frozen=True, slots=True)
class Footprint:
    """One process at one moment."""

    rss_kib: int
    private_kib: int  # of it, what no other process has
    seconds: float
    wakeups: int  # of all threads: how often they had slept
    faults: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        rollup = _fields(f"/proc/{pid}/smaps_rollup")
        wakeups = sum(
            _fields(f"/proc/{pid}/task/{thread}/status")["voluntary_ctxt_switches"]
            for thread in os.listdir(f"/proc/{pid}/task")
        )
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(
            rollup["Rss"],
            rollup["Private_Clean"] + rollup["Private_Dirty"],
            spent(pid),
            wakeups,
            int(stat[7]) + int(stat[9]),
        )


def _fields(path: str) -> dict[str, int]:
    """The numbers behind the names of such a file."""
    found = {}
    for line in Path(path).read_text().splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[0] if rest.split() else ""
        if number.isdigit():
            found[name] = int(number)
    return found
