# SPDX-License-Identifier: Apache-2.0
"""What does hvring cost while it does nothing: to import, in memory, per channel, after many packets?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import in_turns

ROOT = Path(__file__).parents[1]
CHILD = """
import json, sys, time
def rss():
    with open("/proc/self/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Private_Dirty")) + 0
def status(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key))
bare, start = status("VmRSS"), time.perf_counter_ns()
import hvring
took, after = time.perf_counter_ns() - start, status("VmRSS")
light = [m for m in ("numpy", "asyncio", "ctypes", "json.decoder") if m in sys.modules and m != "json.decoder"]
memory = bytearray(4096 + 65536)
ring, other = hvring.RingProducer(memory), hvring.RingConsumer(memory)
target = bytearray(64)
def work(n):
    for _ in range(n):
        ring.send(b"x" * 64); other.recv_into(target); ring.send(b"y" * 64); other.recv()
work(10000)
rss()  # which takes a page itself, the first time
before = rss()
work(100000)
grown = rss() - before
many = [hvring.RingProducer(bytearray(4096 + 64)) for _ in range(10)]
before = rss()
plain = bytearray(8192)
many = [hvring.RingConsumer(plain) for _ in range(10000)]
print(json.dumps({"import_ns": took, "import_kib": after - bare, "brought": light, "grown_kib": grown,
                  "object_bytes": sys.getsizeof(ring), "ring_bytes": (rss() - before) * 1024 / 10000}))
"""


def test_import_and_growth(benchmark: Any) -> None:
    rounds = 7 if benchmark.enabled else 1
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def once() -> dict[str, Any]:
        out = subprocess.run(
            [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True
        )
        found: dict[str, Any] = json.loads(out.stdout)
        return found

    runs = [once() for _ in range(rounds)]
    benchmark.extra_info["unit"] = "see the names"
    benchmark.extra_info["samples"] = {
        key: [run[key] for run in runs]
        for key in ("import_ns", "import_kib", "grown_kib", "object_bytes", "ring_bytes")
    }
    benchmark.pedantic(once, rounds=1)
    assert runs[0]["brought"] == []


RESIDENT = """
with open("/proc/self/status") as f:
    print(next(int(line.split()[1]) for line in f if line.startswith("VmRSS")))
"""


def test_resident(benchmark: Any) -> None:
    """KiB of a process that has imported this and nothing else."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def resident(words: str) -> float:
        command = [sys.executable, "-c", f"{words}\n{RESIDENT}"]
        return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    candidates = {
        "from hvring import serve": lambda: resident("from hvring import serve"),
        "python and asyncio": lambda: resident("import asyncio"),
        "python": lambda: resident("pass"),
    }
    in_turns(benchmark, candidates, unit="KiB", rounds=5)
